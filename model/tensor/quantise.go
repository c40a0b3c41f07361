// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"encoding/binary"
	"fmt"
	"math"
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
	for at := 0; at < len(src); at += elements {
		block, out := src[at:at+elements], dst[at/elements*bytes:][:bytes]
		top := float32(0)
		for i, x := range block {
			m := math.Float32frombits(math.Float32bits(x) &^ (1 << 31))
			if !(m <= math.MaxFloat32) {
				return fmt.Errorf("quantise to %v: element %d is %g, must be finite", d, at+i, x)
			}
			top = max(top, m)
		}
		scale := top / f8E4M3Max
		binary.LittleEndian.PutUint32(out, math.Float32bits(scale))
		for i, x := range block {
			out[4+i] = 0
			if scale > 0 {
				out[4+i] = f8E4M3FromF32(x / scale)
			}
		}
	}
	return nil
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
