// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/distorch/distorch/agent/engine"
	torchengine "github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// gpuCap is the memory of the card in the streamed figures.
const gpuCap tensor.Bytes = 12e9

// gpuBench is one run of the figures on a GPU.
type gpuBench struct {
	o       *options
	r       *report
	z       size
	program *graph.Program
	file    *virtual
	device  engine.DeviceID
	began   time.Time

	resident []byte        // output
	compute  time.Duration // of a resident step
	streamed time.Duration // of a streamed one
	need     tensor.Bytes  // of the device, resident
}

// gpuFigures measures FLUX.1-dev's shapes with random bf16 weights on the first
// GPU: resident against eager PyTorch, streamed under a cap against the larger
// of compute and transfer and against other programs, and that bits are equal.
func gpuFigures(ctx context.Context, o *options, r *report) (err error) {
	g := &gpuBench{o: o, r: r, began: time.Now(), z: size{3072, 24, 19, 38, 512, 1024, 1024}}
	if o.small {
		g.z = size{256, 2, 8, 12, 64, 256, 256}
	}
	numbers := base()
	if err := errors.Join(unpack(o.dir), writeBase(filepath.Join(o.dir, "base.bin"), numbers)); err != nil {
		return err
	}
	if g.program, err = specialise(g.z.model(), tensor.BF16, g.z.wide, g.z.high, g.z.text); err != nil {
		return err
	}
	if g.file, err = newVirtual(g.program.Model, numbers); err != nil {
		return err
	}
	var failed []error
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"resident", g.residentFigures}, {"streamed", g.streamedFigures}, {"rivals", g.rivalFigures}} {
		if !g.o.parts.MatchString(part.name) {
			continue
		}
		if err := part.run(ctx); err != nil {
			r.note("failed: %s: %v", part.name, err)
			failed = append(failed, fmt.Errorf("%s: %w", part.name, err))
		}
		r.note("%s: %.0f s since the start", part.name, time.Since(g.began).Seconds())
	}
	return errors.Join(failed...)
}

// engine starts a worker whose sessions may take so much of the card.
func (g *gpuBench) engine(ctx context.Context, limit tensor.Bytes) (*torchengine.Engine, error) {
	e, err := torchengine.New(torchengine.Config{Python: g.o.python, Threads: g.o.threads, Memory: limit, Only: engine.DeviceID(g.o.device)})
	if err != nil {
		return nil, err
	}
	devices, err := e.Devices(ctx)
	if err == nil && (len(devices) == 0 || devices[0].Unified && g.o.device == "") {
		err = errors.New("PyTorch sees no GPU here")
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	g.device = devices[0].ID
	return e, nil
}

// same runs a forward and holds its bits against those of the resident stage.
func (g *gpuBench) same(ctx context.Context, h *host, what string) error {
	clear(h.output())
	if _, err := h.forward(ctx); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if g.resident == nil {
		g.resident = bytes.Clone(h.output()) // there was no resident stage
		return nil
	}
	if !bytes.Equal(h.output(), g.resident) {
		return fmt.Errorf("%s: other bits than the resident stage's", what)
	}
	g.r.note("%s: the same bits", what)
	return nil
}

func (g *gpuBench) residentFigures(ctx context.Context) (err error) {
	e, err := g.engine(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if err := g.agrees(ctx); err != nil {
		return err
	}
	began := time.Now()
	h, err := openHost(ctx, e, g.device, g.file, g.program, nil)
	if err != nil {
		return err
	}
	defer h.close()
	g.need = h.stages[0].Need().Device
	d := h.sessions[0].Device()
	g.r.note("%s (%s), %v; %v of weights loaded in %s; %d+%d blocks, %d tokens", d.Model, d.ISA, d.Class(tensor.BF16), g.file.Size(), seconds(time.Since(began)),
		g.z.double, g.z.single, g.program.Dims["S"])
	if err := g.againstEager(ctx, h); err != nil {
		return err
	}
	if err := g.memory(ctx, h, "resident"); err != nil {
		return err
	}
	if err := g.same(ctx, h, "retry"); err != nil {
		return err
	}
	blocks := g.program.Model.Blocks()
	two, err := openHost(ctx, e, g.device, g.file, g.program, nil, blocks*2/5)
	if err != nil {
		return err
	}
	defer two.close()
	return g.same(ctx, two, "two stages on the card")
}

// agrees holds a model of few blocks against eager PyTorch's in float32, where
// rounding hides nothing: it is the same forward.
func (g *gpuBench) agrees(ctx context.Context) (err error) {
	z := g.z
	z.double, z.single = 2, 4
	p, err := specialise(z.model(), tensor.F32, z.wide, z.high, z.text)
	if err != nil {
		return err
	}
	file, err := newVirtual(p.Model, g.file.base)
	if err != nil {
		return err
	}
	e, err := g.engine(ctx, 0) // another process: its memory is not the resident stage's
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	h, err := openHost(ctx, e, g.device, file, p, nil)
	if err != nil {
		return err
	}
	defer h.close()
	eager, err := startEager(ctx, g.o, z, g.eagerDevice(h), tensor.F32)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eager.close()) }()
	if err := h.inputs(eager, p); err != nil {
		return err
	}
	if _, err := h.forward(ctx); err != nil {
		return err
	}
	if _, err := eager.forward(ctx); err != nil {
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
	const most = 1e-4
	g.r.figure("2+4 blocks in f32: off eager PyTorch's output", off, target{most, true}, "the largest difference over the largest value: %.2g", off)
	if off > most {
		return fmt.Errorf("it is not the same forward: outputs of 2+4 blocks differ by %.3g", off)
	}
	return nil
}

// eagerDevice is where PyTorch runs beside it.
func (g *gpuBench) eagerDevice(h *host) string {
	if d := h.sessions[0].Device(); g.o.small && d.Kind != "cuda" && d.Kind != "rocm" {
		return "cpu"
	}
	return string(g.device)
}

// againstEager alternates resident steps with eager PyTorch's.
func (g *gpuBench) againstEager(ctx context.Context, h *host) (err error) {
	eager, err := startEager(ctx, g.o, g.z, g.eagerDevice(h), tensor.BF16)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eager.close()) }()
	if err := h.inputs(eager, g.program); err != nil {
		return err
	}
	for range 2 { // besides alternate's own warming round
		if _, err := h.forward(ctx); err != nil {
			return err
		}
		if _, err := eager.forward(ctx); err != nil {
			return err
		}
	}
	times, err := alternate(ctx, g.o.rounds, h.forward, eager.forward)
	if err != nil {
		return err
	}
	g.resident, g.compute = bytes.Clone(h.output()), median(times[0])
	want, err := eager.output()
	if err != nil {
		return err
	}
	off, err := differ(g.resident, want)
	if err != nil {
		return err
	}
	g.r.figure("resident step ÷ eager PyTorch", medianRatio(times[1], times[0]), target{1.02, true}, "%s and %s; PyTorch %s, eager attention %s; outputs of all blocks in bf16 differ by %.2g",
		seconds(g.compute), seconds(median(times[1])), eager.Version, eager.attention, off)
	return nil
}

// memory compares what was predicted, counted and really taken.
func (g *gpuBench) memory(ctx context.Context, h *host, what string) error {
	m, ok := h.sessions[0].(interface {
		Measured(ctx context.Context) (torchengine.Memory, error)
	})
	if !ok {
		return nil
	}
	real, err := m.Measured(ctx)
	if err != nil || real.Peak == 0 {
		return err
	}
	_, peak, _ := h.sessions[0].Account()
	need := h.stages[0].Need().Device
	g.r.figure(what+": real peak ÷ predicted", float64(real.Peak)/float64(need+real.Fixed), target{1.05, true}, "PyTorch took %v, of it %v for its libraries; predicted %v, counted %v",
		real.Peak, real.Fixed, need, peak)
	return nil
}

// streamedFigures caps the card: what does not fit rests in pinned host memory.
// It is another process than the resident one.
func (g *gpuBench) streamedFigures(ctx context.Context) (err error) {
	limit := gpuCap
	if g.o.small {
		limit = g.need - tensor.Bytes(g.file.size/4)
	}
	e, err := g.engine(ctx, limit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	began := time.Now()
	h, err := openHost(ctx, e, g.device, g.file, g.program, func(c *stage.Config) { c.Ring = g.o.ring })
	if err != nil {
		return err
	}
	defer func() { h.close() }()
	moved := h.stages[0].Moved()
	if len(moved) == 0 {
		return errors.New("the model fits under the cap")
	}
	g.r.note("capped at %v: %d of %d blocks rest in pinned host memory (the first is %d, the last %d), ring of %d, loaded in %s", limit, len(moved), g.program.Model.Blocks(),
		moved[0].Block, moved[len(moved)-1].Block, g.o.ring, seconds(time.Since(began)))
	if err := g.same(ctx, h, "streamed, in a second process"); err != nil {
		return err
	}
	carried := func() tensor.Bytes { t := h.stages[0].Traffic(); return t.Total().Streamed }
	before := carried()
	var steps []time.Duration
	for range g.o.rounds {
		d, err := h.forward(ctx)
		if err != nil {
			return err
		}
		steps = append(steps, d)
	}
	streamed := (carried() - before) / tensor.Bytes(g.o.rounds)
	if err := errors.Join(g.same(ctx, h, "streamed, after many steps"), g.memory(ctx, h, "streamed")); err != nil {
		return err
	}
	h.close() // the card is full of it
	h = &host{}
	g.streamed = median(steps)
	return g.overlap(ctx, e, streamed)
}

// overlap holds a streamed step against compute and transfer, each alone.
func (g *gpuBench) overlap(ctx context.Context, e *torchengine.Engine, streamed tensor.Bytes) error {
	s, err := e.Open(ctx, g.device)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // nothing is running
	alone, err := g.transfer(ctx, s, streamed)
	if err != nil {
		return err
	}
	step := g.streamed
	g.r.figure("streamed step ÷ max(compute, transfer)", float64(step)/float64(max(g.compute, alone)), target{1.05, true},
		"%s for %v a step; compute alone %s, transfer alone %s (%.1f GB/s), their sum %s", seconds(step), streamed, seconds(g.compute), seconds(alone),
		float64(streamed)/alone.Seconds()/1e9, seconds(g.compute+alone))
	return nil
}

// transfer moves as many bytes as a step streams, from memory that is pinned
// alike, with nothing else to do.
func (g *gpuBench) transfer(ctx context.Context, s engine.Session, total tensor.Bytes) (time.Duration, error) {
	piece := min(total, 256<<20)
	if piece == 0 {
		return 0, errors.New("nothing was streamed: the model fits under the cap")
	}
	src, err := s.HostBuffer(2 * piece)
	if err != nil {
		return 0, err
	}
	defer src.Free()
	for i := range src.Host() {
		src.Host()[i] = byte(i * 7)
	}
	dst, err := s.Buffer(piece)
	if err != nil {
		return 0, err
	}
	defer dst.Free()
	var times []time.Duration
	for range 3 {
		began := time.Now()
		var last engine.Event
		for left, i := total, tensor.Bytes(0); left > 0; i++ {
			n := min(left, piece)
			last = s.Fetch(dst, 0, src, i%2*piece, n)
			left -= n
		}
		if err := s.Wait(ctx, last); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began))
	}
	return median(times), nil
}

// rivalFigures runs other programs' ways to offload under the same cap.
func (g *gpuBench) rivalFigures(ctx context.Context) error {
	if g.streamed == 0 {
		return errors.New("there is no streamed step to compare with")
	}
	var more []string
	if g.o.small {
		more = []string{"small"}
	}
	var failed []error
	for _, how := range []string{"diffusers-blocks", "diffusers-leaves", "accelerate"} {
		v, err := runRival(ctx, g.o, how, gpuCap, 3, more...)
		if err != nil {
			g.r.note("%v", err)
			failed = append(failed, err)
			continue
		}
		theirs := time.Duration(median(v.Seconds) * float64(time.Second))
		g.r.figure("streamed step ÷ "+how, float64(g.streamed)/float64(theirs), target{1, true}, "%s and %s; peak %v; %v", seconds(g.streamed), seconds(theirs), tensor.Bytes(v.Peak), v.Versions)
	}
	return errors.Join(failed...)
}
