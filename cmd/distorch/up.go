// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/cmd/internal/assemble"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/transport/identity"
)

// upCommand is `distorch up` and `distorch coordinator`.
type upCommand struct {
	*app
	withAgent, noAgent bool
	readyFile          string
}

// coordinatorFlags are the flags that `up` and `coordinator` share.
func (c *upCommand) coordinatorFlags(flags *pflag.FlagSet) {
	config.Flag(flags, "listen", "coordinator.listen", "address of the coordinator's one port")
	config.Flag(flags, "advertise", "coordinator.advertise", "host:port at which others reach it (default: the listening address)")
	config.Flag(flags, "etcd", "coordinator.etcd.endpoints", "URLs of an etcd cluster to use instead of the embedded one")
	config.Flag(flags, "etcd-listen", "coordinator.etcd.client_listen", "address of the embedded etcd")
	config.Flag(flags, "comfy-listen", "comfy.listen", "address of ComfyUI's own API, such as 127.0.0.1:8188 (default: off)")
	flags.StringVar(&c.readyFile, "ready-file", "", "write {\"address\",\"data_dir\"} to this file once everything answers")
}

func newUp(a *app) *cobra.Command {
	c := &upCommand{app: a, withAgent: true}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a coordinator, an etcd and an agent on this machine",
		Long: `Runs everything on this machine: a coordinator with its own certificate
authority, an etcd inside, and an agent. Other machines join with
"distorch agent" and a token of "distorch token create"; for that, --listen and
--etcd-listen must be addresses that they can reach.`,
		Args: arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	c.coordinatorFlags(cmd.Flags())
	agentFlags(cmd.Flags())
	config.Flag(cmd.Flags(), "agent-listen", "agent.listen", "address of the agent's one port")
	cmd.Flags().BoolVar(&c.noAgent, "no-agent", false, "run no agent on this machine")
	return cmd
}

func newCoordinator(a *app) *cobra.Command {
	c := &upCommand{app: a}
	cmd := &cobra.Command{
		Use:   "coordinator",
		Short: "Run a coordinator alone, with an etcd inside or beside it",
		Args:  arguments(0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	c.coordinatorFlags(cmd.Flags())
	return cmd
}

func (c *upCommand) run(cmd *cobra.Command) error {
	cfg, log, err := c.load(cmd)
	if err != nil {
		return err
	}
	if c.withAgent && !c.noAgent {
		if err := assemble.Check(cfg); err != nil {
			return usage(err)
		}
	}
	dir, err := identity.OpenDir(cfg.DataDir)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(cmd.Context())
	g.Go(func() error {
		return assemble.Coordinator{
			Config: cfg, Dir: dir, Version: version, Log: log,
			Ready: func(ctx context.Context, address string) {
				if !c.withAgent || c.noAgent {
					c.announce(log, address, dir.Path())
					return
				}
				g.Go(func() error { return c.agent(ctx, cfg, dir, log, address) })
			},
		}.Run(ctx)
	})
	return g.Wait()
}

// agent runs this machine's own agent, which needs no token: the machine holds
// the CA.
func (c *upCommand) agent(ctx context.Context, cfg *config.Config, dir identity.Dir, log *slog.Logger, coordinator string) error {
	if err := assemble.LocalAgent(ctx, dir, cfg.Agent.Name, time.Now()); err != nil {
		return err
	}
	return assemble.Agent{
		Config: cfg, Dir: dir, Version: version, Log: log,
		Ready: func(string) { c.announce(log, coordinator, dir.Path()) },
	}.Run(ctx)
}

func (c *upCommand) announce(log *slog.Logger, address, dataDir string) {
	fmt.Fprintf(c.stderr, "distorch: coordinator ready at %s\n", address)
	c.ready(log, c.readyFile, address, dataDir)
}
