// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Command testsum runs the module's tests and closes with what a reader of a
// long log looks for: the slowest packages, the tests that were skipped and
// why, and what failed.
//
// `make test` runs it. It imports the standard library alone, so that it works
// in a fresh clone.
//
//	testsum [-race=auto|on|off] [-plain prefix,prefix] [-args "-timeout 20m"] [package...]
//
// Packages below a -plain prefix run without the race detector; the rest run
// with it where there is a C compiler.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ok, err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
	}
	if err != nil || !ok {
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (passed bool, err error) {
	fs := flag.NewFlagSet("testsum", flag.ContinueOnError)
	race := fs.String("race", "auto", "race detector: auto, on or off")
	plain := fs.String("plain", "", "import path prefixes, below the module, that run without it")
	extra := fs.String("args", "", "arguments of go test")
	if err := fs.Parse(args); err != nil {
		return false, err
	}
	patterns := fs.Args()
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	why, err := raceMissing(ctx, *race)
	if err != nil {
		return false, err
	}
	groups, err := group(ctx, patterns, strings.FieldsFunc(*plain, func(r rune) bool { return r == ',' }), why == "")
	if err != nil {
		return false, err
	}
	s := newSummary(out)
	for _, g := range groups {
		if err := goTest(ctx, s, g, strings.Fields(*extra)); err != nil {
			return false, err
		}
	}
	s.close()
	if why != "" {
		fmt.Fprintf(out, "race detector off: %s\n", why)
	}
	return s.passed(), nil
}

// packages is a set of packages that are tested alike.
type packages struct {
	race  bool
	paths []string
}

func group(ctx context.Context, patterns, plain []string, race bool) ([]packages, error) {
	module, err := output(ctx, "go", "list", "-m")
	if err != nil {
		return nil, err
	}
	list, err := output(ctx, "go", append([]string{"list"}, patterns...)...)
	if err != nil {
		return nil, err
	}
	var raced, rest packages
	raced.race = true
	for path := range strings.FieldsSeq(list) {
		if race && !below(strings.TrimPrefix(path, module+"/"), plain) {
			raced.paths = append(raced.paths, path)
		} else {
			rest.paths = append(rest.paths, path)
		}
	}
	var groups []packages
	for _, g := range []packages{rest, raced} {
		if len(g.paths) > 0 {
			groups = append(groups, g)
		}
	}
	return groups, nil
}

func below(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// raceMissing says why the race detector is off, "" when it is on.
func raceMissing(ctx context.Context, mode string) (why string, err error) {
	switch mode {
	case "on":
		return "", nil
	case "off":
		return "asked for", nil
	case "auto":
	default:
		return "", fmt.Errorf("-race=%s: want auto, on or off", mode)
	}
	cc, err := output(ctx, "go", "env", "CC")
	if err != nil {
		return "", err
	}
	compiler, _, _ := strings.Cut(cc, " ")
	if _, err := exec.LookPath(compiler); err != nil {
		return fmt.Sprintf("it needs a C compiler and there is no %s", compiler), nil
	}
	return "", nil
}

func goTest(ctx context.Context, s *summary, g packages, extra []string) error {
	args := append([]string{"test", "-json"}, extra...)
	if g.race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, g.paths...)...)
	if g.race {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		if os.Getenv("CGO_CFLAGS") == "" { // go-nvml declares what NVIDIA will take away
			cmd.Env = append(cmd.Env, "CGO_CFLAGS=-O2 -g -Wno-deprecated-declarations")
		}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	readErr := s.read(events, g.race)
	err = cmd.Wait()
	if readErr != nil {
		return fmt.Errorf("read go test: %w", readErr)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		s.failed = true // a package that does not build may leave no event
		return ctx.Err()
	}
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
