// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Command distorch runs one ComfyUI model across several machines: the
// coordinator, the agents and the operator's commands in one binary, a file per
// command.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is stamped by the linker: -X main.version=v0.1.0.
var version = "devel"

func main() {
	os.Exit(start())
}

// start ends the context at the first SIGINT or SIGTERM, so that everything
// ends in order, and the process at the second.
func start() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as nohup does
		signal.Notify(signals, syscall.SIGHUP) // the terminal was closed
	}
	defer signal.Stop(signals)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	go func() {
		s, ok := <-signals
		if !ok {
			return
		}
		cancel(interruptedError{s})
		if _, ok := <-signals; ok {
			a.abandon()
			os.Exit(exitInterrupted)
		}
	}()
	return a.run(ctx, os.Args[1:])
}
