// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// StorageFP8 is the storage of weights in fp8 with a scale for each 64 values,
// by choice.
const StorageFP8 = "fp8"

// ClassFP8 is what that adds to a numerics class.
const ClassFP8 = "+fp8b64"

// StageShape says what a stage holds and how.
type StageShape struct {
	First, Blocks int
	Head, Tail    bool
	Stored        bool // weights rest as in the file
	Slots         int  // staging slots for that; at least 1
	InFlight      int
	Tiers         []Tier // where blocks rest that do not rest on the device
	Ring          int    // staging slots for those; 0: 2
	Storage       string // StorageFP8: blocks rest so
	Own           bool   // the device computes in memory of its own, beside RAM
}

// rest is where a block rests.
func (s *StageShape) rest(block int) Tier {
	for _, t := range s.Tiers {
		if block < t.First || block >= t.First+t.Blocks {
			continue
		}
		if t.Kind == placement.TierRAM && !s.Own {
			break // its memory is the RAM
		}
		return t
	}
	return Tier{Kind: placement.TierDevice}
}

// Footprint is the memory of a stage by its purpose, as agent/stage takes it: of
// the device and, beside one with memory of its own, of the node's RAM. What an
// engine's kernels use beside it is the node's overhead.
type Footprint struct {
	Weights      tensor.Bytes // that rest on the device
	RAM          tensor.Bytes // weights that rest in the node's RAM
	Reading      tensor.Bytes // buffer in RAM while loading, given back before forwards run
	Staging      tensor.Bytes // slots on the device
	Bounce       tensor.Bytes // buffers in RAM for what comes from a disk or another node
	Arena        tensor.Bytes // liveness peak of the stage's segments
	State        tensor.Bytes // two buffers between segments
	Travel       tensor.Bytes
	Regions      tensor.Bytes   // input and output of each forward in flight, in RAM
	Near         tensor.Bytes   // the device's copies of one forward's input, output and conditioning
	Constants    tensor.Bytes   // of one run
	Conditioning tensor.Bytes   // of one run: a branch per forward in flight, in RAM
	Tiers        []tensor.Bytes // at rest, of each tier
	own          bool
}

// device is what is in use of the device whatever the stage does.
func (f Footprint) device() tensor.Bytes {
	return f.Staging + f.Arena + f.State + f.Travel + f.Near + f.Constants
}

// Working is what is in use while forwards run, beside the weights, on the
// device.
func (f Footprint) Working() tensor.Bytes {
	if f.own {
		return f.device()
	}
	return f.device() + f.Bounce + f.Regions + f.Conditioning
}

// Peak is the most that is in use of the device at one time.
func (f Footprint) Peak() tensor.Bytes {
	if f.own {
		return f.Weights + f.device()
	}
	return f.Weights + max(f.Staging+f.Bounce+f.Reading, f.Working())
}

// HostPeak is the most that is in use of RAM beside a device of its own memory.
func (f Footprint) HostPeak() tensor.Bytes {
	if !f.own {
		return 0
	}
	return f.RAM + f.Bounce + max(f.Reading, f.Regions+f.Conditioning)
}

// StageFootprint is the memory of a stage for weights stored in the given
// dtypes, by resolved name.
func StageFootprint(p *graph.Program, stored map[string]tensor.DType, s StageShape) (Footprint, error) {
	launches, err := p.Stage(s.First, s.Blocks, s.Head, s.Tail)
	if err != nil {
		return Footprint{}, err
	}
	f := Footprint{own: s.Own, Tiers: make([]tensor.Bytes, len(s.Tiers))}
	var c carry
	constants := map[string]bool{}
	for _, l := range launches {
		storage := s.Storage
		if l.Block < 0 {
			storage = ""
		}
		w, err := weigh(p, l.Segment, l.Index, stored, storage)
		if err != nil {
			return Footprint{}, err
		}
		f.place(&s, &c, l.Block, w)
		f.Arena = max(f.Arena, l.Segment.Arena)
		for _, id := range l.Segment.Constants {
			if v := &l.Segment.Values[id]; !constants[v.Name] {
				constants[v.Name] = true
				f.Constants += v.Bytes
			}
		}
	}
	f.Reading = c.raw + c.second
	depth := min(c.depth, c.streamed)
	f.Staging = tensor.Bytes(depth)*c.slot + c.near
	if c.bounce > 0 {
		f.Bounce = tensor.Bytes(max(depth, 2))*c.bounce + c.quantised
	}
	in, out, err := regions(p, s)
	if err != nil {
		return Footprint{}, err
	}
	inFlight := tensor.Bytes(max(s.InFlight, 1))
	f.Regions = inFlight * (in + out)
	f.State, f.Travel = 2*stateBytes(p), alignedSum(p.Travel)
	if s.Head {
		f.Conditioning = inFlight * graph.ConditioningLayout(p).Bytes
	}
	if s.Own {
		f.Near = in + out
		if s.Head {
			f.Near += graph.ConditioningLayout(p).Bytes
		}
	}
	return f, nil
}

// carry is what bringing weights to the device takes, over the launches of a
// stage.
type carry struct {
	raw, second     tensor.Bytes // buffers while loading
	streamed, depth int          // launches that come to a slot, and slots wanted
	slot            tensor.Bytes
	near            tensor.Bytes // stored bytes from another device, before they are packed
	bounce          tensor.Bytes
	quantised       tensor.Bytes // a block of the file on its way to another storage
}

// place counts a launch's weights where they rest.
func (f *Footprint) place(s *StageShape, c *carry, block int, w weight) {
	r := Tier{Kind: placement.TierDevice}
	if block >= 0 {
		r = s.rest(block)
	}
	size := w.packed
	if s.Stored || r.Kind == placement.TierDisk {
		size = w.stored
	}
	switch r.Kind {
	case placement.TierDevice:
		f.Weights += size
	case placement.TierRAM:
		f.RAM += size
	}
	for i, t := range s.Tiers {
		if block >= t.First && block < t.First+t.Blocks {
			f.Tiers[i] += size
		}
	}
	if w.packed == 0 {
		return
	}
	quantised := w.stored != w.file
	seen := r.Kind == placement.TierRAM || r.Kind == placement.TierDevice && !s.Own
	if r.Kind != placement.TierDisk && !(s.Stored && seen && !quantised) {
		c.raw = max(c.raw, w.file)
		if quantised {
			c.second = max(c.second, w.stored)
		}
		if r.Kind == placement.TierRemote && !s.Stored {
			c.second = max(c.second, w.packed)
		}
	}
	if !s.Stored && r.Kind == placement.TierDevice {
		return
	}
	c.streamed++
	c.slot = max(c.slot, w.packed)
	c.depth = max(c.depth, s.Slots, 1)
	if r.Kind != placement.TierDevice {
		ring := s.Ring
		if ring == 0 {
			ring = 2
		}
		c.depth = max(c.depth, ring)
	}
	switch r.Kind {
	case placement.TierDonor:
		if s.Stored {
			c.near = max(c.near, w.stored)
		}
	case placement.TierRemote, placement.TierDisk:
		c.bounce = max(c.bounce, size)
		if r.Kind == placement.TierDisk && quantised {
			c.quantised = max(c.quantised, w.file)
		}
	}
}

// regions are the sizes of what arrives and leaves in one slot.
func regions(p *graph.Program, s StageShape) (in, out tensor.Bytes, err error) {
	arrives, _ := graph.StepLayout(p)
	if !s.Head {
		if arrives, err = graph.BoundaryLayout(p, s.First); err != nil {
			return 0, 0, err
		}
	}
	leaves := graph.OutputLayout(p)
	if !s.Tail {
		if leaves, err = graph.BoundaryLayout(p, s.First+s.Blocks); err != nil {
			return 0, 0, err
		}
	}
	return arrives.Bytes, leaves.Bytes, nil
}

// weight is one segment's weights as in the file, as they rest and at the
// compute dtype.
type weight struct{ file, stored, packed tensor.Bytes }

func weigh(p *graph.Program, s *graph.Segment, index int, stored map[string]tensor.DType, storage string) (weight, error) {
	var out weight
	matrix := map[graph.WeightID]bool{}
	for i := range s.Steps {
		if x := &s.Steps[i]; storage == StorageFP8 && x.Op == graph.OpLinear {
			matrix[x.Weights[0]] = true
		}
	}
	for i, w := range s.Weights {
		name := graph.Resolve(w.Name, index)
		d, ok := stored[name]
		if !ok {
			return weight{}, fmt.Errorf("%s: the checkpoint has no weight %q", s.Name, name)
		}
		rests := d
		if matrix[graph.WeightID(i)] {
			rests = tensor.StorageF8(w.Shape, d)
		}
		for _, x := range []struct {
			d  tensor.DType
			to *tensor.Bytes
		}{{d, &out.file}, {rests, &out.stored}, {p.Compute, &out.packed}} {
			n, err := w.Shape.Bytes(x.d)
			if err != nil {
				return weight{}, fmt.Errorf("%s: weight %q: %w", s.Name, name, err)
			}
			*x.to += aligned(n)
		}
	}
	return out, nil
}

func aligned(n tensor.Bytes) tensor.Bytes { return (n + graph.Align - 1) / graph.Align * graph.Align }

func alignedSum(ts []graph.Tensor) tensor.Bytes {
	n := tensor.Bytes(0)
	for i := range ts {
		n += aligned(ts[i].Bytes)
	}
	return n
}

func stateBytes(p *graph.Program) tensor.Bytes {
	n := tensor.Bytes(0)
	for _, r := range p.Runs {
		n = max(n, alignedSum(r.State))
	}
	return n
}
