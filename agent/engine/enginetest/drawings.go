// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

type size struct{ b, s, d int64 }

// drawing is a graph around one operation: inputs are views into wider tensors
// and the result is made inside a wider one.
type drawing struct {
	name string
	draw func(s *sketch, z size)
}

// perRow wraps an operation on [B,S,D]: a and b are the halves of the rows of
// x, v and w those of vec; b is joined behind the result.
func perRow(name string, do func(s *sketch, out, a, b, v, w graph.ValueID, d int64)) drawing {
	return drawing{name, func(s *sketch, z size) {
		x := s.in("x", graph.Compute, z.b, z.s, 2*z.d)
		vec := s.in("vec", graph.Compute, z.b, 2*z.d)
		a, b := s.value("a", graph.Compute, z.b, z.s, z.d), s.value("b", graph.Compute, z.b, z.s, z.d)
		v, w := s.value("v", graph.Compute, z.b, z.d), s.value("w", graph.Compute, z.b, z.d)
		s.split(2, x, a, b)
		s.split(1, vec, v, w)
		out := s.value("y", graph.Compute, z.b, z.s, z.d)
		do(s, out, a, b, v, w, z.d)
		s.concat("out", 2, []int64{z.b, z.s, 2 * z.d}, out, b)
	}}
}

func one(op graph.Op, a graph.Attrs, weights ...string) drawing {
	return perRow(fmt.Sprint(op, len(weights)), func(s *sketch, out, x, _, _, _ graph.ValueID, d int64) {
		s.node(op, a, out, x)
		var ids []graph.WeightID
		for _, w := range weights {
			ids = append(ids, s.weight(w, d))
		}
		s.weighted(ids...)
	})
}

func linear(n int64, bias bool) drawing {
	return drawing{fmt.Sprintf("linear to %d, bias %v", n, bias), func(s *sketch, z size) {
		x := s.in("x", graph.Compute, z.b, z.s, z.d+3)
		a, b := s.value("a", graph.Compute, z.b, z.s, z.d), s.value("b", graph.Compute, z.b, z.s, 3)
		s.split(2, x, a, b)
		y := s.node(graph.OpLinear, graph.Attrs{}, s.value("y", graph.Compute, z.b, z.s, n), a)
		ids := []graph.WeightID{s.weight("matrix", n, z.d)}
		if bias {
			ids = append(ids, s.weight("bias", n))
		}
		s.weighted(ids...)
		s.concat("out", 2, []int64{z.b, z.s, n + 3}, y, b)
	}}
}

// lowRank changes columns from first on of a linear's result by two strengths,
// whose ranks are 2 and z.d; over is whether y is used again, so that the
// result cannot lie on it.
func lowRank(first, n, m int64, offsets, over bool) drawing {
	return drawing{fmt.Sprintf("low rank, columns %d to %d of %d, offsets %v, y used again %v", first, first+m, n, offsets, over), func(s *sketch, z size) {
		x, strength := s.in("x", graph.Compute, z.b, z.s, z.d+3), s.in("strength", graph.F32, 2)
		a, b := s.value("a", graph.Compute, z.b, z.s, z.d), s.value("b", graph.Compute, z.b, z.s, 3)
		s.split(2, x, a, b)
		y := s.node(graph.OpLinear, graph.Attrs{}, s.value("y", graph.Compute, z.b, z.s, n), a)
		s.weighted(s.weight("matrix", n, z.d))
		r := 2 + z.d
		wide := r
		if offsets {
			wide += 2
		}
		t := s.node(graph.OpLowRank, graph.Attrs{Ranks: []int{2, int(z.d)}}, s.value("t", graph.Compute, z.b, z.s, wide), a, strength)
		s.weighted(s.weight("down", r, z.d))
		out := s.node(graph.OpLowRankAdd, graph.Attrs{First: first}, s.value("changed", graph.Compute, z.b, z.s, n), y, t)
		s.weighted(s.weight("up", m, wide))
		if over {
			s.concat("twice", 2, []int64{z.b, z.s, 2 * n}, out, s.node(graph.OpSiLU, graph.Attrs{}, s.value("silu", graph.Compute, z.b, z.s, n), y))
		}
		s.concat("out", 2, []int64{z.b, z.s, n + 3}, out, b)
	}}
}

const headSize = 12

// heads splits rows of q, k, v for z.d heads into three views [B,S,H,12].
func heads(s *sketch, z size) (q, k, v graph.ValueID) {
	width := z.d * headSize
	x := s.in("qkv", graph.Compute, z.b, z.s, 3*width)
	var flat, out []graph.ValueID
	for _, n := range []string{"q", "k", "v"} {
		flat = append(flat, s.value(n+".flat", graph.Compute, z.b, z.s, width))
	}
	s.split(2, x, flat...)
	for i, n := range []string{"q", "k", "v"} {
		out = append(out, s.node(graph.OpReshape, graph.Attrs{}, s.value(n, graph.Compute, z.b, z.s, z.d, headSize), flat[i]))
	}
	return out[0], out[1], out[2]
}

func drawings() []drawing {
	eps := graph.Attrs{Eps: 1e-6}
	all := []drawing{
		one(graph.OpScale, graph.Attrs{Factor: 1000}), one(graph.OpSiLU, graph.Attrs{}), one(graph.OpGELUTanh, graph.Attrs{}),
		one(graph.OpLayerNorm, eps), one(graph.OpLayerNorm, eps, "scale"), one(graph.OpLayerNorm, eps, "scale", "shift"),
		one(graph.OpRMSNorm, eps), one(graph.OpRMSNorm, eps, "scale"),
		perRow("add", func(s *sketch, out, a, b, _, _ graph.ValueID, _ int64) { s.node(graph.OpAdd, graph.Attrs{}, out, a, b) }),
		perRow("mul", func(s *sketch, out, a, b, _, _ graph.ValueID, _ int64) { s.node(graph.OpMul, graph.Attrs{}, out, a, b) }),
		perRow("modulate", func(s *sketch, out, a, _, v, w graph.ValueID, _ int64) {
			s.node(graph.OpModulate, graph.Attrs{}, out, a, v, w)
		}),
		perRow("gated_add", func(s *sketch, out, a, b, v, _ graph.ValueID, _ int64) {
			s.node(graph.OpGatedAdd, graph.Attrs{}, out, a, v, b)
		}),
		perRow("gated_add fused", func(s *sketch, out, a, b, v, _ graph.ValueID, _ int64) {
			s.node(graph.OpGatedAdd, graph.Attrs{Fused: true}, out, a, v, b)
		}),
		linear(1, true), linear(33, true), linear(48, false), linear(50, true),
		lowRank(0, 48, 48, false, false), lowRank(3, 70, 33, true, false), lowRank(40, 64, 24, false, true), lowRank(0, 33, 1, true, true),
	}
	return append(all, headDrawings()...)
}

func headDrawings() []drawing {
	return []drawing{
		{"rope", func(s *sketch, z size) {
			q, k, _ := heads(s, z)
			cos, sin := s.in("cos", graph.F32, z.s, headSize/2), s.in("sin", graph.F32, z.s, headSize/2)
			y := s.node(graph.OpRoPE, graph.Attrs{}, s.value("y", graph.Compute, z.b, z.s, z.d, headSize), q, cos, sin)
			s.concat("out", 1, []int64{z.b, 2 * z.s, z.d, headSize}, y, k)
		}},
		{"attention", func(s *sketch, z size) {
			q, k, v := heads(s, z)
			y := s.node(graph.OpAttention, graph.Attrs{Scale: 0.3}, s.value("y", graph.Compute, z.b, z.s, z.d, headSize), q, k, v)
			flat := s.node(graph.OpReshape, graph.Attrs{}, s.value("y.flat", graph.Compute, z.b, z.s, z.d*headSize), y)
			s.concat("out", 2, []int64{z.b, z.s, 2 * z.d * headSize}, flat, s.node(graph.OpSiLU, graph.Attrs{}, s.value("silu", graph.Compute, z.b, z.s, z.d*headSize), flat))
		}},
		{"attention to other tokens", func(s *sketch, z size) {
			_, k, v := heads(s, z)
			q := s.in("queries", graph.Compute, z.b, 3, z.d, headSize)
			y := s.node(graph.OpAttention, graph.Attrs{Scale: 0.3}, s.value("y", graph.Compute, z.b, 3, z.d, headSize), q, k, v)
			s.concat("out", 1, []int64{z.b, 6, z.d, headSize}, y, q)
		}},
		{"masked attention", func(s *sketch, z size) {
			q, k, v := heads(s, z)
			mask := s.in("mask", graph.Compute, z.b, z.s, z.s)
			y := s.node(graph.OpAttention, graph.Attrs{Scale: 0.3}, s.value("y", graph.Compute, z.b, z.s, z.d, headSize), q, k, v, mask)
			s.concat("out", 1, []int64{z.b, 2 * z.s, z.d, headSize}, y, q)
		}},
		{"transpose and reshape", func(s *sketch, z size) {
			q, k, _ := heads(s, z)
			turned := s.node(graph.OpTranspose, graph.Attrs{Perm: []int{0, 2, 3, 1}}, s.value("turned", graph.Compute, z.b, z.d, headSize, z.s), q)
			a := s.node(graph.OpReshape, graph.Attrs{}, s.value("a", graph.Compute, z.b, z.d*headSize*z.s), turned)
			b := s.node(graph.OpReshape, graph.Attrs{}, s.value("b", graph.Compute, z.b, z.s*z.d*headSize), k)
			c := s.node(graph.OpReshape, graph.Attrs{}, s.value("c", graph.Compute, z.d*z.b*z.s, headSize), k)
			s.concat("out", 1, []int64{z.b, 2 * z.s * z.d * headSize}, a, b)
			s.concat("twice", 0, []int64{2 * z.d * z.b * z.s, headSize}, c, c)
		}},
		{"patches", func(s *sketch, z size) {
			x := s.in("x", graph.Compute, z.b, 3, z.s+2, z.d+2)
			for i, p := range [][2]int64{{2, 2}, {1, 3}, {2, 1}} {
				rows, cols := (z.s+2+p[0]-1)/p[0], (z.d+2+p[1]-1)/p[1]
				a := graph.Attrs{Patch: p}
				tokens := s.node(graph.OpPatchify, a, s.value(fmt.Sprint("tokens", i), graph.Compute, z.b, rows*cols, 3*p[0]*p[1]), x)
				wide := s.node(graph.OpSiLU, graph.Attrs{}, s.value(fmt.Sprint("wide", i), graph.Compute, z.b, rows*cols, 3*p[0]*p[1]), tokens)
				back := s.node(graph.OpUnpatchify, a, s.value(fmt.Sprint("back", i), graph.Compute, z.b, 3, z.s+2, z.d+2), wide)
				s.Outputs = append(s.Outputs, back)
			}
		}},
		{"time embedding and casts", func(s *sketch, z size) {
			v, f := s.in("v", graph.Compute, z.b), s.in("f", graph.F32, z.d)
			x := s.in("x", graph.F32, z.b, z.s, z.d)
			e := s.node(graph.OpTimestepEmbedding, graph.Attrs{}, s.value("e", graph.F32, z.b, 2*z.d), v, f)
			s.Outputs = append(s.Outputs, s.node(graph.OpCast, graph.Attrs{}, s.value("e.compute", graph.Compute, z.b, 2*z.d), e))
			narrow := s.node(graph.OpCast, graph.Attrs{}, s.value("narrow", graph.Compute, z.b, z.s, z.d), x)
			s.concat("out", 2, []int64{z.b, z.s, 2 * z.d}, s.node(graph.OpCast, graph.Attrs{}, s.value("back", graph.F32, z.b, z.s, z.d), narrow), x)
		}},
		{"concat of inputs, split to outputs", func(s *sketch, z size) {
			x, y := s.in("x", graph.Compute, z.b, z.s, z.d), s.in("y", graph.Compute, z.b, 2, z.d)
			s.concat("rows", 1, []int64{z.b, z.s + 2, z.d}, y, x)
			s.concat("items", 0, []int64{2 * z.b, z.s, z.d}, x, x)
			wide := s.in("wide", graph.Compute, z.b, z.s, z.d+1)
			a, b := s.value("a", graph.Compute, z.b, z.s, z.d), s.value("b", graph.Compute, z.b, z.s, 1)
			s.split(2, wide, a, b)
			s.Outputs = append(s.Outputs, a, b)
		}},
	}
}

func sizes() []size {
	return []size{{1, 1, 1}, {2, 1, 5}, {1, 7, 16}, {2, 3, 33}, {3, 19, 9}, {2, 41, 31}}
}

// offOf is max|got-want|/max|want|, elements that are NaN in both aside.
func offOf(got, want []float32) float64 {
	diff, top := 0.0, 1e-30
	for i := range want {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		diff, top = max(diff, d), max(top, math.Abs(float64(want[i])))
	}
	return diff / top
}

// operands are those that are drawn and, for a graph with strengths, the same
// with strengths of zero.
func operands(seg *graph.Segment, special bool) []Operands {
	o := Draw(seg, special)
	if _, ok := o["strength"]; !ok {
		return []Operands{o}
	}
	off := maps.Clone(o)
	off["strength"] = make([]float32, len(o["strength"]))
	return []Operands{o, off}
}

// Operations runs every operation on views, in all of the device's compute
// dtypes that graphs are specialised for, and holds the results against float64.
func Operations(t *testing.T, s engine.Session, tolerance map[tensor.DType]float64) {
	for _, d := range drawings() {
		t.Run(d.name, func(t *testing.T) {
			for compute, allowed := range tolerance {
				for _, z := range sizes() {
					var k sketch
					d.draw(&k, z)
					seg := k.segment(t, compute)
					for _, o := range operands(seg, false) {
						want := reference(t, seg, o)
						for i, raw := range Execute(t, s, seg, o) {
							v := seg.Values[seg.Outputs[i]]
							if off := offOf(decode(t, raw, v.DType), want[i]); off > allowed {
								t.Errorf("%v, %+v: %s is off by %.2g", compute, z, v.Name, off)
							}
						}
					}
				}
			}
		})
	}
}

// SameBits runs every operation on sessions of one numerics class, with
// denormals, infinities and both zeros among the operands, and holds the bytes
// against those of the first session.
func SameBits(t *testing.T, first engine.Session, others map[string]engine.Session) {
	for _, d := range drawings() {
		for n, z := range sizes() {
			for _, compute := range []tensor.DType{tensor.F32, tensor.BF16} {
				var k sketch
				d.draw(&k, z)
				seg := k.segment(t, compute)
				for _, o := range operands(seg, n%2 == 1) {
					want := Execute(t, first, seg, o)
					for name, s := range others {
						for i, got := range Execute(t, s, seg, o) {
							if v := seg.Values[seg.Outputs[i]]; !same(t, got, want[i], v.DType) {
								t.Errorf("%s, %v, %+v: %s with %s differs from the first session's", d.name, compute, z, v.Name, name)
							}
						}
					}
				}
			}
		}
	}
}

// same compares bytes; which NaN it is has no part in a class.
func same(t *testing.T, got, want []byte, d tensor.DType) bool {
	t.Helper()
	if bytes.Equal(got, want) {
		return true
	}
	a, b := decode(t, got, d), decode(t, want, d)
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) && !(a[i] != a[i] && b[i] != b[i]) {
			return false
		}
	}
	return true
}
