// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

const (
	defaultTokenTTL = 24 * time.Hour
	tokenRoom       = 4096
)

// tokenView has the token, or the file that it was written to.
type tokenView struct {
	Token string  `json:"token,omitempty"`
	File  string  `json:"file,omitempty"`
	TTL   float64 `json:"ttl_seconds"`
}

func newToken(a *app) *cobra.Command {
	root := group(&cobra.Command{Use: "token", Short: "Make tokens that let machines join"})
	root.AddCommand(newTokenCreate(a))
	return root
}

func newTokenCreate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token that lets one machine join, once",
		Long: `Makes a token that lets one machine join, once, with "distorch agent --join-file".
It holds a secret: give it to that machine alone. With --out it is written to a
file that only you can read, and not shown.`,
		Args: arguments(0),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	ttl := cmd.Flags().Duration("ttl", defaultTokenTTL, "how long it may wait to be used")
	out := cmd.Flags().String("out", "", "file to write it to; not one that is there already")
	force := cmd.Flags().Bool("force", false, "write over the file of --out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *out != "" && !*force && exists(*out) {
			return usage(fmt.Errorf("--out %s: there is a file of that name; name another, or write over it with --force", *out))
		}
		o, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer o.close()
		var file *outFile
		if *out != "" { // before a token is made that nobody gets
			if file, err = reserve(*out, tokenRoom, 0o600); err != nil {
				return err
			}
			defer file.abort()
		}
		answer, err := ask(cmd.Context(), o, "create token", o.Control.CreateToken, &pb.CreateTokenRequest{Ttl: durationpb.New(*ttl)})
		if err != nil {
			return err
		}
		v := tokenView{Token: answer.Token, TTL: ttl.Seconds()}
		if file != nil {
			if err := file.commit([]byte(answer.Token + "\n")); err != nil {
				return err
			}
			v.Token, v.File = "", *out
		}
		switch {
		case *format != output.Table:
			return output.Write(a.stdout, *format, v)
		case file != nil:
			return nil
		}
		_, err = fmt.Fprintln(a.stdout, answer.Token)
		return err
	}
	return cmd
}
