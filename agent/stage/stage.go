// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
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
	// Open opens the file once more, for blocks that rest on disk; nil: by File's
	// path.
	Open func() (checkpoint.File, error)
	// Made says of a weight that it is not the file's own but made of others, as
	// LoRAs do, so that one of the same name elsewhere may differ; nil: none is.
	Made func(weight string) bool
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

	// Tiers say where blocks rest; those not named, head and tail rest on the
	// session's device.
	Tiers []offload.Tier
	// Ring is how many blocks are on the device ahead of their use when some rest
	// elsewhere; 0: 2.
	Ring int
	// Storage "fp8" keeps the matrices of blocks as F8_E4M3 with a scale for each
	// 64 values, "" as the file has them. It changes values: the numerics class of
	// a plan says so.
	Storage string
	Fit     offload.Fit
	// Reserve is left free of the device's account.
	Reserve tensor.Bytes

	// Previous is a stage of the same model, whose weights this one takes over where
	// both have them, instead of reading them; no forward of it may be begun any
	// more. Load closes it, whatever comes of it.
	Previous *Stage

	// Progress is told the bytes loaded so far; may be nil.
	Progress func(done, total tensor.Bytes)
	Log      *slog.Logger // may be nil
}

// Stage is a loaded range of blocks.
type Stage struct {
	cfg      Config
	session  engine.Session
	file     checkpoint.File // for blocks that rest on disk; nil without
	launches []launch
	need     offload.Need // predicted
	moved    []offload.Move
	claims   []offload.Claim

	quantise   engine.Buffer // through which blocks on disk are quantised, one at a time
	quantiseMu sync.Mutex

	scratch engine.Buffer
	state   [2]engine.Buffer
	travel  engine.Buffer
	Inputs  []engine.Buffer // one per slot in flight: what arrives, in host memory
	Outputs []engine.Buffer // one per slot in flight: what leaves, in host memory
	// near are the device's own copies of a forward's input, conditioning and
	// output; nil on a device that computes in host memory.
	near     *near
	all      []engine.Buffer
	programs map[*graph.Segment]engine.Program
	issued   atomic.Uint64 // the last event on the compute queue

	// mu is held while a launch is issued and while blocks change their place.
	mu      sync.Mutex
	staging staging
	next    int              // launch of the forward in progress; 0 between forwards
	before  offload.Traffics // of rings that were replaced
	lent    []int            // launches that Lend moved, in that order

	lending sync.Mutex // of one Lend or Restore at a time
}

// staging is the ring and its memory; no ring when everything is resident.
type staging struct {
	ring    *offload.Ring
	slots   []engine.Buffer
	raw     engine.Buffer
	bounces []engine.Buffer
}

// near is what a forward reads and writes on a device of its own memory.
type near struct{ input, conditioning, output engine.Buffer }

// launch is one execution of a segment with its weights.
type launch struct {
	graph.Launch
	file    blockFile
	weights []engine.Weight // as stored in memory
	stored  tensor.Bytes    // of them
	packed  tensor.Bytes
	// fromFile are the weights as in the file, where they rest otherwise; else nil.
	fromFile []engine.Weight
	rest     offload.Rest
	// Where it rests, by rest.Kind: a buffer of the device, a donor or the host, or
	// a reader.
	resident engine.Buffer
	reader   offload.Reader
}

// Load reads the stage's bytes, and nothing else, from the checkpoint. On an
// error nothing stays allocated. What does not fit where it should rest goes to
// the next slower tier, or is refused with the numbers, as cfg.Fit says.
func Load(ctx context.Context, cfg Config) (_ *Stage, err error) {
	cfg.Slots, cfg.InFlight = max(cfg.Slots, 1), max(cfg.InFlight, 1)
	if cfg.ReadWorkers == 0 {
		cfg.ReadWorkers = 2
	}
	if cfg.Ring == 0 {
		cfg.Ring = 2
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Previous != nil {
		cfg.Previous.strip()
		defer cfg.Previous.Close()
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
		if err := st.compile(ctx, l.Segment); err != nil {
			return nil, err
		}
		st.launches = append(st.launches, launch{Launch: l, packed: st.programs[l.Segment].PackedBytes()})
	}
	if err := st.findWeights(); err != nil {
		return nil, err
	}
	if err := st.settle(); err != nil {
		return nil, err
	}
	if err := st.fill(ctx); err != nil {
		return nil, err
	}
	if err := st.allocate(); err != nil {
		return nil, fmt.Errorf("memory to run blocks %d-%d: %w", cfg.FirstBlock, cfg.FirstBlock+cfg.Blocks-1, err)
	}
	st.cfg.Previous = nil
	return st, st.openRing(0)
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

// Close gives all memory back. No forward may be begun any more; a segment that
// a cancelled one left running is waited for.
func (st *Stage) Close() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.release()
	for i := range st.launches {
		if l := &st.launches[i]; l.resident != nil {
			l.resident.Free()
			l.resident = nil
		}
	}
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
