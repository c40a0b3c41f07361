// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// element is how a value is stored.
type element int

const (
	f32 element = iota
	bf16
	f16
	e4m3
	e5m2
)

func (t element) name() string { return [...]string{"F32", "BF16", "F16", "E4M3", "E5M2"}[t] }

func (t element) goType() string {
	return [...]string{"float32", "uint16", "uint16", "byte", "byte"}[t]
}

func (t element) size() int { return [...]int{4, 2, 2, 1, 1}[t] }

// array is a slice parameter.
type array struct {
	base reg.Register
	t    element
	disp int // bytes
}

func (m *machine) param(name string, t element) array {
	return array{base: Load(Param(name).Base(), GP64()), t: t}
}

// scalar loads a float32 parameter into every lane.
func (m *machine) scalar(name string) vec {
	c, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return m.broadcast(c.Addr)
}

func count(name string) reg.Register { return Load(Param(name).Len(), GP64()) }

// result stores lane 0 of x as the kernel's float32 result.
func result(x reg.Register) {
	c, err := ReturnIndex(0).Resolve()
	if err != nil {
		panic(err)
	}
	VMOVSS(x, c.Addr)
}

// loop emits body for each 16 of n elements, and once more for a tail.
func (m *machine) loop(n reg.Register, body func(i reg.Register, tail bool)) {
	again, tail, done := m.label("full"), m.label("tail"), m.label("done")
	i, last := GP64(), GP64()
	XORQ(i, i)
	MOVQ(n, last)
	SUBQ(operand.Imm(16), last)
	JLT(operand.LabelRef(tail))
	Label(again)
	body(i, false)
	ADDQ(operand.Imm(16), i)
	CMPQ(i, last)
	JLE(operand.LabelRef(again))
	Label(tail)
	m.rest = GP64()
	MOVQ(n, m.rest)
	SUBQ(i, m.rest)
	JLE(operand.LabelRef(done))
	if m.wide {
		table := m.tailMasks()
		m.mask, m.half = K(), K()
		at := GP64()
		LEAQ(table, at)
		KMOVW(operand.Mem{Base: at, Index: m.rest, Scale: 2}, m.mask)
		h := GP64()
		MOVQ(m.rest, h)
		SHRQ(operand.Imm(1), h)
		KMOVW(operand.Mem{Base: at, Index: h, Scale: 2}, m.half)
	}
	body(i, true)
	Label(done)
}

// tailMasks has at index r the mask of the first r lanes.
func (m *machine) tailMasks() operand.Mem {
	if t, ok := m.pool["tails"]; ok {
		return t
	}
	t := GLOBL("tails", RODATA|NOPTR)
	for r := range 16 {
		DATA(2*r, operand.U16(1<<r-1))
	}
	m.pool["tails"] = t
	return t
}

// tailLanes has 16 lanes of ones, then 16 of zeros.
func (m *machine) tailLanes() operand.Mem {
	if t, ok := m.pool["lanes"]; ok {
		return t
	}
	t := GLOBL("lanes", RODATA|NOPTR)
	for r := range 32 {
		v := uint32(0xffffffff)
		if r >= 16 {
			v = 0
		}
		DATA(4*r, operand.U32(v))
	}
	m.pool["lanes"] = t
	return t
}

// clearTail makes the lanes past the tail of v +0.
func (m *machine) clearTail(v vec) vec { return m.keepTail(v, nil) }

// keepTail replaces the lanes past the tail of v by those of other, or +0.
func (m *machine) keepTail(v, other vec) vec {
	d := m.new()
	if m.wide {
		if other == nil {
			VMOVAPS_Z(v[0], m.mask, d[0])
		} else {
			VBLENDMPS(v[0], m.inReg(other)[0], m.mask, d[0])
		}
		return d
	}
	at, back := GP64(), GP64()
	LEAQ(m.tailLanes(), at)
	MOVQ(m.rest, back)
	SHLQ(operand.Imm(2), back)
	SUBQ(back, at)
	for i := range d {
		lanes := operand.Mem{Base: at, Disp: 64 + 32*i}
		if other == nil {
			VANDPS(lanes, v[i], d[i])
			continue
		}
		VMOVUPS(lanes, d[i])
		VBLENDVPS(d[i], v[i], m.inReg(other)[i], d[i])
	}
	return d
}

// bufferTail copies the first n elements at src to the buffer, zeros after them.
func (m *machine) bufferTail(src operand.Mem, size int, n reg.Register) {
	y, at, j, v := YMM(), GP64(), GP64(), GP64()
	again, done := m.label("copy"), m.label("copied")
	VXORPS(y, y, y)
	VMOVUPS(y, m.buf)
	VMOVUPS(y, m.buf.Offset(32))
	LEAQ(src, at)
	XORQ(j, j)
	Label(again)
	CMPQ(j, n)
	JGE(operand.LabelRef(done))
	from, to := operand.Mem{Base: at, Index: j, Scale: uint8(size)}, m.buf.Idx(j, uint8(size))
	m.move(from, to, v, size)
	INCQ(j)
	JMP(operand.LabelRef(again))
	Label(done)
}

// unbufferTail copies the first m.rest elements of the buffer to dst.
func (m *machine) unbufferTail(dst operand.Mem, size int) {
	at, j, v := GP64(), GP64(), GP64()
	again := m.label("copy")
	LEAQ(dst, at)
	XORQ(j, j)
	Label(again)
	m.move(m.buf.Idx(j, uint8(size)), operand.Mem{Base: at, Index: j, Scale: uint8(size)}, v, size)
	INCQ(j)
	CMPQ(j, m.rest)
	JLT(operand.LabelRef(again))
}

func (m *machine) move(from, to operand.Mem, v reg.GPVirtual, size int) {
	switch size {
	case 4:
		MOVL(from, v.As32())
		MOVL(v.As32(), to)
	case 2:
		MOVW(from, v.As16())
		MOVW(v.As16(), to)
	case 1:
		MOVB(from, v.As8())
		MOVB(v.As8(), to)
	}
}

// at is where element i of a lies.
func (a array) at(i reg.Register) operand.Mem {
	return operand.Mem{Base: a.base, Index: i, Scale: uint8(a.t.size()), Disp: a.disp}
}

// load widens 16 elements, or the tail with +0 after it, to f32.
func (m *machine) load(a array, i reg.Register, tail bool) vec {
	src := a.at(i)
	if tail && !m.wide {
		m.bufferTail(src, a.t.size(), m.rest)
		src = m.buf
	}
	switch a.t {
	case f32:
		d := m.new()
		for j := range d {
			if m.wide && tail {
				VMOVUPS_Z(src, m.mask, d[j])
			} else {
				VMOVUPS(src.Offset(32*j), d[j])
			}
		}
		return d
	case bf16:
		return m.shift(VPSLLD, 16, m.words(src, tail))
	case f16:
		return m.expandF16(m.words(src, tail))
	case e5m2:
		return m.expandF16(m.shift(VPSLLD, 8, m.bytes(src, tail)))
	}
	return m.expandE4M3(m.bytes(src, tail))
}

func (m *machine) words(src operand.Mem, tail bool) vec {
	d := m.new()
	for j := range d {
		if m.wide && tail {
			VPMOVZXWD_Z(src, m.mask, d[j])
		} else {
			VPMOVZXWD(src.Offset(16*j), d[j])
		}
	}
	return d
}

func (m *machine) bytes(src operand.Mem, tail bool) vec {
	d := m.new()
	for j := range d {
		if m.wide && tail {
			VPMOVZXBD_Z(src, m.mask, d[j])
		} else {
			VPMOVZXBD(src.Offset(8*j), d[j])
		}
	}
	return d
}

// table loads 8 values of a rotary table for 16 elements, each value twice.
func (m *machine) table(a array, i reg.Register, tail bool) vec {
	src := operand.Mem{Base: a.base, Index: i, Scale: 2}
	if tail && !m.wide {
		h := GP64()
		MOVQ(m.rest, h)
		SHRQ(operand.Imm(1), h)
		m.bufferTail(src, 4, h)
		src = m.buf
	}
	d := m.new()
	for j := range d {
		if m.wide && tail {
			VPMOVZXDQ_Z(src, m.half, d[j])
		} else {
			VPMOVZXDQ(src.Offset(16*j), d[j])
		}
		VMOVSLDUP(d[j], d[j])
	}
	return d
}

// roundedBits are the bits of v after rounding to bf16, to nearest even, not
// yet cut off below.
func (m *machine) roundedBits(v vec) vec {
	odd := m.op(m.intAnd(), m.shift(VPSRLD, 16, v), m.c(1))
	return m.addInt(m.addInt(odd, m.c(0x7fff)), v)
}

func (m *machine) intAnd() func(...operand.Op) {
	if m.wide {
		return VPANDD
	}
	return func(o ...operand.Op) { VPAND(o[0], o[1], o[2]) }
}

// round rounds v to t and leaves it in f32.
func (m *machine) round(t element, v vec) vec {
	if t != bf16 {
		return v
	}
	r := m.op(m.intAnd(), m.roundedBits(v), m.c(0xffff0000))
	return m.where(unordered, v, v, m.c(0x7fc00000), r)
}

// store rounds v to the element type and writes 16 elements or the tail.
func (m *machine) store(a array, i reg.Register, tail bool, v vec) {
	if a.t == f32 {
		m.storeF32(a, i, tail, m.where(unordered, v, v, m.c(0x7fc00000), v))
		return
	}
	m.storeWords(a, i, tail, m.where(unordered, v, v, m.c(0x7fc0), m.shift(VPSRLD, 16, m.roundedBits(v))))
}

// storeExact writes v, which the element type holds exactly.
func (m *machine) storeExact(a array, i reg.Register, tail bool, v vec) {
	if a.t == f32 {
		m.storeF32(a, i, tail, v)
		return
	}
	m.storeWords(a, i, tail, m.shift(VPSRLD, 16, v))
}

func (m *machine) storeF32(a array, i reg.Register, tail bool, v vec) {
	dst := a.at(i)
	switch {
	case tail && m.wide:
		VMOVUPS(v[0], m.mask, dst)
		return
	case tail:
		dst = m.buf
	}
	for j := range v {
		VMOVUPS(v[j], dst.Offset(32*j))
	}
	if tail {
		m.unbufferTail(a.at(i), 4)
	}
}

// storeWords writes the low 16 bits of each lane, whose others are 0.
func (m *machine) storeWords(a array, i reg.Register, tail bool, v vec) {
	y, dst := YMM(), a.at(i)
	if m.wide {
		VPMOVDW(v[0], y)
		if tail {
			VMOVDQU16(y, m.mask, dst)
		} else {
			VMOVDQU16(y, dst)
		}
		return
	}
	VPACKUSDW(v[1], v[0], y)
	VPERMQ(operand.Imm(0xd8), y, y)
	if !tail {
		VMOVDQU(y, dst)
		return
	}
	VMOVDQU(y, m.buf)
	m.unbufferTail(dst, 2)
}
