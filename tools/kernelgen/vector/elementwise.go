// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/mmcloughlin/avo/reg"
)

// holdStore holds the constants of store and round.
func (m *machine) holdStore(t element) {
	if t == f32 {
		m.hold(0x7fc00000)
		return
	}
	m.hold(1, 0x7fff, 0x7fc0, 0x7fc00000, 0xffff0000)
}

// pointwise emits a kernel over the arrays named after dst, each of type t.
func (m *machine) pointwise(name string, t element, hold []uint32, f func(v []vec) vec, names ...string) {
	var params strings.Builder
	params.WriteString("dst")
	for _, n := range names {
		params.WriteString(", " + n)
	}
	m.function(name, fmt.Sprintf("func(%s []%s)", params.String(), t.goType()), t)
	dst, n := m.param("dst", t), count("dst")
	var in []array
	for _, n := range names {
		in = append(in, m.param(n, t))
	}
	m.hold(hold...)
	m.holdStore(t)
	m.loop(n, func(i reg.Register, tail bool) {
		var v []vec
		for _, a := range in {
			v = append(v, m.load(a, i, tail))
		}
		m.store(dst, i, tail, f(v))
	})
	m.end()
}

func floats(x ...float32) []uint32 {
	var out []uint32
	for _, v := range x {
		out = append(out, bitsOf(v))
	}
	return out
}

func expConstants() []uint32 {
	return floats(roundMagic, log2e, ln2Hi, ln2Lo, exp2, exp3, exp4, exp5, exp6, 1)
}

func geluConstants() []uint32 {
	return floats(geluMin, geluAHi, geluALo, geluA, geluBHi, geluBLo, roundMagic, base1, base2, base3, base4, base5, base6, 1)
}

// modulate is fma(x, round(1+scale), shift); it overwrites x.
func (m *machine) modulate(t element, x, scale, shift vec) vec {
	m.mulAdd(x, m.round(t, m.add(scale, m.f(1))), shift)
	return x
}

func elementwise(m *machine, t element) {
	one := floats(1)
	m.pointwise("add", t, nil, func(v []vec) vec { return m.add(v[0], v[1]) }, "a", "b")
	m.pointwise("mul", t, nil, func(v []vec) vec { return m.mul(v[0], v[1]) }, "a", "b")
	m.pointwise("silu", t, append(expConstants(), signBit, bitsOf(siluMin)),
		func(v []vec) vec { return m.silu(v[0]) }, "x")
	gelu := m.gelu
	if t == bf16 {
		gelu = m.geluBF16
	}
	m.pointwise("gelu", t, append(geluConstants(), signBit), func(v []vec) vec { return gelu(v[0]) }, "x")
	m.pointwise("modulate", t, one,
		func(v []vec) vec { return m.modulate(t, v[0], v[1], v[2]) }, "x", "scale", "shift")
	m.pointwise("gatedAdd", t, nil,
		func(v []vec) vec { return m.add(v[0], m.round(t, m.mul(v[1], v[2]))) }, "x", "gate", "y")
	m.pointwise("gatedAddFused", t, nil,
		func(v []vec) vec { m.accumulate(v[0], v[1], v[2]); return v[0] }, "x", "gate", "y")
}
