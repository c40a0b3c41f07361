// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"

	"github.com/distorch/distorch/model/tensor"
)

// Part is a head, block or tail as placement sees it.
type Part struct {
	Name   string // "head", "double_blocks.3", "tail"
	Run    string // "" for head and tail
	Index  int    // over all runs, -1 for head and tail
	InRun  int    // within its run
	Params int64
	// Tensors is the number of weights; Stored their bytes in the file, Packed
	// their bytes at the compute dtype.
	Tensors int
	Stored  tensor.Bytes
	Packed  tensor.Bytes
	Cost    Cost // of one forward, the run's entry included in its first block
	Arena   tensor.Bytes
	// Boundary is what a cut behind this part carries to the next node: the
	// state and the travelling values. For the tail it is the output.
	Boundary tensor.Bytes
}

// Table is the block table of a program.
type Table struct {
	Head, Tail Part
	Blocks     []Part
}

// Totals adds up parameters, tensors, stored bytes and FLOPs over all parts.
func (t *Table) Totals() (params int64, tensors int, stored, packed tensor.Bytes, flops int64) {
	add := func(p Part) {
		params += p.Params
		tensors += p.Tensors
		stored += p.Stored
		packed += p.Packed
		flops += p.Cost.LinearFLOPs + p.Cost.AttentionFLOPs
	}
	add(t.Head)
	for _, b := range t.Blocks {
		add(b)
	}
	add(t.Tail)
	return params, tensors, stored, packed, flops
}

// Table is the block table for weights stored in the given dtypes, by resolved
// name without the checkpoint's prefix. A weight that is missing is an error.
func (p *Program) Table(stored map[string]tensor.DType) (*Table, error) {
	t := &Table{Blocks: make([]Part, 0, p.Model.Blocks())}
	var err error
	if t.Head, err = p.part(p.Head, 0, stored); err != nil {
		return nil, err
	}
	t.Head.Name, t.Head.Index = "head", -1
	if t.Head.Boundary, err = p.boundaryBytes(0); err != nil {
		return nil, err
	}
	for r := range p.Runs {
		run := &p.Runs[r]
		for i := range run.Count {
			b, err := p.part(run.Block, i, stored)
			if err != nil {
				return nil, err
			}
			b.Run, b.InRun, b.Index = run.Name, i, len(t.Blocks)
			b.Name = fmt.Sprintf("%s.%d", run.Name, i)
			if i == 0 && run.Entry != nil {
				e, err := p.part(run.Entry, 0, stored)
				if err != nil {
					return nil, err
				}
				b.include(e)
			}
			if b.Boundary, err = p.boundaryBytes(b.Index + 1); err != nil {
				return nil, err
			}
			t.Blocks = append(t.Blocks, b)
		}
	}
	if t.Tail, err = p.part(p.Tail, 0, stored); err != nil {
		return nil, err
	}
	t.Tail.Name, t.Tail.Index, t.Tail.Boundary = "tail", -1, p.Output.Bytes
	return t, nil
}

func (p *Part) include(e Part) {
	p.Params += e.Params
	p.Tensors += e.Tensors
	p.Stored += e.Stored
	p.Packed += e.Packed
	p.Cost.LinearFLOPs += e.Cost.LinearFLOPs
	p.Cost.AttentionFLOPs += e.Cost.AttentionFLOPs
	p.Cost.MovedBytes += e.Cost.MovedBytes
	p.Cost.WeightElements += e.Cost.WeightElements
	p.Arena = max(p.Arena, e.Arena)
}

func (p *Program) part(s *Segment, i int, stored map[string]tensor.DType) (Part, error) {
	out := Part{Params: s.Cost.WeightElements, Tensors: len(s.Weights), Cost: s.Cost, Arena: s.Arena}
	for _, w := range s.Weights {
		name := Resolve(w.Name, i)
		d, ok := stored[name]
		if !ok {
			return Part{}, fmt.Errorf("%s: no weight %q", s.Name, name)
		}
		n, err := w.Shape.Bytes(d)
		if err != nil {
			return Part{}, fmt.Errorf("%s: weight %q: %w", s.Name, name, err)
		}
		m, err := w.Shape.Bytes(p.Compute)
		if err != nil {
			return Part{}, fmt.Errorf("%s: weight %q: %w", s.Name, name, err)
		}
		out.Stored += n
		out.Packed += m
	}
	return out, nil
}

func (p *Program) boundaryBytes(cut int) (tensor.Bytes, error) {
	l, err := BoundaryLayout(p, cut)
	if err != nil {
		return 0, err
	}
	n := tensor.Bytes(0)
	for _, v := range l.Values {
		n += v.Bytes
	}
	return n, nil
}

// Layout is several tensors in one region, each at an Align-ed offset
// (Place.Offset), contiguous and row-major.
type Layout struct {
	Values []Tensor
	Bytes  tensor.Bytes // of the whole region
}

func layout(groups ...[]Tensor) Layout {
	var l Layout
	for _, g := range groups {
		for _, v := range g {
			v.Place = Place{Offset: l.Bytes, Strides: rowMajor(v.Shape)}
			l.Values = append(l.Values, v)
			l.Bytes += aligned(v.Bytes)
		}
	}
	return l
}

// BoundaryLayout is what crosses a cut in front of block number cut, counted
// over all runs (cut = number of blocks: in front of the tail): the state in
// graph order, then the travelling values. At the border of two runs it is the
// state of the run before; who runs the next block runs its entry.
func BoundaryLayout(p *Program, cut int) (Layout, error) {
	if cut < 0 || cut > p.Model.Blocks() {
		return Layout{}, fmt.Errorf("cut in front of block %d of %d", cut, p.Model.Blocks())
	}
	run := 0
	if cut > 0 {
		run, _, _ = p.Model.BlockAt(cut - 1)
	}
	return layout(p.Runs[run].State, p.Travel), nil
}

// InputLayout is what a request brings to the head, OutputLayout what the tail
// gives back.
func InputLayout(p *Program) Layout { return layout(p.Inputs) }

// OutputLayout is the tail's output.
func OutputLayout(p *Program) Layout { return layout([]Tensor{p.Output}) }

// Launch is one execution of a segment in a stage.
type Launch struct {
	Segment *Segment
	Run     int // -1 for head and tail
	Index   int // within the run: resolves the weights' templates
	Block   int // over all runs; -1 for head, tail and entries
	// State names the outputs, position by position: the state after it, for
	// the head the state and the travelling values, for the tail the output.
	State []Tensor
}

// Stage lists what a stage of blocks first … first+count-1 executes, in order,
// the head and the tail included if it has them. A run's entry is executed by
// the stage that has the run's first block.
func (p *Program) Stage(first, count int, head, tail bool) ([]Launch, error) {
	all := p.Model.Blocks()
	if first < 0 || count < 0 || first+count > all || count == 0 && !head && !tail {
		return nil, fmt.Errorf("stage of %d blocks from block %d: the model has %d", count, first, all)
	}
	if head && first != 0 || tail && first+count != all {
		return nil, fmt.Errorf("stage of %d blocks from block %d of %d cannot have the head or tail", count, first, all)
	}
	var out []Launch
	if head {
		out = append(out, Launch{Segment: p.Head, Run: -1, Block: -1, State: append(append([]Tensor{}, p.Runs[0].State...), p.Travel...)})
	}
	for b := first; b < first+count; b++ {
		run, i, _ := p.Model.BlockAt(b)
		r := &p.Runs[run]
		if i == 0 && r.Entry != nil {
			out = append(out, Launch{Segment: r.Entry, Run: run, Block: -1, State: r.State})
		}
		out = append(out, Launch{Segment: r.Block, Run: run, Index: i, Block: b, State: r.State})
	}
	if tail {
		out = append(out, Launch{Segment: p.Tail, Run: -1, Block: -1, State: []Tensor{p.Output}})
	}
	return out, nil
}
