// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// vec is 16 f32 lanes: one 512-bit register or two of 256 bits. A constant may
// be in memory, and a broadcast has the same register twice.
type vec []operand.Op

// machine emits instructions on vec for one instruction set.
type machine struct {
	wide   bool // AVX-512
	suffix string
	pool   map[string]operand.Mem // constants of the file
	held   map[uint32]vec         // constants of the function that are in registers
	buf    operand.Mem            // of the function, 64 bytes, for tails without masks
	rest   reg.GPVirtual          // elements of the tail
	mask   reg.OpmaskVirtual      // lanes of the tail
	half   reg.OpmaskVirtual      // the first half of them
	labels int
}

func newMachine(wide bool) *machine {
	m := &machine{wide: wide, suffix: "AVX2", pool: map[string]operand.Mem{}}
	if wide {
		m.suffix = "AVX512"
	}
	return m
}

// function begins a kernel.
func (m *machine) function(name, signature string, t element) {
	TEXT(name+t.name()+m.suffix, NOSPLIT, signature)
	Pragma("noescape")
	m.held = map[uint32]vec{}
	if !m.wide {
		m.buf = AllocLocal(64)
	}
}

// end returns from the kernel.
func (m *machine) end() {
	VZEROUPPER()
	RET()
}

func (m *machine) label(name string) string {
	m.labels++
	return fmt.Sprintf("%s%d", name, m.labels)
}

// pattern is a constant in memory, the words repeated to 64 bytes.
func (m *machine) pattern(words ...uint32) operand.Mem {
	var name strings.Builder
	name.WriteString("c")
	for _, w := range words {
		name.WriteString(fmt.Sprintf("_%08x", w))
	}
	if c, ok := m.pool[name.String()]; ok {
		return c
	}
	c := GLOBL(name.String(), RODATA|NOPTR)
	for i := range 16 {
		DATA(4*i, operand.U32(words[i%len(words)]))
	}
	m.pool[name.String()] = c
	return c
}

// hold puts constants into registers where there are enough of those.
func (m *machine) hold(bits ...uint32) {
	if !m.wide {
		return
	}
	for _, b := range bits {
		m.held[b] = m.copy(m.c(b))
	}
}

// c is a constant in every lane.
func (m *machine) c(bits uint32) vec {
	if v, ok := m.held[bits]; ok {
		return v
	}
	c := m.pattern(bits)
	if m.wide {
		return vec{c}
	}
	return vec{c, c}
}

func bitsOf(x float32) uint32 { return math.Float32bits(x) }

// f is a float constant in every lane.
func (m *machine) f(x float32) vec { return m.c(bitsOf(x)) }

func (m *machine) new() vec {
	if m.wide {
		return vec{ZMM()}
	}
	return vec{YMM(), YMM()}
}

func (m *machine) copy(a vec) vec {
	d := m.new()
	for i := range d {
		VMOVUPS(a[i], d[i])
	}
	return d
}

func (m *machine) zero() vec {
	d := m.new()
	for i := range d {
		VXORPS(d[i], d[i], d[i])
	}
	return d
}

// inReg is a, loaded if it is in memory.
func (m *machine) inReg(a vec) vec {
	if _, ok := a[0].(operand.Mem); ok {
		return m.copy(a)
	}
	return a
}

// op emits d = a op b, of which b may be in memory.
func (m *machine) op(f func(...operand.Op), a, b vec) vec {
	d := m.new()
	for i := range d {
		f(b[i], a[i], d[i])
	}
	return d
}

func (m *machine) add(a, b vec) vec { return m.op(VADDPS, a, b) }
func (m *machine) sub(a, b vec) vec { return m.op(VSUBPS, a, b) }
func (m *machine) mul(a, b vec) vec { return m.op(VMULPS, a, b) }
func (m *machine) div(a, b vec) vec { return m.op(VDIVPS, a, b) }
func (m *machine) xor(a, b vec) vec { return m.op(VXORPS, a, b) }
func (m *machine) or(a, b vec) vec  { return m.op(VORPS, a, b) }

// larger is a > b ? a : b, so b where either is not a number.
func (m *machine) larger(a, b vec) vec { return m.op(VMAXPS, m.inReg(a), b) }

// smaller is a < b ? a : b.
func (m *machine) smaller(a, b vec) vec { return m.op(VMINPS, m.inReg(a), b) }

func (m *machine) addInt(a, b vec) vec { return m.op(VPADDD, a, b) }
func (m *machine) subInt(a, b vec) vec { return m.op(VPSUBD, a, b) }

func (m *machine) shift(f func(...operand.Op), bits uint64, a vec) vec {
	d := m.new()
	for i := range d {
		f(operand.Imm(bits), a[i], d[i])
	}
	return d
}

// mulAdd overwrites d with d·a + b; b may be in memory.
func (m *machine) mulAdd(d, a, b vec) {
	for i := range d {
		VFMADD213PS(b[i], a[i], d[i])
	}
}

// mulSub overwrites d with d·a − b.
func (m *machine) mulSub(d, a, b vec) {
	for i := range d {
		VFMSUB213PS(b[i], a[i], d[i])
	}
}

// accumulate overwrites d with d + a·b; b may be in memory.
func (m *machine) accumulate(d, a, b vec) {
	for i := range d {
		VFMADD231PS(b[i], a[i], d[i])
	}
}

// deduct overwrites d with d − a·b; b may be in memory.
func (m *machine) deduct(d, a, b vec) {
	for i := range d {
		VFNMADD231PS(b[i], a[i], d[i])
	}
}

// bySign is a where x has its sign bit set, else b.
func (m *machine) bySign(x, a, b vec) vec {
	d := m.new()
	for i := range d {
		if m.wide {
			k := K()
			VPMOVD2M(x[i], k)
			VBLENDMPS(a[i], b[i], k, d[i])
		} else {
			VBLENDVPS(x[i], a[i], b[i], d[i])
		}
	}
	return d
}

// The predicates of VCMPPS that are used.
const (
	less      = 1
	unordered = 3
)

// where is a in the lanes in which x compares so to y, else b; a may be in
// memory.
func (m *machine) where(predicate uint64, x, y, a, b vec) vec {
	d := m.new()
	for i := range d {
		if m.wide {
			k := K()
			VCMPPS(operand.Imm(predicate), y[i], x[i], k)
			VBLENDMPS(a[i], b[i], k, d[i])
		} else {
			VCMPPS(operand.Imm(predicate), y[i], x[i], d[i])
			VBLENDVPS(d[i], a[i], b[i], d[i])
		}
	}
	return d
}

// whereGreater is a in the lanes in which x > y as integers, else b; y and a
// may be in memory, but not y without AVX-512's a.
func (m *machine) whereGreater(x, y, a, b vec) vec {
	d := m.new()
	for i := range d {
		if m.wide {
			k := K()
			VPCMPD(operand.Imm(6), y[i], x[i], k)
			VPBLENDMD(a[i], b[i], k, d[i])
		} else {
			VPCMPGTD(y[i], x[i], d[i])
			VBLENDVPS(d[i], a[i], b[i], d[i])
		}
	}
	return d
}

// broadcast puts lane 0 into every lane.
func (m *machine) broadcast(x operand.Op) vec {
	if m.wide {
		z := ZMM()
		VBROADCASTSS(x, z)
		return vec{z}
	}
	y := YMM()
	VBROADCASTSS(x, y)
	return vec{y, y}
}

// fold reduces the lanes 8+8, 4+4, 2+2, 1+1 by f, whose first operand is the
// lower lane, into lane 0.
func (m *machine) fold(f func(...operand.Op), a vec) reg.VecVirtual {
	y := YMM()
	if m.wide {
		high := YMM()
		VEXTRACTF64X4(operand.Imm(1), a[0], high)
		f(a[0].(reg.VecVirtual).AsY(), high, y)
	} else {
		f(a[0], a[1], y)
	}
	x, high := XMM(), XMM()
	if m.wide {
		VEXTRACTF32X4(operand.Imm(1), y, high)
	} else {
		VEXTRACTF128(operand.Imm(1), y, high)
	}
	f(y.AsX(), high, x)
	for _, swap := range []uint64{0x4e, 0xb1} {
		VPERMILPS(operand.Imm(swap), x, high)
		f(x, high, x)
	}
	return x
}
