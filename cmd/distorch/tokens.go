// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// tokensOf are the names of clients with a token.
func tokensOf(ctx context.Context, o *operator) []string {
	all, err := o.Control.ListTokens(ctx, &pb.ListTokensRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, c := range all.Clients {
		names = append(names, c.Name)
	}
	return names
}

// clientView is a client's token, without its secret.
type clientView struct {
	Name    string    `json:"name"`
	Scopes  []string  `json:"scopes"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Expired bool      `json:"expired"`
}

func newTokenList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tokens of the HTTPS endpoint's clients",
		Args:  arguments(0),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.connected(func(cmd *cobra.Command, o *operator, _ []string) error {
		answer, err := ask(cmd.Context(), o, "list tokens", o.Control.ListTokens, &pb.ListTokensRequest{})
		if err != nil {
			return err
		}
		views := []clientView{}
		for _, c := range answer.Clients {
			expires := time.Unix(c.ExpiresUnix, 0).UTC()
			views = append(views, clientView{c.Name, append([]string{}, c.Scopes...), time.Unix(c.CreatedUnix, 0).UTC(), expires, time.Now().After(expires)})
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, views)
		}
		rows := [][]string{}
		for _, v := range views {
			expires := v.Expires.Format(time.DateOnly)
			if v.Expired {
				expires += " (expired)"
			}
			rows = append(rows, []string{v.Name, strings.Join(v.Scopes, ","), v.Created.Format(time.DateOnly), expires})
		}
		return output.WriteTable(a.stdout, []string{"CLIENT", "SCOPES", "CREATED", "EXPIRES"}, rows)
	})
	return cmd
}

func newTokenRevoke(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "End the token of a client of the HTTPS endpoint, at once",
		Args:  arguments(1, "NAME"),
	}
	operatorFlags(cmd)
	cmd.RunE = a.connected(func(cmd *cobra.Command, o *operator, args []string) error {
		if _, err := ask(cmd.Context(), o, "revoke token", o.Control.RevokeToken, &pb.RevokeTokenRequest{Client: args[0]}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "the token of client %s works no longer\n", args[0])
		return err
	})
	return cmd
}
