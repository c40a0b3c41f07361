// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures distorch and prints its figures as ratios: blocks of
// FLUX.1 against PyTorch on the CPU, instruction sets against each other, file
// reading against dd, three agents against one, forecasts against what was
// measured, searches for a plan against their targets. `bench real` runs a checkpoint of FLUX.1-dev's size on three agents
// of 6 GB.
//
// Every ratio is the median over rounds in which both sides take turns; the
// figures below it are the medians of the two sides. A target that is missed is
// printed as short and changes nothing else: how fast a machine is, is not a
// test. A side that cannot run, or an output that is wrong, is an error.
//
// Nothing imports it. It may import all of distorch.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// options of a run.
type options struct {
	rounds  int
	threads int
	python  string
	binary  string
	dir     string // for large files
	device  string // of bench gpu
	ring    int
	parts   *regexp.Regexp
	small   bool
	only    *regexp.Regexp
}

// section is one group of figures.
type section struct {
	name string
	what string
	run  func(context.Context, *options, *report) error
}

func sections() []section {
	return []section{
		{"blocks", "FLUX.1 blocks against PyTorch", blockFigures},
		{"isa", "instruction sets against their peaks", isaFigures},
		{"files", "reading a checkpoint", fileFigures},
		{"torch", "the torch engine against eager PyTorch on the CPU", torchFigures},
		{"offload", "blocks that stream against computing and copying alone", offloadFigures},
		{"stages", "three stages against one in one process", stageFigures},
		{"agents", "three agents against one, forecasts against measurements", agentFigures},
		{"endpoint", "the HTTPS endpoint: overhead, both branches of CFG, load", endpointFigures},
		{"donor", "a step whose blocks come out of another node's RAM", donorFigures},
		{"compress", "blocks in another node's RAM over slow links, compressed and as they are", compressFigures},
		{"placement", "search times and certificates on drawn clusters", placementFigures},
		{"comfy", "ComfyUI's API over scripted workers: loss, and overlap on a queue of 4", comfyFigures},
		{"placement-rivals", "other programs' rules against distorch's plan", rivalFigures},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := &options{}
	flags.IntVar(&o.rounds, "rounds", 9, "`rounds` of each comparison")
	flags.IntVar(&o.threads, "threads", 2, "`threads` of each side")
	flags.StringVar(&o.python, "python", filepath.FromSlash(".cache/venv/bin/python"), "Python `program` that has torch and numpy (make bench-venv)")
	flags.StringVar(&o.binary, "distorch", filepath.FromSlash("bin/distorch"), "distorch `program` (make build)")
	flags.StringVar(&o.dir, "dir", os.TempDir(), "`folder` for checkpoints while they are needed")
	only := flags.String("only", "", "run the sections that this `regexp` matches: "+names())
	flags.StringVar(&o.device, "device", "", "gpu: `device`, the first GPU otherwise")
	parts := flags.String("parts", "", "gpu: run the parts that this `regexp` matches: resident, streamed, rivals")
	flags.IntVar(&o.ring, "ring", 3, "gpu: `slots` of the ring")
	flags.BoolVar(&o.small, "small", false, "gpu: a small model, to try the program itself")
	all := sections()
	if len(args) > 0 && args[0] == "real" {
		all, args = []section{{"real", "a checkpoint of FLUX.1-dev's size on three agents of 6 GB", realFigures}}, args[1:]
	} else if len(args) > 0 && args[0] == "gpu" {
		all, args = []section{{"gpu", "FLUX.1-dev's shapes on a GPU, resident and under a cap of 12 GB", gpuFigures}}, args[1:]
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("there is no bench %q; there are real and gpu, and without a name all others", flags.Arg(0))
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if o.parts, err = regexp.Compile(*parts); err != nil {
		return fmt.Errorf("-parts: %w", err)
	}
	if o.rounds < 1 || o.threads < 1 {
		return fmt.Errorf("-rounds %d -threads %d: both must be 1 or more", o.rounds, o.threads)
	}
	dir, err := os.MkdirTemp(o.dir, "distorch-bench-")
	if err != nil {
		return fmt.Errorf("folder for checkpoints (-dir): %w", err)
	}
	defer os.RemoveAll(dir)
	o.dir = dir
	return runSections(ctx, o, all)
}

// runSections goes on after a section that failed, and says so in the end.
func runSections(ctx context.Context, o *options, all []section) error {
	r := newReport(os.Stdout)
	var failed []error
	for _, s := range all {
		if !o.only.MatchString(s.name) {
			continue
		}
		r.heading(s.what)
		if err := s.run(ctx, o, r); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			err = fmt.Errorf("%s: %w", s.name, err)
			r.note("failed: %v", err)
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func names() string {
	var all []string
	for _, s := range sections() {
		all = append(all, s.name)
	}
	return strings.Join(all, ", ")
}
