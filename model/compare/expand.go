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
		for i := range dst {
			dst[i] = math.Float64frombits(order.Uint64(src[8*i:]))
		}
	case tensor.Bool, tensor.U8:
		for i := range dst {
			dst[i] = float64(src[i])
		}
	case tensor.I8:
		for i := range dst {
			dst[i] = float64(int8(src[i]))
		}
	case tensor.I16:
		for i := range dst {
			dst[i] = float64(int16(order.Uint16(src[2*i:])))
		}
	case tensor.U16:
		for i := range dst {
			dst[i] = float64(order.Uint16(src[2*i:]))
		}
	case tensor.I32:
		for i := range dst {
			dst[i] = float64(int32(order.Uint32(src[4*i:])))
		}
	case tensor.U32:
		for i := range dst {
			dst[i] = float64(order.Uint32(src[4*i:]))
		}
	case tensor.I64:
		for i := range dst {
			dst[i] = float64(int64(order.Uint64(src[8*i:])))
		}
	case tensor.U64:
		for i := range dst {
			dst[i] = float64(order.Uint64(src[8*i:]))
		}
	default:
		return floats(dst, src, d)
	}
	return nil
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
