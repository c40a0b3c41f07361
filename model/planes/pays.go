// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package planes

import "github.com/distorch/distorch/model/tensor"

// worth is how much sooner compressed bytes must be there: what is decoded
// takes threads from those that compute.
const worth = 0.95

// GroupBytes is how much is decoded after its last byte has come: what is read
// at a time.
const GroupBytes = 4 << 20

// Transfer is bytes that come over a link again and again.
type Transfer struct {
	Bytes  tensor.Bytes
	Ratio  float64 // of the bytes to the compressed ones
	Link   float64 // bytes/s of the link
	Decode float64 // bytes/s that come out of decoding
}

// Plain is how many seconds the bytes take as they are.
func (t Transfer) Plain() float64 { return float64(t.Bytes) / t.Link }

// Compressed is how many they take compressed. Decoding goes on beside the
// transfer, but for the last group.
func (t Transfer) Compressed() float64 {
	n := float64(t.Bytes)
	return max(n/t.Ratio/t.Link, n/t.Decode) + min(n, GroupBytes)/t.Decode
}

// Pays says whether the bytes are there sooner compressed.
func (t Transfer) Pays() bool {
	return t.Bytes > 0 && t.Ratio > 1 && t.Link > 0 && t.Decode > 0 && t.Compressed() < worth*t.Plain()
}

// Ratio is what weights of a dtype are compressed by: measured on values drawn
// from a normal distribution, which trained weights resemble. Blocks of GGUF,
// whose codes are as good as random, are not compressed.
func Ratio(d tensor.DType) float64 {
	switch d {
	case tensor.BF16:
		return 1.5
	case tensor.F32:
		return 1.19
	case tensor.F16:
		return 1.13
	case tensor.F8E4M3:
		return 1.22
	case tensor.F8E5M2:
		return 1.45
	}
	return 1
}
