// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"unsafe"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/agent/engine/native/vector"
	"github.com/distorch/distorch/model/tensor"
)

// pieceElements32 is how many float32 values are held on their way to a
// narrower dtype: whole blocks of any type, small enough for the first-level
// cache. pieceBytes is their size.
const (
	pieceElements32 = 2048
	pieceBytes      = 4 * pieceElements32
)

// piece is a worker's own memory for them.
func (s *session) piece(worker int) []float32 {
	return elements[float32](s.expand.perWork[worker].Host()[:pieceBytes])
}

// plain says whether a weight's elements stand for themselves.
func plain(w *engine.Weight) bool {
	return !w.DType.Blocked() && (w.Scale == 0 || w.Scale == 1)
}

// expandTo writes stored elements in the compute dtype, by way of piece where
// they are not plain.
func (s *session) expandTo(d matmul.DType, dst, src []byte, in *engine.Weight, piece []float32) error {
	if !plain(in) {
		return s.expandPieces(d, dst, src, in, piece)
	}
	k, stored := s.engine.vector, in.DType
	if d == matmul.F32 {
		out := elements[float32](dst)
		switch stored {
		case tensor.F32:
			copy(dst, src)
		case tensor.BF16:
			k.BF16ToF32(out, elements[uint16](src))
		case tensor.F16:
			k.F16ToF32(out, elements[uint16](src))
		case tensor.F8E4M3:
			k.F8E4M3ToF32(out, src)
		case tensor.F8E5M2:
			k.F8E5M2ToF32(out, src)
		default:
			return tensor.ToF32(out, src, stored)
		}
		return nil
	}
	out := elements[uint16](dst)
	switch stored {
	case tensor.BF16:
		copy(dst, src)
	case tensor.F32:
		k.F32ToBF16(out, elements[float32](src))
	case tensor.F16:
		k.F16ToBF16(out, elements[uint16](src))
	case tensor.F8E4M3:
		k.F8E4M3ToBF16(out, src)
	case tensor.F8E5M2:
		k.F8E5M2ToBF16(out, src)
	default:
		return tensor.ToBF16(out, src, stored)
	}
	return nil
}

// expandPieces expands blocks, and multiplies by the weight's scale in float32,
// rounding once.
func (s *session) expandPieces(d matmul.DType, dst, src []byte, in *engine.Weight, piece []float32) error {
	k := s.engine.vector
	scaled := in.Scale != 0 && in.Scale != 1
	switch {
	case !scaled && d == matmul.F32:
		return k.BlocksToF32(elements[float32](dst), src, in.DType)
	case !scaled:
		return k.BlocksToBF16(elements[uint16](dst), src, in.DType)
	}
	for len(dst) > 0 {
		n := min(len(dst)/d.Size(), pieceElements32)
		stored := in.DType.RowBytes(int64(n))
		values := piece[:n]
		if d == matmul.F32 {
			values = elements[float32](dst[:4*n])
		}
		plainly := engine.Weight{DType: in.DType}
		if err := s.expandTo(matmul.F32, bytesOf(values), src[:stored], &plainly, nil); err != nil {
			return err
		}
		row := vector.Rows[float32]{Data: values, Stride: n}
		k.F32.Scale(row, row, in.Scale, 1, n)
		if d == matmul.BF16 {
			k.F32ToBF16(elements[uint16](dst[:2*n]), values)
		}
		dst, src = dst[n*d.Size():], src[stored:]
	}
	return nil
}

// bytesOf views values as bytes.
func bytesOf(v []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v))
}
