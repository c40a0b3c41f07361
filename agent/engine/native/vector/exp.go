// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"math"

	"github.com/distorch/distorch/model/numeric"
)

// The constants of the functions below, each exactly as the assembly has it.
const (
	roundMagic = 12582912.0      // 1.5 · 2²³: adding it rounds to an integer
	log2e      = 0x1.715476p+0   // 1/ln 2 in f32
	ln2Hi      = 0x1.62e43p-1    // ln 2 in f32
	ln2Lo      = -0x1.05c61p-29  // ln 2 − ln2Hi in f32
	exp2       = 0x1.fffffcp-2   // exp's polynomial, of degree 6 in r:
	exp3       = 0x1.55549p-3    // |error| < 3.2e-9 for |r| ≤ 0.3467
	exp4       = 0x1.5558a6p-5   //
	exp5       = 0x1.123ab6p-7   //
	exp6       = 0x1.6a58fep-10  //
	softmaxMin = -0x1.5d589ep+6  // ln 2⁻¹²⁶
	softmaxMax = 88              // keeps 2ⁿ finite
	siluMin    = -126            // below it x·exp(x) is −0
	geluMin    = -11.5           // below it GELU is −0
	geluAHi    = 0x1.26aecp+1    // 2·√(2/π)/ln 2, a multiple of 2⁻²⁰
	geluALo    = 0x1.0de73ap-22  // and the rest
	geluA      = 0x1.26aec2p+1   // their sum in f32
	geluBHi    = 0x1.a5a7dp-4    // 0.044715 times that, in f32
	geluBLo    = -0x1.151aaep-29 // and the rest
	base1      = 0x1.62e43p-1    // the polynomial of 2ʳ, of degree 6 in r:
	base2      = 0x1.ebfbdcp-3   // |error| < 3.1e-9 for |r| ≤ 0.5005
	base3      = 0x1.c6af78p-5   //
	base4      = 0x1.3b2dd4p-7   //
	base5      = 0x1.5f0a92p-10  //
	base6      = 0x1.41795ep-13  //
)

// expPoly is exp(r) for |r| ≤ ln(2)/2.
func expPoly(r float32) float32 {
	p := numeric.FMA32(exp6, r, exp5)
	p = numeric.FMA32(p, r, exp4)
	p = numeric.FMA32(p, r, exp3)
	p = numeric.FMA32(p, r, exp2)
	p = numeric.FMA32(p, r, 1)
	return numeric.FMA32(p, r, 1)
}

// nearest returns v·log2(e) rounded to an integer, as a float and as an int.
func nearest(v float32) (float32, int32) {
	z := numeric.FMA32(v, log2e, roundMagic)
	return z - roundMagic, int32(math.Float32bits(z) - math.Float32bits(roundMagic))
}

// reduce is v − n·ln 2.
func reduce(v, n float32) float32 { return numeric.FMA32(n, -ln2Lo, numeric.FMA32(n, -ln2Hi, v)) }

// pow2 is 2ⁿ for −126 ≤ n ≤ 127.
func pow2(n int32) float32 { return math.Float32frombits(uint32(n+127) << 23) }

// scale2 is p·2ⁿ with one rounding, for |p| ≥ 2⁻³⁰ and −200 ≤ n ≤ 0.
func scale2(p float32, n int32) float32 {
	half := n >> 1
	return float32(float32(p*pow2(half)) * pow2(n-half))
}

// expSoftmax is exp(v) for v ≤ 88, +0 where that is below 2⁻¹²⁶.
func expSoftmax(v float32) float32 {
	if v < softmaxMin {
		return 0
	}
	if softmaxMax < v {
		v = softmaxMax
	}
	n, i := nearest(v)
	return float32(expPoly(reduce(v, n)) * pow2(i))
}

// negative is −|x|, at least lowest.
func negative(x, lowest float32) float32 {
	v := math.Float32frombits(math.Float32bits(x) | 1<<31)
	if lowest > v {
		return lowest
	}
	return v
}

// gateBySigmoid is x·sigmoid(u) where |x| was bounded to −v and
// exp(−|u|) = p·2ⁿ.
func gateBySigmoid(x, v, p float32, n int32) float32 {
	num := x
	if math.Signbit(float64(x)) {
		num = scale2(float32(v*p), n)
	}
	return num / (1 + scale2(p, n))
}

// silu is x·sigmoid(x).
func silu(x float32) float32 {
	v := negative(x, siluMin)
	n, i := nearest(v)
	return gateBySigmoid(x, v, expPoly(reduce(v, n)), i)
}

// pow2Poly is 2ʳ for |r| ≤ 1/2.
func pow2Poly(r float32) float32 {
	p := numeric.FMA32(base6, r, base5)
	p = numeric.FMA32(p, r, base4)
	p = numeric.FMA32(p, r, base3)
	p = numeric.FMA32(p, r, base2)
	p = numeric.FMA32(p, r, base1)
	return numeric.FMA32(p, r, 1)
}

// whole rounds t to an integer, as a float and as an int.
func whole(t float32) (float32, int32) {
	z := t + roundMagic
	return z - roundMagic, int32(math.Float32bits(z) - math.Float32bits(roundMagic))
}

// gelu is x·sigmoid(2u), u = √(2/π)·(x + 0.044715·x³). The exponent 2u/ln 2 is
// held in two floats, t + tl, since 2ᵗ magnifies its error by t.
func gelu(x float32) float32 {
	v := negative(x, geluMin)
	s := float32(v * v)
	sl := numeric.FMA32(v, v, -s)
	w := numeric.FMA32(geluBHi, s, geluAHi)
	e := numeric.FMA32(geluBHi, s, geluAHi-w) + geluALo
	e = numeric.FMA32(geluBLo, s, e)
	e = numeric.FMA32(geluBHi, sl, e)
	t := float32(v * w)
	tl := numeric.FMA32(v, e, numeric.FMA32(v, w, -t))
	n, i := whole(t)
	return gateBySigmoid(x, v, pow2Poly((t-n)+tl), i)
}

// geluBF16 is gelu with its exponent in one float: far below the rounding of
// the bf16 that takes the result.
func geluBF16(x float32) float32 {
	v := negative(x, geluMin)
	t := float32(v * numeric.FMA32(geluBHi, float32(v*v), geluA))
	n, i := whole(t)
	return gateBySigmoid(x, v, pow2Poly(t-n), i)
}
