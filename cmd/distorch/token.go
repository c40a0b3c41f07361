// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

const (
	defaultTokenTTL = 24 * time.Hour
	clientTokenTTL  = 365 * 24 * time.Hour
	tokenRoom       = 4096
)

// tokenView has the token, or the file that it was written to.
type tokenView struct {
	Token  string   `json:"token,omitempty"`
	File   string   `json:"file,omitempty"`
	TTL    float64  `json:"ttl_seconds"`
	Client string   `json:"client,omitempty"`
	Scopes []string `json:"scopes,omitempty"`
}

func newToken(a *app) *cobra.Command {
	root := group(&cobra.Command{Use: "token", Short: "Make tokens that let machines join and programs call the HTTPS endpoint"})
	root.AddCommand(newTokenCreate(a), newTokenList(a), newTokenRevoke(a))
	return root
}

func newTokenCreate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token that lets one machine join, once, or a program call the HTTPS endpoint",
		Long: `Makes a token that lets one machine join, once, with "distorch agent --join-file".
It holds a secret: give it to that machine alone. With --out it is written to a
file that only you can read, and not shown.

With --client NAME it makes a connection line instead: addresses, the cluster's
CA and a secret, for a program that calls the HTTPS endpoint, such as ComfyUI's
node pack. It works until it expires or "distorch token revoke NAME" ends it.`,
		Args: arguments(0),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	ttl := cmd.Flags().Duration("ttl", defaultTokenTTL, "how long it may wait to be used; how long a client's works (8760h unless given)")
	client := cmd.Flags().String("client", "", "name of the client of the HTTPS endpoint that it is for")
	scopes := cmd.Flags().StringSlice("scopes", nil, "what the client may do: run, deploy, lend; all of it unless given")
	out := cmd.Flags().String("out", "", "file to write it to; not one that is there already")
	force := cmd.Flags().Bool("force", false, "write over the file of --out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *out != "" && !*force && exists(*out) {
			return usage(fmt.Errorf("--out %s: there is a file of that name; name another, or write over it with --force", *out))
		}
		if *client == "" && len(*scopes) > 0 {
			return usage(errors.New("--scopes says what a client may do; name it with --client"))
		}
		if *client != "" && !cmd.Flags().Changed("ttl") {
			*ttl = clientTokenTTL
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
		answer, err := ask(cmd.Context(), o, "create token", o.Control.CreateToken, &pb.CreateTokenRequest{Ttl: durationpb.New(*ttl), Client: *client, Scopes: *scopes})
		if err != nil {
			return err
		}
		v := tokenView{Token: answer.Token, TTL: ttl.Seconds(), Client: *client, Scopes: *scopes}
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
