// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/reg"
)

// finishSmall turns the magnitude of a small float, already moved to f32's
// exponent and mantissa fields and rebased, into a value: where the magnitude is
// below least the number is subnormal, 2^bias is taken off again.
func (m *machine) finishSmall(mag, rebased vec, least uint32, lowest float32) vec {
	sub := m.sub(m.addInt(rebased, m.c(1<<23)), m.f(lowest))
	return m.whereGreater(m.inReg(m.c(least)), mag, sub, rebased)
}

// expandF16 expands 16-bit floats, one in each 32-bit lane.
func (m *machine) expandF16(h vec) vec {
	mag := m.op(m.intAnd(), h, m.c(0x7fff))
	sign := m.op(m.intAnd(), m.shift(VPSLLD, 16, h), m.c(signBit))
	bits := m.addInt(m.shift(VPSLLD, 13, mag), m.c(112<<23))
	small := m.finishSmall(mag, bits, 0x400, 0x1p-14)
	top := m.addInt(bits, m.c(112<<23)) // infinity and NaN
	v := m.or(m.whereGreater(mag, m.c(0x7bff), top, small), sign)
	return m.where(unordered, v, v, m.c(0x7fc00000), v)
}

// expandE4M3 expands 8-bit floats, one in each 32-bit lane.
func (m *machine) expandE4M3(b vec) vec {
	mag := m.op(m.intAnd(), b, m.c(0x7f))
	sign := m.op(m.intAnd(), m.shift(VPSLLD, 24, b), m.c(signBit))
	bits := m.addInt(m.shift(VPSLLD, 20, mag), m.c(120<<23))
	v := m.or(m.finishSmall(mag, bits, 8, 0x1p-6), sign)
	return m.whereGreater(mag, m.c(0x7e), m.c(0x7fc00000), v)
}

func conversions(m *machine) {
	for _, c := range []struct {
		from, to element
		exact    bool
	}{
		{f32, bf16, false}, {bf16, f32, false},
		{f16, f32, true}, {f16, bf16, false},
		{e4m3, f32, true}, {e4m3, bf16, true},
		{e5m2, f32, true}, {e5m2, bf16, true},
	} {
		m.function("convert"+c.from.name()+"To", fmt.Sprintf("func(dst []%s, src []%s)", c.to.goType(), c.from.goType()), c.to)
		dst, src, n := m.param("dst", c.to), m.param("src", c.from), count("dst")
		m.holdStore(c.to)
		m.hold(signBit, 1<<23, 0x7fc00000)
		switch c.from {
		case f16, e5m2:
			m.hold(0x7fff, 112<<23, 0x400, bitsOf(0x1p-14), 0x7bff)
		case e4m3:
			m.hold(0x7f, 120<<23, 8, bitsOf(0x1p-6), 0x7e)
		}
		m.loop(n, func(i reg.Register, tail bool) {
			v := m.load(src, i, tail)
			if c.exact {
				m.storeExact(dst, i, tail, v)
			} else {
				m.store(dst, i, tail, v)
			}
		})
		m.end()
	}
}
