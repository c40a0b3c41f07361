// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"fmt"
	"slices"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/tensor"
)

// Elem is a storage type: float32, or the bits of a bf16 in an uint16.
type Elem interface{ float32 | uint16 }

// Rows is a view of rows of a matrix: element j of row i is Data[i*Stride+j].
type Rows[T any] struct {
	Data   []T
	Stride int // elements from one row to the next
}

func (r Rows[T]) row(i, n int) []T {
	at := i * r.Stride
	return r.Data[at : at+n : at+n]
}

// Kernels are the kernels of one instruction set.
type Kernels struct {
	// F32 and BF16 hold the operations on each storage type.
	F32  Ops[float32]
	BF16 Ops[uint16]

	convert conversions
}

// Ops are the operations whose operands are stored as T.
type Ops[T Elem] struct{ k table[T] }

// table holds one kernel per operation, each for one row. All slices of a call
// have the row's length, but the rotary tables, which have half of it.
type table[T Elem] struct {
	add, mul                func(dst, a, b []T)
	silu, gelu              func(dst, x []T)
	modulate                func(dst, x, scale, shift []T)
	gatedAdd, gatedAddFused func(dst, x, gate, y []T)

	layerNorm                          func(dst, x []T, eps float32)
	layerNormAffine, layerNormModulate func(dst, x, w, b []T, eps float32)
	rmsNorm                            func(dst, x, w []T, eps float32)
	rmsNormPlain                       func(dst, x []T, eps float32)

	rope        func(dst, x []T, cos, sin []float32)
	rmsNormRope func(dst, x, w []T, cos, sin []float32, eps float32)

	rowMax, rowSum func(x []T) float32
	expSub         func(dst []T, x []float32, scale, ref float32) float32
	rowScale       func(dst []T, x []float32, s float32)
	scale          func(dst, x []T, s float32)
}

// conversions expand or round n = len(dst) elements.
type conversions struct {
	f32ToBF16  func(dst []uint16, src []float32)
	bf16ToF32  func(dst []float32, src []uint16)
	f16ToF32   func(dst []float32, src []uint16)
	f16ToBF16  func(dst []uint16, src []uint16)
	e4m3ToF32  func(dst []float32, src []byte)
	e4m3ToBF16 func(dst []uint16, src []byte)
	e5m2ToF32  func(dst []float32, src []byte)
	e5m2ToBF16 func(dst []uint16, src []byte)
	// blocks are the block types with kernels of their own; pure Go has none.
	blocks map[tensor.DType]expander
}

// New returns the kernels of one instruction set. It fails when this CPU lacks
// the set.
func New(set isa.ISA) (*Kernels, error) {
	if !slices.Contains(isa.Supported(), set) {
		return nil, fmt.Errorf("vector kernels for %s: this CPU lacks the set; use one of %v", set, isa.Supported())
	}
	if set != isa.Generic {
		if k := assembly(set); k != nil {
			return k, nil
		}
	}
	return generic(), nil
}

func generic() *Kernels {
	return &Kernels{
		F32:     Ops[float32]{genericTable[float32]()},
		BF16:    Ops[uint16]{genericTable[uint16]()},
		convert: genericConversions(),
	}
}

func genericTable[T Elem]() table[T] {
	return table[T]{
		add:               addRow[T],
		mul:               mulRow[T],
		silu:              siluRow[T],
		gelu:              geluRow[T],
		modulate:          modulateRow[T],
		gatedAdd:          gatedAddRow[T],
		gatedAddFused:     gatedAddFusedRow[T],
		layerNorm:         layerNormRow[T],
		layerNormAffine:   layerNormAffineRow[T],
		layerNormModulate: layerNormModulateRow[T],
		rmsNorm:           rmsNormRow[T],
		rmsNormPlain:      rmsNormPlainRow[T],
		rope:              ropeRow[T],
		rmsNormRope:       rmsNormRopeRow[T],
		rowMax:            rowMaxRow[T],
		rowSum:            rowSumRow[T],
		expSub:            expSubRow[T],
		rowScale:          rowScaleRow[T],
		scale:             scaleRow[T],
	}
}
