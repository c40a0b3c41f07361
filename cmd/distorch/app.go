// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/placement/cluster"
)

// app is what every command is made with: where it writes, and how it comes to
// its configuration. Results go to stdout; logs, progress and the one line of
// an error to stderr.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	configFile     string
	scratch        atomic.Pointer[string] // folder that must not outlive the process
}

// abandon takes the scratch folder away from a process that ends before what it
// has started. Files that others write meanwhile make a second try of use.
func (a *app) abandon() {
	dir := a.scratch.Load()
	for range 3 {
		if dir == nil || os.RemoveAll(*dir) == nil {
			return
		}
	}
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if cause := context.Cause(ctx); isInterrupt(cause) {
		err = cause
	}
	for _, line := range errorLines(err) {
		fmt.Fprintf(a.stderr, "distorch: %s\n", line)
	}
	if shown, ok := errors.AsType[interface {
		error
		Picture() string
	}](err); ok {
		for line := range strings.SplitSeq(shown.Picture(), "\n") {
			fmt.Fprintf(a.stderr, "  %s\n", line)
		}
	}
	return exitCode(err)
}

// errorLines are what is shown of an error: one line, or one for each problem of
// a cluster file, which names its place in the file.
func errorLines(err error) []string {
	if file, ok := errors.AsType[*cluster.Error](err); ok {
		return strings.Split(file.Error(), "\n")
	}
	return []string{oneLine(err)}
}

// oneLine joins the lines of an error that names several faults.
func oneLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "; ")
}

// load reads the configuration for a command: its flags that were made with
// config.Flag, the environment, the file of --config, the defaults. The logger
// writes to stderr as log.level and log.format say.
func (a *app) load(cmd *cobra.Command) (*config.Config, *slog.Logger, error) {
	cfg, err := config.Load(cmd.Flags(), a.configFile)
	if err != nil {
		return nil, nil, usage(err)
	}
	return cfg, newLogger(a.stderr, cfg.Log), nil
}

func newLogger(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	if level.UnmarshalText([]byte(c.Level)) != nil {
		level = slog.LevelInfo // config has refused every other word
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
