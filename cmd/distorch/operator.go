// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/distorch/distorch/cmd/internal/client"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/cmd/internal/output"
)

// operatorFlags are the flags of a command that asks a coordinator.
func operatorFlags(cmd *cobra.Command) {
	config.Flag(cmd.Flags(), "coordinator", "client.coordinator", "address of a coordinator; without it, those that the data directory knows")
	config.Flag(cmd.Flags(), "timeout", "client.timeout", "limit of one call that does not compute")
}

// outputName is the flag -o in full.
const outputName = "output"

// outputFlag adds -o.
func outputFlag(cmd *cobra.Command) *output.Format {
	format := output.Table
	cmd.Flags().VarP(&format, "output", "o", "how to print the result")
	return &format
}

// operator is a command's connection to a coordinator.
type operator struct {
	*client.Conn
	log     *slog.Logger
	timeout time.Duration
}

// connect finds a coordinator as the configuration says. Close it.
func (a *app) connect(cmd *cobra.Command) (*operator, error) {
	cfg, log, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	c := client.Config{DataDir: cfg.DataDir, Address: cfg.Client.Coordinator, Timeout: cfg.Client.Timeout}
	if cfg.Origin("client.coordinator").Source == "default" {
		c.Address, c.Default = "", cfg.Client.Coordinator
	}
	conn, err := client.Connect(cmd.Context(), c)
	if errors.Is(err, client.ErrUnreachable) {
		return nil, unreachable(err)
	}
	if err != nil {
		return nil, err
	}
	return &operator{Conn: conn, log: log, timeout: cfg.Client.Timeout}, nil
}

// connected runs what a command does with a connection to a coordinator.
func (a *app) connected(run func(cmd *cobra.Command, o *operator, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		o, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer o.close()
		return run(cmd, o, args)
	}
}

func (o *operator) close() {
	if err := o.Conn.Close(); err != nil {
		o.log.Warn("close connection", "coordinator", o.Address, "error", err)
	}
}

// ask makes one call with the operator's deadline.
func ask[Q, A any](ctx context.Context, o *operator, what string, call func(context.Context, Q, ...grpc.CallOption) (A, error), q Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	answer, err := call(ctx, q)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = unreachable(fmt.Errorf("coordinator %s did not answer in %s; --timeout allows more", o.Address, o.timeout))
		}
		return answer, fromRPC(what, err)
	}
	return answer, nil
}
