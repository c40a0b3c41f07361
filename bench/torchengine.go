// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"

	"github.com/distorch/distorch/agent/engine"
	torchengine "github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// host is a whole model on the torch engine's sessions, one stage after the
// other.
type host struct {
	sessions     []engine.Session
	stages       []*stage.Stage
	runs         []*stage.Run
	conditioning engine.Buffer
}

// openHost loads a model cut at cuts; each changes every stage's configuration.
func openHost(ctx context.Context, e engine.Engine, id engine.DeviceID, f *virtual, p *graph.Program, each func(*stage.Config), cuts ...int) (_ *host, err error) {
	h := &host{}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	first := 0
	for i, end := range append(cuts, p.Model.Blocks()) {
		s, err := e.Open(ctx, id)
		if err != nil {
			return nil, err
		}
		h.sessions = append(h.sessions, s)
		cfg := stage.Config{
			Session: s, Checkpoint: stage.Checkpoint{File: f}, Program: p, FirstBlock: first, Blocks: end - first,
			Head: i == 0, Tail: i == len(cuts), InFlight: 1, ReadWorkers: 8,
		}
		if each != nil {
			each(&cfg)
		}
		st, err := stage.Load(ctx, cfg)
		if err != nil {
			return nil, err
		}
		h.stages = append(h.stages, st)
		run, err := st.NewRun(ctx, p.Dims)
		if err != nil {
			return nil, err
		}
		h.runs = append(h.runs, run)
		first = end
	}
	layout := graph.ConditioningLayout(p)
	if h.conditioning, err = h.sessions[0].HostBuffer(layout.Bytes); err != nil {
		return nil, err
	}
	step, _ := graph.StepLayout(p)
	fillInputs(h.conditioning.Host(), layout)
	fillInputs(h.stages[0].Inputs[0].Host(), step)
	return h, nil
}

// inputs gives both layouts to an eager side.
func (h *host) inputs(e *eager, p *graph.Program) error {
	return e.give(
		func() (graph.Layout, []byte) { return graph.ConditioningLayout(p), h.conditioning.Host() },
		func() (graph.Layout, []byte) { l, _ := graph.StepLayout(p); return l, h.stages[0].Inputs[0].Host() },
	)
}

func (h *host) forward(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	for i, r := range h.runs {
		if i > 0 {
			copy(h.stages[i].Inputs[0].Host(), h.stages[i-1].Outputs[0].Host())
		}
		if _, err := r.Do(ctx, stage.Forward{Conditioning: h.conditioning}); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func (h *host) output() []byte { return h.stages[len(h.stages)-1].Outputs[0].Host() }

func (h *host) close() {
	for _, r := range h.runs {
		r.Close()
	}
	for _, s := range h.stages {
		s.Close()
	}
	if h.conditioning != nil {
		h.conditioning.Free()
	}
	for _, s := range h.sessions {
		_ = s.Close() // nothing is running
	}
}

// differ is max|a-b| / max|b|.
func differ(raw []byte, want []float32) (float64, error) {
	got := make([]float32, len(raw)/4)
	if err := tensor.ToF32(got, raw, tensor.F32); err != nil {
		return 0, err
	}
	if len(got) < len(want) {
		return 0, fmt.Errorf("%d values, eager PyTorch has %d", len(got), len(want))
	}
	diff, top := 0.0, 0.0
	for i, w := range want {
		d := math.Abs(float64(got[i]) - float64(w))
		if math.IsNaN(d) {
			return 0, errors.New("outputs are no numbers")
		}
		diff, top = max(diff, d), max(top, math.Abs(float64(w)))
	}
	return diff / top, nil
}

// torchFigures compares a whole forward of the torch engine on the CPU with
// eager PyTorch's.
func torchFigures(ctx context.Context, o *options, r *report) error {
	z := size{smallHidden, smallHeads, 1, 2, smallText, smallWidth, smallHeight}
	numbers := base()
	if err := errors.Join(unpack(o.dir), writeBase(filepath.Join(o.dir, "base.bin"), numbers)); err != nil {
		return err
	}
	e, err := torchengine.New(torchengine.Config{Python: o.python, Threads: o.threads, Only: "cpu"})
	if err != nil {
		return err
	}
	defer e.Close()
	var failed []error
	for _, compute := range []tensor.DType{tensor.F32, tensor.BF16} {
		if err := torchFigure(ctx, o, r, e, z, numbers, compute); err != nil {
			failed = append(failed, fmt.Errorf("%v: %w", compute, err))
		}
	}
	return errors.Join(failed...)
}

func torchFigure(ctx context.Context, o *options, r *report, e *torchengine.Engine, z size, numbers []byte, compute tensor.DType) (err error) {
	p, err := specialise(z.model(), compute, z.wide, z.high, z.text)
	if err != nil {
		return err
	}
	f, err := newVirtual(p.Model, numbers)
	if err != nil {
		return err
	}
	h, err := openHost(ctx, e, "cpu", f, p, nil)
	if err != nil {
		return err
	}
	defer h.close()
	eager, err := startEager(ctx, o, z, "cpu", compute)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eager.close()) }()
	if err := h.inputs(eager, p); err != nil {
		return err
	}
	times, err := alternate(ctx, o.rounds, h.forward, eager.forward)
	if err != nil {
		return err
	}
	want, err := eager.output()
	if err != nil {
		return err
	}
	off, err := differ(h.output(), want)
	if err != nil {
		return err
	}
	tolerance := map[tensor.DType]float64{tensor.F32: 1e-5, tensor.BF16: 4e-2}[compute]
	r.figure("torch engine ÷ eager PyTorch, "+compute.String(), medianRatio(times[1], times[0]), target{1.05, true},
		"%s and %s for a forward, PyTorch %s (%s), %d threads each; outputs differ by %.2g", seconds(median(times[0])), seconds(median(times[1])),
		eager.Version, h.sessions[0].Device().Class(compute), o.threads, off)
	if off > tolerance {
		return fmt.Errorf("outputs differ by %.3g, at most %.3g is right", off, tolerance)
	}
	return nil
}
