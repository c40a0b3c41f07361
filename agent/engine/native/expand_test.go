// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/model/tensor"
)

// Every stored dtype has the values of model/tensor, times its scale in f32,
// rounded once where the compute dtype is bf16.
func TestExpandStoredWeights(t *testing.T) {
	const n = pieceElements32 + 512
	piece := make([]float32, pieceElements32)
	for _, set := range isa.Supported() {
		e, err := New(Config{ISA: set, Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		s := &session{engine: e}
		for d := tensor.Bool; d.Valid(); d++ {
			if !d.Float() {
				continue
			}
			r := rand.New(rand.NewPCG(uint64(d), 3))
			src := make([]byte, d.RowBytes(n))
			for i := range src {
				src[i] = byte(r.Uint32())
			}
			stored := make([]float32, n)
			if err := tensor.ToF32(stored, src, d); err != nil {
				t.Fatal(err)
			}
			for _, scale := range []float32{0, 1, 0.3, -7e-5} {
				w := &engine.Weight{DType: d, Scale: scale}
				wide, narrow := make([]float32, n), make([]uint16, n)
				if err := s.expandTo(matmul.F32, bytesOf(wide), src, w, piece); err != nil {
					t.Fatal(err)
				}
				raw := make([]byte, 2*n)
				if err := s.expandTo(matmul.BF16, raw, src, w, piece); err != nil {
					t.Fatal(err)
				}
				copy(narrow, elements[uint16](raw))
				for i, x := range stored {
					plain := scale == 0 || scale == 1
					if !plain {
						x *= scale
					}
					half := tensor.BF16FromF32(x)
					if d == tensor.F64 && plain {
						half = tensor.BF16FromF64(math.Float64frombits(elements[uint64](src)[i]))
					}
					if x != x {
						if wide[i] == wide[i] || tensor.F32FromBF16(narrow[i]) == tensor.F32FromBF16(narrow[i]) {
							t.Fatalf("%v, %v, scale %g: element %d is no NaN", set, d, scale, i)
						}
						continue
					}
					if math.Float32bits(wide[i]) != math.Float32bits(x) || narrow[i] != half {
						t.Fatalf("%v, %v, scale %g: element %d is %g and %#x, want %g and %#x", set, d, scale, i, wide[i], narrow[i], x, half)
					}
				}
			}
		}
	}
}
