// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// The model whose blocks stream: one double block stays on the device, the
// single ones come to it.
const (
	offloadHidden = 768
	offloadHeads  = 6
	offloadSingle = 6
	offloadText   = 128
	offloadRing   = 2
)

// workloads of the grid, by tokens; and how long bringing the blocks takes, as
// a part of computing with them.
type workload struct {
	width, height int64
	ratios        []float64
}

func offloadGrid() []workload {
	return []workload{
		{384, 256, []float64{0.4, 0.85, 1, 1.15, 2.5}}, // 512 tokens
		{256, 128, []float64{0.9, 1.1}},                // 256
	}
}

// roomy is memory for everything.
const roomy = tensor.Bytes(8 << 30)

// offloadFigures holds a step that streams against computing alone and copying
// alone, from one that waits for the copies to one that waits for computing.
func offloadFigures(ctx context.Context, o *options, r *report) error {
	path := filepath.Join(o.dir, "offload.safetensors")
	m := fluxOf(offloadHidden, offloadHeads, 1, offloadSingle).Build(arch.Options{})
	if err := writeCheckpoint(path, entriesOf(m, func(string) tensor.DType { return smallCompute() })); err != nil {
		return err
	}
	defer os.Remove(path)
	f, err := checkpoint.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	begin, where, err := pinned()
	if err != nil {
		return err
	}
	r.note("hidden %d, %d single blocks from RAM through %d slots, in %v on a simulated device of one thread; %s",
		offloadHidden, offloadSingle, offloadRing, smallCompute(), where)
	g := &grid{o: o, r: r, file: f, model: m, begin: begin}
	if err := g.measure(ctx); err != nil {
		return err
	}
	for _, w := range offloadGrid() {
		if err := g.workload(ctx, w); err != nil {
			return err
		}
	}
	return g.verdict()
}

// grid is the measurements of one run.
type grid struct {
	o     *options
	r     *report
	file  checkpoint.File
	model *graph.Model
	begin func(native.Queue)
	rates []measure.Rates
	// slower is what the device's rates are divided by, as an agent learns it from
	// forwards of a workload.
	slower float64

	near              int // points at which the two are within 0.8 to 1.25
	worst, worstGuess float64
}

// device is a simulated one with so fast a link.
func (g *grid) device(ctx context.Context, h2d float64) (engine.Session, error) {
	e, err := sim.New(sim.Config{
		ISA: best(), Host: engine.NewAccount(0, ""), Begin: g.begin,
		Devices: []sim.Device{{Name: "sim:0", Memory: roomy, H2D: h2d, Threads: 1}},
	})
	if err != nil {
		return nil, err
	}
	return e.Open(ctx, "sim:0")
}

// measure finds the device's rates as an agent does.
func (g *grid) measure(ctx context.Context) (err error) {
	s, err := g.device(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	g.rates, err = measure.Measure(ctx, s, smallCompute())
	return err
}

// workload measures the points of one number of tokens.
func (g *grid) workload(ctx context.Context, w workload) error {
	p, err := specialise(g.model, smallCompute(), w.width, w.height, offloadText)
	if err != nil {
		return err
	}
	resident, err := g.open(ctx, p, 0)
	if err != nil {
		return err
	}
	defer resident.close()
	// A first look at computing places the points of the grid.
	var first []time.Duration
	for range 3 {
		d, err := resident.forward(ctx)
		if err != nil {
			return err
		}
		first = append(first, d)
	}
	var points []*point
	for _, ratio := range w.ratios {
		pt, err := g.point(ctx, p, resident, median(first), ratio)
		if err != nil {
			return err
		}
		points = append(points, pt)
	}
	return g.judge(p, points)
}

// point is what was measured at one rate of the link.
type point struct {
	h2d                   float64
	step, compute, copies []time.Duration
	streamed              tensor.Bytes
	hits                  float64
}

// point measures one rate of the link.
func (g *grid) point(ctx context.Context, p *graph.Program, resident *streamer, compute time.Duration, ratio float64) (*point, error) {
	block, err := g.blockBytes(p)
	if err != nil {
		return nil, err
	}
	h2d := float64(block*offloadSingle) / (ratio * compute.Seconds())
	s, err := g.open(ctx, p, h2d)
	if err != nil {
		return nil, err
	}
	defer s.close()
	times, err := alternate(ctx, g.o.rounds, s.steady, resident.forward, s.copies)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(s.stage.Outputs[0].Host(), resident.stage.Outputs[0].Host()) {
		return nil, errors.New("a step that streams gives other bits than a resident one")
	}
	traffic := s.stage.Traffic()[offload.RAM]
	return &point{h2d, times[0], times[1], times[2], s.streamed, traffic.HitRate()}, nil
}

// judge prints the points of one number of tokens, with the forecasts from the
// rates that they were measured with.
func (g *grid) judge(p *graph.Program, points []*point) error {
	var all []time.Duration
	for _, pt := range points {
		all = append(all, pt.compute...)
	}
	if err := g.learn(p, median(all)); err != nil {
		return err
	}
	for _, pt := range points {
		step, alone, bring := median(pt.step).Seconds(), median(pt.compute).Seconds(), median(pt.copies).Seconds()
		most := make([]float64, len(pt.step))
		for i := range most {
			most[i] = pt.step[i].Seconds() / max(pt.compute[i], pt.copies[i]).Seconds()
		}
		guess, err := g.forecast(p, float64(pt.streamed)/bring)
		if err != nil {
			return err
		}
		over, off := median(most), math.Abs(guess/step-1)
		g.worst, g.worstGuess = max(g.worst, over), max(g.worstGuess, off)
		if alone/bring > 0.8 && alone/bring < 1.25 {
			g.near++
		}
		g.r.figure(fmt.Sprintf("step over max, %d tokens, %.3g GB/s", p.Dims["S"], pt.h2d/1e9), over, target{1.05, true},
			"step %.4g s; computing %.4g s, copying %.4g s, their sum %.4g s (%.2f times the step); forecast %.4g s (%+.1f %%); hits %.0f %%",
			step, alone, bring, alone+bring, (alone+bring)/step, guess, 100*(guess/step-1), 100*pt.hits)
	}
	return nil
}

func (g *grid) verdict() error {
	g.r.figure("largest step over max", g.worst, target{1.05, true}, "over the grid")
	g.r.figure("forecast off, largest", g.worstGuess, target{0.1, true}, "placement's cost model from the device's rates, corrected by a resident forward, and the link's")
	g.r.figure("points where both are alike", float64(g.near), target{3, false}, "computing over copying from 0.8 to 1.25")
	return nil
}

// learn corrects the device's rates by what a resident forward took.
func (g *grid) learn(p *graph.Program, took time.Duration) error {
	g.slower = 1
	plan, err := g.place(p, math.Inf(1), placement.Bytes(roomy))
	if err != nil {
		return err
	}
	g.slower = took.Seconds() / plan.Stages[0].Compute
	g.r.note("%d tokens, all on the device: %.4g s, by the rates that an agent measures at its start %.4g s", p.Dims["S"], took.Seconds(), plan.Stages[0].Compute)
	return nil
}

// blockBytes is a single block as it rests.
func (g *grid) blockBytes(p *graph.Program) (tensor.Bytes, error) {
	t, _, err := reconcile.Tables("offload", p, g.stored(), 1)
	return tensor.Bytes(t.Runs[1].Block.Weights), err
}

func (g *grid) stored() map[string]tensor.DType {
	out := map[string]tensor.DType{}
	for _, t := range g.file.Tensors() {
		out[t.Name] = t.DType
	}
	return out
}

// forecast is what placement says of a step on this device behind a link that
// copies so fast, with room for the double block and the ring.
func (g *grid) forecast(p *graph.Program, copyRate float64) (float64, error) {
	m, _, err := reconcile.Tables("offload", p, g.stored(), 1)
	if err != nil {
		return 0, err
	}
	double, single := m.Runs[0].Block, m.Runs[1].Block
	room := m.Head.Weights + m.Tail.Weights + double.Weights + offloadRing*single.Weights +
		max(m.Head.Scratch, m.Tail.Scratch, single.Scratch, double.Scratch) + single.Weights/2
	plan, err := g.place(p, copyRate, room)
	if err != nil {
		return 0, err
	}
	st := plan.Stages[0]
	for _, t := range st.Tiers {
		if t.Kind == placement.TierRAM && t.Blocks == offloadSingle && st.Ring == offloadRing {
			return st.Compute + st.Expansion + st.Stall, nil
		}
	}
	return 0, fmt.Errorf("the plan streams %v through %d slots, not what is measured", st.Tiers, st.Ring)
}

// place plans the model for the device alone.
func (g *grid) place(p *graph.Program, copyRate float64, room placement.Bytes) (*placement.Plan, error) {
	m, _, err := reconcile.Tables("offload", p, g.stored(), 1)
	if err != nil {
		return nil, err
	}
	m.Tokens = float64(p.Dims["S"])
	d := placement.Device{
		ID: "sim:0", Kind: placement.KindGPU, Model: "simulated device", HostToDevice: min(copyRate, 1e15), Class: "native/1",
		Memory: g.rates[len(g.rates)-1].Elementwise / g.slower, Allocatable: room,
	}
	for _, r := range g.rates {
		d.Rates = append(d.Rates, placement.Rate{
			DType: m.ComputeDType, Linear: r.Linear / g.slower, Attention: r.Attention / g.slower, Tokens: float64(r.Tokens),
		})
	}
	return placement.Place(placement.Problem{Model: m, Nodes: []placement.Node{{
		ID: "here", HasModel: true, Devices: []placement.Device{d}, RAM: placement.Bytes(roomy),
		Link: placement.Link{BytesPerSecond: math.Inf(1)},
	}}}, placement.Options{SkipLosses: true})
}

// streamer is a loaded model with a run.
type streamer struct {
	session      engine.Session
	stage        *stage.Stage
	run          *stage.Run
	conditioning engine.Buffer
	// what copies moves, as the ring would
	from, to []engine.Buffer
	streamed tensor.Bytes
}

// open loads the model; a link without a rate keeps all of it on the device.
func (g *grid) open(ctx context.Context, p *graph.Program, h2d float64) (_ *streamer, err error) {
	s := &streamer{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.session, err = g.device(ctx, h2d); err != nil {
		return nil, err
	}
	cfg := stage.Config{
		Session: s.session, Checkpoint: stage.Checkpoint{File: g.file}, Program: p, Blocks: p.Model.Blocks(),
		Head: true, Tail: true, Ring: offloadRing, Fit: offload.Strict,
	}
	if h2d > 0 {
		cfg.Tiers = []offload.Tier{{FirstBlock: 1, Blocks: offloadSingle, Kind: offload.RAM}}
	}
	if s.stage, err = stage.Load(ctx, cfg); err != nil {
		return nil, err
	}
	if s.run, err = s.stage.NewRun(ctx, p.Dims); err != nil {
		return nil, err
	}
	layout := graph.ConditioningLayout(p)
	if s.conditioning, err = s.session.HostBuffer(layout.Bytes); err != nil {
		return nil, err
	}
	step, _ := graph.StepLayout(p)
	fillInputs(s.conditioning.Host(), layout)
	fillInputs(s.stage.Inputs[0].Host(), step)
	if h2d == 0 {
		return s, nil
	}
	s.streamed = s.stage.Resting()[offload.RAM].Bytes
	return s, s.takeCopies(s.streamed / offloadSingle)
}

// takeCopies takes memory for copies beside the stage's.
func (s *streamer) takeCopies(block tensor.Bytes) error {
	for range offloadRing {
		a, err := s.session.HostBuffer(block)
		if err != nil {
			return err
		}
		s.from = append(s.from, a)
		b, err := s.session.Buffer(block)
		if err != nil {
			return err
		}
		s.to = append(s.to, b)
	}
	return nil
}

func (s *streamer) forward(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	_, err := s.run.Do(ctx, stage.Forward{Conditioning: s.conditioning})
	return time.Since(began), err
}

// steady is a forward right behind another: one that begins with full slots
// would look faster than a step is.
func (s *streamer) steady(ctx context.Context) (time.Duration, error) {
	if _, err := s.forward(ctx); err != nil {
		return 0, err
	}
	return s.forward(ctx)
}

// copies brings as many bytes as a step does, and computes nothing. It begins
// when the ring has filled its slots.
func (s *streamer) copies(ctx context.Context) (time.Duration, error) {
	if err := s.session.Wait(ctx, s.session.Fetch(s.to[0], 0, s.from[0], 0, 64)); err != nil {
		return 0, err
	}
	began := time.Now()
	var last engine.Event
	for i := range offloadSingle {
		k := i % offloadRing
		last = s.session.Fetch(s.to[k], 0, s.from[k], 0, s.to[k].Bytes())
	}
	err := s.session.Wait(ctx, last)
	return time.Since(began), err
}

func (s *streamer) close() {
	if s.run != nil {
		s.run.Close()
	}
	if s.stage != nil {
		s.stage.Close()
	}
	for _, b := range append(append(s.from, s.to...), s.conditioning) {
		if b != nil {
			b.Free()
		}
	}
	if s.session != nil {
		_ = s.session.Close() // nothing is running
	}
}
