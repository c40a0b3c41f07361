// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package safetensors reads and writes the safetensors format
// (https://github.com/huggingface/safetensors): an 8-byte header length, a
// JSON header, then the tensors' bytes without gaps.
//
// A reader parses the header alone and then reads ranges with pread into the
// caller's memory. It never maps a file: one that is truncated under a mapping
// kills the process. Every number of the header is checked before anything is
// allocated by it. model/arch, the agent's stage runtime and the commands
// import this package; it imports model/tensor and no other part of distorch.
// A File is safe for concurrent reads; a Writer belongs to one goroutine.
package safetensors
