// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package enginetest holds an engine against the contract of its sessions and
// against the meaning of the operations (model/graph/refexec).
//
// Imported by tests of engines alone. It imports the contract, not an engine.
package enginetest

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/refexec"
	"github.com/distorch/distorch/model/tensor"
)

// sketch writes a graph with concrete shapes.
type sketch struct{ graph.Graph }

func (s *sketch) value(name string, k graph.Kind, shape ...int64) graph.ValueID {
	v := graph.Value{Name: name, Kind: k}
	for _, n := range shape {
		v.Shape = append(v.Shape, graph.Int(n))
	}
	s.Values = append(s.Values, v)
	return graph.ValueID(len(s.Values) - 1)
}

func (s *sketch) in(name string, k graph.Kind, shape ...int64) graph.ValueID {
	id := s.value(name, k, shape...)
	s.Inputs = append(s.Inputs, id)
	return id
}

func (s *sketch) weight(name string, shape ...int64) graph.WeightID {
	s.Weights = append(s.Weights, graph.Weight{Name: name, Shape: shape})
	return graph.WeightID(len(s.Weights) - 1)
}

func (s *sketch) node(op graph.Op, a graph.Attrs, out graph.ValueID, in ...graph.ValueID) graph.ValueID {
	s.Nodes = append(s.Nodes, graph.Node{Op: op, In: in, Out: []graph.ValueID{out}, Attrs: a})
	return out
}

func (s *sketch) weighted(w ...graph.WeightID) { s.Nodes[len(s.Nodes)-1].Weights = w }

func (s *sketch) split(axis int, in graph.ValueID, out ...graph.ValueID) {
	s.Nodes = append(s.Nodes, graph.Node{Op: graph.OpSplit, In: []graph.ValueID{in}, Out: out, Attrs: graph.Attrs{Axis: axis}})
}

// concat joins along the last of three dimensions into an output.
func (s *sketch) concat(name string, axis int, shape []int64, in ...graph.ValueID) {
	out := s.value(name, s.Values[in[0]].Kind, shape...)
	s.node(graph.OpConcat, graph.Attrs{Axis: axis}, out, in...)
	s.Outputs = append(s.Outputs, out)
}

// segment specialises the graph as a block of a model that has nothing else.
func (s *sketch) segment(t testing.TB, compute tensor.DType) *graph.Segment {
	t.Helper()
	r := graph.Run{Name: "blocks", Count: 1, Block: s.Graph}
	for _, id := range s.Outputs {
		r.State = append(r.State, s.Values[id])
	}
	p, err := graph.Specialise(&graph.Model{Arch: "sketch", OpSet: graph.OpSet, Output: graph.Value{Name: "none", Shape: []graph.Expr{graph.Int(1)}}, Runs: []graph.Run{r}}, graph.Dims{}, compute)
	if err != nil {
		t.Fatal(err)
	}
	return p.Runs[0].Block
}

// Operands are random inputs and weights that bf16 holds exactly.
type Operands map[string][]float32

// Draw makes operands for a segment, with special numbers among them or without.
func Draw(seg *graph.Segment, special bool) Operands {
	rng := rand.New(rand.NewPCG(1, uint64(len(seg.Values))))
	specials := []float32{0, float32(math.Copysign(0, -1)), 1e-40, -3e-39, 1e30, -1e30, float32(math.Inf(1)), float32(math.Inf(-1))}
	o := Operands{}
	fill := func(name string, n int64) {
		v := make([]float32, n)
		for i := range v {
			v[i] = tensor.F32FromBF16(tensor.BF16FromF32(float32(rng.NormFloat64())))
			if special && rng.IntN(4) == 0 {
				v[i] = tensor.F32FromBF16(tensor.BF16FromF32(specials[rng.IntN(len(specials))]))
			}
		}
		o[name] = v
	}
	for _, id := range seg.Inputs {
		n, _ := seg.Values[id].Shape.Elements()
		fill(seg.Values[id].Name, n)
	}
	for _, w := range seg.Weights {
		n, _ := w.Shape.Elements()
		fill(w.Name, n)
	}
	return o
}

func encode(v []float32, d tensor.DType) []byte {
	raw := make([]byte, len(v)*d.Size())
	if d == tensor.F32 {
		tensor.PutF32(raw, v)
		return raw
	}
	half := make([]uint16, len(v))
	tensor.BF16FromF32s(half, v)
	tensor.PutBF16(raw, half)
	return raw
}

// Execute runs a segment on a session and returns its outputs' bytes. All
// memory but the inputs is full of NaN first.
func Execute(t testing.TB, s engine.Session, seg *graph.Segment, o Operands) [][]byte {
	t.Helper()
	var all []engine.Buffer
	defer func() {
		for _, b := range all {
			b.Free()
		}
	}()
	buffer := func(n tensor.Bytes, raw []byte) engine.Buffer {
		b, err := s.Buffer(n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
		fill := bytes.Repeat([]byte{0xff}, int(n))
		copy(fill, raw)
		put(t, s, b, fill)
		return b
	}
	p, err := s.Compile(t.Context(), seg)
	if err != nil {
		t.Fatal(err)
	}
	var stored []byte
	var weights []engine.Weight
	for _, w := range seg.Weights {
		weights = append(weights, engine.Weight{Name: w.Name, DType: tensor.F32, Shape: w.Shape, Offset: tensor.Bytes(len(stored))})
		stored = append(stored, encode(o[w.Name], tensor.F32)...)
	}
	packed := buffer(p.PackedBytes(), nil)
	var bindings []engine.Binding
	for _, id := range seg.Inputs {
		v := seg.Values[id]
		bindings = append(bindings, engine.Binding{Name: v.Name, Buffer: buffer(v.Bytes, encode(o[v.Name], v.DType))})
	}
	var outs []engine.Buffer
	for _, id := range seg.Outputs {
		v := seg.Values[id]
		outs = append(outs, buffer(v.Bytes, nil))
		bindings = append(bindings, engine.Binding{Name: v.Name, Buffer: outs[len(outs)-1]})
	}
	e := s.Pack(p, packed, 0, buffer(tensor.Bytes(len(stored)), stored), weights)
	if err := s.Wait(t.Context(), s.Run(p, packed, 0, buffer(p.Scratch(), nil), bindings, e)); err != nil {
		t.Fatal(err)
	}
	var raw [][]byte
	for _, b := range outs {
		raw = append(raw, take(t, s, b))
	}
	return raw
}

// put fills a buffer's begin, by way of the host where the device's memory is its own.
func put(t testing.TB, s engine.Session, b engine.Buffer, raw []byte) {
	t.Helper()
	if h := b.Host(); h != nil {
		copy(h, raw)
		return
	}
	through(t, s, b, func(host engine.Buffer) engine.Event {
		copy(host.Host(), raw)
		return s.Copy(b, 0, host, 0, tensor.Bytes(len(raw)))
	})
}

// take is a copy of a buffer's bytes.
func take(t testing.TB, s engine.Session, b engine.Buffer) (raw []byte) {
	t.Helper()
	if h := b.Host(); h != nil {
		return bytes.Clone(h)
	}
	through(t, s, b, func(host engine.Buffer) engine.Event {
		e := s.Copy(host, 0, b, 0, b.Bytes())
		if err := s.Wait(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		raw = bytes.Clone(host.Host())
		return e
	})
	return raw
}

func through(t testing.TB, s engine.Session, b engine.Buffer, do func(host engine.Buffer) engine.Event) {
	t.Helper()
	host, err := s.HostBuffer(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Free()
	if err := s.Wait(t.Context(), do(host)); err != nil {
		t.Fatal(err)
	}
}

// reference computes the outputs in float64.
func reference(t testing.TB, seg *graph.Segment, o Operands) [][]float32 {
	t.Helper()
	m := &refexec.Machine{Weight: func(name string) ([]float32, error) {
		if v, ok := o[name]; ok {
			return v, nil
		}
		return nil, fmt.Errorf("no weight %q", name)
	}}
	out, err := m.Run(graph.Launch{Segment: seg}, refexec.Values(o))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func decode(t testing.TB, raw []byte, d tensor.DType) []float32 {
	t.Helper()
	v := make([]float32, len(raw)/d.Size())
	if err := tensor.ToF32(v, raw, d); err != nil {
		t.Fatal(err)
	}
	return v
}
