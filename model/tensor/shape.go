// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package tensor

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Shape is the extent of each dimension, slowest first (row-major). The empty
// shape is a scalar of one element.
type Shape []int64

// Elements is the product of the dimensions, or an error that names a negative
// dimension or a product beyond int64. A shape with a zero dimension has no
// elements, whatever the others are.
func (s Shape) Elements() (int64, error) {
	n, empty := uint64(1), false
	overflow := false
	for i, d := range s {
		if d < 0 {
			return 0, fmt.Errorf("shape %v: dimension %d is negative", s, i)
		}
		if d == 0 {
			empty = true
		}
		hi, lo := bits.Mul64(n, uint64(d))
		if hi != 0 || lo > math.MaxInt64 {
			overflow = true
			break
		}
		n = lo
	}
	if empty || slices.Contains(s, 0) {
		return 0, checkNonNegative(s)
	}
	if overflow {
		return 0, fmt.Errorf("shape %v: element count overflows 64 bits", s)
	}
	return int64(n), nil
}

func checkNonNegative(s Shape) error {
	for i, d := range s {
		if d < 0 {
			return fmt.Errorf("shape %v: dimension %d is negative", s, i)
		}
	}
	return nil
}

// Bytes is the size of a contiguous tensor of this shape and dtype. Packed
// elements (F4, F6) must fill whole bytes, as the safetensors format asks;
// blocks must fill rows, so the last dimension is a multiple of DType.Block.
func (s Shape) Bytes(d DType) (Bytes, error) {
	n, err := s.Elements()
	if err != nil {
		return 0, err
	}
	if !d.Valid() {
		return 0, fmt.Errorf("shape %v: %v is not a dtype", s, d)
	}
	if d.Blocked() {
		return s.blocks(n, d)
	}
	hi, lo := bits.Mul64(uint64(n), uint64(d.Bits()))
	if hi >= 4 {
		return 0, fmt.Errorf("shape %v of %v: byte count overflows 64 bits", s, d)
	}
	if lo%8 != 0 {
		return 0, fmt.Errorf("shape %v of %v: %d bits do not fill whole bytes", s, d, lo)
	}
	return Bytes(hi<<61 | lo>>3), nil
}

// blocks is Bytes of n elements in blocks.
func (s Shape) blocks(n int64, d DType) (Bytes, error) {
	elements, size := d.Block()
	if last := len(s) - 1; last < 0 || s[last]%int64(elements) != 0 {
		return 0, fmt.Errorf("shape %v of %v: rows are not made of whole blocks of %d elements", s, d, elements)
	}
	hi, lo := bits.Mul64(uint64(n)/uint64(elements), uint64(size))
	if hi != 0 || lo > math.MaxInt64 {
		return 0, fmt.Errorf("shape %v of %v: byte count overflows 64 bits", s, d)
	}
	return Bytes(lo), nil
}

// Equal says whether both have the same dimensions.
func (s Shape) Equal(o Shape) bool { return slices.Equal(s, o) }

// Clone is a copy that shares nothing with s.
func (s Shape) Clone() Shape { return slices.Clone(s) }

// String is "[16,64]"; a scalar is "[]".
func (s Shape) String() string {
	var b strings.Builder
	b.WriteByte('[')
	for i, d := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatInt(d, 10))
	}
	b.WriteByte(']')
	return b.String()
}
