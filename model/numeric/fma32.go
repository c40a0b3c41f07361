// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package numeric

import "math"

// FMA32 is a*b+c rounded once to float32, nearest even: what VFMADD and FMLA
// do, denormals, infinities and signed zeros included.
//
// The product of two float32 is exact in float64. The float64 sum loses bits;
// that shows in the float32 only where the sum looks like a tie, or where the
// result is below the normal range and ties lie elsewhere. Those take the slow
// path, which rounds the sum to odd first (Boldo and Melquiond, "Emulation of
// a FMA and correctly-rounded sums", 2008).
func FMA32(a, b, c float32) float32 {
	p := float64(a) * float64(b)
	s := float64(p) + float64(c)
	u := math.Float64bits(s)
	if u&0x1fffffff == 1<<28 || u<<1 < (1023-126)<<53 {
		return fma32Odd(p, float64(c), s)
	}
	return float32(s)
}

// fma32Odd rounds p+c, whose float64 sum is s, by way of round to odd. It is
// kept out of line so that FMA32 itself can be inlined.
//
//go:noinline
func fma32Odd(p, c, s float64) float32 {
	t := s - p
	e := (p - (s - t)) + (c - t)
	u := math.Float64bits(s)
	// s is finite here or e is NaN, for which both comparisons are false.
	if u&1 == 0 && (e > 0 || e < 0) {
		if (e > 0) == (s > 0) {
			u++
		} else {
			u--
		}
	}
	return float32(math.Float64frombits(u))
}
