// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// blockType is a block type of GGUF, or F8_E4M3_B64. Layouts are told in
// model/tensor, block.go.
type blockType struct {
	name            string
	elements, bytes int
	hold            []uint32
	expand          func(b *block)
}

// block is one block on its way: groups of 16 elements are put one by one.
type block struct {
	*machine
	src   reg.Register
	dst   array
	at    reg.Register // element of dst
	local operand.Mem  // 128 bytes
}

func (b *block) mem(offset int) operand.Mem { return operand.Mem{Base: b.src, Disp: offset} }

// put stores group g.
func (b *block) put(g int, v vec) {
	dst := b.dst
	dst.disp = 16 * g * dst.t.size()
	b.store(dst, b.at, false, v)
}

// half is the f16 at an offset, in every lane.
func (b *block) half(offset int) vec {
	r, h, f := GP32(), XMM(), XMM()
	MOVWLZX(b.mem(offset), r)
	VMOVD(r, h)
	VCVTPH2PS(h, f)
	return b.broadcast(f)
}

// unsigned and signed are 16 bytes at an offset as integers.
func (b *block) unsigned(offset int) vec { return b.bytes(b.mem(offset), false) }

func (b *block) signed(offset int) vec {
	d := b.new()
	for i := range d {
		VPMOVSXBD(b.mem(offset).Offset(8*i), d[i])
	}
	return d
}

func (m *machine) toFloat(a vec) vec {
	d := m.new()
	for i := range d {
		VCVTDQ2PS(a[i], d[i])
	}
	return d
}

func (m *machine) and(a vec, mask uint32) vec { return m.op(m.intAnd(), a, m.c(mask)) }

// less is the integers a - n.
func (m *machine) less(a vec, n int32) vec { return m.addInt(a, m.c(uint32(-n))) }

// bitField is n bits of a from bit on, moved to bit to.
func (m *machine) bitField(a vec, bit, n, to int) vec {
	a = m.and(a, uint32(1<<n-1)<<bit)
	switch {
	case bit > to:
		return m.shift(VPSRLD, uint64(bit-to), a)
	case bit < to:
		return m.shift(VPSLLD, uint64(to-bit), a)
	}
	return a
}

// nibbles are the low and the high four bits of bytes.
func (m *machine) nibbles(a vec) [2]vec {
	return [2]vec{m.and(a, 15), m.shift(VPSRLD, 4, a)}
}

// oneOf32 is bit g*16+lane of the 32 bits at an offset, as 0 or 16.
func (b *block) oneOf32(offset, g int) vec {
	lanes := make([]uint32, 16)
	for i := range lanes {
		lanes[i] = uint32(16*g + i)
	}
	by, all, d := b.pattern(lanes...), b.new(), b.new()
	for i := range d {
		VPBROADCASTD(b.mem(offset), all[i])
		VPSRLVD(by.Offset(32*i), all[i], d[i])
	}
	return b.bitField(d, 0, 1, 4)
}

// keep writes floats to the local memory.
func (b *block) keep(offset int, v vec) {
	for i := range v {
		VMOVUPS(v[i], b.local.Offset(offset+32*i))
	}
}

// kept is a float of the local memory, in every lane.
func (b *block) kept(offset int) vec { return b.broadcast(b.local.Offset(offset)) }

// keep32 writes 32 bits of r, an integer register, to the local memory.
func (b *block) keep32(offset int, r reg.Register) { MOVL(r, b.local.Offset(offset)) }

// word is 32 bits of the block in an integer register.
func (b *block) word(offset int) reg.GPVirtual {
	r := GP32()
	MOVL(b.mem(offset), r)
	return r
}

// field32 is (r >> shift) & mask, or << where shift is negative.
func field32(r reg.GPVirtual, shift int, mask uint32) reg.GPVirtual {
	d := GP32()
	MOVL(r, d)
	switch {
	case shift > 0:
		SHRL(operand.Imm(uint64(shift)), d)
	case shift < 0:
		SHLL(operand.Imm(uint64(-shift)), d)
	}
	ANDL(operand.U32(mask), d)
	return d
}

func blockTypes() []blockType {
	return []blockType{
		{"Q8_0", 32, 34, nil, q8}, {"Q4_0", 32, 18, nil, q4}, {"Q4_1", 32, 20, nil, q41},
		{"Q5_0", 32, 22, nil, q5}, {"Q5_1", 32, 24, nil, q51}, {"IQ4_NL", 32, 18, nil, iq4nl},
		{"Q2_K", 256, 84, nil, q2k}, {"Q3_K", 256, 110, nil, q3k}, {"Q4_K", 256, 144, nil, q4k},
		{"Q5_K", 256, 176, nil, q5k}, {"Q6_K", 256, 210, nil, q6k}, {"IQ4_XS", 256, 136, nil, iq4xs},
		{"F8E4M3B64", 64, 68, []uint32{signBit, 1 << 23, 0x7fc00000, 0x7f, 120 << 23, 8, bitsOf(0x1p-6), 0x7e}, f8b64},
	}
}

// blocks emits expand<type>To<F32|BF16>, for whole blocks.
func blocks(m *machine) {
	for _, t := range blockTypes() {
		for _, to := range []element{f32, bf16} {
			m.function("expand"+t.name+"To", fmt.Sprintf("func(dst []%s, src []byte)", to.goType()), to)
			b := &block{machine: m, local: AllocLocal(128)}
			b.dst = m.param("dst", to)
			n := count("dst")
			b.src, b.at = Load(Param("src").Base(), GP64()), GP64()
			m.holdStore(to)
			m.hold(t.hold...)
			again, done := m.label("block"), m.label("done")
			XORQ(b.at, b.at)
			Label(again)
			CMPQ(b.at, n)
			JGE(operand.LabelRef(done))
			t.expand(b)
			ADDQ(operand.U32(t.bytes), b.src)
			ADDQ(operand.U32(t.elements), b.at)
			JMP(operand.LabelRef(again))
			Label(done)
			m.end()
		}
	}
}

func q8(b *block) {
	d := b.half(0)
	for g := range 2 {
		b.put(g, b.mul(b.toFloat(b.signed(2+16*g)), d))
	}
}

func q4(b *block) {
	d := b.half(0)
	for g, q := range b.nibbles(b.unsigned(2)) {
		b.put(g, b.mul(b.toFloat(b.less(q, 8)), d))
	}
}

func q41(b *block) {
	d, low := b.half(0), b.half(2)
	for g, q := range b.nibbles(b.unsigned(4)) {
		b.put(g, b.add(b.mul(b.toFloat(q), d), low))
	}
}

func q5(b *block) {
	d := b.half(0)
	for g, q := range b.nibbles(b.unsigned(6)) {
		b.put(g, b.mul(b.toFloat(b.less(b.or(q, b.oneOf32(2, g)), 16)), d))
	}
}

func q51(b *block) {
	d, low := b.half(0), b.half(2)
	for g, q := range b.nibbles(b.unsigned(8)) {
		b.put(g, b.add(b.mul(b.toFloat(b.or(q, b.oneOf32(4, g))), d), low))
	}
}

// iq4 puts the 32 elements of 16 bytes of nibbles, which name levels.
func (b *block) iq4(offset, g int, scale vec) {
	levels := b.pattern(0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535)
	q, low, high := XMM(), XMM(), XMM()
	nibble := b.pattern(0x0f0f0f0f)
	VMOVUPS(b.mem(offset), q)
	VPSRLW(operand.Imm(4), q, high)
	b.intAnd()(nibble, q, low)
	b.intAnd()(nibble, high, high)
	for i, x := range []reg.VecVirtual{low, high} {
		table := XMM()
		VMOVUPS(levels, table)
		VPSHUFB(x, table, table)
		d := b.new()
		VPMOVSXBD(table, d[0])
		if !b.wide {
			VPSRLDQ(operand.Imm(8), table, table)
			VPMOVSXBD(table, d[1])
		}
		b.put(g+i, b.mul(b.toFloat(d), scale))
	}
}

func iq4nl(b *block) { b.iq4(2, 0, b.half(0)) }

func iq4xs(b *block) {
	d := b.half(0)
	high, low := GP32(), b.word(4)
	MOVWLZX(b.mem(2), high)
	for g := range 8 {
		scale, x, all := field32(low, 4*g, 15), XMM(), b.new()
		ORL(field32(high, 2*g-4, 0x30), scale)
		SUBL(operand.Imm(32), scale)
		VMOVD(scale, x)
		for i := range all {
			VPBROADCASTD(x, all[i])
		}
		b.iq4(8+16*g, 2*g, b.mul(b.toFloat(all), d))
	}
}

func q2k(b *block) {
	scales := b.nibbles(b.unsigned(0))
	b.keep(0, b.mul(b.toFloat(scales[0]), b.half(80)))
	b.keep(64, b.mul(b.toFloat(scales[1]), b.half(82)))
	for g := range 16 {
		q := b.bitField(b.unsigned(16+g/8*32+g%2*16), g%8/2*2, 2, 0)
		b.put(g, b.sub(b.mul(b.toFloat(q), b.kept(4*g)), b.kept(64+4*g)))
	}
}

func q3k(b *block) {
	low, high := [2]reg.GPVirtual{b.word(96), b.word(100)}, b.word(104)
	for i := range 4 { // scales 4i to 4i+3
		w := field32(low[i%2], i/2*4, 0x0f0f0f0f)
		ORL(field32(high, 2*i-4, 0x30303030), w)
		b.keep32(4*i, w)
	}
	scales := b.less(b.bytes(b.local, false), 32)
	b.keep(0, b.mul(b.toFloat(scales), b.half(108)))
	for g := range 16 {
		q := b.bitField(b.unsigned(32+g/8*32+g%2*16), g%8/2*2, 2, 0)
		q = b.less(b.or(q, b.bitField(b.unsigned(g%2*16), g/2, 1, 2)), 4)
		b.put(g, b.mul(b.toFloat(q), b.kept(4*g)))
	}
}

// kScales keeps the eight scales of Q4_K and Q5_K at 0 and their minimums at 32.
func (b *block) kScales() {
	u0, u1, u2 := b.word(4), b.word(8), b.word(12)
	b.keep32(64, field32(u0, 0, 0x3f3f3f3f))
	b.keep32(72, field32(u1, 0, 0x3f3f3f3f))
	for _, w := range []struct {
		at, shift int
		top       reg.GPVirtual
	}{{68, 0, u0}, {76, 4, u1}} {
		r := field32(u2, w.shift, 0x0f0f0f0f)
		ORL(field32(w.top, 2, 0x30303030), r)
		b.keep32(w.at, r)
	}
	for i := range 2 {
		r, h, f, all, y := GP32(), XMM(), XMM(), YMM(), YMM()
		MOVWLZX(b.mem(2*i), r)
		VMOVD(r, h)
		VCVTPH2PS(h, f)
		VBROADCASTSS(f, all)
		VPMOVZXBD(b.local.Offset(64+8*i), y)
		VCVTDQ2PS(y, y)
		VMULPS(all, y, y)
		VMOVUPS(y, b.local.Offset(32*i))
	}
}

func q4k(b *block) {
	b.kScales()
	for pair := range 4 {
		for h := range 2 {
			for k, q := range b.nibbles(b.unsigned(16 + 32*pair + 16*h)) {
				g := 2*pair + k
				b.put(2*g+h, b.sub(b.mul(b.toFloat(q), b.kept(4*g)), b.kept(32+4*g)))
			}
		}
	}
}

func q5k(b *block) {
	b.kScales()
	for pair := range 4 {
		for h := range 2 {
			for k, q := range b.nibbles(b.unsigned(48 + 32*pair + 16*h)) {
				g := 2*pair + k
				q = b.or(q, b.bitField(b.unsigned(16+16*h), g, 1, 4))
				b.put(2*g+h, b.sub(b.mul(b.toFloat(q), b.kept(4*g)), b.kept(32+4*g)))
			}
		}
	}
}

func q6k(b *block) {
	b.keep(0, b.mul(b.toFloat(b.signed(192)), b.half(208)))
	for g := range 16 {
		half, part := g/8, g%8/2
		q := b.bitField(b.unsigned(half*64+part%2*32+g%2*16), part/2*4, 4, 0)
		q = b.or(q, b.bitField(b.unsigned(128+half*32+g%2*16), part*2, 2, 4))
		b.put(g, b.mul(b.toFloat(b.less(q, 32)), b.kept(4*g)))
	}
}

func f8b64(b *block) {
	scale := b.broadcast(b.mem(0))
	for g := range 4 {
		b.put(g, b.mul(b.expandE4M3(b.unsigned(4+16*g)), scale))
	}
}
