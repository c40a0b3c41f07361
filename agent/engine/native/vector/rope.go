// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

// Heads is a view of attention heads: element j of head h of row i is
// Data[i*RowStride+h*HeadStride+j].
type Heads[T any] struct {
	Data       []T
	RowStride  int
	HeadStride int
}

func (v Heads[T]) row(i, h, n int) []T {
	at := i*v.RowStride + h*v.HeadStride
	return v.Data[at : at+n : at+n]
}

// Rotation holds the rotary tables: Cos and Sin of row i are the size/2 values
// from i*Stride on, one for each adjacent pair of a head.
type Rotation struct {
	Cos, Sin []float32
	Stride   int
}

func (r Rotation) row(i, half int) (cos, sin []float32) {
	at := i * r.Stride
	return r.Cos[at : at+half : at+half], r.Sin[at : at+half : at+half]
}

// RoPE turns each adjacent pair (a, b) of each head into (c·a − s·b, s·a + c·b):
// products, then sums, each rounded to f32, the result rounded to T. A head has
// size elements; size is even.
func (o *Ops[T]) RoPE(dst, x Heads[T], rot Rotation, rows, heads, size int) {
	for i := range rows {
		cos, sin := rot.row(i, size/2)
		for h := range heads {
			o.k.rope(dst.row(i, h, size), x.row(i, h, size), cos, sin)
		}
	}
}

// RMSNormRoPE gives the bits of RMSNorm over each head, with weight w [size],
// followed by RoPE.
func (o *Ops[T]) RMSNormRoPE(dst, x Heads[T], w []T, eps float32, rot Rotation, rows, heads, size int) {
	for i := range rows {
		cos, sin := rot.row(i, size/2)
		for h := range heads {
			o.k.rmsNormRope(dst.row(i, h, size), x.row(i, h, size), w[:size], cos, sin, eps)
		}
	}
}

// RMSNormHeads is RMSNorm over each head, with weight w [size].
func (o *Ops[T]) RMSNormHeads(dst, x Heads[T], w []T, eps float32, rows, heads, size int) {
	for i := range rows {
		for h := range heads {
			o.k.rmsNorm(dst.row(i, h, size), x.row(i, h, size), w[:size], eps)
		}
	}
}
