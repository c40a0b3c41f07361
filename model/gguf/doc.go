// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package gguf reads the GGUF format, versions 2 and 3, little-endian
// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata by key,
// a list of tensors, then their bytes at aligned offsets.
//
// A reader parses the header alone and then reads ranges with pread into the
// caller's memory; it never maps a file. Every count and length of the header
// is checked against the file before anything is allocated by it. Shapes are
// given outermost first, as safetensors has them; tensors may have more than
// ggml's four dimensions, and comfy.gguf.orig_shape.NAME is the shape of a
// tensor that was stored in another one (city96's ComfyUI-GGUF).
//
// model/checkpoint imports this package; it imports model/tensor and no other
// part of distorch. A File is safe for concurrent reads.
package gguf
