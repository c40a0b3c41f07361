// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package numeric

import "math"

// reduce is x - n*pi/2 as hi + lo with |hi| <= pi/4 (and a little), and n mod 4.
// Exact to 2^-90 for |x| up to 2^31; beyond, x is first taken modulo the
// float64 next to 2*pi, which is the same on every CPU but not accurate.
func reduce(x float64) (hi, lo float64, quadrant int) {
	if math.Abs(x) > 0x1p31 {
		x = math.Mod(x, 2*math.Pi)
	}
	n := math.Floor(float64(x*(2/math.Pi)) + 0.5)
	r := math.FMA(-n, piOver2A, x)
	bh, bl := twoProd(n, piOver2B)
	hi, lo = twoSum(r, -bh)
	ch, cl := twoProd(n, piOver2C)
	hi, e := twoSum(hi, -ch)
	lo += e - bl - cl
	hi, lo = fastTwoSum(hi, lo)
	return hi, lo, int(int64(n) & 3)
}

// sinKernel is sin(h+l) for |h| <= pi/4 by the Taylor series.
func sinKernel(h, l float64) float64 {
	z := float64(h * h)
	p := -1.0/1307674368000 + float64(z*(1.0/355687428096000))
	p = math.FMA(z, p, 1.0/6227020800)
	p = math.FMA(z, p, -1.0/39916800)
	p = math.FMA(z, p, 1.0/362880)
	p = math.FMA(z, p, -1.0/5040)
	p = math.FMA(z, p, 1.0/120)
	p = math.FMA(z, p, -1.0/6)
	// sin(h+l) = h + h^3*p + l*cos(h), cos(h) to first order
	return h + math.FMA(float64(z*h), p, math.FMA(-0.5*z, l, l))
}

// cosKernel is cos(h+l) for |h| <= pi/4 by the Taylor series.
func cosKernel(h, l float64) float64 {
	z, ze := twoProd(h, h)
	p := 1.0/20922789888000 - float64(z*(1.0/6402373705728000))
	p = math.FMA(z, p, -1.0/87178291200)
	p = math.FMA(z, p, 1.0/479001600)
	p = math.FMA(z, p, -1.0/3628800)
	p = math.FMA(z, p, 1.0/40320)
	p = math.FMA(z, p, -1.0/720)
	p = math.FMA(z, p, 1.0/24)
	w, we := fastTwoSum(1, float64(-0.5*z))
	return w + (we + math.FMA(float64(z*z), p, math.FMA(-h, l, -0.5*ze)))
}

// Sin is the sine of x radians within 0.7 ulp for |x| <= 2^31.
func Sin(x float64) float64 {
	s, _ := Sincos(x)
	return s
}

// Cos is the cosine of x radians within 0.7 ulp for |x| <= 2^31.
func Cos(x float64) float64 {
	_, c := Sincos(x)
	return c
}

// Sincos is Sin(x), Cos(x) for the price of one reduction.
func Sincos(x float64) (sin, cos float64) {
	if x == 0 {
		return x, 1
	}
	if x-x != 0 {
		return math.NaN(), math.NaN()
	}
	h, l, quadrant := reduce(x)
	s, c := sinKernel(h, l), cosKernel(h, l)
	switch quadrant {
	case 0:
		return s, c
	case 1:
		return c, -s
	case 2:
		return -s, -c
	default:
		return -c, s
	}
}
