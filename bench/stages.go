// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// The model that several agents are measured with: 1024 tokens, 256 of text.
const (
	smallHidden = 1024
	smallHeads  = 8
	smallDouble = 8
	smallSingle = 16
	smallText   = 256
	smallWidth  = 512
	smallHeight = 384
)

// smallCompute is the dtype that this CPU multiplies fastest.
func smallCompute() tensor.DType {
	if best() == isa.AVX512BF16 {
		return tensor.BF16
	}
	return tensor.F32
}

func smallModel() *graph.Model {
	return fluxOf(smallHidden, smallHeads, smallDouble, smallSingle).Build(arch.Options{})
}

func writeSmall(path string) error {
	return writeCheckpoint(path, entriesOf(smallModel(), func(string) tensor.DType { return tensor.BF16 }))
}

// chain is stages in one process, each with workers of its own.
type chain struct {
	sessions     []engine.Session
	stages       []*stage.Stage
	runs         []*stage.Run
	conditioning engine.Buffer
}

// openChain loads blocks cut at cuts.
func openChain(ctx context.Context, f *safetensors.File, p *graph.Program, threads int, cuts ...int) (_ *chain, err error) {
	c := &chain{}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	e, err := native.New(native.Config{ISA: best(), Threads: threads})
	if err != nil {
		return nil, err
	}
	first := 0
	for i, end := range append(cuts, p.Model.Blocks()) {
		if err := c.add(ctx, e, f, stage.Config{Program: p, FirstBlock: first, Blocks: end - first, Head: i == 0, Tail: i == len(cuts)}); err != nil {
			return nil, err
		}
		first = end
	}
	return c, c.inputs(p)
}

// add loads a stage of its own session.
func (c *chain) add(ctx context.Context, e engine.Engine, f *safetensors.File, cfg stage.Config) error {
	session, err := e.Open(ctx, native.CPU)
	if err != nil {
		return err
	}
	c.sessions = append(c.sessions, session)
	cfg.Session, cfg.Checkpoint, cfg.InFlight = session, stage.Checkpoint{File: checkpoint.Safetensors(f)}, 1
	st, err := stage.Load(ctx, cfg)
	if err != nil {
		return err
	}
	c.stages = append(c.stages, st)
	run, err := st.NewRun(ctx, cfg.Program.Dims)
	if err != nil {
		return err
	}
	c.runs = append(c.runs, run)
	return nil
}

// inputs are random and the same for every chain.
func (c *chain) inputs(p *graph.Program) error {
	layout := graph.ConditioningLayout(p)
	b, err := c.sessions[0].Buffer(layout.Bytes)
	if err != nil {
		return err
	}
	c.conditioning = b
	step, _ := graph.StepLayout(p)
	fillInputs(b.Host(), layout)
	fillInputs(c.stages[0].Inputs[0].Host(), step)
	return nil
}

// fillInputs writes values of a usual size; timesteps lie in [0, 1].
func fillInputs(dst []byte, l graph.Layout) {
	for _, t := range l.Values {
		key := streamOf(t.Name, blockSeed)
		v := floats(dst[t.Place.Offset : t.Place.Offset+t.Bytes])
		for i := range v {
			v[i] = 1.7 * uniform(mix(key, uint64(i)))
		}
		switch t.Name {
		case "timestep":
			v[0] = 0.75
		case "guidance":
			v[0] = 3.5
		}
	}
}

// forward runs all stages, one after the other.
func (c *chain) forward(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	for i, r := range c.runs {
		if i > 0 {
			copy(c.stages[i].Inputs[0].Host(), c.stages[i-1].Outputs[0].Host())
		}
		if _, err := r.Do(ctx, stage.Forward{Conditioning: c.conditioning}); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func (c *chain) output() []byte { return c.stages[len(c.stages)-1].Outputs[0].Host() }

func (c *chain) close() {
	for _, r := range c.runs {
		r.Close()
	}
	for _, s := range c.stages {
		s.Close()
	}
	if c.conditioning != nil {
		c.conditioning.Free()
	}
	for _, s := range c.sessions {
		_ = s.Close() // nothing is running
	}
}

// stageFigures cuts the small model into three stages without a network: what
// the cuts alone cost.
func stageFigures(ctx context.Context, o *options, r *report) error {
	path := filepath.Join(o.dir, "stages.safetensors")
	if err := writeSmall(path); err != nil {
		return err
	}
	defer os.Remove(path)
	f, err := safetensors.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := specialise(smallModel(), smallCompute(), smallWidth, smallHeight, smallText)
	if err != nil {
		return err
	}
	one, err := openChain(ctx, f, p, o.threads)
	if err != nil {
		return err
	}
	defer one.close()
	three, err := openChain(ctx, f, p, o.threads, smallCuts()...)
	if err != nil {
		return err
	}
	defer three.close()
	times, err := alternate(ctx, o.rounds, three.forward, one.forward)
	if err != nil {
		return err
	}
	if !bytes.Equal(one.output(), three.output()) {
		return errors.New("three stages give other bits than one")
	}
	overhead := 1/medianRatio(times[0], times[1]) - 1
	r.figure("overhead of three stages", overhead, target{0.1, true}, "%s and %s for a forward of hidden %d, %d+%d blocks, %d tokens in %v; equal bits",
		seconds(median(times[0])), seconds(median(times[1])), smallHidden, smallDouble, smallSingle, p.Dims["S"], p.Compute)
	return nil
}

// smallCuts lie inside both runs of blocks.
func smallCuts() []int { return []int{6, 15} }
