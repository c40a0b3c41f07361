// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package tensor names what a tensor is made of: element types, shapes, byte
// counts, and the exact conversions from stored little-endian bytes to float32
// and bfloat16.
//
// It is a leaf: every package that speaks of tensors may import it, it imports
// only the standard library, and it does no I/O. All functions are pure and
// may be called concurrently; destinations belong to the caller.
package tensor
