// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// Checkpoint is the file that a stage loads from.
type Checkpoint struct {
	File checkpoint.File
	// Source says where a weight of the graph comes from; nil: from the tensor of
	// its name.
	Source func(weight string) arch.Source
}

// Config of a Stage.
type Config struct {
	Session    engine.Session
	Checkpoint Checkpoint
	// Program at the workload's dimensions, the largest that will be run.
	Program     *graph.Program
	FirstBlock  int
	Blocks      int
	Head, Tail  bool
	Stored      bool // weights rest as in the file and are expanded per block
	Slots       int  // staging slots for that; at least 1 is used
	InFlight    int  // input and output regions
	ReadWorkers int  // preads at a time; 0: 2
	// Progress is told the bytes loaded so far; may be nil.
	Progress func(done, total tensor.Bytes)
}

// Stage is a loaded range of blocks.
type Stage struct {
	cfg      Config
	session  engine.Session
	launches []launch
	slots    []engine.Buffer // staging, when weights rest as stored
	slotUse  []engine.Event  // the Run that last used each slot
	scratch  engine.Buffer
	state    [2]engine.Buffer
	travel   engine.Buffer
	Inputs   []engine.Buffer // one per slot in flight: what arrives, in host memory
	Outputs  []engine.Buffer // one per slot in flight: what leaves, in host memory
	// near are the device's own copies of a forward's input, conditioning and
	// output; nil on a device that computes in host memory.
	near     *near
	all      []engine.Buffer
	programs map[*graph.Segment]engine.Program
	nextSlot int
	issued   atomic.Uint64 // the last event on the queue
}

// near is what a forward reads and writes on a device of its own memory.
type near struct{ input, conditioning, output engine.Buffer }

// launch is one execution of a segment with its weights.
type launch struct {
	graph.Launch
	resident engine.Buffer   // packed, or as stored
	weights  []engine.Weight // in resident, when as stored
}

// Load reads the stage's bytes, and nothing else, from the checkpoint. On an
// error nothing stays allocated.
func Load(ctx context.Context, cfg Config) (_ *Stage, err error) {
	cfg.Slots, cfg.InFlight = max(cfg.Slots, 1), max(cfg.InFlight, 1)
	if cfg.ReadWorkers == 0 {
		cfg.ReadWorkers = 2
	}
	st := &Stage{cfg: cfg, session: cfg.Session, programs: map[*graph.Segment]engine.Program{}}
	defer func() {
		if err != nil {
			st.Close()
		}
	}()
	list, err := cfg.Program.Stage(cfg.FirstBlock, cfg.Blocks, cfg.Head, cfg.Tail)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		st.launches = append(st.launches, launch{Launch: l})
		if err := st.compile(ctx, l.Segment); err != nil {
			return nil, err
		}
	}
	if err := st.loadWeights(ctx); err != nil {
		return nil, err
	}
	if err := st.allocate(); err != nil {
		return nil, fmt.Errorf("memory to run blocks %d-%d: %w", cfg.FirstBlock, cfg.FirstBlock+cfg.Blocks-1, err)
	}
	return st, nil
}

func (st *Stage) compile(ctx context.Context, s *graph.Segment) error {
	if st.programs[s] != nil {
		return nil
	}
	p, err := st.session.Compile(ctx, s)
	if err != nil {
		return err
	}
	st.programs[s] = p
	return nil
}

// buffer takes memory that Close gives back.
func (st *Stage) buffer(n tensor.Bytes) (engine.Buffer, error) {
	b, err := st.session.Buffer(n)
	if err != nil {
		return nil, err
	}
	st.all = append(st.all, b)
	return b, nil
}

// hostBuffer takes host memory that Close gives back.
func (st *Stage) hostBuffer(n tensor.Bytes) (engine.Buffer, error) {
	b, err := st.session.HostBuffer(n)
	if err != nil {
		return nil, err
	}
	st.all = append(st.all, b)
	return b, nil
}

// allocate takes everything that forwards need at the workload's dimensions.
func (st *Stage) allocate() error {
	var scratch, slot tensor.Bytes
	for _, l := range st.launches {
		p := st.programs[l.Segment]
		scratch, slot = max(scratch, p.Scratch()), max(slot, p.PackedBytes())
	}
	in, err := st.inputLayout(st.cfg.Program)
	if err != nil {
		return err
	}
	out, err := st.outputLayout(st.cfg.Program)
	if err != nil {
		return err
	}
	if st.scratch, err = st.buffer(scratch); err != nil {
		return err
	}
	for i := range st.state {
		if st.state[i], err = st.buffer(stateBytes(st.cfg.Program)); err != nil {
			return err
		}
	}
	if st.travel, err = st.buffer(layoutOf(st.cfg.Program.Travel).Bytes); err != nil {
		return err
	}
	if st.cfg.Stored {
		for range st.cfg.Slots {
			b, err := st.buffer(slot)
			if err != nil {
				return err
			}
			st.slots = append(st.slots, b)
		}
		st.slotUse = make([]engine.Event, len(st.slots))
	}
	for range st.cfg.InFlight {
		a, err := st.hostBuffer(in.Bytes)
		if err != nil {
			return err
		}
		b, err := st.hostBuffer(out.Bytes)
		if err != nil {
			return err
		}
		st.Inputs, st.Outputs = append(st.Inputs, a), append(st.Outputs, b)
	}
	return st.allocateNear(in.Bytes, out.Bytes)
}

func (st *Stage) allocateNear(in, out tensor.Bytes) (err error) {
	if st.session.Device().Unified {
		return nil
	}
	st.near = &near{}
	if st.near.input, err = st.buffer(in); err != nil {
		return err
	}
	if st.near.output, err = st.buffer(out); err != nil || !st.cfg.Head {
		return err
	}
	st.near.conditioning, err = st.buffer(graph.ConditioningLayout(st.cfg.Program).Bytes)
	return err
}

// Close gives all memory back. No forward may be begun any more; a segment that
// a cancelled one left running is waited for.
func (st *Stage) Close() {
	st.drain(&st.issued)
	for _, b := range st.all {
		b.Free()
	}
	st.all = nil
}

// drain waits until the queue is past an event: what runs still reads and
// writes the stage's memory.
func (st *Stage) drain(issued *atomic.Uint64) {
	_ = st.session.Wait(context.Background(), engine.Event(issued.Load())) // its error was the forward's
}

// inputLayout is what arrives in one slot.
func (st *Stage) inputLayout(p *graph.Program) (graph.Layout, error) {
	if st.cfg.Head {
		l, _ := graph.StepLayout(p)
		return l, nil
	}
	return graph.BoundaryLayout(p, st.cfg.FirstBlock)
}

// outputLayout is what leaves from one slot.
func (st *Stage) outputLayout(p *graph.Program) (graph.Layout, error) {
	if st.cfg.Tail {
		return graph.OutputLayout(p), nil
	}
	return graph.BoundaryLayout(p, st.cfg.FirstBlock+st.cfg.Blocks)
}

// layoutOf places tensors one after another as regions do.
func layoutOf(ts []graph.Tensor) graph.Layout {
	var l graph.Layout
	for _, t := range ts {
		t.Place = graph.Place{Offset: l.Bytes}
		l.Values = append(l.Values, t)
		l.Bytes += (t.Bytes + graph.Align - 1) / graph.Align * graph.Align
	}
	return l
}

func stateBytes(p *graph.Program) tensor.Bytes {
	n := tensor.Bytes(0)
	for _, r := range p.Runs {
		n = max(n, layoutOf(r.State).Bytes)
	}
	return n
}
