// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/verify"
)

// errVerify is the error of a verification that found something off.
var errVerify = errors.New("verification failed")

// verifyFlags are what `distorch verify` can be told.
type verifyFlags struct {
	engine  string
	stages  int
	isa     string
	threads int
	python  string
	device  string
	stored  bool
	output  output.Format
}

func newVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify DIR...",
		Short: "Run golden cases on this machine's engine and compare the outputs",
		Long: `Runs golden case folders (a model, inputs and the outputs that upstream code
gave for them) on this machine, and prints one record per output: how far it is
off, what is allowed, the first inner value that is off, and the BLAKE3 digest of
the output's bytes, which is the same on every machine of a numerics class.

A DIR is a case folder or a folder of them. The exit status is 1 when an output is
beyond its tolerance or a case cannot be run. The table sums up inner values that
are within their tolerance; the JSON and YAML forms, an array, list all.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(fmt.Errorf("%s needs the folder of a case; %q shows how", cmd.CommandPath(), cmd.CommandPath()+" --help"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runVerify(cmd, args, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.engine, "engine", "native", "engine to run on: "+strings.Join(choices("engine"), " or "))
	flags.IntVar(&f.stages, "stages", 1, "cut the model in so many stages, at most one per block")
	flags.StringVar(&f.isa, "isa", "auto", "instruction sets, the stages take them by turns: "+strings.Join(choices("isa"), ", "))
	flags.IntVar(&f.threads, "threads", 0, "worker threads per stage; 0: one per core")
	flags.StringVar(&f.python, "python", "", "with --engine torch: the Python whose PyTorch is used (default: a ComfyUI's or the one on PATH)")
	flags.StringVar(&f.device, "device", "", "with --engine torch: the device, such as cuda:0 or cpu (default: the first GPU, else the CPU)")
	flags.BoolVar(&f.stored, "stored", false, "keep weights as in the file and expand them for every block")
	f.output = output.Table
	flags.VarP(&f.output, "output", "o", "how to print the records")
	return cmd
}

// layout makes the engines; end ends what they started.
func (f verifyFlags) layout(ctx context.Context) (l verify.Layout, end func() error, err error) {
	l, end = verify.Layout{Stages: f.stages, Stored: f.stored}, func() error { return nil }
	if err := chosen("engine", f.engine); err != nil {
		return l, end, err
	}
	if f.stages < 1 {
		return l, end, fmt.Errorf("--stages %d: at least 1", f.stages)
	}
	if f.threads < 0 {
		return l, end, fmt.Errorf("--threads %d: 0 for one per core, or more", f.threads)
	}
	if f.engine == "torch" {
		e, err := f.torch(ctx)
		if err != nil {
			return l, end, err
		}
		l.Engines = []engine.Engine{e}
		return l, e.Close, nil
	}
	if f.python != "" || f.device != "" {
		return l, end, errors.New("--python and --device go with --engine torch")
	}
	for name := range strings.SplitSeq(f.isa, ",") {
		name = strings.TrimSpace(name)
		if err := chosen("isa", name); err != nil {
			return l, end, err
		}
		i, err := isa.Parse(name)
		if err != nil {
			return l, end, err
		}
		e, err := native.New(native.Config{ISA: i, Threads: f.threads})
		if err != nil {
			return l, end, err
		}
		l.Engines = append(l.Engines, engine.Engine(e))
	}
	return l, end, nil
}

// torch is one worker for all stages.
func (f verifyFlags) torch(ctx context.Context) (*torch.Engine, error) {
	found, err := torch.First(ctx, torch.Search{Python: f.python})
	if err != nil {
		return nil, err
	}
	return torch.New(torch.Config{Python: found.Python, Threads: f.threads, Only: engine.DeviceID(f.device)})
}

func runVerify(cmd *cobra.Command, dirs []string, f verifyFlags) (err error) {
	l, end, err := f.layout(cmd.Context())
	if err != nil {
		return usage(err)
	}
	defer func() { err = errors.Join(err, end()) }()
	var p verifyPrinter = newVerifyTable(cmd.OutOrStdout())
	switch f.output {
	case output.JSON:
		p = &verifyJSON{w: cmd.OutOrStdout()}
	case output.YAML:
		p = &verifyYAML{w: cmd.OutOrStdout()}
	}
	count, failed := 0, 0
	var printing error
	err = verify.Run(cmd.Context(), l, dirs, func(r verify.Record) {
		count++
		if !r.OK() {
			failed++
		}
		printing = errors.Join(printing, p.add(r))
	})
	if cmd.Context().Err() == nil {
		err = usage(err) // of the folders
	}
	if err := errors.Join(err, printing, p.end()); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%w: %d of %d outputs are off or could not be computed", errVerify, failed, count)
	}
	return nil
}

type verifyPrinter interface {
	add(r verify.Record) error
	end() error
}

// verifyJSON prints an array, one record per line.
type verifyJSON struct {
	w     io.Writer
	begun bool
}

func (p *verifyJSON) add(r verify.Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	before := "[\n"
	if p.begun {
		before = ",\n"
	}
	p.begun = true
	_, err = fmt.Fprintf(p.w, "%s%s", before, text)
	return err
}

func (p *verifyJSON) end() error {
	text := "\n]\n"
	if !p.begun {
		text = "[]\n"
	}
	_, err := io.WriteString(p.w, text)
	return err
}

// verifyYAML prints a sequence; one of one record after the other is one of all.
type verifyYAML struct {
	w     io.Writer
	begun bool
}

func (p *verifyYAML) add(r verify.Record) error {
	p.begun = true
	return output.WriteYAML(p.w, []verify.Record{r})
}

func (p *verifyYAML) end() error {
	if p.begun {
		return nil
	}
	return output.WriteYAML(p.w, []verify.Record{})
}

// verifyTable prints a row per output; inner values that are right are summed
// up in one row per case and dtype.
type verifyTable struct {
	w      *tabwriter.Writer
	inner  verify.Record // the worst of those not printed yet
	inners int
	begun  bool
}

func newVerifyTable(w io.Writer) *verifyTable {
	return &verifyTable{w: tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
}

func (p *verifyTable) add(r verify.Record) error {
	kind, _, isInner := strings.Cut(r.Output, ".")
	isInner = isInner && strings.HasPrefix(kind, "tap") && r.OK()
	if p.inners > 0 && (!isInner || p.inner.Case != r.Case || p.inner.DType != r.DType) {
		p.flushInner()
	}
	if !isInner {
		p.row(r, r.Output)
		return nil
	}
	if p.inners == 0 || r.Error > p.inner.Error {
		p.inner = r
	}
	p.inners++
	return nil
}

func (p *verifyTable) flushInner() {
	r := p.inner
	r.Digest, r.Note = "", "worst: "+r.Output
	p.row(r, fmt.Sprintf("%d inner values", p.inners))
	p.inners = 0
}

func (p *verifyTable) row(r verify.Record, name string) {
	if !p.begun { // the writer keeps its errors for Flush
		_, _ = fmt.Fprintln(p.w, "CASE\tOUTPUT\tDTYPE\tERROR\tTOLERANCE\tDIGEST\tRESULT")
		p.begun = true
	}
	result := "ok"
	switch {
	case r.Failure != "":
		result = "FAILED: " + strings.ReplaceAll(r.Failure, "\n", "; ")
	case r.FirstTapOff != "":
		result = "OFF, first at " + r.FirstTapOff
	case !r.OK():
		result = "OFF"
	case r.Note != "":
		result = "ok (" + r.Note + ")"
	}
	size := "-"
	if r.Failure == "" {
		size = fmt.Sprintf("%.2g", r.Error)
	}
	short := r.Digest
	if len(short) > 16 {
		short = short[:16]
	}
	_, _ = fmt.Fprintf(p.w, "%s\t%s\t%s\t%s\t%g\t%s\t%s\n", r.Case, name, r.DType, size, r.Tolerance, short, result)
}

func (p *verifyTable) end() error {
	if p.inners > 0 {
		p.flushInner()
	}
	return p.w.Flush()
}
