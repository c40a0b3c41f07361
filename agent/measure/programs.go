// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// builder writes a segment whose values are all bound from outside or lie one
// behind the other in the arena.
type builder struct{ seg graph.Segment }

func newBuilder(name string, d tensor.DType) *builder {
	return &builder{graph.Segment{Name: "measure." + name, Compute: d}}
}

func (b *builder) value(name string, d tensor.DType, space graph.Space, index int, shape ...int64) graph.ValueID {
	strides, n := make([]int64, len(shape)), int64(1)
	for i := len(shape) - 1; i >= 0; i-- {
		strides[i] = n
		n *= shape[i]
	}
	t := graph.Tensor{Name: name, Shape: shape, DType: d, Bytes: tensor.Bytes(n * int64(d.Size()))}
	t.Place = graph.Place{Space: space, Index: index, Strides: strides}
	if space == graph.SpaceArena {
		t.Place.Offset = b.seg.Arena
		b.seg.Arena += (t.Bytes + graph.Align - 1) / graph.Align * graph.Align
	}
	b.seg.Values = append(b.seg.Values, t)
	return graph.ValueID(len(b.seg.Values) - 1)
}

func (b *builder) input(name string, shape ...int64) graph.ValueID {
	id := b.value(name, b.seg.Compute, graph.SpaceInput, len(b.seg.Inputs), shape...)
	b.seg.Inputs = append(b.seg.Inputs, id)
	return id
}

func (b *builder) table(name string, shape ...int64) graph.ValueID {
	id := b.value(name, tensor.F32, graph.SpaceConstant, len(b.seg.Constants), shape...)
	b.seg.Constants = append(b.seg.Constants, id)
	return id
}

func (b *builder) output(name string, shape ...int64) graph.ValueID {
	id := b.value(name, b.seg.Compute, graph.SpaceOutput, len(b.seg.Outputs), shape...)
	b.seg.Outputs = append(b.seg.Outputs, id)
	return id
}

func (b *builder) inner(name string, shape ...int64) graph.ValueID {
	return b.value(name, b.seg.Compute, graph.SpaceArena, 0, shape...)
}

func (b *builder) weight(name string, shape ...int64) graph.WeightID {
	b.seg.Weights = append(b.seg.Weights, graph.Weight{Name: name, Shape: shape})
	return graph.WeightID(len(b.seg.Weights) - 1)
}

func (b *builder) step(op graph.Op, a graph.Attrs, out graph.ValueID, weights []graph.WeightID, in ...graph.ValueID) {
	b.seg.Steps = append(b.seg.Steps, graph.Step{Node: graph.Node{Op: op, In: in, Out: []graph.ValueID{out}, Weights: weights, Attrs: a}})
	if op == graph.OpLinear || op == graph.OpAttention {
		return
	}
	for _, id := range append(in, out) {
		b.seg.Cost.MovedBytes += int64(b.seg.Values[id].Bytes)
	}
}

// linear is a projection to three times the width, as qkv is.
func linear(d tensor.DType, sz size) *graph.Segment {
	tokens, hidden := sz.tokens, sz.hidden
	b := newBuilder("linear", d)
	x, y := b.input("x", 1, tokens, hidden), b.output("y", 1, tokens, 3*hidden)
	b.step(graph.OpLinear, graph.Attrs{}, y, []graph.WeightID{b.weight("w", 3*hidden, hidden), b.weight("b", 3*hidden)}, x)
	b.seg.Cost.LinearFLOPs = 2 * tokens * hidden * 3 * hidden
	return &b.seg
}

func attention(d tensor.DType, sz size) *graph.Segment {
	tokens, hidden := sz.tokens, sz.hidden
	b := newBuilder("attention", d)
	shape := []int64{1, tokens, hidden / headSize, headSize}
	q, k, v, o := b.input("q", shape...), b.input("k", shape...), b.input("v", shape...), b.output("o", shape...)
	b.step(graph.OpAttention, graph.Attrs{Scale: 0.08838834764831845}, o, nil, q, k, v)
	b.seg.Cost.AttentionFLOPs = 4 * tokens * tokens * hidden
	return &b.seg
}

// elementwise runs what stands between the products of a block, in about the
// proportions of a FLUX block.
func elementwise(d tensor.DType, sz size) *graph.Segment {
	tokens, hidden := sz.tokens, sz.hidden
	b := newBuilder("elementwise", d)
	x, wide, vec := b.input("x", 1, tokens, hidden), b.input("wide", 1, tokens, 4*hidden), b.input("vec", 1, hidden)
	cos, sin := b.table("cos", tokens, headSize/2), b.table("sin", tokens, headSize/2)
	out := b.output("out", 1, tokens, hidden)
	norm, mod := b.inner("norm", 1, tokens, hidden), b.inner("mod", 1, tokens, hidden)
	act := b.inner("act", 1, tokens, 4*hidden)
	qk, turned := b.inner("qk", 1, tokens, hidden/headSize, headSize), b.inner("turned", 1, tokens, hidden/headSize, headSize)
	q := b.input("q", 1, tokens, hidden/headSize, headSize)
	b.step(graph.OpLayerNorm, graph.Attrs{Eps: 1e-6}, norm, nil, x)
	b.step(graph.OpModulate, graph.Attrs{}, mod, nil, norm, vec, vec)
	b.step(graph.OpRMSNorm, graph.Attrs{Eps: 1e-6}, qk, []graph.WeightID{b.weight("scale", headSize)}, q)
	b.step(graph.OpRoPE, graph.Attrs{}, turned, nil, qk, cos, sin)
	b.step(graph.OpGELUTanh, graph.Attrs{}, act, nil, wide)
	b.step(graph.OpGatedAdd, graph.Attrs{}, out, nil, x, vec, mod)
	return &b.seg
}
