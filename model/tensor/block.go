// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"encoding/binary"
	"math"
)

// Blocks of ggml (https://github.com/ggml-org/ggml, ggml-common.h; the layouts
// are those of the GGUF format). A value is scale·code, or scale·code-minimum;
// f16 scales times the few bits of a code fit float32, so products are exact
// and only the minimum's subtraction rounds. FMA or not is the same.

func f16(b []byte) float32 { return F32FromF16(binary.LittleEndian.Uint16(b)) }

func blocksToF32(dst []float32, src []byte, d DType) {
	elements, bytes := d.Block()
	for len(dst) > 0 {
		expandBlock(dst[:elements:elements], src[:bytes:bytes], d)
		dst, src = dst[elements:], src[bytes:]
	}
}

func blocksToBF16(dst []uint16, src []byte, d DType) {
	elements, bytes := d.Block()
	var buf [256]float32
	for len(dst) > 0 {
		block := buf[:elements:elements]
		expandBlock(block, src[:bytes:bytes], d)
		BF16FromF32s(dst[:elements], block)
		dst, src = dst[elements:], src[bytes:]
	}
}

// expandBlock expands one block. Direct calls keep the buffers on the stack.
func expandBlock(dst []float32, src []byte, d DType) {
	switch d {
	case Q8_0:
		expandQ8_0(dst, src)
	case Q5_0:
		expandQ5_0(dst, src)
	case Q5_1:
		expandQ5_1(dst, src)
	case Q4_0:
		expandQ4_0(dst, src)
	case Q4_1:
		expandQ4_1(dst, src)
	case Q2_K:
		expandQ2_K(dst, src)
	case Q3_K:
		expandQ3_K(dst, src)
	case Q4_K:
		expandQ4_K(dst, src)
	case Q5_K:
		expandQ5_K(dst, src)
	case Q6_K:
		expandQ6_K(dst, src)
	case IQ4_NL:
		expandIQ4_NL(dst, src)
	case IQ4_XS:
		expandIQ4_XS(dst, src)
	case F8E4M3B64:
		expandF8E4M3B64(dst, src)
	}
}

// expandQ8_0: d f16, 32 int8 codes.
func expandQ8_0(dst []float32, src []byte) {
	d := f16(src)
	out, q := (*[32]float32)(dst), (*[32]byte)(src[2:])
	for i, b := range q {
		out[i] = d * float32(int8(b))
	}
}

// expandQ4_0: d f16, 16 bytes; byte i holds elements i (low nibble) and i+16,
// each code 8 too high.
func expandQ4_0(dst []float32, src []byte) {
	d := f16(src)
	out, q := (*[32]float32)(dst), (*[16]byte)(src[2:])
	for i, b := range q {
		out[i] = d * float32(int32(b&15)-8)
		out[i+16] = d * float32(int32(b>>4)-8)
	}
}

// expandQ4_1: d, m f16, nibbles as in Q4_0; value d·code+m.
func expandQ4_1(dst []float32, src []byte) {
	d, m := f16(src), f16(src[2:])
	out, q := (*[32]float32)(dst), (*[16]byte)(src[4:])
	for i, b := range q {
		out[i] = float32(d*float32(b&15)) + m
		out[i+16] = float32(d*float32(b>>4)) + m
	}
}

// expandQ5_0: d f16, 32 fifth bits, nibbles as in Q4_0; codes 16 too high.
func expandQ5_0(dst []float32, src []byte) {
	d, high := f16(src), binary.LittleEndian.Uint32(src[2:])
	out, q := (*[32]float32)(dst), (*[16]byte)(src[6:])
	for i, b := range q {
		out[i] = d * float32(int32(b&15)|int32(high>>i&1)<<4-16)
		out[i+16] = d * float32(int32(b>>4)|int32(high>>(i+16)&1)<<4-16)
	}
}

// expandQ5_1: d, m f16, 32 fifth bits, nibbles; value d·code+m.
func expandQ5_1(dst []float32, src []byte) {
	d, m, high := f16(src), f16(src[2:]), binary.LittleEndian.Uint32(src[4:])
	out, q := (*[32]float32)(dst), (*[16]byte)(src[8:])
	for i, b := range q {
		out[i] = float32(d*float32(int32(b&15)|int32(high>>i&1)<<4)) + m
		out[i+16] = float32(d*float32(int32(b>>4)|int32(high>>(i+16)&1)<<4)) + m
	}
}

// expandQ2_K: 16 bytes of scale (low nibble) and minimum (high) for 16 elements
// each, 64 bytes of two-bit codes, d, dmin f16. 32 bytes of codes hold 128
// elements: bits 2j, 2j+1 of them the j-th 32.
func expandQ2_K(dst []float32, src []byte) {
	d, dmin := f16(src[80:]), f16(src[82:])
	scales := src[:16]
	for g := range 16 {
		sc, m := d*float32(scales[g]&15), dmin*float32(scales[g]>>4)
		q, shift := (*[16]byte)(src[16+g/8*32+g%2*16:]), g%8/2*2
		out := (*[16]float32)(dst[16*g:])
		for i, b := range q {
			out[i] = float32(sc*float32(b>>shift&3)) - m
		}
	}
}

// expandQ3_K: 32 bytes of third bits, 64 bytes of two-bit codes (as in Q2_K),
// 12 bytes of 16 scales of six bits, d f16. Scales are 32 too high; a code is 4
// too high where its third bit is not set.
func expandQ3_K(dst []float32, src []byte) {
	d := f16(src[108:])
	packed := src[96:108]
	for g := range 16 {
		low := packed[g%8] >> (g / 8 * 4) & 15
		sc := d * float32(int32(low|packed[8+g%4]>>(g/4*2)&3<<4)-32)
		q, shift := (*[16]byte)(src[32+g/8*32+g%2*16:]), g%8/2*2
		third, bit := (*[16]byte)(src[g%2*16:]), g/2
		out := (*[16]float32)(dst[16*g:])
		for i, b := range q {
			out[i] = sc * float32(int32(b>>shift&3)+int32(third[i]>>bit&1)<<2-4)
		}
	}
}

// kScale is scale and minimum g of the 12 bytes in which Q4_K and Q5_K keep
// eight of each, six bits wide.
func kScale(b []byte, g int) (scale, minimum byte) {
	if g < 4 {
		return b[g] & 63, b[g+4] & 63
	}
	return b[g+4]&15 | b[g-4]>>6<<4, b[g+4]>>4 | b[g]>>6<<4
}

// expandQ4_K: d, dmin f16, 12 bytes of scales and minimums for 32 elements
// each, 128 bytes of nibbles: 32 bytes hold 64 elements, the low nibbles first.
func expandQ4_K(dst []float32, src []byte) {
	d, dmin := f16(src), f16(src[2:])
	for g := 0; g < 8; g += 2 {
		s0, m0 := kScale(src[4:16], g)
		s1, m1 := kScale(src[4:16], g+1)
		sc0, sc1, min0, min1 := d*float32(s0), d*float32(s1), dmin*float32(m0), dmin*float32(m1)
		q, out := (*[32]byte)(src[16+16*g:]), (*[64]float32)(dst[32*g:])
		for i, b := range q {
			out[i] = float32(sc0*float32(b&15)) - min0
			out[i+32] = float32(sc1*float32(b>>4)) - min1
		}
	}
}

// expandQ5_K: as Q4_K with 32 bytes of fifth bits in front of the nibbles; bit
// g of byte i belongs to element 32g+i.
func expandQ5_K(dst []float32, src []byte) {
	d, dmin := f16(src), f16(src[2:])
	high := (*[32]byte)(src[16:])
	for g := 0; g < 8; g += 2 {
		s0, m0 := kScale(src[4:16], g)
		s1, m1 := kScale(src[4:16], g+1)
		sc0, sc1, min0, min1 := d*float32(s0), d*float32(s1), dmin*float32(m0), dmin*float32(m1)
		q, out := (*[32]byte)(src[48+16*g:]), (*[64]float32)(dst[32*g:])
		for i, b := range q {
			h := high[i] >> g
			out[i] = float32(sc0*float32(b&15|h&1<<4)) - min0
			out[i+32] = float32(sc1*float32(b>>4|h>>1&1<<4)) - min1
		}
	}
}

// expandQ6_K: 128 bytes of low nibbles, 64 bytes of two high bits, 16 int8
// scales for 16 elements each, d f16; codes are 32 too high. Each half holds
// 128 elements: nibbles of 64 bytes low then high, bits 2j of 32 bytes.
func expandQ6_K(dst []float32, src []byte) {
	d := f16(src[208:])
	for g := range 16 {
		half, part := g/8, g%8/2 // part of 32 elements within its half of 128
		sc := d * float32(int8(src[192+g]))
		low := (*[16]byte)(src[half*64+part%2*32+g%2*16:])
		high := (*[16]byte)(src[128+half*32+g%2*16:])
		nibble, bits := part/2*4, part*2
		out := (*[16]float32)(dst[16*g:])
		for i, b := range low {
			out[i] = sc * float32(int32(b>>nibble&15|high[i]>>bits&3<<4)-32)
		}
	}
}

// iq4Values are the levels of IQ4_NL and IQ4_XS.
var iq4Values = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// expandIQ4_NL: d f16, nibbles as in Q4_0, which name levels.
func expandIQ4_NL(dst []float32, src []byte) {
	iq4(dst, src[2:], f16(src))
}

func iq4(dst []float32, src []byte, scale float32) {
	out, q := (*[32]float32)(dst), (*[16]byte)(src)
	for i, b := range q {
		out[i] = scale * iq4Values[b&15]
		out[i+16] = scale * iq4Values[b>>4]
	}
}

// expandIQ4_XS: d f16, two high bits of eight scales, their low nibbles in 4
// bytes, then 16 bytes of nibbles for 32 elements each. Scales are 32 too high.
func expandIQ4_XS(dst []float32, src []byte) {
	d, high := f16(src), binary.LittleEndian.Uint16(src[2:])
	for g := range 8 {
		low := src[4+g/2] >> (g % 2 * 4) & 15
		sc := d * float32(int32(low)|int32(high>>(2*g)&3)<<4-32)
		iq4(dst[32*g:], src[8+16*g:], sc)
	}
}

// expandF8E4M3B64: scale f32, 64 codes of F8_E4M3; value scale·code, rounded
// once.
func expandF8E4M3B64(dst []float32, src []byte) {
	scale := math.Float32frombits(binary.LittleEndian.Uint32(src))
	out, q := (*[64]float32)(dst), (*[64]byte)(src[4:])
	for i, b := range q {
		out[i] = scale * f8E4M3.f32[b]
	}
}
