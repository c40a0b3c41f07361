// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/distorch/distorch/cmd/internal/assemble"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/transport/identity"
)

// agentFlags are the flags that `agent` and `up` share.
func agentFlags(flags *pflag.FlagSet) {
	config.Flag(flags, "name", "agent.name", "name of this node (default: the host's name)")
	config.Flag(flags, "memory", "agent.memory", "RAM for the agent (96 MB) and its stages, such as 6GB (default: nine tenths of what is free)")
	config.Flag(flags, "reserve", "agent.reserve", "part of that memory to keep free")
	config.Flag(flags, "donate", "agent.donate", "part of that memory that blocks of other nodes' stages may take, or none (default: what its own stages leave)")
	config.Flag(flags, "threads", "agent.threads", "threads that compute (default: cores divided by the agents on this host)")
	config.Flag(flags, "device", "agent.devices", "what may be used of a device, such as 'cuda:1 off' or 'cuda:0 memory=8GB reserve=1GB'; 'sim:0 memory=2GiB h2d=4GB/s' simulates one")
	config.Flag(flags, "cpu-isa", "agent.cpu_isa", "instruction set: auto, avx512bf16, avx512, avx2 or generic")
	config.Flag(flags, "models", "models.dirs", "folders with checkpoints")
}

// agentCommand is `distorch agent`.
type agentCommand struct {
	*app
	join, readyFile string
}

func newAgent(a *app) *cobra.Command {
	c := &agentCommand{app: a}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this machine as a node of a cluster",
		Long: `Runs this machine as a node: it joins by a token the first time, reports its
device and its checkpoints, and loads and runs the stages that plans give it.

A token comes from "distorch token create" on the coordinator. It works once;
afterwards the identity in --data-dir is enough.`,
		Args: arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	flags := cmd.Flags()
	agentFlags(flags)
	config.Flag(flags, "listen", "agent.listen", "address of this node's one port")
	config.Flag(flags, "advertise", "agent.advertise", "host:port at which other nodes reach this one (default: the listening address)")
	config.Flag(flags, "join-file", "agent.join_file", "file with a join token; - reads standard input")
	flags.StringVar(&c.join, "join", "", "one-time join token itself (a file is safer: others on this machine see flags)")
	flags.StringVar(&c.readyFile, "ready-file", "", "write {\"address\",\"data_dir\"} to this file once registered")
	return cmd
}

func (c *agentCommand) run(cmd *cobra.Command) error {
	cfg, log, err := c.load(cmd)
	if err != nil {
		return err
	}
	if err := assemble.Check(cfg); err != nil { // before a token is used up
		return usage(err)
	}
	dir, err := identity.OpenDir(cfg.DataDir)
	if err != nil {
		return err
	}
	token, err := c.token(cfg.Agent.JoinFile)
	if err != nil {
		return err
	}
	if token != "" {
		if err := assemble.JoinCluster(cmd.Context(), dir, token, cfg.Agent.Name); err != nil {
			return err
		}
	}
	return assemble.Agent{
		Config: cfg, Dir: dir, Version: version, Log: log,
		Ready: func(address string) { c.ready(log, c.readyFile, address, dir.Path()) },
	}.Run(cmd.Context())
}

// maxTokenFile bounds what is read of a token's file.
const maxTokenFile = 64 << 10

func (c *agentCommand) token(file string) (string, error) {
	switch {
	case c.join != "" && file != "":
		return "", usage(errors.New("--join and --join-file are both given; use one"))
	case c.join != "":
		return c.join, nil
	case file == "":
		return "", nil
	}
	in := c.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("join token: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxTokenFile))
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// ready tells a supervising program that the process serves.
func (a *app) ready(log *slog.Logger, file, address, dataDir string) {
	if file == "" {
		return
	}
	b, err := json.Marshal(map[string]string{"address": address, "data_dir": dataDir})
	if err == nil {
		err = writeAtomic(file, append(b, '\n'))
	}
	if err != nil {
		log.Error("ready file not written", "path", file, "error", err)
	}
}

// writeAtomic lets no reader see half a file.
func writeAtomic(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".ready-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
