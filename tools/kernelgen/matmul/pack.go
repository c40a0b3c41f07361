// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// transpose emits the transposition of rows (8 or 6) of 4-byte words into
// steps; with expand each word, a pair of bf16, becomes two steps of floats,
// the odd element first.
func transpose(rows int, expand bool) {
	kind := "Words"
	if expand {
		kind = "Pairs"
	}
	name := fmt.Sprintf("transpose%sx%d", kind, rows)
	TEXT(name, NOSPLIT, "func(blocks int, src *byte, rowBytes int, dst *byte, stepBytes int)")
	Pragma("noescape")
	Doc(fmt.Sprintf("%s moves blocks of 8 words of %d rows, rowBytes apart, to steps, stepBytes apart.", name, rows))
	blocks := Load(Param("blocks"), reg.RCX)
	src := Load(Param("src"), reg.RSI)
	row := Load(Param("rowBytes"), reg.R8)
	dst := Load(Param("dst"), reg.RDI)
	step := Load(Param("stepBytes"), reg.R9)
	LEAQ(Mem{Base: row, Index: row, Scale: 2}, reg.R10) // three rows
	LEAQ(Mem{Base: src, Index: row, Scale: 4}, reg.R11) // the fifth row
	mask := reg.Y15
	if expand {
		VPCMPEQD(mask, mask, mask)
		VPSLLD(U8(16), mask, mask)
	}
	at := func(r, disp int) Mem {
		base := src
		if r >= 4 {
			base, r = reg.R11, r-4
		}
		switch r {
		case 0:
			return Mem{Base: base, Disp: disp}
		case 3:
			return Mem{Base: base, Index: reg.R10, Scale: 1, Disp: disp}
		default:
			return Mem{Base: base, Index: row, Scale: uint8(r), Disp: disp}
		}
	}
	y := []reg.VecPhysical{reg.Y0, reg.Y1, reg.Y2, reg.Y3, reg.Y4, reg.Y5, reg.Y6, reg.Y7, reg.Y8, reg.Y9}
	x := []reg.VecPhysical{reg.X0, reg.X1, reg.X2, reg.X3, reg.X4, reg.X5, reg.X6, reg.X7, reg.X8, reg.X9}
	put := func(v int) {
		if rows == 8 {
			VMOVUPS(y[v], Mem{Base: dst})
		} else {
			VMOVUPS(x[v], Mem{Base: dst})
			VEXTRACTF128(U8(1), y[v], x[v])
			VMOVQ(x[v], Mem{Base: dst, Disp: 16})
		}
		ADDQ(step, dst)
	}
	Label("block")
	for half := range 2 {
		for i := range 4 {
			VMOVUPS(at(i, half*16), x[i])
			if i+4 < rows {
				VINSERTF128(U8(1), at(i+4, half*16), y[i], y[i])
			}
		}
		VUNPCKLPS(y[1], y[0], y[4])
		VUNPCKHPS(y[1], y[0], y[5])
		VUNPCKLPS(y[3], y[2], y[6])
		VUNPCKHPS(y[3], y[2], y[7])
		VUNPCKLPD(y[6], y[4], y[0])
		VUNPCKHPD(y[6], y[4], y[1])
		VUNPCKLPD(y[7], y[5], y[2])
		VUNPCKHPD(y[7], y[5], y[3])
		for i := range 4 {
			if !expand {
				put(i)
				continue
			}
			VPAND(mask, y[i], y[8])
			VPSLLD(U8(16), y[i], y[9])
			put(8)
			put(9)
		}
	}
	ADDQ(Imm(32), src)
	ADDQ(Imm(32), reg.R11)
	DECQ(blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// pairRows emits the interleaving of two rows of bf16 into a panel's steps.
func pairRows() {
	TEXT("pairRowsAVX2", NOSPLIT, "func(steps int, even, odd *byte, rowBytes int, dst *byte)")
	Pragma("noescape")
	Doc("pairRowsAVX2 makes steps of pairs of a panel from rows of bf16, 2·rowBytes apart.")
	steps := Load(Param("steps"), reg.RCX)
	even := Load(Param("even"), reg.RSI)
	odd := Load(Param("odd"), reg.RDX)
	row := Load(Param("rowBytes"), reg.R8)
	dst := Load(Param("dst"), reg.RDI)
	SHLQ(Imm(1), row)
	Label("step")
	for j := range panel / 8 {
		VPMOVZXWD(Mem{Base: even, Disp: 16 * j}, reg.Y0)
		VPMOVZXWD(Mem{Base: odd, Disp: 16 * j}, reg.Y1)
		VPSLLD(U8(16), reg.Y1, reg.Y1)
		VPOR(reg.Y0, reg.Y1, reg.Y0)
		VMOVDQU(reg.Y0, Mem{Base: dst, Disp: 32 * j})
	}
	ADDQ(row, even)
	ADDQ(row, odd)
	ADDQ(Imm(panel*4), dst)
	DECQ(steps)
	JNZ(LabelRef("step"))
	VZEROUPPER()
	RET()
}
