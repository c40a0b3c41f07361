// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

// LayerNorm writes (x − mean) · 1/√(var + eps): the mean first, then the mean
// of the squared deviations (biased), in f32; the result is rounded to T.
func (o *Ops[T]) LayerNorm(dst, x Rows[T], eps float32, rows, n int) {
	for i := range rows {
		o.k.layerNorm(dst.row(i, n), x.row(i, n), eps)
	}
}

// LayerNormAffine writes fma(h, w, b), h being the unrounded f32 result of
// LayerNorm; w and b [n].
func (o *Ops[T]) LayerNormAffine(dst, x Rows[T], w, b []T, eps float32, rows, n int) {
	for i := range rows {
		o.k.layerNormAffine(dst.row(i, n), x.row(i, n), w[:n], b[:n], eps)
	}
}

// LayerNormModulate gives the bits of LayerNorm followed by Modulate.
func (o *Ops[T]) LayerNormModulate(dst, x Rows[T], scale, shift []T, eps float32, rows, n int) {
	for i := range rows {
		o.k.layerNormModulate(dst.row(i, n), x.row(i, n), scale[:n], shift[:n], eps)
	}
}

// RMSNorm writes x · 1/√(mean(x²) + eps) · w in f32, rounded to T once; w [n].
func (o *Ops[T]) RMSNorm(dst, x Rows[T], w []T, eps float32, rows, n int) {
	for i := range rows {
		o.k.rmsNorm(dst.row(i, n), x.row(i, n), w[:n], eps)
	}
}

// RMSNormPlain is RMSNorm without a weight: x · 1/√(mean(x²) + eps).
func (o *Ops[T]) RMSNormPlain(dst, x Rows[T], eps float32, rows, n int) {
	for i := range rows {
		o.k.rmsNormPlain(dst.row(i, n), x.row(i, n), eps)
	}
}
