// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/distorch/distorch/model/tensor"
)

// expand writes the values of src, all of whose dtypes have whole bytes, to dst.
// All are exact but integers beyond 2^53.
func expand(dst []float64, src []byte, d tensor.DType) error {
	order := binary.LittleEndian
	switch d {
	case tensor.F64:
		widen(dst, src, func(b []byte) float64 { return math.Float64frombits(order.Uint64(b)) })
	case tensor.Bool, tensor.U8:
		widen(dst, src, func(b []byte) uint8 { return b[0] })
	case tensor.I8:
		widen(dst, src, func(b []byte) int8 { return int8(b[0]) })
	case tensor.U16:
		widen(dst, src, order.Uint16)
	case tensor.I16:
		widen(dst, src, func(b []byte) int16 { return int16(order.Uint16(b)) })
	case tensor.U32:
		widen(dst, src, order.Uint32)
	case tensor.I32:
		widen(dst, src, func(b []byte) int32 { return int32(order.Uint32(b)) })
	case tensor.U64:
		widen(dst, src, order.Uint64)
	case tensor.I64:
		widen(dst, src, func(b []byte) int64 { return int64(order.Uint64(b)) })
	default:
		return floats(dst, src, d)
	}
	return nil
}

// widen reads as many elements of one width as dst has.
func widen[T int8 | uint8 | int16 | uint16 | int32 | uint32 | int64 | uint64 | float64](dst []float64, src []byte, read func([]byte) T) {
	for i := range dst {
		size := len(src) / len(dst)
		dst[i] = float64(read(src[i*size:]))
	}
}

// floats is expand by way of float32, which holds all of these exactly.
func floats(dst []float64, src []byte, d tensor.DType) error {
	if !d.Float() || d.Blocked() {
		return fmt.Errorf("%v has no values that can be compared", d)
	}
	narrow := make([]float32, len(dst))
	if err := tensor.ToF32(narrow, src, d); err != nil {
		return err
	}
	for i, v := range narrow {
		dst[i] = float64(v)
	}
	return nil
}
