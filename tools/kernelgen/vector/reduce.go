// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// sum emits a pass over x that folds f of each element by addition.
func (m *machine) sum(x array, n reg.Register, f func(acc, v vec, tail bool)) reg.VecVirtual {
	acc := m.zero()
	m.loop(n, func(i reg.Register, tail bool) { f(acc, m.load(x, i, tail), tail) })
	return m.fold(VADDPS, acc)
}

func (m *machine) addTo(acc, v vec) {
	for i := range acc {
		VADDPS(v[i], acc[i], acc[i])
	}
}

// mean divides lane 0 of x by n.
func (m *machine) mean(x reg.VecVirtual, n reg.Register) reg.VecVirtual {
	d := XMM()
	VXORPS(d, d, d)
	VCVTSI2SSQ(n, d, d)
	VDIVSS(d, x, x)
	return x
}

// inverseRoot is 1/√(x + eps) in every lane.
func (m *machine) inverseRoot(x reg.VecVirtual) vec {
	eps, err := Param("eps").Resolve()
	if err != nil {
		panic(err)
	}
	VADDSS(eps.Addr, x, x)
	VSQRTSS(x, x, x)
	one := XMM()
	VMOVSS(m.pattern(bitsOf(1)), one)
	VDIVSS(x, one, x)
	return m.broadcast(x)
}

// layerNorm emits a kernel that finishes each normalised value by last.
func (m *machine) layerNorm(name string, t element, last func(h vec, v []vec) vec, names ...string) {
	var params strings.Builder
	params.WriteString("dst, x")
	for _, n := range names {
		params.WriteString(", " + n)
	}
	m.function(name, fmt.Sprintf("func(%s []%s, eps float32)", params.String(), t.goType()), t)
	dst, x, n := m.param("dst", t), m.param("x", t), count("dst")
	var more []array
	for _, n := range names {
		more = append(more, m.param(n, t))
	}
	mean := m.broadcast(m.mean(m.sum(x, n, func(acc, v vec, _ bool) { m.addTo(acc, v) }), n))
	rstd := m.inverseRoot(m.mean(m.sum(x, n, func(acc, v vec, tail bool) {
		d := m.sub(v, mean)
		if tail {
			d = m.clearTail(d)
		}
		m.accumulate(acc, d, d)
	}), n))
	m.hold(bitsOf(1))
	m.holdStore(t)
	m.loop(n, func(i reg.Register, tail bool) {
		h := m.mul(m.sub(m.load(x, i, tail), mean), rstd)
		var v []vec
		for _, a := range more {
			v = append(v, m.load(a, i, tail))
		}
		m.store(dst, i, tail, last(h, v))
	})
	m.end()
}

// rms is 1/√(mean(x²) + eps) in every lane.
func (m *machine) rms(x array, n reg.Register) vec {
	return m.inverseRoot(m.mean(m.sum(x, n, func(acc, v vec, _ bool) { m.accumulate(acc, v, v) }), n))
}

func norms(m *machine, t element) {
	m.layerNorm("layerNorm", t, func(h vec, _ []vec) vec { return h })
	m.layerNorm("layerNormAffine", t, func(h vec, v []vec) vec { m.mulAdd(h, v[0], v[1]); return h }, "w", "b")
	m.layerNorm("layerNormModulate", t,
		func(h vec, v []vec) vec { return m.modulate(t, m.round(t, h), v[0], v[1]) }, "w", "b")

	m.rmsNorm("rmsNorm", "func(dst, x, w []%s, eps float32)", t, true)
	m.rmsNorm("rmsNormPlain", "func(dst, x []%s, eps float32)", t, false)
}

func (m *machine) rmsNorm(name, signature string, t element, weighted bool) {
	m.function(name, fmt.Sprintf(signature, t.goType()), t)
	dst, x, n := m.param("dst", t), m.param("x", t), count("dst")
	var w array
	if weighted {
		w = m.param("w", t)
	}
	r := m.rms(x, n)
	m.holdStore(t)
	m.loop(n, func(i reg.Register, tail bool) {
		v := m.mul(m.load(x, i, tail), r)
		if weighted {
			v = m.mul(v, m.load(w, i, tail))
		}
		m.store(dst, i, tail, v)
	})
	m.end()
}

// turn rotates the adjacent pairs of v.
func (m *machine) turn(v, cos, sin vec) vec {
	swapped := m.new()
	for i := range v {
		VPERMILPS(operand.Imm(0xb1), v[i], swapped[i])
	}
	odd := m.pattern(signBit, 0)
	return m.add(m.mul(v, cos), m.xor(m.mul(swapped, sin), vec{odd, odd}))
}

func rotary(m *machine, t element) {
	m.function("rope", fmt.Sprintf("func(dst, x []%s, cos, sin []float32)", t.goType()), t)
	dst, x, n := m.param("dst", t), m.param("x", t), count("dst")
	cos, sin := m.param("cos", f32), m.param("sin", f32)
	m.holdStore(t)
	m.loop(n, func(i reg.Register, tail bool) {
		v := m.load(x, i, tail)
		m.store(dst, i, tail, m.turn(v, m.table(cos, i, tail), m.table(sin, i, tail)))
	})
	m.end()

	m.function("rmsNormRope", fmt.Sprintf("func(dst, x, w []%s, cos, sin []float32, eps float32)", t.goType()), t)
	dst, x, n = m.param("dst", t), m.param("x", t), count("dst")
	w := m.param("w", t)
	cos, sin = m.param("cos", f32), m.param("sin", f32)
	r := m.rms(x, n)
	m.holdStore(t)
	m.loop(n, func(i reg.Register, tail bool) {
		v := m.mul(m.load(x, i, tail), r)
		v = m.round(t, m.mul(v, m.load(w, i, tail)))
		m.store(dst, i, tail, m.turn(v, m.table(cos, i, tail), m.table(sin, i, tail)))
	})
	m.end()
}

func softmax(m *machine, t element) {
	m.function("rowSum", fmt.Sprintf("func(x []%s) float32", t.goType()), t)
	result(m.sum(m.param("x", t), count("x"), func(acc, v vec, _ bool) { m.addTo(acc, v) }))
	m.end()

	m.function("rowMax", fmt.Sprintf("func(x []%s) float32", t.goType()), t)
	x, n := m.param("x", t), count("x")
	acc := m.copy(m.f(minusInf()))
	m.loop(n, func(i reg.Register, tail bool) {
		v := m.load(x, i, tail)
		if tail {
			v = m.keepTail(v, m.f(minusInf()))
		}
		for j := range acc {
			VMAXPS(acc[j], v[j], acc[j])
		}
	})
	result(m.fold(VMAXPS, acc))
	m.end()

	m.function("expSub", fmt.Sprintf("func(dst []%s, x []float32, scale, ref float32) float32", t.goType()), t)
	dst, x, n := m.param("dst", t), m.param("x", f32), count("dst")
	scale, ref := m.scalar("scale"), m.scalar("ref")
	m.hold(append(expConstants(), floats(softmaxMin, softmaxMax)...)...)
	m.holdStore(t)
	total := m.zero()
	m.loop(n, func(i reg.Register, tail bool) {
		v := m.load(x, i, tail)
		m.mulSub(v, scale, ref)
		p := m.expSoftmax(v)
		if tail {
			p = m.clearTail(p)
		}
		m.addTo(total, p)
		m.store(dst, i, tail, p)
	})
	result(m.fold(VADDPS, total))
	m.end()

	m.scaled("rowScale", "func(dst []%s, x []float32, s float32)", t, f32)
	m.scaled("scale", "func(dst, x []%s, s float32)", t, t)
}

func (m *machine) scaled(name, signature string, t, from element) {
	m.function(name, fmt.Sprintf(signature, t.goType()), t)
	dst, x, n := m.param("dst", t), m.param("x", from), count("dst")
	s := m.scalar("s")
	m.holdStore(t)
	m.loop(n, func(i reg.Register, tail bool) {
		m.store(dst, i, tail, m.mul(m.load(x, i, tail), s))
	})
	m.end()
}
