// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package matmul multiplies activations by packed weights in the arithmetic
// of the numerics class native/1, with the same bits on every instruction
// set, for any number of threads and any cut of rows, columns or k.
//
// The rule, per output:
//   - f32: one chain of f32 fused multiply-adds over k ascending, from +0;
//   - bf16: the same over pairs of k, in each pair the odd element first, with
//     denormals flushed to zero on inputs and results (what VDPBF16PS does; an
//     odd k is padded with a zero);
//   - then the bias, if any, is added once in f32; a NaN becomes the canonical
//     one (0x7FC00000); a bf16 output is rounded once to nearest even.
//
// Nothing is split over k and no finished sum is added to another: a later
// slice of k resumes from the sums of the earlier one.
//
// Weights are packed by Pack into panels of PanelColumns outputs, k-major
// inside; the packed bytes are the same on every instruction set. The caller
// owns threads (Par) and scratch memory; nothing of size is allocated here.
//
// Imported by agent/engine/native and its attention package. It must import
// nothing of distorch but agent/engine/native/isa and model/numeric.
package matmul

//go:generate go -C ../../../../tools run ./kernelgen/matmul -pkg matmul -out ../agent/engine/native/matmul/tiles_amd64.s -stubs ../agent/engine/native/matmul/tiles_amd64.go
