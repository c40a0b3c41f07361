// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"encoding/binary"
	"fmt"
	"math"
)

// BF16FromF32 rounds x to bfloat16, nearest even; denormals are kept. A NaN
// keeps its sign and leading payload bits and becomes quiet.
func BF16FromF32(x float32) uint16 { return roundBF16(math.Float32bits(x)) }

func roundBF16(u uint32) uint16 {
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// F32FromBF16 is the value of a bfloat16, exact.
func F32FromBF16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// BF16FromF64 rounds x to bfloat16 once, nearest even.
func BF16FromF64(x float64) uint16 {
	f := float32(x)
	u := math.Float32bits(f)
	// Round to odd first, so that the second rounding sees every bit lost here.
	if d := float64(f); d != x && x == x && u&1 == 0 {
		if (d > x) == (x > 0) {
			u--
		} else {
			u++
		}
	}
	return BF16FromF32(math.Float32frombits(u))
}

// F32FromF16 is the value of an IEEE binary16, exact. A NaN becomes quiet.
func F32FromF16(h uint16) float32 {
	w := uint32(h) << 16
	sign, two := w&0x80000000, w+w
	var u uint32
	if two < 1<<27 {
		u = math.Float32bits(math.Float32frombits(two>>17|126<<23) - 0.5)
	} else {
		u = math.Float32bits(math.Float32frombits(two>>4+0xe0<<23) * 0x1p-112)
	}
	return math.Float32frombits(sign | u)
}

// F32FromF8 is the value of one byte of an 8-bit float type, exact; NaN for
// any other dtype.
func F32FromF8(d DType, b byte) float32 {
	if t := f8Table(d); t != nil {
		return t.f32[b]
	}
	return float32(math.NaN())
}

// BF16FromF32s rounds src into dst, element by element as BF16FromF32; dst
// must be at least as long.
func BF16FromF32s(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	for i, x := range src {
		dst[i] = BF16FromF32(x)
	}
}

// F32FromBF16s expands src into dst; dst must be at least as long.
func F32FromBF16s(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	for i, b := range src {
		dst[i] = F32FromBF16(b)
	}
}

func checkLengths(n int, src []byte, d DType) error {
	if !d.Float() {
		return fmt.Errorf("convert %v: not a float dtype this build expands", d)
	}
	elements, bytes := d.Block()
	if n%elements != 0 || len(src)%bytes != 0 || len(src)/bytes != n/elements {
		return fmt.Errorf("convert %v: %d bytes do not hold %d elements, %d in %d bytes", d, len(src), n, elements, bytes)
	}
	return nil
}

// ToF32 expands the little-endian elements of src, of any float dtype, into
// dst, which must have exactly their number. All are exact but F64, which is
// rounded to nearest even, and the types in blocks: scale·code is exact and a
// minimum is taken away in one rounding (block.go).
func ToF32(dst []float32, src []byte, d DType) error {
	if err := checkLengths(len(dst), src, d); err != nil {
		return err
	}
	if d.Blocked() {
		blocksToF32(dst, src, d)
		return nil
	}
	switch d {
	case F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case F64:
		for i := range dst {
			dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		}
	case BF16:
		bf16BytesToF32(dst, src)
	case F16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = F32FromF16(binary.LittleEndian.Uint16(src[2*i : 2*i+2]))
		}
	default:
		t := &f8Table(d).f32
		src = src[:len(dst)]
		for i, b := range src {
			dst[i] = t[b]
		}
	}
	return nil
}

func bf16BytesToF32(dst []float32, src []byte) {
	for len(dst) >= 4 {
		w := binary.LittleEndian.Uint64(src)
		dst[0] = math.Float32frombits(uint32(w) << 16)
		dst[1] = math.Float32frombits(uint32(w) & 0xffff0000)
		dst[2] = math.Float32frombits(uint32(w>>32) << 16)
		dst[3] = math.Float32frombits(uint32(w>>32) & 0xffff0000)
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = F32FromBF16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// ToBF16 rounds the little-endian elements of src, of any float dtype, to
// bfloat16 once (nearest even) into dst, which must have exactly their number.
// BF16 is copied bit for bit; types in blocks are rounded from their float32
// values.
func ToBF16(dst []uint16, src []byte, d DType) error {
	if err := checkLengths(len(dst), src, d); err != nil {
		return err
	}
	if d.Blocked() {
		blocksToBF16(dst, src, d)
		return nil
	}
	switch d {
	case F32:
		f32BytesToBF16(dst, src)
	case F64:
		for i := range dst {
			dst[i] = BF16FromF64(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		}
	case BF16:
		u16FromBytes(dst, src)
	case F16:
		f16BytesToBF16(dst, src)
	default:
		f8ToBF16(dst, src, &f8Table(d).bf16)
	}
	return nil
}

func f32BytesToBF16(dst []uint16, src []byte) {
	for len(dst) >= 4 && len(src) >= 16 {
		d, a, b := dst[:4:4], binary.LittleEndian.Uint64(src), binary.LittleEndian.Uint64(src[8:16])
		d[0], d[1] = roundBF16(uint32(a)), roundBF16(uint32(a>>32))
		d[2], d[3] = roundBF16(uint32(b)), roundBF16(uint32(b>>32))
		dst, src = dst[4:], src[16:]
	}
	for i := range dst {
		dst[i] = roundBF16(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

// f16BytesToBF16 is BF16FromF32(F32FromF16(h)) for each element, four at a
// time in the 16-bit lanes of a word. A normal binary16 lies in the normal
// range of bfloat16, so its bits need one rounding, one shift and another
// exponent bias; no lane carries into the next. A word with a zero, a
// denormal, an infinity or a NaN goes one by one.
func f16BytesToBF16(dst []uint16, src []byte) {
	const each = 0x0001_0001_0001_0001
	for len(dst) >= 4 && len(src) >= 8 {
		d, w := dst[:4:4], binary.LittleEndian.Uint64(src)
		exponents := (w&(0x7c00*each) + 0x0400*each) & (0x7800 * each)
		if (exponents+0x7800*each)&(0x8000*each) == 0x8000*each {
			m := w & (0x7fff * each)
			r := (m+3*each+m>>3&each)>>3&(0x0fff*each) + (127-15)<<7*each
			r |= w & (0x8000 * each)
			d[0], d[1], d[2], d[3] = uint16(r), uint16(r>>16), uint16(r>>32), uint16(r>>48)
		} else {
			for i := range d {
				d[i] = BF16FromF32(F32FromF16(uint16(w >> (16 * i))))
			}
		}
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = BF16FromF32(F32FromF16(binary.LittleEndian.Uint16(src[2*i:])))
	}
}

func u16FromBytes(dst []uint16, src []byte) {
	for len(dst) >= 4 {
		w := binary.LittleEndian.Uint64(src)
		dst[0], dst[1], dst[2], dst[3] = uint16(w), uint16(w>>16), uint16(w>>32), uint16(w>>48)
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = binary.LittleEndian.Uint16(src[2*i:])
	}
}

func f8ToBF16(dst []uint16, src []byte, t *[256]uint16) {
	for len(dst) >= 8 && len(src) >= 8 {
		d, s := dst[:8:8], src[:8:8]
		d[0], d[1], d[2], d[3] = t[s[0]], t[s[1]], t[s[2]], t[s[3]]
		d[4], d[5], d[6], d[7] = t[s[4]], t[s[5]], t[s[6]], t[s[7]]
		dst, src = dst[8:], src[8:]
	}
	for i, b := range src {
		dst[i] = t[b]
	}
}

// PutF32 writes src as little-endian bytes into dst, which must hold them.
func PutF32(dst []byte, src []float32) {
	dst = dst[:4*len(src)]
	for i, x := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(x))
	}
}

// PutBF16 writes src as little-endian bytes into dst, which must hold them.
func PutBF16(dst []byte, src []uint16) {
	dst = dst[:2*len(src)]
	for i, x := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], x)
	}
}

// F16FromF32 rounds x to IEEE half precision, nearest even: to infinity from
// 65520 on, to denormals below 2^-14. A NaN stays one.
func F16FromF32(x float32) uint16 {
	u := math.Float32bits(x)
	sign, u := uint16(u>>16)&0x8000, u&0x7fffffff
	switch {
	case u > 0x7f800000:
		return sign | 0x7e00
	case u >= 0x477ff000:
		return sign | 0x7c00
	case u >= 0x38800000: // normal
		u += 0xfff + u>>13&1
		return sign | uint16((u-0x38000000)>>13)
	}
	// Adding 0.5 leaves the denormal's bits at the end of the sum, rounded as
	// float32 sums are.
	return sign | uint16(math.Float32bits(math.Float32frombits(u)+0.5)-0x3f000000)
}

// PutFloats writes src as little-endian values of a float dtype of 16 or 32 bits
// into dst.
func PutFloats(dst []byte, src []float32, d DType) error {
	if err := checkLengths(len(src), dst, d); err != nil {
		return err
	}
	switch d {
	case F32:
		PutF32(dst, src)
	case BF16:
		for i, v := range src {
			binary.LittleEndian.PutUint16(dst[2*i:], BF16FromF32(v))
		}
	case F16:
		for i, v := range src {
			binary.LittleEndian.PutUint16(dst[2*i:], F16FromF32(v))
		}
	default:
		return fmt.Errorf("float32 to %v: only F32, BF16 and F16", d)
	}
	return nil
}
