// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// streamAhead is how many bytes early a tile asks for right factors when it has
// so few rows that these come from memory.
const streamAhead = 2048

const tileSignature = "func(kc int, a *byte, lda int, b *byte, ldb int, c *float32, ldc int, resume int)"

// tile emits the frame of a matrix tile of rows×vecs accumulators: it
// loads them from c when resume is not 0, runs step kc times and stores them.
type tile struct {
	t    *target
	rows int
	vecs int // of a row
	kc   reg.Register
	a, b reg.Register
	lda  reg.Register
	ldb  reg.Register
}

func (g *tile) acc(i, j int) int { return i*g.vecs + j }
func (g *tile) vecB(j int) int   { return g.rows*g.vecs + j }

// vecA is a register for row i's broadcast; where there are two they alternate.
func (g *tile) vecA(i, free int) int {
	first := g.vecB(g.vecs)
	return first + i%(free-first)
}

func newTile(name, doc string, t *target, rows int, before, step, after func(g *tile)) {
	TEXT(name, NOSPLIT, tileSignature)
	Pragma("noescape")
	Doc(name + " " + doc)
	vecs := t.vecs(rows)
	g := &tile{t: t, rows: rows, vecs: vecs}
	g.kc = Load(Param("kc"), reg.RCX)
	g.a = Load(Param("a"), reg.RSI)
	g.lda = Load(Param("lda"), reg.R11)
	g.b = Load(Param("b"), reg.RDI)
	g.ldb = Load(Param("ldb"), reg.R12)
	c := Load(Param("c"), reg.RDX)
	ldc := Load(Param("ldc"), reg.R8)
	resume := Load(Param("resume"), reg.R9)
	before(g)
	TESTQ(resume, resume)
	JZ(LabelRef("fresh"))
	MOVQ(c, reg.R10)
	for i := range rows {
		for j := range vecs {
			VMOVUPS(mem(reg.R10, j*t.width), t.v[g.acc(i, j)])
		}
		if i < rows-1 {
			ADDQ(ldc, reg.R10)
		}
	}
	JMP(LabelRef("loop"))
	Label("fresh")
	for i := range rows * vecs {
		t.zero(t.v[i])
	}
	Label("loop")
	if rows < t.tileRows[0] {
		for d := 0; d < panel*4; d += 64 {
			PREFETCHT0(mem(g.b, streamAhead+d))
		}
	}
	step(g)
	DECQ(g.kc)
	JNZ(LabelRef("loop"))
	for i := range rows {
		for j := range vecs {
			VMOVUPS(t.v[g.acc(i, j)], mem(c, j*t.width))
		}
		if i < rows-1 {
			ADDQ(ldc, c)
		}
	}
	after(g)
	VZEROUPPER()
	RET()
}

func tileF32(t *target, rows int) {
	newTile(fmt.Sprintf("tileF32%sx%d", t.suffix, rows),
		fmt.Sprintf("extends %d rows of f32 chains by kc steps of k.", rows), t, rows,
		func(*tile) {},
		func(g *tile) {
			for j := range g.vecs {
				VMOVUPS(mem(g.b, j*t.width), t.v[g.vecB(j)])
			}
			g.multiply(len(t.v), 0)
			ADDQ(g.lda, g.a)
			ADDQ(g.ldb, g.b)
		},
		func(*tile) {})
}

// multiply adds one k of every row: a's float at disp+4i times the b vectors.
func (g *tile) multiply(free, disp int) {
	for i := range g.rows {
		a := g.t.v[g.vecA(i, free)]
		VBROADCASTSS(mem(g.a, disp+4*i), a)
		for j := range g.vecs {
			VFMADD231PS(a, g.t.v[g.vecB(j)], g.t.v[g.acc(i, j)])
		}
	}
}

// tileBF16Pairs is VDPBF16PS by two FMAs: b holds pairs of bf16, a the same k
// expanded to f32 in the order odd, even. Denormals are flushed by MXCSR,
// which is restored before the routine returns.
func tileBF16Pairs(t *target, rows int) {
	free := len(t.v)
	var saved Mem
	newTile(fmt.Sprintf("tileBF16%sx%d", t.suffix, rows),
		fmt.Sprintf("extends %d rows of bf16 chains by kc pairs of k, with f32 FMAs.", rows), t, rows,
		func(*tile) {
			saved = AllocLocal(8)
			STMXCSR(saved)
			MOVL(saved, reg.EAX)
			ORL(U32(0x8040), reg.EAX)
			MOVL(reg.EAX, saved.Offset(4))
			LDMXCSR(saved.Offset(4))
			if t.wide() {
				MOVL(U32(0xAAAAAAAA), reg.EAX)
				KMOVD(reg.EAX, reg.K1)
				return
			}
			free--
			VPCMPEQD(t.v[free], t.v[free], t.v[free])
			VPSLLD(U8(16), t.v[free], t.v[free])
		},
		func(g *tile) {
			for j := range g.vecs {
				if t.wide() {
					VMOVDQU16_Z(mem(g.b, j*t.width), reg.K1, t.v[g.vecB(j)])
				} else {
					VPAND(mem(g.b, j*t.width), t.v[free], t.v[g.vecB(j)])
				}
			}
			g.multiply(free, 0)
			ADDQ(g.lda, g.a)
			for j := range g.vecs {
				if t.wide() {
					VPSLLD(U8(16), mem(g.b, j*t.width), t.v[g.vecB(j)])
				} else {
					VMOVDQU(mem(g.b, j*t.width), t.v[g.vecB(j)])
					VPSLLD(U8(16), t.v[g.vecB(j)], t.v[g.vecB(j)])
				}
			}
			g.multiply(free, 0)
			ADDQ(g.lda, g.a)
			ADDQ(g.ldb, g.b)
		},
		func(*tile) { LDMXCSR(saved) })
}

// tileBF16Dot uses VDPBF16PS: a and b hold pairs of bf16.
func tileBF16Dot(t *target, rows int) {
	if !t.wide() {
		return
	}
	newTile(fmt.Sprintf("tileDot%sx%d", t.suffix, rows),
		fmt.Sprintf("extends %d rows of bf16 chains by kc pairs of k, with VDPBF16PS.", rows), t, rows,
		func(*tile) {},
		func(g *tile) {
			for j := range g.vecs {
				VMOVUPS(mem(g.b, j*t.width), t.v[g.vecB(j)])
			}
			for i := range rows {
				a := g.vecA(i, len(t.v))
				VPBROADCASTD(mem(g.a, 4*i), t.v[a])
				for j := range g.vecs {
					dotBF16(g.acc(i, j), g.vecB(j), a)
				}
			}
			ADDQ(g.lda, g.a)
			ADDQ(g.ldb, g.b)
		},
		func(*tile) {})
}
