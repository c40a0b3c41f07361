// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import "github.com/distorch/distorch/model/numeric"

// The kernels in pure Go, for elementwise operations: they define the bits.

func addRow[T Elem](dst, a, b []T) {
	var ab, bb buffer
	for from, to := range pieces(len(dst)) {
		va, vb := load(&ab, a[from:to]), load(&bb, b[from:to])
		for i := range va {
			va[i] += vb[i]
		}
		store(dst[from:to], va)
	}
}

func mulRow[T Elem](dst, a, b []T) {
	var ab, bb buffer
	for from, to := range pieces(len(dst)) {
		va, vb := load(&ab, a[from:to]), load(&bb, b[from:to])
		for i := range va {
			va[i] *= vb[i]
		}
		store(dst[from:to], va)
	}
}

func siluRow[T Elem](dst, x []T) {
	var xb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		for i := range v {
			v[i] = silu(v[i])
		}
		store(dst[from:to], v)
	}
}

func geluRow[T Elem](dst, x []T) {
	var xb buffer
	f := gelu
	if _, bf16 := any(dst).([]uint16); bf16 {
		f = geluBF16
	}
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		for i := range v {
			v[i] = f(v[i])
		}
		store(dst[from:to], v)
	}
}

func modulateRow[T Elem](dst, x, scale, shift []T) {
	var xb, tb, sb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		modulate[T](v, load(&tb, scale[from:to]), load(&sb, shift[from:to]))
		store(dst[from:to], v)
	}
}

// modulate overwrites v and scale.
func modulate[T Elem](v, scale, shift []float32) {
	for i := range scale {
		scale[i] = 1 + scale[i]
	}
	round[T](scale)
	for i := range v {
		v[i] = numeric.FMA32(v[i], scale[i], shift[i])
	}
}

func gatedAddRow[T Elem](dst, x, gate, y []T) {
	var xb, gb, yb buffer
	for from, to := range pieces(len(dst)) {
		vx, vg, vy := load(&xb, x[from:to]), load(&gb, gate[from:to]), load(&yb, y[from:to])
		for i := range vg {
			vg[i] *= vy[i]
		}
		round[T](vg)
		for i := range vx {
			vx[i] += vg[i]
		}
		store(dst[from:to], vx)
	}
}

func gatedAddFusedRow[T Elem](dst, x, gate, y []T) {
	var xb, gb, yb buffer
	for from, to := range pieces(len(dst)) {
		vx, vg, vy := load(&xb, x[from:to]), load(&gb, gate[from:to]), load(&yb, y[from:to])
		for i := range vx {
			vx[i] = numeric.FMA32(vg[i], vy[i], vx[i])
		}
		store(dst[from:to], vx)
	}
}

func rowScaleRow[T Elem](dst []T, x []float32, s float32) { scaleTo(dst, x, s) }

func scaleRow[T Elem](dst, x []T, s float32) { scaleTo(dst, x, s) }

func scaleTo[T, S Elem](dst []T, x []S, s float32) {
	var xb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		for i := range v {
			v[i] *= s
		}
		store(dst[from:to], v)
	}
}
