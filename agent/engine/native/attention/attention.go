// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package attention computes softmax(scale·Q·Kᵀ + mask)·V in the arithmetic of the
// numerics class native/1, without ever holding a matrix of all scores, and
// with the same bits on every instruction set, for any number of threads and
// any cut of the query rows.
//
// Keys are taken in tiles of KeyTile, in order; per query row and tile:
//   - a score is one chain over the head's elements, by the rule of package
//     matmul (f32, or bf16 pairs), starting from +0; with a mask it becomes
//     scale·score, rounded to f32, plus the mask's element, rounded to f32;
//   - maximum, exp and sum are vector.SoftmaxTile's; in bf16 the probabilities
//     are rounded once, after they were summed;
//   - from the second tile on, the outputs so far are multiplied by Alpha in
//     f32; then their chains go on over the tile's keys by the rule of package
//     matmul (in bf16, a tile with an odd number of keys is padded by a zero).
//
// At the end each output is multiplied by 1/Sum, both rounded to f32, and, in
// bf16, rounded once.
//
// Imported by agent/engine/native. It must import nothing of distorch but the
// packages isa, matmul and vector beside it.
package attention

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/agent/engine/native/vector"
)

// KeyTile is the number of keys of a tile; it is a part of the class.
const KeyTile = 256

// MaxDim is the largest head size.
const MaxDim = 512

// View is a [batch, sequence, head, element] tensor in memory; strides are in
// elements, and elements lie side by side. A fused qkv row of [3][H][dim] is
// three views of the same rows.
type View struct {
	Data             []byte
	Batch, Row, Head int
}

// Attention is Out = softmax(Scale·Q·Kᵀ + Mask)·V for every batch and head.
type Attention struct {
	Type         matmul.DType
	Batch, Heads int
	Queries      int
	Keys         int
	Dim          int // of a head
	Scale        float32
	Q, K, V, Out View
	// Mask is [batch, query, key], of Type, the same for all heads (its Head
	// stride is 0), and added to the scaled scores; none where Data is nil.
	Mask View
}

// Kernels are the routines of one instruction set. They hold no state.
type Kernels struct {
	mat *matmul.Kernels
	vec *vector.Kernels
}

// New gives the kernels of set. It fails when this CPU lacks the set.
func New(set isa.ISA) (*Kernels, error) {
	m, err := matmul.New(set)
	if err != nil {
		return nil, err
	}
	v, err := vector.New(set)
	if err != nil {
		return nil, err
	}
	return &Kernels{m, v}, nil
}

func (a *Attention) check(scratch []byte, workers int) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("attention %s batch=%d heads=%d queries=%d keys=%d dim=%d: %w", a.Type, a.Batch, a.Heads,
			a.Queries, a.Keys, a.Dim, fmt.Errorf(format, args...))
	}
	if a.Batch < 0 || a.Heads < 0 || a.Queries < 0 || a.Keys < 1 || a.Dim < 1 || a.Dim > MaxDim || !(a.Scale > 0) {
		return fail("out of range (1 to %d elements for a head, at least one key, scale %v above 0)", MaxDim, a.Scale)
	}
	if a.Batch == 0 || a.Heads == 0 || a.Queries == 0 {
		return nil
	}
	for _, v := range []struct {
		name string
		View
		rows int
	}{{"q", a.Q, a.Queries}, {"k", a.K, a.Keys}, {"v", a.V, a.Keys}, {"out", a.Out, a.Queries}} {
		if v.Batch < 0 || v.Row < 0 || v.Head < 0 {
			return fail("%s has a negative stride", v.name)
		}
		need := ((a.Batch-1)*v.Batch + (v.rows-1)*v.Row + (a.Heads-1)*v.Head + a.Dim) * a.Type.Size()
		if len(v.Data) < need {
			return fail("%s has %d bytes, %d needed", v.name, len(v.Data), need)
		}
	}
	if m := a.Mask; m.Data != nil {
		if m.Batch < 0 || m.Row < 0 || m.Head != 0 {
			return fail("mask has a negative stride, or one over heads")
		}
		if need := ((a.Batch-1)*m.Batch + (a.Queries-1)*m.Row + a.Keys) * a.Type.Size(); len(m.Data) < need {
			return fail("mask has %d bytes, %d needed", len(m.Data), need)
		}
	}
	if need := ScratchLen(a.Type, a.Dim, workers); len(scratch) < need {
		return fail("scratch has %d bytes, %d needed", len(scratch), need)
	}
	return nil
}
