// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/distorch/distorch/model/tensor"
)

// Specialise gives the model's free dimensions their values and its compute
// kind a dtype (tensor.F32 or tensor.BF16): concrete shapes, places, FLOPs and
// scratch. It allocates in proportion to the model's description, never to
// the sizes that the dimensions announce. The model must be valid.
//
// Dimensions that are missing or out of the model's bounds give a *DimError.
func Specialise(m *Model, free Dims, compute tensor.DType) (*Program, error) {
	return specialise(m, free, compute, nil, false)
}

// SpecialiseKept is Specialise with a place of its own for every value (views
// apart): nothing is overwritten, so that all taps can be read when a segment
// has run. It computes the same bits in a larger arena.
func SpecialiseKept(m *Model, free Dims, compute tensor.DType) (*Program, error) {
	return specialise(m, free, compute, nil, true)
}

// Within specialises the same model for a request that must fit the workload
// which p was made for: it needs no larger arena, inputs or outputs anywhere.
// A larger request gives a *DimError that is ErrTooLarge.
func (p *Program) Within(request Dims) (*Program, error) {
	if err := p.Model.Within(request, p.Dims); err != nil {
		return nil, err
	}
	return specialise(p.Model, request, p.Compute, p, p.kept)
}

func specialise(m *Model, free Dims, compute tensor.DType, bound *Program, keep bool) (*Program, error) {
	if compute != tensor.F32 && compute != tensor.BF16 {
		return nil, fmt.Errorf("compute dtype %v: must be F32 or BF16", compute)
	}
	dims, err := m.Resolve(free)
	if err != nil {
		return nil, err
	}
	p := &Program{Model: m, Dims: dims, Compute: compute, kept: keep}
	if err := p.bindInterface(); err != nil {
		return nil, err
	}
	p.Runs = make([]ProgramRun, len(m.Runs))
	for i := range m.Runs {
		r := &m.Runs[i]
		state, err := tensorsOf(r.State, dims, compute)
		if err != nil {
			return nil, fmt.Errorf("state of %s: %w", r.Name, err)
		}
		p.Runs[i] = ProgramRun{Name: r.Name, Count: int(r.Count), State: state}
	}
	err = m.eachGraph(func(g part) error {
		s, err := segment(g.name, g.graph, dims, compute)
		if err == nil {
			err = s.place(bound.segment(g.name), keep)
		}
		if err != nil {
			return fmt.Errorf("specialise %s: %w", g.name, err)
		}
		p.put(s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Program) bindInterface() error {
	var err error
	if p.Inputs, err = tensorsOf(p.Model.Inputs, p.Dims, p.Compute); err != nil {
		return err
	}
	out, err := tensorsOf([]Value{p.Model.Output}, p.Dims, p.Compute)
	if err != nil {
		return err
	}
	p.Output = out[0]
	if p.Travel, err = tensorsOf(p.Model.Travel, p.Dims, p.Compute); err != nil {
		return err
	}
	constants := make([]Value, len(p.Model.Constants))
	for i, c := range p.Model.Constants {
		if err := c.validateAt(p.Dims); err != nil {
			return fmt.Errorf("constant %q: %w", c.Name, err)
		}
		constants[i] = Value{Name: c.Name, Shape: c.Shape, Kind: F32}
	}
	p.Constants, err = tensorsOf(constants, p.Dims, p.Compute)
	return err
}

// Segments are all segments of the program: head, entries and blocks in
// order, tail.
func (p *Program) Segments() []*Segment {
	all := []*Segment{p.Head}
	for _, r := range p.Runs {
		if r.Entry != nil {
			all = append(all, r.Entry)
		}
		all = append(all, r.Block)
	}
	return append(all, p.Tail)
}

// segment finds a segment by name; nil in a nil program.
func (p *Program) segment(name string) *Segment {
	if p == nil {
		return nil
	}
	all := p.Segments()
	if i := slices.IndexFunc(all, func(s *Segment) bool { return s.Name == name }); i >= 0 {
		return all[i]
	}
	return nil
}

func (p *Program) put(s *Segment) {
	switch s.Name {
	case "head":
		p.Head = s
		return
	case "tail":
		p.Tail = s
		return
	}
	for i := range p.Runs {
		switch s.Name {
		case p.Runs[i].Name:
			p.Runs[i].Block = s
			return
		case p.Runs[i].Name + ".entry":
			p.Runs[i].Entry = s
			return
		}
	}
}

// tensorsOf gives values their shapes; places are contiguous at offset 0.
func tensorsOf(vs []Value, dims Dims, compute tensor.DType) ([]Tensor, error) {
	out := make([]Tensor, len(vs))
	for i, v := range vs {
		s, err := v.at(dims)
		if err != nil {
			return nil, err
		}
		d := v.Kind.DType(compute)
		n, err := s.Bytes(d)
		if err != nil {
			return nil, fmt.Errorf("value %q: %w", v.Name, err)
		}
		out[i] = Tensor{Name: v.Name, Shape: s, DType: d, Bytes: n, Place: Place{Strides: rowMajor(s)}}
	}
	return out, nil
}

func rowMajor(s tensor.Shape) []int64 {
	strides := make([]int64, len(s))
	n := int64(1)
	for i := len(s) - 1; i >= 0; i-- {
		strides[i] = n
		n *= s[i]
	}
	return strides
}

// segment evaluates and checks a graph's shapes and counts its work. Places
// are given afterwards.
func segment(name string, g *Graph, dims Dims, compute tensor.DType) (*Segment, error) {
	values, err := tensorsOf(g.Values, dims, compute)
	if err != nil {
		return nil, err
	}
	shapes := make([]tensor.Shape, len(values))
	for i := range values {
		shapes[i] = values[i].Shape
	}
	if err := g.checkShapes(shapes); err != nil {
		return nil, err
	}
	s := &Segment{
		Name: name, Compute: compute, Values: values,
		Inputs: g.Inputs, Constants: g.Constants, Outputs: g.Outputs,
		Weights: g.Weights, Taps: g.Taps, Steps: make([]Step, len(g.Nodes)),
	}
	for i := range g.Nodes {
		s.Steps[i].Node = g.Nodes[i]
	}
	return s, nil
}

// count adds up the work of all steps; it needs places, since views cost
// nothing.
func (s *Segment) count() error {
	var c Cost
	for _, w := range s.Weights {
		n, err := w.Shape.Elements()
		if err != nil {
			return fmt.Errorf("weight %q: %w", w.Name, err)
		}
		c.WeightElements += n
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		if err := s.countStep(st, &c); err != nil {
			return fmt.Errorf("node %d (%s): %w", i, st.Op, err)
		}
	}
	s.Cost = c
	return nil
}

func (s *Segment) countStep(st *Step, c *Cost) error {
	switch st.Op {
	case OpLinear:
		x, w := s.Values[st.In[0]], s.Weights[st.Weights[0]]
		n, err := product(2, x.Shape, w.Shape[:1])
		if err != nil {
			return err
		}
		if err := addTo(&c.LinearFLOPs, n); err != nil {
			return err
		}
		return s.countFewRows(x, w, c)
	case OpLowRank, OpLowRankAdd:
		return s.countLowRank(st, c)
	case OpAttention:
		q, k := s.Values[st.In[0]], s.Values[st.In[1]]
		n, err := product(4, q.Shape, k.Shape[1:2])
		if err != nil {
			return err
		}
		if len(st.In) > 3 { // every head reads the mask
			m, err := product(q.Shape[2], tensor.Shape{int64(s.Values[st.In[3]].Bytes)})
			if err != nil {
				return err
			}
			if err := addTo(&c.MovedBytes, m); err != nil {
				return err
			}
		}
		return addTo(&c.AttentionFLOPs, n)
	}
	if st.View {
		return nil
	}
	for i, id := range st.In {
		if i < len(st.InPlace) && st.InPlace[i] {
			continue
		}
		n := int64(s.Values[id].Bytes)
		if st.Op == OpConcat {
			n *= 2 // read and written
		}
		if err := addTo(&c.MovedBytes, n); err != nil {
			return err
		}
	}
	if st.Op == OpConcat {
		return nil
	}
	for _, id := range st.Out {
		if err := addTo(&c.MovedBytes, int64(s.Values[id].Bytes)); err != nil {
			return err
		}
	}
	return nil
}

// fewRows is the number of rows below which a product waits for its weights
// rather than for arithmetic.
const fewRows = 16

// countFewRows adds the weights of a product of few rows, such as a modulation,
// to the traffic: reading them is what it costs.
func (s *Segment) countFewRows(x Tensor, w Weight, c *Cost) error {
	rows, err := product(1, x.Shape[:len(x.Shape)-1])
	if err != nil || rows >= fewRows {
		return err
	}
	n, err := w.Shape.Bytes(s.Compute)
	if err != nil {
		return err
	}
	return addTo(&c.MovedBytes, int64(n))
}

func product(n int64, shapes ...tensor.Shape) (int64, error) {
	for _, s := range shapes {
		for _, d := range s {
			hi, lo := bits.Mul64(uint64(n), uint64(d))
			if hi != 0 || lo>>62 != 0 {
				return 0, fmt.Errorf("work of %v overflows", shapes)
			}
			n = int64(lo)
		}
	}
	return n, nil
}

func addTo(sum *int64, n int64) error {
	if *sum += n; *sum < 0 || *sum>>62 != 0 {
		return fmt.Errorf("the segment's work overflows")
	}
	return nil
}
