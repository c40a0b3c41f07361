// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"sync"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// BenchmarkTile is the rate of one full tile per thread on factors that stay
// in the first-level cache: the ceiling for BenchmarkLinear.
func BenchmarkTile(b *testing.B) {
	const threads, steps = 2, 128
	for _, d := range []DType{F32, BF16} {
		for _, set := range isa.Supported()[1:] {
			k, err := New(set)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/%s", d, set), func(b *testing.B) {
				t := k.tiles[0]
				f := t.f32
				if d == BF16 {
					f = t.bf16
				}
				const calls = 100
				for b.Loop() {
					var wg sync.WaitGroup
					for range threads {
						wg.Go(func() {
							x := make([]byte, 16<<10)
							w := make([]byte, 16<<10)
							c := make([]float32, 14*32)
							for range calls {
								f(steps, &x[0], t.rows*4, &w[0], panelBytes, &c[0], panelBytes, 0)
							}
						})
					}
					wg.Wait()
				}
				flops := 2 * float64(threads*calls*steps*t.rows*t.columns) * float64(4/d.Size())
				b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}

func BenchmarkLinear(b *testing.B) {
	for _, s := range [][3]int{{512, 3072, 3072}, {1280, 3072, 3072}, {512, 3072, 12288}, {8, 9216, 3072}, {1, 9216, 3072}} {
		for _, d := range []DType{F32, BF16} {
			for _, set := range isa.Supported()[1:] {
				k, err := New(set)
				if err != nil {
					b.Fatal(err)
				}
				b.Run(fmt.Sprintf("%dx%dx%d/%s/%s", s[0], s[1], s[2], d, set), func(b *testing.B) {
					l := Linear{
						Type: d, M: s[0], N: s[1], K: s[2], OutType: d, BiasType: d,
						X:    Matrix{make([]byte, s[0]*s[2]*d.Size()), s[2]},
						W:    make([]byte, PackedLen(d, s[1], s[2])),
						Bias: make([]byte, s[1]*d.Size()),
						Out:  Matrix{make([]byte, s[0]*s[1]*d.Size()), s[1]},
					}
					scratch := make([]byte, ScratchLen(d, l.M, l.K, 2))
					for b.Loop() {
						if err := k.Run(pool(2), &l, scratch); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(2*float64(l.M)*float64(l.N)*float64(l.K)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
					b.ReportMetric(float64(len(l.W))*float64(b.N)/b.Elapsed().Seconds()/1e9, "weights-GB/s")
				})
			}
		}
	}
}
