// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import "math"

// f8Values are the 256 values of an 8-bit float type; every finite one is
// exact in bfloat16 too (at most 4 significant bits, exponent within 8 bits).
type f8Values struct {
	f32  [256]float32
	bf16 [256]uint16
}

// Read-only tables, filled once before main.
var (
	f8E4M3     = f8Format{exponentBits: 4, bias: 7, nan: func(b byte) bool { return b&0x7f == 0x7f }}.values()
	f8E5M2     = f8Format{exponentBits: 5, bias: 15, infinities: true, nan: func(b byte) bool { return b&0x7f > 0x7c }}.values()
	f8E4M3FNUZ = f8Format{exponentBits: 4, bias: 8, nan: func(b byte) bool { return b == 0x80 }}.values()
	f8E5M2FNUZ = f8Format{exponentBits: 5, bias: 16, nan: func(b byte) bool { return b == 0x80 }}.values()
	f8E8M0     = e8m0Values()
)

func f8Table(d DType) *f8Values {
	switch d {
	case F8E4M3:
		return f8E4M3
	case F8E5M2:
		return f8E5M2
	case F8E4M3FNUZ:
		return f8E4M3FNUZ
	case F8E5M2FNUZ:
		return f8E5M2FNUZ
	case F8E8M0:
		return f8E8M0
	}
	return nil
}

// f8Format follows "FP8 Formats for Deep Learning" (arXiv:2209.05433) for
// E4M3 and E5M2, and LLVM's FNUZ variants.
type f8Format struct {
	exponentBits, bias int
	infinities         bool
	nan                func(byte) bool
}

func (f f8Format) values() *f8Values {
	t := &f8Values{}
	mantissaBits := 7 - f.exponentBits
	for i := range 256 {
		b := byte(i)
		exponent := int(b&0x7f) >> mantissaBits
		mantissa := float64(int(b) & (1<<mantissaBits - 1))
		step := math.Ldexp(1, max(exponent, 1)-f.bias-mantissaBits)
		v := mantissa * step
		if exponent > 0 {
			v = (mantissa + float64(int(1)<<mantissaBits)) * step
		}
		switch {
		case f.nan(b):
			v = math.NaN()
		case f.infinities && b&0x7f == 0x7c:
			v = math.Inf(1)
		}
		if b&0x80 != 0 {
			v = math.Copysign(v, -1)
		}
		t.set(b, float32(v))
	}
	return t
}

func e8m0Values() *f8Values {
	t := &f8Values{}
	for i := range 255 {
		t.set(byte(i), float32(math.Ldexp(1, i-127)))
	}
	t.set(255, float32(math.NaN()))
	return t
}

func (t *f8Values) set(b byte, v float32) {
	t.f32[b] = v
	t.bf16[b] = BF16FromF32(v)
}
