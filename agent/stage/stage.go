// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// Checkpoint is the file that a stage loads from. Names in the file are Prefix
// and the graph's weight names.
type Checkpoint struct {
	File   *safetensors.File
	Prefix string
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
	Inputs   []engine.Buffer // one per slot in flight: what arrives
	Outputs  []engine.Buffer // one per slot in flight: what leaves
	all      []engine.Buffer
	programs map[*graph.Segment]engine.Program
	nextSlot int
	issued   atomic.Uint64 // the last event on the queue
}

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
		a, err := st.buffer(in.Bytes)
		if err != nil {
			return err
		}
		b, err := st.buffer(out.Bytes)
		if err != nil {
			return err
		}
		st.Inputs, st.Outputs = append(st.Inputs, a), append(st.Outputs, b)
	}
	return nil
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

// loadWeights fills every launch's resident buffer.
func (st *Stage) loadWeights(ctx context.Context) error {
	plans := make([][]safetensors.Placement, len(st.launches))
	sizes := make([]tensor.Bytes, len(st.launches))
	var total, largest tensor.Bytes
	for i := range st.launches {
		l := &st.launches[i]
		var err error
		if plans[i], sizes[i], err = st.place(l); err != nil {
			return err
		}
		total += sizes[i]
		largest = max(largest, sizes[i])
	}
	var raw engine.Buffer
	if !st.cfg.Stored && largest > 0 {
		var err error
		if raw, err = st.session.Buffer(largest); err != nil {
			return fmt.Errorf("memory to read one block: %w", err)
		}
		defer raw.Free()
	}
	var done tensor.Bytes
	for i := range st.launches {
		if len(plans[i]) == 0 {
			continue
		}
		if err := st.loadOne(ctx, &st.launches[i], plans[i], sizes[i], raw); err != nil {
			return err
		}
		if done += sizes[i]; st.cfg.Progress != nil {
			st.cfg.Progress(done, total)
		}
	}
	return nil
}

// place finds a launch's tensors in the file and gives them places in a buffer.
func (st *Stage) place(l *launch) ([]safetensors.Placement, tensor.Bytes, error) {
	c := st.cfg.Checkpoint
	found := make([]safetensors.Tensor, 0, len(l.Segment.Weights))
	for _, w := range l.Segment.Weights {
		name := c.Prefix + graph.Resolve(w.Name, l.Index)
		t, ok := c.File.Lookup(name)
		if !ok {
			return nil, 0, fmt.Errorf("%s: tensor %q is missing; the file is not the model that was placed", c.File.Path(), name)
		}
		if !t.Shape.Equal(w.Shape) {
			return nil, 0, fmt.Errorf("%s: tensor %q is %v, the graph takes %v; the file is not the model that was placed", c.File.Path(), name, t.Shape, w.Shape)
		}
		found = append(found, t)
	}
	placed, size := safetensors.Pack(found, int64(graph.Align))
	at := map[string]int64{}
	for _, p := range placed {
		at[p.Tensor.Name] = p.At
	}
	for i, w := range l.Segment.Weights {
		t := found[i]
		l.weights = append(l.weights, engine.Weight{
			Name: graph.Resolve(w.Name, l.Index), DType: t.DType, Shape: t.Shape, Offset: tensor.Bytes(at[t.Name]),
		})
	}
	return placed, size, nil
}

func (st *Stage) loadOne(ctx context.Context, l *launch, plan []safetensors.Placement, size tensor.Bytes, raw engine.Buffer) error {
	var err error
	if st.cfg.Stored {
		if l.resident, err = st.buffer(size); err != nil {
			return fmt.Errorf("memory for %s: %w", l.name(), err)
		}
		raw = l.resident
	}
	host := raw.Host()
	if host == nil {
		return errors.New("the engine has no host-visible memory to read weights into")
	}
	if err := st.cfg.Checkpoint.File.ReadArena(ctx, host[:size], plan, st.cfg.ReadWorkers); err != nil {
		return fmt.Errorf("load %s: %w", l.name(), err)
	}
	if st.cfg.Stored {
		return nil
	}
	p := st.programs[l.Segment]
	if l.resident, err = st.buffer(p.PackedBytes()); err != nil {
		return fmt.Errorf("memory for %s: %w", l.name(), err)
	}
	// The read buffer is used again: packing has to end whatever ctx says.
	return st.session.Wait(context.WithoutCancel(ctx), st.session.Pack(p, l.resident, 0, raw, l.weights))
}

func (l *launch) name() string {
	if l.Run < 0 {
		return l.Segment.Name
	}
	return fmt.Sprintf("%s %d", l.Segment.Name, l.Index)
}
