// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// StageShape says what a stage holds and how.
type StageShape struct {
	First, Blocks int
	Head, Tail    bool
	Stored        bool // weights rest as in the file
	Slots         int  // staging slots for that; at least 1
	InFlight      int
}

// Footprint is the memory of a stage by its purpose, as agent/stage takes it.
// What an engine's kernels use beside it is the node's overhead.
type Footprint struct {
	Weights      tensor.Bytes // resident
	Reading      tensor.Bytes // buffer while loading, given back before forwards run
	Staging      tensor.Bytes
	Arena        tensor.Bytes // liveness peak of the stage's segments
	State        tensor.Bytes // two buffers between segments
	Travel       tensor.Bytes
	Regions      tensor.Bytes // input and output of each forward in flight
	Constants    tensor.Bytes // of one run
	Conditioning tensor.Bytes // of one run: a branch per forward in flight
}

// Working is what is in use while forwards run, beside the weights.
func (f Footprint) Working() tensor.Bytes {
	return f.Staging + f.Arena + f.State + f.Travel + f.Regions + f.Constants + f.Conditioning
}

// Peak is the most that is in use at one time.
func (f Footprint) Peak() tensor.Bytes { return f.Weights + max(f.Reading, f.Working()) }

// StageFootprint is the memory of a stage for weights stored in the given
// dtypes, by resolved name.
func StageFootprint(p *graph.Program, stored map[string]tensor.DType, s StageShape) (Footprint, error) {
	launches, err := p.Stage(s.First, s.Blocks, s.Head, s.Tail)
	if err != nil {
		return Footprint{}, err
	}
	var f Footprint
	var packed tensor.Bytes
	constants := map[string]bool{}
	for _, l := range launches {
		w, err := weigh(p, l.Segment, l.Index, stored)
		if err != nil {
			return Footprint{}, err
		}
		packed = max(packed, w.packed)
		if s.Stored {
			f.Weights += w.stored
		} else {
			f.Weights += w.packed
			f.Reading = max(f.Reading, w.stored)
		}
		f.Arena = max(f.Arena, l.Segment.Arena)
		for _, id := range l.Segment.Constants {
			if v := &l.Segment.Values[id]; !constants[v.Name] {
				constants[v.Name] = true
				f.Constants += v.Bytes
			}
		}
	}
	if s.Stored {
		f.Staging = packed * tensor.Bytes(max(s.Slots, 1))
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
	return f, nil
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

// weight is one segment's weights as stored and at the compute dtype.
type weight struct{ stored, packed tensor.Bytes }

func weigh(p *graph.Program, s *graph.Segment, index int, stored map[string]tensor.DType) (weight, error) {
	var out weight
	for _, w := range s.Weights {
		name := graph.Resolve(w.Name, index)
		d, ok := stored[name]
		if !ok {
			return weight{}, fmt.Errorf("%s: the checkpoint has no weight %q", s.Name, name)
		}
		file, err := w.Shape.Bytes(d)
		if err != nil {
			return weight{}, fmt.Errorf("%s: weight %q: %w", s.Name, name, err)
		}
		packed, err := w.Shape.Bytes(p.Compute)
		if err != nil {
			return weight{}, fmt.Errorf("%s: weight %q: %w", s.Name, name, err)
		}
		out.stored += aligned(file)
		out.packed += aligned(packed)
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
