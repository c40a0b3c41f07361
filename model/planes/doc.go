// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package planes compresses weights without loss: the bytes of equal place in
// each word form a plane, and planes whose values are uneven are entropy coded.
// Of bf16 the exponents are such a plane, of f32 likewise; signs and mantissas
// are as good as random and stay as they are.
//
// Bytes are coded in chunks of ChunkBytes that know nothing of each other, so
// that they can be decoded at the same time and while others are still on their
// way. It pays on slow links alone; Pays says when.
//
// Imported by whatever keeps blocks far away (agent/donor), by those who plan it
// and by benches. It imports model/tensor, and is the only importer of
// klauspost/compress. Nothing here reads a clock or allocates by a length that
// the input gives.
package planes
