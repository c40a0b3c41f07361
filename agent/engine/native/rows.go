// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"
	"slices"
	"unsafe"

	"github.com/distorch/distorch/agent/engine/native/vector"
	"github.com/distorch/distorch/model/graph"
)

// lead walks the leading dimensions of several values of one leading shape
// together: outer stretches, each of inner rows a fixed step apart. Stretch o
// of value v begins at element at[v][o].
type lead struct {
	outer, inner int
	at           [][]int
	step         []int
}

// newLead walks all dimensions but the last of values whose leading shapes are
// equal.
func newLead(values ...*graph.Tensor) lead {
	n := len(values[0].Shape) - 1
	strides := make([][]int64, len(values))
	for i, v := range values {
		strides[i] = v.Place.Strides[:n]
	}
	return walk(values[0].Shape[:n], strides)
}

// walk merges neighbouring dimensions where every value allows it.
func walk(shape []int64, strides [][]int64) lead {
	dims := make([]int64, 0, len(shape))
	steps := make([][]int64, len(strides))
	for d, n := range shape {
		if n == 1 {
			continue
		}
		last := len(dims) - 1
		merge := last >= 0
		for v := range strides {
			merge = merge && steps[v][last] == n*strides[v][d]
		}
		for v := range strides {
			if merge {
				steps[v][last] = strides[v][d]
			} else {
				steps[v] = append(steps[v], strides[v][d])
			}
		}
		if merge {
			dims[last] *= n
		} else {
			dims = append(dims, n)
		}
	}
	l := lead{outer: 1, inner: 1, at: make([][]int, len(strides)), step: make([]int, len(strides))}
	if k := len(dims) - 1; k >= 0 {
		l.inner = int(dims[k])
		for v := range strides {
			l.step[v] = int(steps[v][k])
		}
		dims = dims[:k]
	}
	for _, n := range dims {
		l.outer *= int(n)
	}
	for v := range strides {
		l.at[v] = offsets(dims, steps[v], l.outer)
	}
	return l
}

// offsets lists where each index of dims, row-major, begins.
func offsets(dims, steps []int64, count int) []int {
	at := make([]int, count)
	for i := range at {
		rest := int64(i)
		for d, dim := range slices.Backward(dims) {
			at[i] += int(rest % dim * steps[d])
			rest /= dim
		}
	}
	return at
}

// pieceElements is about how much one piece of a row operation touches.
const pieceElements = 16 << 10

// each calls f for stretches of rows, in pieces spread over the workers: f
// gets an outer index, the first row in it and how many rows.
func (l *lead) each(f *frame, n int, do func(o, row, rows int)) {
	total := l.outer * l.inner
	per := max(1, pieceElements/max(n, 1))
	f.pool.Do((total+per-1)/per, func(_, i int) {
		for r, end := i*per, min((i+1)*per, total); r < end; {
			o, row := r/l.inner, r%l.inner
			rows := min(l.inner-row, end-r)
			do(o, row, rows)
			r += rows
		}
	})
}

// elements views bytes as values; b is aligned to them.
func elements[T any](b []byte) []T {
	var t T
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(t)))
}

// rowStep compiles an operation on rows of the last dimension.
func rowStep[T vector.Elem](p *program, st *graph.Step, ops *vector.Ops[T]) (func(*frame) error, error) {
	out := &p.segment.Values[st.Out[0]]
	for _, id := range st.In {
		in := &p.segment.Values[id]
		if in.DType != out.DType && st.Op != graph.OpRoPE {
			return nil, fmt.Errorf("input %s is %v, output %s is %v", in.Name, in.DType, out.Name, out.DType)
		}
	}
	if st.Op == graph.OpRoPE {
		return ropeStep(p, st, ops)
	}
	do, err := rowKernel(p, st, ops)
	if err != nil {
		return nil, err
	}
	n := int(out.Shape[len(out.Shape)-1])
	operands := append([]graph.ValueID{st.Out[0]}, st.In...)
	strides := make([][]int64, len(operands))
	data := make([]func(*frame) []byte, len(operands))
	for i, id := range operands {
		strides[i], data[i] = spread(&p.segment.Values[id], out), p.data(id)
	}
	l := walk(out.Shape[:len(out.Shape)-1], strides)
	// A vector per batch item changes with every row where an item has one row.
	rowwise := false
	for i, id := range operands {
		rowwise = rowwise || l.step[i] != 0 && len(p.segment.Values[id].Shape) < len(out.Shape)
	}
	return func(f *frame) error {
		all := make([][]T, len(operands))
		for i := range data {
			all[i] = elements[T](data[i](f))
		}
		l.each(f, n, func(o, row, rows int) {
			var r [4]vector.Rows[T]
			for i := range all {
				r[i] = vector.Rows[T]{Data: all[i][l.at[i][o]+row*l.step[i]:], Stride: l.step[i]}
			}
			if !rowwise {
				do(f, r[:len(all)], rows, n)
				return
			}
			for range rows {
				do(f, r[:len(all)], 1, n)
				for i := range all {
					r[i].Data = r[i].Data[min(r[i].Stride, len(r[i].Data)):]
				}
			}
		})
		return nil
	}, nil
}

// spread is the strides of v's leading dimensions over those of out: a vector
// [B,D] beside [B,S,D] stays the same over S.
func spread(v, out *graph.Tensor) []int64 {
	n := len(out.Shape) - 1
	if len(v.Shape) == len(out.Shape) {
		return v.Place.Strides[:n]
	}
	s := make([]int64, n)
	s[0] = v.Place.Strides[0]
	return s
}

// rowKernel is the kernel call of one operation: r[0] is the output.
func rowKernel[T vector.Elem](p *program, st *graph.Step, ops *vector.Ops[T]) (func(f *frame, r []vector.Rows[T], rows, n int), error) {
	eps := float32(st.Attrs.Eps)
	weights := make([]func(*frame) []byte, len(st.Weights))
	for i, id := range st.Weights {
		weights[i] = p.weight(id)
	}
	w := func(f *frame, i int) []T { return elements[T](weights[i](f)) }
	type rowsOf = []vector.Rows[T]
	switch {
	case st.Op == graph.OpAdd:
		return func(_ *frame, r rowsOf, rows, n int) { ops.Add(r[0], r[1], r[2], rows, n) }, nil
	case st.Op == graph.OpMul:
		return func(_ *frame, r rowsOf, rows, n int) { ops.Mul(r[0], r[1], r[2], rows, n) }, nil
	case st.Op == graph.OpSiLU:
		return func(_ *frame, r rowsOf, rows, n int) { ops.SiLU(r[0], r[1], rows, n) }, nil
	case st.Op == graph.OpGELUTanh:
		return func(_ *frame, r rowsOf, rows, n int) { ops.GELUTanh(r[0], r[1], rows, n) }, nil
	case st.Op == graph.OpModulate:
		return func(_ *frame, r rowsOf, rows, n int) { ops.Modulate(r[0], r[1], r[2].Data, r[3].Data, rows, n) }, nil
	case st.Op == graph.OpGatedAdd && st.Attrs.Fused:
		return func(_ *frame, r rowsOf, rows, n int) { ops.GatedAddFused(r[0], r[1], r[2].Data, r[3], rows, n) }, nil
	case st.Op == graph.OpGatedAdd:
		return func(_ *frame, r rowsOf, rows, n int) { ops.GatedAdd(r[0], r[1], r[2].Data, r[3], rows, n) }, nil
	case st.Op == graph.OpLayerNorm && len(weights) == 0:
		return func(_ *frame, r rowsOf, rows, n int) { ops.LayerNorm(r[0], r[1], eps, rows, n) }, nil
	case st.Op == graph.OpLayerNorm && len(weights) == 2:
		return func(f *frame, r rowsOf, rows, n int) { ops.LayerNormAffine(r[0], r[1], w(f, 0), w(f, 1), eps, rows, n) }, nil
	case st.Op == graph.OpLayerNorm && len(weights) == 1:
		none := make([]T, p.weights[st.Weights[0]].Shape[0])
		return func(f *frame, r rowsOf, rows, n int) { ops.LayerNormAffine(r[0], r[1], w(f, 0), none, eps, rows, n) }, nil
	case st.Op == graph.OpRMSNorm && len(weights) == 0:
		return func(_ *frame, r rowsOf, rows, n int) { ops.RMSNormPlain(r[0], r[1], eps, rows, n) }, nil
	case st.Op == graph.OpRMSNorm && len(weights) == 1:
		return func(f *frame, r rowsOf, rows, n int) { ops.RMSNorm(r[0], r[1], w(f, 0), eps, rows, n) }, nil
	}
	return nil, fmt.Errorf("operation %s with %d weights is not in the native engine's op set", st.Op, len(weights))
}

// ropeStep turns pairs of x [B,S,H,d] by tables [S,d/2].
func ropeStep[T vector.Elem](p *program, st *graph.Step, ops *vector.Ops[T]) (func(*frame) error, error) {
	x, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	tab := &p.segment.Values[st.In[1]]
	if x.DType != out.DType || !p.isF32(st.In[1]) || !p.isF32(st.In[2]) {
		return nil, fmt.Errorf("rope of %v with tables of %v", x.DType, tab.DType)
	}
	xs, os, cos, sin := p.data(st.In[0]), p.data(st.Out[0]), p.data(st.In[1]), p.data(st.In[2])
	b, s, h, d := int(x.Shape[0]), int(x.Shape[1]), int(x.Shape[2]), int(x.Shape[3])
	xst, ost := x.Place.Strides, out.Place.Strides
	half := int(tab.Place.Strides[0])
	per := max(1, pieceElements/max(h*d, 1))
	pieces := (s + per - 1) / per
	return func(f *frame) error {
		xd, od := elements[T](xs(f)), elements[T](os(f))
		rot := vector.Rotation{Cos: elements[float32](cos(f)), Sin: elements[float32](sin(f)), Stride: half}
		f.pool.Do(b*pieces, func(_, i int) {
			item, row := i/pieces, i%pieces*per
			part := vector.Rotation{Cos: rot.Cos[row*half:], Sin: rot.Sin[row*half:], Stride: half}
			ops.RoPE(
				vector.Heads[T]{Data: od[item*int(ost[0])+row*int(ost[1]):], RowStride: int(ost[1]), HeadStride: int(ost[2])},
				vector.Heads[T]{Data: xd[item*int(xst[0])+row*int(xst[1]):], RowStride: int(xst[1]), HeadStride: int(xst[2])},
				part, min(per, s-row), h, d)
		})
		return nil
	}, nil
}
