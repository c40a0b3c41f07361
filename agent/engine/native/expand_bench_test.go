// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/model/tensor"
)

// BenchmarkExpand expands stored elements to bf16 on one thread, in bytes of
// the result.
func BenchmarkExpand(b *testing.B) {
	const n = 16 * 3072
	all := isa.Supported()
	e, err := New(Config{ISA: all[len(all)-1], Threads: 1})
	if err != nil {
		b.Fatal(err)
	}
	s := &session{engine: e}
	dst, piece := make([]byte, 2*n), make([]float32, pieceElements32)
	for _, d := range []tensor.DType{
		tensor.F8E4M3, tensor.Q8_0, tensor.Q5_0, tensor.Q5_1, tensor.Q4_0, tensor.Q4_1, tensor.Q2_K, tensor.Q3_K,
		tensor.Q4_K, tensor.Q5_K, tensor.Q6_K, tensor.IQ4_NL, tensor.IQ4_XS, tensor.F8E4M3B64,
	} {
		src := make([]byte, d.RowBytes(n))
		for i := range src {
			src[i] = byte(i * 7)
		}
		b.Run(d.String(), func(b *testing.B) {
			b.SetBytes(2 * n)
			for b.Loop() {
				if err := s.expandTo(matmul.BF16, dst, src, &engine.Weight{DType: d}, piece); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
