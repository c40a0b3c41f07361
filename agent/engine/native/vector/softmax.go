// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import "math"

// Softmax is the state of a softmax over keys that arrive in tiles, one entry
// per row. Start gives its first state.
type Softmax struct {
	Max   []float32 // running maximum of scale · score
	Sum   []float32 // running sum of exp(scale · score − Max)
	Alpha []float32 // by what the last tile's new maximum rescales earlier results
}

// Start sets the first rows entries to the state before any key.
func (s Softmax) Start(rows int) {
	for i := range rows {
		s.Max[i], s.Sum[i], s.Alpha[i] = float32(math.Inf(-1)), 0, 0
	}
}

// SoftmaxTile takes in the scores [rows, keys] of one tile: with
// m = max(Max, round(scale·max(scores))) and m = 0 in place of −Inf below,
//
//	p     = exp(fma(score, scale, −m)), rounded to T
//	Alpha = exp(Max − m)
//	Sum   = round(Sum·Alpha) + the 16-lane sum of p before its rounding
//	Max   = m
//
// scale must be positive. exp is the softmax's (exp.go): results below 2⁻¹²⁶
// are +0. What was accumulated for a row before this tile has to be multiplied
// by Alpha (RowScale); after the last tile, dividing by Sum ends the softmax.
func (o *Ops[T]) SoftmaxTile(p Rows[T], scores Rows[float32], scale float32, st Softmax, f *Ops[float32], rows, keys int) {
	for i := range rows {
		s := scores.row(i, keys)
		old, m := st.Max[i], float32(f.k.rowMax(s)*scale)
		if !(m > old) {
			m = old
		}
		ref := m
		if math.IsInf(float64(ref), -1) {
			ref = 0
		}
		st.Max[i], st.Alpha[i] = m, old-ref
		sum := o.k.expSub(p.row(i, keys), s, scale, ref)
		f.k.expSub(st.Alpha[i:i+1:i+1], st.Alpha[i:i+1:i+1], 1, 0)
		st.Sum[i] = canonical(float32(st.Sum[i]*st.Alpha[i]) + sum)
	}
}

// ExpSub writes exp(fma(x, scale, −ref[i])) for row i, rounded to T, and, if
// sum is not nil, the 16-lane sum of each row before that rounding.
func (o *Ops[T]) ExpSub(dst Rows[T], x Rows[float32], scale float32, ref, sum []float32, rows, n int) {
	for i := range rows {
		s := o.k.expSub(dst.row(i, n), x.row(i, n), scale, ref[i])
		if sum != nil {
			sum[i] = canonical(s)
		}
	}
}

// RowMax writes the largest element of each row, −Inf for none; elements that
// are not numbers are passed over.
func (o *Ops[T]) RowMax(dst []float32, x Rows[T], rows, n int) {
	for i := range rows {
		dst[i] = o.k.rowMax(x.row(i, n))
	}
}

// RowSum writes the 16-lane sum of each row.
func (o *Ops[T]) RowSum(dst []float32, x Rows[T], rows, n int) {
	for i := range rows {
		dst[i] = canonical(o.k.rowSum(x.row(i, n)))
	}
}

// RowScale writes x · s[i] for row i, rounded to T.
func (o *Ops[T]) RowScale(dst Rows[T], x Rows[float32], s []float32, rows, n int) {
	for i := range rows {
		o.k.rowScale(dst.row(i, n), x.row(i, n), s[i])
	}
}
