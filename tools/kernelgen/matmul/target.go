// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// target is one instruction set: its vector registers, their width, and the
// row counts of the matrix tiles that fit them.
type target struct {
	suffix   string
	v        []reg.VecPhysical
	half     []reg.VecPhysical // the same registers, half as wide
	width    int               // bytes of a vector
	tileRows []int
}

func avx2() *target {
	return &target{
		suffix: "AVX2", width: 32, tileRows: []int{6, 4, 2, 1},
		v: []reg.VecPhysical{
			reg.Y0, reg.Y1, reg.Y2, reg.Y3, reg.Y4, reg.Y5, reg.Y6, reg.Y7,
			reg.Y8, reg.Y9, reg.Y10, reg.Y11, reg.Y12, reg.Y13, reg.Y14, reg.Y15,
		},
		half: []reg.VecPhysical{
			reg.X0, reg.X1, reg.X2, reg.X3, reg.X4, reg.X5, reg.X6, reg.X7,
			reg.X8, reg.X9, reg.X10, reg.X11, reg.X12, reg.X13, reg.X14, reg.X15,
		},
	}
}

func avx512() *target {
	return &target{
		suffix: "AVX512", width: 64, tileRows: []int{14, 8, 4, 2, 1},
		v: []reg.VecPhysical{
			reg.Z0, reg.Z1, reg.Z2, reg.Z3, reg.Z4, reg.Z5, reg.Z6, reg.Z7,
			reg.Z8, reg.Z9, reg.Z10, reg.Z11, reg.Z12, reg.Z13, reg.Z14, reg.Z15,
			reg.Z16, reg.Z17, reg.Z18, reg.Z19, reg.Z20, reg.Z21, reg.Z22, reg.Z23,
			reg.Z24, reg.Z25, reg.Z26, reg.Z27, reg.Z28, reg.Z29, reg.Z30, reg.Z31,
		},
		half: []reg.VecPhysical{
			reg.Y0, reg.Y1, reg.Y2, reg.Y3, reg.Y4, reg.Y5, reg.Y6, reg.Y7,
			reg.Y8, reg.Y9, reg.Y10, reg.Y11, reg.Y12, reg.Y13, reg.Y14, reg.Y15,
		},
	}
}

// vecs is the number of vectors of a row of a tile: a whole panel where the
// registers suffice, half of one otherwise.
func (t *target) vecs(rows int) int {
	if t.wide() || rows > 2 {
		return 2
	}
	return 4
}

func (t *target) wide() bool { return t.width == 64 }

func (t *target) zero(r reg.VecPhysical) {
	if t.wide() {
		build.VPXORD(r, r, r)
		return
	}
	build.VXORPS(r, r, r)
}

func mem(base reg.Register, disp int) operand.Mem { return operand.Mem{Base: base, Disp: disp} }

// dotBF16 emits VDPBF16PS acc, a, b (512 bits, registers), which Go's
// assembler lacks: EVEX.512.F3.0F38.W0 52 /r.
func dotBF16(acc, a, b int) {
	inv := func(bit int) byte { return byte(1 - bit&1) }
	p0 := inv(acc>>3)<<7 | inv(b>>4)<<6 | inv(b>>3)<<5 | inv(acc>>4)<<4 | 2
	p1 := byte(^a&15)<<3 | 1<<2 | 2
	p2 := byte(2)<<5 | inv(a>>4)<<3
	for _, v := range []byte{0x62, p0, p1, p2, 0x52, byte(0xC0 | (acc&7)<<3 | b&7)} {
		build.Instruction(&ir.Instruction{Opcode: "BYTE", Operands: []operand.Op{operand.U8(v)}})
	}
}
