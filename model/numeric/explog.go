// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package numeric

import "math"

// twoSum is a+b as hi + lo, exact (Knuth).
func twoSum(a, b float64) (hi, lo float64) {
	hi = a + b
	t := hi - a
	return hi, (a - (hi - t)) + (b - t)
}

// fastTwoSum is twoSum for |a| >= |b| or a = 0.
func fastTwoSum(a, b float64) (hi, lo float64) {
	hi = a + b
	return hi, b - (hi - a)
}

// twoProd is a*b as hi + lo, exact.
func twoProd(a, b float64) (hi, lo float64) {
	hi = float64(a * b)
	return hi, math.FMA(a, b, -hi)
}

// expParts is exp(xh+xl) as (hi + lo) * 2^k with a relative error below 2^-65,
// for |xh| < 1100: xh = n*log(2)/64 + r, |r| < 0.0055, table times polynomial.
func expParts(xh, xl float64) (hi, lo float64, k int) {
	n := math.Floor(float64(xh*(64/math.Ln2)) + 0.5)
	r := math.FMA(-n, ln2Over64Hi, xh)
	ph, pl := twoProd(n, ln2Over64Lo)
	rh, rl := twoSum(r, -ph)
	rl += xl - pl

	q := 1.0/720 + float64(rh*(1.0/5040))
	q = math.FMA(rh, q, 1.0/120)
	q = math.FMA(rh, q, 1.0/24)
	q = math.FMA(rh, q, 1.0/6)
	q = math.FMA(rh, q, 0.5)
	sh, sl := fastTwoSum(rh, float64(float64(rh*rh)*q))
	sl += math.FMA(rl, rh, rl)

	i := int(n)
	t := exp2Table[i&63]
	ph, pl = twoProd(t[0], sh)
	hi, lo = fastTwoSum(t[0], ph)
	lo += pl + math.FMA(t[0], sl, math.FMA(t[1], sh, t[1]))
	return hi, lo, i >> 6
}

// Exp is e^x within 0.51 ulp; below the normal range within 1 ulp.
func Exp(x float64) float64 {
	switch {
	case x != x || x > 709.79:
		return x * math.Inf(1)
	case x < -745.14:
		return 0
	}
	hi, lo, k := expParts(x, 0)
	return math.Ldexp(hi+lo, k)
}

// Exp32CorrectlyRounded is e^x rounded once to float32, nearest even.
func Exp32CorrectlyRounded(x float32) float32 {
	switch {
	case x != x:
		return x
	case x > 88.8:
		return float32(math.Inf(1))
	case x < -104:
		return 0
	case x == 0:
		return 1
	}
	hi, lo, k := expParts(float64(x), 0)
	return float32(math.Ldexp(sumToOdd(hi, lo), k))
}

// sumToOdd is hi+lo rounded to odd, so that a later rounding to fewer bits is
// as if it were the only one. |lo| must be below an ulp of hi; hi > 0.
func sumToOdd(hi, lo float64) float64 {
	s, e := fastTwoSum(hi, lo)
	u := math.Float64bits(s)
	if e != 0 && u&1 == 0 {
		if e > 0 {
			u++
		} else {
			u--
		}
	}
	return math.Float64frombits(u)
}

// logParts is log(x) as hi + lo for finite x > 0, with an absolute error below
// 2^-68 and, near 1, the same relative to the result:
// x = 2^k * z, log(x) = k*log(2) - log(c) + log1p(z*c-1), c from a table.
func logParts(x float64) (hi, lo float64) {
	k := 0
	if x < 0x1p-1022 {
		x *= 0x1p54
		k = -54
	}
	const offset = 0x3fe6 << 48
	u := math.Float64bits(x)
	d := u - offset
	k += int(int64(d) >> 52)
	z := math.Float64frombits(u - d&(0xfff<<52))
	t := logTable[d>>45&127]
	r := math.FMA(z, t[0], -1)

	w := float64(float64(k)*ln2Hi) + t[1]
	hi, lo = twoSum(w, r)
	hh, hl := twoProd(r, r)
	hi, e := twoSum(hi, float64(-0.5*hh))
	p := 1.0/7 - float64(r*(1.0/8-float64(r*(1.0/9))))
	p = math.FMA(-r, math.FMA(-r, p, 1.0/6), 1.0/5)
	p = math.FMA(-r, math.FMA(-r, p, 1.0/4), 1.0/3)
	lo += e + math.FMA(float64(k), ln2Lo, t[2])
	lo += math.FMA(float64(hh*r), p, -0.5*hl)
	return fastTwoSum(hi, lo)
}

// Log is the natural logarithm within 0.51 ulp.
func Log(x float64) float64 {
	switch {
	case x != x || math.IsInf(x, 1):
		return x
	case x < 0:
		return math.NaN()
	case x == 0:
		return math.Inf(-1)
	}
	hi, _ := logParts(x)
	return hi
}

// Pow is x^y within 0.52 ulp in the normal range, with the special cases of
// IEEE 754 (as math.Pow).
func Pow(x, y float64) float64 {
	switch {
	case y == 0 || x == 1:
		return 1
	case x != x || y != y || x == 0 || math.IsInf(x, 0) || math.IsInf(y, 0):
		return math.Pow(x, y) // decided by cases alone, no arithmetic
	case x < 0 && y != math.Floor(y):
		return math.NaN()
	}
	lh, ll := logParts(math.Abs(x))
	ph, pl := twoProd(lh, y)
	pl = math.FMA(ll, y, pl)
	sign := 1.0
	if x < 0 && math.Abs(y) < 0x1p53 && int64(y)&1 == 1 {
		sign = -1
	}
	switch {
	case ph > 710:
		return sign * math.Inf(1)
	case ph < -746:
		return sign * 0
	}
	ph, pl = fastTwoSum(ph, pl)
	hi, lo, k := expParts(ph, pl)
	return sign * math.Ldexp(hi+lo, k)
}

// Sqrt is the correctly rounded square root.
func Sqrt(x float64) float64 { return math.Sqrt(x) }
