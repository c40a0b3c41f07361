// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package vector holds the elementwise and reduction kernels of the native
// engine: activations, norms, modulation, gates, rotary embedding, the softmax
// step of attention, and the expansion of stored weights.
//
// Every kernel gives the same bits in pure Go, AVX2 and AVX-512; this is a part
// of the numerics class native/1:
//
//   - values are stored as f32 ([]float32) or bf16 ([]uint16) and computed in
//     f32; a bf16 result is rounded once, to nearest even, where the operation
//     says so;
//   - sums and maxima run over 16 lanes: lane j takes the elements j, j+16, …
//     in order, then the lanes are folded 8+8, 4+4, 2+2, 1+1;
//   - exp, SiLU and GELU are fixed sequences of FMA, multiply and add
//     (exp.go); division and square root are IEEE's, and no estimate
//     instruction is used;
//   - a result that is not a number is stored as the canonical quiet one,
//     0x7fc00000 or 0x7fc0, whatever sign and payload its cause had.
//
// A Kernels is immutable: any number of goroutines may use it, each on its own
// rows. No kernel allocates. A destination may be one of the sources, and must
// not overlap one otherwise. Slices that are too short for the rows asked for
// panic.
//
// Imported by the native engine and its attention. It must not import the
// graph, the engine or anything that does I/O.
package vector

//go:generate go -C ../../../../tools run ./kernelgen/vector -isa avx2 -pkg vector -out ../agent/engine/native/vector/avx2_amd64.s -stubs ../agent/engine/native/vector/avx2_amd64.go
//go:generate go -C ../../../../tools run ./kernelgen/vector -isa avx512 -pkg vector -out ../agent/engine/native/vector/avx512_amd64.s -stubs ../agent/engine/native/vector/avx512_amd64.go
