// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// panel is the number of columns of a packed panel.
const panel = 32

// storer emits the loop over rows of a finished panel: load a row of c, add
// the bias when there is one, make every NaN the canonical one, hand it to put.
type storer struct {
	t   *target
	nan reg.VecPhysical
	one reg.VecPhysical // 1 and 0x7fff, for rounding to bf16
	rnd reg.VecPhysical
}

func (s *storer) vecs() int { return panel * 4 / s.t.width }

func (s *storer) emit(name, doc string, put func(out reg.Register)) {
	TEXT(name, NOSPLIT, "func(rows int, c *float32, bias *float32, out *byte, ldo int)")
	Pragma("noescape")
	Doc(name + " " + doc)
	t := s.t
	n := s.vecs()
	rows := Load(Param("rows"), reg.RCX)
	c := Load(Param("c"), reg.RSI)
	bias := Load(Param("bias"), reg.RDI)
	out := Load(Param("out"), reg.RDX)
	ldo := Load(Param("ldo"), reg.R8)
	s.nan, s.one, s.rnd = t.v[13], t.v[14], t.v[15]
	for _, k := range []struct {
		value uint32
		r     reg.VecPhysical
	}{{0x7FC00000, s.nan}, {1, s.one}, {0x7FFF, s.rnd}} {
		MOVL(U32(k.value), reg.EAX)
		VMOVD(reg.EAX, reg.X0)
		VPBROADCASTD(reg.X0, k.r)
	}
	Label("row")
	for j := range n {
		VMOVUPS(mem(c, j*t.width), t.v[j])
	}
	TESTQ(bias, bias)
	JZ(LabelRef("store"))
	for j := range n {
		VADDPS(mem(bias, j*t.width), t.v[j], t.v[j])
	}
	Label("store")
	for j := range n {
		if t.wide() {
			VCMPPS(U8(3), t.v[j], t.v[j], reg.K1)
			VMOVDQA32(s.nan, reg.K1, t.v[j])
		} else {
			VCMPPS(U8(3), t.v[j], t.v[j], t.v[8+j])
			VBLENDVPS(t.v[8+j], s.nan, t.v[j], t.v[j])
		}
	}
	put(out)
	ADDQ(Imm(panel*4), c)
	ADDQ(ldo, out)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// storeF32 writes finished panels as f32.
func storeF32(t *target) {
	s := &storer{t: t}
	s.emit("storeF32"+t.suffix, "writes rows of a panel of sums, plus bias, as f32.", func(out reg.Register) {
		for j := range s.vecs() {
			VMOVUPS(t.v[j], mem(out, j*t.width))
		}
	})
}

// storeBF16 writes finished panels rounded to nearest even.
func storeBF16(t *target) {
	s := &storer{t: t}
	s.emit("storeBF16"+t.suffix, "writes rows of a panel of sums, plus bias, rounded to bf16.", func(out reg.Register) {
		for j := range s.vecs() {
			v, w := t.v[j], t.v[8+j]
			VPSRLD(U8(16), v, w)
			if t.wide() {
				VPANDD(s.one, w, w)
			} else {
				VPAND(s.one, w, w)
			}
			VPADDD(s.rnd, w, w)
			VPADDD(w, v, v)
			VPSRLD(U8(16), v, v)
			if t.wide() {
				VPMOVDW(v, t.half[j])
				VMOVDQU(t.half[j], mem(out, j*t.width/2))
			}
		}
		if t.wide() {
			return
		}
		for j := 0; j < s.vecs(); j += 2 {
			VPACKUSDW(t.v[j+1], t.v[j], t.v[j])
			VPERMQ(U8(0xD8), t.v[j], t.v[j])
			VMOVDQU(t.v[j], mem(out, j*t.width/2))
		}
	})
}
