// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"math"

	"github.com/distorch/distorch/model/numeric"
)

// The kernels in pure Go, for reductions and what is built on them: they define
// the bits.

// lanes are the 16 accumulators of a reduction.
type lanes [16]float32

// sum folds the lanes: 8+8, 4+4, 2+2, 1+1.
func (l *lanes) sum() float32 {
	for width := 8; width > 0; width /= 2 {
		for j := range width {
			l[j] += l[j+width]
		}
	}
	return l[0]
}

func (l *lanes) max() float32 {
	for width := 8; width > 0; width /= 2 {
		for j := range width {
			if l[j+width] > l[j] {
				l[j] = l[j+width]
			}
		}
	}
	return l[0]
}

func rowSumRow[T Elem](x []T) float32 {
	var l lanes
	var xb buffer
	for from, to := range pieces(len(x)) {
		for i, v := range load(&xb, x[from:to]) {
			l[i%16] += v
		}
	}
	return l.sum()
}

func rowMaxRow[T Elem](x []T) float32 {
	var l lanes
	for j := range l {
		l[j] = float32(math.Inf(-1))
	}
	var xb buffer
	for from, to := range pieces(len(x)) {
		for i, v := range load(&xb, x[from:to]) {
			if v > l[i%16] {
				l[i%16] = v
			}
		}
	}
	return l.max()
}

func expSubRow[T Elem](dst []T, x []float32, scale, ref float32) float32 {
	var l lanes
	var xb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		for i := range v {
			v[i] = expSoftmax(numeric.FMA32(v[i], scale, -ref))
			l[i%16] += v[i]
		}
		store(dst[from:to], v)
	}
	return l.sum()
}

// moments are the mean and 1/√(variance + eps) of a row.
func moments[T Elem](x []T, eps float32) (mean, rstd float32) {
	var l lanes
	var xb buffer
	n := float32(len(x))
	mean = rowSumRow(x) / n
	for from, to := range pieces(len(x)) {
		for i, v := range load(&xb, x[from:to]) {
			d := v - mean
			l[i%16] = numeric.FMA32(d, d, l[i%16])
		}
	}
	return mean, inverseRoot(l.sum()/n + eps)
}

func inverseRoot(x float32) float32 { return 1 / float32(math.Sqrt(float64(x))) }

func normalise(v []float32, mean, rstd float32) {
	for i := range v {
		v[i] = float32((v[i] - mean) * rstd)
	}
}

func layerNormRow[T Elem](dst, x []T, eps float32) {
	mean, rstd := moments(x, eps)
	var xb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		normalise(v, mean, rstd)
		store(dst[from:to], v)
	}
}

func layerNormAffineRow[T Elem](dst, x, w, b []T, eps float32) {
	mean, rstd := moments(x, eps)
	var xb, wb, bb buffer
	for from, to := range pieces(len(dst)) {
		v, vw, vb := load(&xb, x[from:to]), load(&wb, w[from:to]), load(&bb, b[from:to])
		normalise(v, mean, rstd)
		for i := range v {
			v[i] = numeric.FMA32(v[i], vw[i], vb[i])
		}
		store(dst[from:to], v)
	}
}

func layerNormModulateRow[T Elem](dst, x, scale, shift []T, eps float32) {
	mean, rstd := moments(x, eps)
	var xb, tb, sb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		normalise(v, mean, rstd)
		round[T](v)
		modulate[T](v, load(&tb, scale[from:to]), load(&sb, shift[from:to]))
		store(dst[from:to], v)
	}
}

func rms[T Elem](x []T, eps float32) float32 {
	var l lanes
	var xb buffer
	for from, to := range pieces(len(x)) {
		for i, v := range load(&xb, x[from:to]) {
			l[i%16] = numeric.FMA32(v, v, l[i%16])
		}
	}
	return inverseRoot(l.sum()/float32(len(x)) + eps)
}

func scaleByWeight(v, w []float32, r float32) {
	for i := range v {
		v[i] = float32(float32(v[i]*r) * w[i])
	}
}

func rmsNormRow[T Elem](dst, x, w []T, eps float32) {
	r := rms(x, eps)
	var xb, wb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		scaleByWeight(v, load(&wb, w[from:to]), r)
		store(dst[from:to], v)
	}
}

func rmsNormPlainRow[T Elem](dst, x []T, eps float32) {
	r := rms(x, eps)
	scaleRow(dst, x, r)
}

// turn rotates each adjacent pair of v.
func turn(v, cos, sin []float32) {
	for i := 0; i+1 < len(v); i += 2 {
		a, b, c, s := v[i], v[i+1], cos[i/2], sin[i/2]
		v[i] = float32(c*a) - float32(s*b)
		v[i+1] = float32(s*a) + float32(c*b)
	}
}

func ropeRow[T Elem](dst, x []T, cos, sin []float32) {
	var xb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		turn(v, cos[from/2:to/2], sin[from/2:to/2])
		store(dst[from:to], v)
	}
}

func rmsNormRopeRow[T Elem](dst, x, w []T, cos, sin []float32, eps float32) {
	r := rms(x, eps)
	var xb, wb buffer
	for from, to := range pieces(len(dst)) {
		v := load(&xb, x[from:to])
		scaleByWeight(v, load(&wb, w[from:to]), r)
		round[T](v)
		turn(v, cos[from/2:to/2], sin[from/2:to/2])
		store(dst[from:to], v)
	}
}
