// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
)

// The constants of exp.go in agent/engine/native/vector.
const (
	roundMagic = 12582912.0
	log2e      = 0x1.715476p+0
	ln2Hi      = 0x1.62e43p-1
	ln2Lo      = -0x1.05c61p-29
	exp2       = 0x1.fffffcp-2
	exp3       = 0x1.55549p-3
	exp4       = 0x1.5558a6p-5
	exp5       = 0x1.123ab6p-7
	exp6       = 0x1.6a58fep-10
	softmaxMin = -0x1.5d589ep+6
	softmaxMax = 88
	siluMin    = -126
	geluMin    = -11.5
	geluAHi    = 0x1.26aecp+1
	geluALo    = 0x1.0de73ap-22
	geluA      = 0x1.26aec2p+1
	geluBHi    = 0x1.a5a7dp-4
	geluBLo    = -0x1.151aaep-29
	base1      = 0x1.62e43p-1
	base2      = 0x1.ebfbdcp-3
	base3      = 0x1.c6af78p-5
	base4      = 0x1.3b2dd4p-7
	base5      = 0x1.5f0a92p-10
	base6      = 0x1.41795ep-13
)

const signBit = 1 << 31

// nearest returns v·log2(e) plus the magic number, and rounded to an integer.
func (m *machine) nearest(v vec) (z, n vec) {
	z = m.copy(m.f(roundMagic))
	m.accumulate(z, v, m.f(log2e))
	return z, m.sub(z, m.f(roundMagic))
}

// reduce is v − n·ln 2.
func (m *machine) reduce(v, n vec) vec {
	r := m.copy(v)
	m.deduct(r, n, m.f(ln2Hi))
	m.deduct(r, n, m.f(ln2Lo))
	return r
}

// expPoly is exp(r) for |r| ≤ ln(2)/2.
func (m *machine) expPoly(r vec) vec {
	p := m.copy(m.f(exp6))
	for _, c := range []float32{exp5, exp4, exp3, exp2, 1, 1} {
		m.mulAdd(p, r, m.f(c))
	}
	return p
}

// pow2 is 2ⁿ for an integer n.
func (m *machine) pow2(n vec) vec {
	return m.addInt(m.shift(VPSLLD, 23, n), m.f(1))
}

// power returns what multiplies by 2ⁿ with one rounding, from nearest's z and n.
func (m *machine) power(z, n vec) func(p vec) vec {
	if m.wide {
		return func(p vec) vec { return m.op(VSCALEFPS, p, n) }
	}
	i := m.subInt(z, m.f(roundMagic))
	half := m.shift(VPSRAD, 1, i)
	first, second := m.pow2(half), m.pow2(m.subInt(i, half))
	return func(p vec) vec { return m.mul(m.mul(p, first), second) }
}

// expSoftmax is exp(v), +0 below 2⁻¹²⁶.
func (m *machine) expSoftmax(v vec) vec {
	u := m.smaller(m.f(softmaxMax), v)
	z, n := m.nearest(u)
	p := m.expPoly(m.reduce(u, n))
	var e vec
	if m.wide {
		e = m.op(VSCALEFPS, p, n)
	} else {
		e = m.mul(p, m.pow2(m.subInt(z, m.f(roundMagic))))
	}
	return m.where(less, v, m.f(softmaxMin), m.zero(), e)
}

// negative is −|x|, at least lowest.
func (m *machine) negative(x vec, lowest float32) vec {
	return m.larger(m.f(lowest), m.or(x, m.c(signBit)))
}

// gateBySigmoid is x·sigmoid(u) where |x| was bounded to −v and
// exp(−|u|) = p·2ⁿ.
func (m *machine) gateBySigmoid(x, v, p vec, scale func(vec) vec) vec {
	num := m.bySign(x, scale(m.mul(v, p)), x)
	return m.div(num, m.add(scale(p), m.f(1)))
}

func (m *machine) silu(x vec) vec {
	v := m.negative(x, siluMin)
	z, n := m.nearest(v)
	return m.gateBySigmoid(x, v, m.expPoly(m.reduce(v, n)), m.power(z, n))
}

// pow2Poly is 2ʳ for |r| ≤ 1/2.
func (m *machine) pow2Poly(r vec) vec {
	p := m.copy(m.f(base6))
	for _, c := range []float32{base5, base4, base3, base2, base1, 1} {
		m.mulAdd(p, r, m.f(c))
	}
	return p
}

// whole returns t plus the magic number, and rounded to an integer.
func (m *machine) whole(t vec) (z, n vec) {
	z = m.add(t, m.f(roundMagic))
	return z, m.sub(z, m.f(roundMagic))
}

func (m *machine) gelu(x vec) vec {
	v := m.negative(x, geluMin)
	s := m.mul(v, v)
	sl := m.copy(v)
	m.mulSub(sl, v, s)
	w := m.copy(m.f(geluAHi))
	m.accumulate(w, s, m.f(geluBHi))
	e := m.sub(m.inReg(m.f(geluAHi)), w)
	m.accumulate(e, s, m.f(geluBHi))
	e = m.add(e, m.f(geluALo))
	m.accumulate(e, s, m.f(geluBLo))
	m.accumulate(e, sl, m.f(geluBHi))
	t := m.mul(v, w)
	tl := m.copy(v)
	m.mulSub(tl, w, t)
	m.accumulate(tl, v, e)
	z, n := m.whole(t)
	r := m.add(m.sub(t, n), tl)
	return m.gateBySigmoid(x, v, m.pow2Poly(r), m.power(z, n))
}

func (m *machine) geluBF16(x vec) vec {
	v := m.negative(x, geluMin)
	w := m.copy(m.f(geluA))
	m.accumulate(w, m.mul(v, v), m.f(geluBHi))
	t := m.mul(v, w)
	z, n := m.whole(t)
	return m.gateBySigmoid(x, v, m.pow2Poly(m.sub(t, n)), m.power(z, n))
}

func minusInf() float32 { return float32(math.Inf(-1)) }
