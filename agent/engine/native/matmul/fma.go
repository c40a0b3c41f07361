// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import "math"

const canonicalNaN = 0x7FC00000

// fma32 is a*b+c rounded once to f32.
func fma32(a, b, c float32) float32 { return float32(fmaOdd(a, b, c)) }

// fmaOdd is a*b+c rounded to odd in f64, from which one more rounding to f32
// gives what a single rounding would. The product of two f32 is exact in f64.
func fmaOdd(a, b, c float32) float64 {
	p, w := float64(a)*float64(b), float64(c)
	s := p + w
	if math.IsInf(s, 0) || math.IsNaN(s) {
		return s
	}
	t := s - p
	e := (p - (s - t)) + (w - t)
	u := math.Float64bits(s)
	if e == 0 || u&1 == 1 {
		return s
	}
	if (e > 0) == (s > 0) {
		return math.Float64frombits(u + 1)
	}
	return math.Float64frombits(u - 1)
}

// tiny is the least value that rounds to a normal f32 when the exponent is
// unbounded: x86 detects tininess after rounding, so smaller ones flush.
const tiny = 0x1p-126 - 0x1p-151

// flushFMA is fma32 with denormals read as zero and tiny results flushed to a
// zero of their sign, as VDPBF16PS and an FMA under DAZ and FTZ do.
func flushFMA(a, b, c float32) float32 {
	s := fmaOdd(flush(a), flush(b), flush(c))
	if s < tiny && s > -tiny {
		return float32(math.Copysign(0, s))
	}
	return float32(s)
}

func flush(v float32) float32 {
	u := math.Float32bits(v)
	if u&0x7f800000 == 0 {
		return math.Float32frombits(u & 0x80000000)
	}
	return v
}
