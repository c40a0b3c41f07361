// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// table is a model at a workload, as placement sees it, with its weights
// packed for the engine or as they are in the file.
type table struct {
	program *graph.Program
	packed  placement.Model
	stored  placement.Model
	smaller bool // stored takes less than packed: worth a try
	storage string
	// Of what is counted for a stage beside weights and slots, the part that a
	// device with memory of its own leaves to RAM: by form.
	slack [2]placement.Bytes
	host  placement.Bytes // RAM beside such a device, without tiers, at most
	// The tables for clusters where only such devices compute, which leave nothing
	// to allow for: by form.
	own [2]placement.Model
}

// model is the table of a form; own, where only devices with memory of their own
// compute.
func (t *table) model(form int, own bool) placement.Model {
	switch {
	case own:
		return t.own[form]
	case form == formStored:
		return t.stored
	}
	return t.packed
}

// The forms in which weights rest.
const (
	formPacked = iota
	formStored
)

// Tables are the block tables of a specialised model as placement sees it: with its weights packed for the engine, and
// as they are in the file, expanded for every block. Stored are the file's dtypes by weight.
func Tables(name string, p *graph.Program, stored map[string]tensor.DType, inFlight int) (packed, file placement.Model, err error) {
	t, err := newTable(name, p, stored, "", inFlight)
	if err != nil {
		return packed, file, err
	}
	return t.packed, t.stored, nil
}

// newTable converts a program. placement multiplies nothing by the forwards in
// flight here: their regions are part of each piece's scratch.
func newTable(name string, p *graph.Program, stored map[string]tensor.DType, storage string, inFlight int) (*table, error) {
	common, edge, head, err := common(p, inFlight)
	if err != nil {
		return nil, err
	}
	dtype := placement.DType(strings.ToLower(p.Compute.String()))
	step, _ := graph.StepLayout(p)
	base := placement.Model{
		Name: name, ComputeDType: dtype, StoredDType: mostly(p, stored),
		Vec: bytesOf(alignedSum(p.Travel)), Input: bytesOf(step.Bytes), Output: bytesOf(graph.OutputLayout(p).Bytes),
	}
	t := &table{program: p, packed: base, stored: base, storage: storage, slack: [2]placement.Bytes{math.MaxInt64, math.MaxInt64}}
	var near []placement.Bytes // scratch of head, tail and blocks on a device of its own memory
	var own [2]placement.Bytes // of the largest piece, on a device of its own memory
	n := tensor.Bytes(inFlight)
	reading := tensor.Bytes(0)
	piece := func(segments []*graph.Segment, count int, extra tensor.Bytes, storage string) (packed, file placement.Cost, err error) {
		w, cost, arena, err := pieceOf(p, segments, count, stored, storage)
		if err != nil {
			return packed, file, err
		}
		packed = placement.Cost{
			Weights: bytesOf(w.packed), Linear: float64(cost.LinearFLOPs), Attention: float64(cost.AttentionFLOPs),
			Elementwise: placement.Bytes(cost.MovedBytes),
		}
		file = packed
		working := arena + common + extra
		packed.Scratch = bytesOf(max(working, w.file))
		file.Scratch = bytesOf(working)
		// Of the regions one of each is on the device too, and of the conditioning.
		needs := bytesOf(working - (2*n-2)*edge - extra/n*(n-1))
		own = [2]placement.Bytes{max(own[0], needs), max(own[1], needs)}
		near = append(near, needs)
		reading = max(reading, w.file+w.packed)
		file.Weights, file.Staging, file.Expansion = bytesOf(w.stored), bytesOf(w.packed), bytesOf(w.packed)
		return packed, file, nil
	}
	if t.packed.Head, t.stored.Head, err = piece([]*graph.Segment{p.Head}, 1, head, ""); err != nil {
		return nil, err
	}
	if t.packed.Tail, t.stored.Tail, err = piece([]*graph.Segment{p.Tail}, 1, 0, ""); err != nil {
		return nil, err
	}
	for i := range p.Runs {
		r := &p.Runs[i]
		segments := []*graph.Segment{r.Block}
		if r.Entry != nil {
			segments = append(segments, r.Entry)
		}
		packed, file, err := piece(segments, r.Count, 0, storage)
		if err != nil {
			return nil, err
		}
		run := placement.Run{Name: r.Name, Count: r.Count, Block: packed, Boundary: bytesOf(alignedSum(r.State))}
		t.packed.Runs = append(t.packed.Runs, run)
		t.slack[formPacked] = min(t.slack[formPacked], packed.Scratch)
		t.slack[formStored] = min(t.slack[formStored], file.Scratch)
		run.Block = file
		t.stored.Runs = append(t.stored.Runs, run)
	}
	for i := range t.slack { // every stage has a block
		t.slack[i] = max(0, t.slack[i]-own[i])
	}
	t.smaller = t.stored.Weights() < t.packed.Weights()
	t.host = bytesOf(max(reading, 2*n*edge+head))
	if storage != "" {
		base.StoredDType = placement.DType(storage)
		t.packed.StoredDType, t.stored.StoredDType = base.StoredDType, base.StoredDType
	}
	t.own = [2]placement.Model{scratched(t.packed, near), scratched(t.stored, near)}
	return t, nil
}

// scratched is a model with other scratch of head, tail and each run's blocks.
func scratched(m placement.Model, scratch []placement.Bytes) placement.Model {
	m.Head.Scratch, m.Tail.Scratch = scratch[0], scratch[1]
	m.Runs = slices.Clone(m.Runs)
	for i := range m.Runs {
		m.Runs[i].Block.Scratch = scratch[2+i]
	}
	return m
}

func bytesOf(n tensor.Bytes) placement.Bytes { return placement.Bytes(n) }

// common is what every stage takes beside weights and arena, by the largest
// region on either side, that region, and what the head adds.
func common(p *graph.Program, inFlight int) (every, edge, head tensor.Bytes, err error) {
	edge = graph.OutputLayout(p).Bytes
	if l, _ := graph.StepLayout(p); l.Bytes > edge {
		edge = l.Bytes
	}
	cut := 0
	for _, r := range p.Runs {
		l, err := graph.BoundaryLayout(p, cut)
		if err != nil {
			return 0, 0, 0, err
		}
		edge = max(edge, l.Bytes)
		cut += r.Count
	}
	last, err := graph.BoundaryLayout(p, cut)
	if err != nil {
		return 0, 0, 0, err
	}
	edge = max(edge, last.Bytes)
	n := tensor.Bytes(inFlight)
	every = 2*n*edge + 2*stateBytes(p) + alignedSum(p.Travel)
	for i := range p.Constants {
		every += p.Constants[i].Bytes
	}
	return every, edge, n * graph.ConditioningLayout(p).Bytes, nil
}

// pieceOf is the largest weights and the mean work of count executions of the
// first segment, of which the first one runs the others too.
func pieceOf(p *graph.Program, segments []*graph.Segment, count int, stored map[string]tensor.DType, storage string) (w weight, c graph.Cost, arena tensor.Bytes, err error) {
	for i := range count {
		one, err := weigh(p, segments[0], i, stored, storage)
		if err != nil {
			return w, c, 0, err
		}
		w.file, w.stored, w.packed = max(w.file, one.file), max(w.stored, one.stored), max(w.packed, one.packed)
	}
	c, arena = segments[0].Cost, segments[0].Arena
	for _, s := range segments[1:] {
		extra, err := weigh(p, s, 0, stored, "")
		if err != nil {
			return w, c, 0, err
		}
		w.file += extra.file
		w.stored += extra.stored
		w.packed += extra.packed
		n := int64(count)
		c.LinearFLOPs += s.Cost.LinearFLOPs / n
		c.AttentionFLOPs += s.Cost.AttentionFLOPs / n
		c.MovedBytes += s.Cost.MovedBytes / n
		arena = max(arena, s.Arena)
	}
	return w, c, arena, nil
}

// mostly is the dtype that most weights are stored in, as placement names it.
func mostly(p *graph.Program, stored map[string]tensor.DType) placement.DType {
	bytes := map[tensor.DType]tensor.Bytes{}
	for _, r := range p.Runs {
		for _, w := range r.Block.Weights {
			if d, ok := stored[graph.Resolve(w.Name, 0)]; ok {
				if n, err := w.Shape.Bytes(d); err == nil {
					bytes[d] += n * tensor.Bytes(r.Count)
				}
			}
		}
	}
	if len(bytes) == 0 {
		return ""
	}
	best := slices.MaxFunc(slices.Sorted(maps.Keys(bytes)), func(a, b tensor.DType) int { return cmp.Compare(bytes[a], bytes[b]) })
	return placement.DType(strings.ToLower(best.String()))
}
