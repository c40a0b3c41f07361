// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// f8E4M3Max is the largest finite value of F8_E4M3.
const f8E4M3Max = 448

// FromF32 quantises src into dst as d, which must be F8_E4M3_B64: src in whole
// blocks of 64, dst 68 bytes for each. A block's scale is the largest magnitude
// divided by 448 in float32, a code is the F8_E4M3 nearest to value/scale
// (nearest even, at most 448 in magnitude), so equal values give equal bytes
// everywhere. A block of zeros has scale 0. A value that is not finite is an
// error.
func FromF32(dst []byte, src []float32, d DType) error {
	if d != F8E4M3B64 {
		return fmt.Errorf("quantise to %v: only %v is written", d, F8E4M3B64)
	}
	elements, bytes := d.Block()
	if len(src)%elements != 0 || len(dst) != len(src)/elements*bytes {
		return fmt.Errorf("quantise %d elements to %v: must be whole blocks of %d in %d bytes, %d bytes given", len(src), d, elements, bytes, len(dst))
	}
	for len(src) > 0 {
		if i := quantiseF8((*[68]byte)(dst), (*[64]float32)(src)); i >= 0 {
			return fmt.Errorf("quantise to %v: a value is %g, must be finite", d, src[i])
		}
		dst, src = dst[bytes:], src[elements:]
	}
	return nil
}

// quantiseF8 is one block; it returns the index of a value that is not finite,
// or -1.
func quantiseF8(dst *[68]byte, src *[64]float32) int {
	const magnitude = 1<<31 - 1
	top := uint32(0) // magnitudes order as their bits do
	for _, x := range src {
		top = max(top, math.Float32bits(x)&magnitude)
	}
	if top >= 0x7f800000 {
		return slices.IndexFunc(src[:], func(x float32) bool { return math.Float32bits(x)&magnitude >= 0x7f800000 })
	}
	scale := math.Float32frombits(top) / f8E4M3Max
	binary.LittleEndian.PutUint32(dst[:], math.Float32bits(scale))
	codes := (*[64]byte)(dst[4:])
	if scale == 0 {
		clear(codes[:])
		return -1
	}
	for i, x := range src {
		codes[i] = f8E4M3FromF32(x / scale)
	}
	return -1
}

// f8E4M3FromF32 rounds a number to F8_E4M3, nearest even, at most 448 in
// magnitude.
func f8E4M3FromF32(x float32) byte {
	u := math.Float32bits(x)
	sign, m := byte(u>>24)&0x80, u&^(1<<31)
	switch {
	case m >= math.Float32bits(f8E4M3Max):
		return sign | 0x7e
	case m < math.Float32bits(0x1p-6): // denormal: multiples of 2^-9
		// Adding 2^14 leaves them in the low bits, rounded to nearest even.
		return sign | byte(math.Float32bits(math.Float32frombits(m)+0x1p14))
	}
	// Three bits of mantissa stay of 23, and the exponent's bias is 7 of 127.
	m += 1<<19 - 1 + m>>20&1
	return sign | byte(min((m>>20)-(127-7)<<3, 0x7e))
}

// StorageF8 is the dtype of a tensor where weights are kept in fp8 by choice:
// F8_E4M3_B64 for floats of two dimensions or more whose rows are whole blocks
// and which become smaller by it, d for every other.
func StorageF8(s Shape, d DType) DType {
	if len(s) < 2 || !d.Float() {
		return d
	}
	as, err := s.Bytes(F8E4M3B64)
	if err != nil {
		return d
	}
	if is, err := s.Bytes(d); err != nil || is <= as {
		return d
	}
	return F8E4M3B64
}
