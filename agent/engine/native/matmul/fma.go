// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"math"

	"github.com/distorch/distorch/model/numeric"
)

const canonicalNaN = 0x7FC00000

// flushFMA is a*b+c rounded once to f32 with denormals read as zero and tiny
// results flushed to a zero of their sign, as VDPBF16PS does and an FMA under
// DAZ and FTZ.
func flushFMA(a, b, c float32) float32 {
	a, b, c = flush(a), flush(b), flush(c)
	r := numeric.FMA32(a, b, c)
	if math.Float32bits(r)&0x7fffffff > 0x00800000 {
		return r
	}
	return flushTiny(a, b, c, r)
}

// flushTiny decides for a result r of at most 2^-126. x86 detects tininess
// after rounding, as if the exponent had no bound: 2^-126 stays unless the
// exact value is nearer to the 24-bit number below it.
func flushTiny(a, b, c, r float32) float32 {
	// All exact: the product has 48 bits; where the sum loses bits, e has them.
	p, w := float64(a)*float64(b), float64(c)
	s := p + w
	t := s - p
	e := (p - (s - t)) + (w - t)
	const bound = 0x1p-126 - 0x1p-151
	m := math.Abs(s)
	if s < 0 {
		e = -e
	}
	if m > bound || m == bound && e >= 0 {
		return r
	}
	return float32(math.Copysign(0, s))
}

func flush(v float32) float32 {
	u := math.Float32bits(v)
	if u&0x7f800000 == 0 {
		return math.Float32frombits(u & 0x80000000)
	}
	return v
}
