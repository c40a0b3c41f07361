// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes. The root command's help documents them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitInfeasible  = 4
	exitUnreachable = 5
	exitBroken      = 6
	exitInterrupted = 130
)

const exitHelp = `Exit codes:
  0    done
  1    failed
  2    the command line, the configuration or the request is wrong
  3    there is no such node, model or deployment
  4    it cannot be done here: it does not fit, or is not supported
  5    a coordinator or node cannot be reached
  6    doctor found something broken
  130  interrupted`

// coded is an error with the exit code it ends the process with.
type coded struct {
	code int
	err  error
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

func usage(err error) error       { return withCode(exitUsage, err) }
func notFound(err error) error    { return withCode(exitNotFound, err) }
func infeasible(err error) error  { return withCode(exitInfeasible, err) }
func unreachable(err error) error { return withCode(exitUnreachable, err) }

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &coded{code, err}
}

// interruptedError is the cause of a context that a signal ended.
type interruptedError struct{ signal os.Signal }

func (e interruptedError) Error() string { return fmt.Sprintf("stopped by signal: %v", e.signal) }

func isInterrupt(err error) bool {
	var i interruptedError
	return errors.As(err, &i)
}

func exitCode(err error) int {
	var c *coded
	switch {
	case err == nil:
		return exitOK
	case isInterrupt(err):
		return exitInterrupted
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, context.DeadlineExceeded):
		return exitUnreachable
	}
	return exitFailure
}

// fromRPC turns what a coordinator answered into the error of a command: its
// text without gRPC's wrapping, with the exit code that belongs to it.
func fromRPC(what string, err error) error {
	var wire interface {
		error
		GRPCStatus() *status.Status
	}
	if !errors.As(err, &wire) {
		return err
	}
	s := wire.GRPCStatus()
	message := s.Message()
	for _, broken := range []string{"connection error: ", "error reading from server: "} {
		if rest, ok := strings.CutPrefix(message, broken); ok { // gRPC's own words, here
			rest = strings.TrimPrefix(strings.TrimSuffix(rest, `"`), `desc = "transport: `)
			message = "the connection to the coordinator broke: " + rest
		}
	}
	text := strings.Replace(err.Error(), wire.Error(), message, 1)
	if what != "" {
		text = what + ": " + text
	}
	code, known := map[codes.Code]int{
		codes.InvalidArgument:    exitUsage,
		codes.NotFound:           exitNotFound,
		codes.FailedPrecondition: exitInfeasible,
		codes.ResourceExhausted:  exitInfeasible,
		codes.Unimplemented:      exitInfeasible,
		codes.Unavailable:        exitUnreachable,
		codes.DeadlineExceeded:   exitUnreachable,
	}[s.Code()]
	if !known {
		code = exitFailure
	}
	return withCode(code, errors.New(text))
}
