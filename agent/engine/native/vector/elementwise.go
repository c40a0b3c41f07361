// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

// Add writes a + b.
func (o *Ops[T]) Add(dst, a, b Rows[T], rows, n int) {
	for i := range rows {
		o.k.add(dst.row(i, n), a.row(i, n), b.row(i, n))
	}
}

// Mul writes a · b.
func (o *Ops[T]) Mul(dst, a, b Rows[T], rows, n int) {
	for i := range rows {
		o.k.mul(dst.row(i, n), a.row(i, n), b.row(i, n))
	}
}

// AddBias writes x + bias, the same bias [n] in every row.
func (o *Ops[T]) AddBias(dst, x Rows[T], bias []T, rows, n int) {
	for i := range rows {
		o.k.add(dst.row(i, n), x.row(i, n), bias[:n])
	}
}

// Scale writes x · factor.
func (o *Ops[T]) Scale(dst, x Rows[T], factor float32, rows, n int) {
	for i := range rows {
		o.k.scale(dst.row(i, n), x.row(i, n), factor)
	}
}

// SiLU writes x · sigmoid(x), within 4 ulp in f32.
func (o *Ops[T]) SiLU(dst, x Rows[T], rows, n int) {
	for i := range rows {
		o.k.silu(dst.row(i, n), x.row(i, n))
	}
}

// GELUTanh writes 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), within 4 ulp in
// f32; in bf16 the true value, rounded, but within 0.01 ulp of a tie.
func (o *Ops[T]) GELUTanh(dst, x Rows[T], rows, n int) {
	for i := range rows {
		o.k.gelu(dst.row(i, n), x.row(i, n))
	}
}

// Modulate writes fma(x, t, shift) with t = 1 + scale, rounded to T; scale and
// shift [n] are those of every row.
func (o *Ops[T]) Modulate(dst, x Rows[T], scale, shift []T, rows, n int) {
	for i := range rows {
		o.k.modulate(dst.row(i, n), x.row(i, n), scale[:n], shift[:n])
	}
}

// GatedAdd writes x + gate·y with the product rounded to T first; gate [n] is
// that of every row.
func (o *Ops[T]) GatedAdd(dst, x Rows[T], gate []T, y Rows[T], rows, n int) {
	for i := range rows {
		o.k.gatedAdd(dst.row(i, n), x.row(i, n), gate[:n], y.row(i, n))
	}
}

// GatedAddFused writes fma(gate, y, x), rounded once; gate [n] is that of every
// row.
func (o *Ops[T]) GatedAddFused(dst, x Rows[T], gate []T, y Rows[T], rows, n int) {
	for i := range rows {
		o.k.gatedAddFused(dst.row(i, n), x.row(i, n), gate[:n], y.row(i, n))
	}
}
