// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"
	"unsafe"

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
				const calls = 2000
				var x, w, c [threads][]byte
				for i := range threads {
					x[i], w[i], c[i] = make([]byte, 16<<10), make([]byte, 16<<10), make([]byte, 14*panelBytes)
				}
				repeat(b, 2*float64(threads*calls*steps*t.rows*t.columns)*float64(4/d.Size()), func() {
					var wg sync.WaitGroup
					for i := range threads {
						wg.Go(func() {
							sums := (*float32)(unsafe.Pointer(&c[i][0]))
							for range calls {
								f(steps, &x[i][0], t.rows*4, &w[i][0], panelBytes, sums, panelBytes, 0)
							}
						})
					}
					wg.Wait()
				})
			})
		}
	}
}

// repeat reports the mean rate and the best one, which other programs on the
// machine disturb least.
func repeat(b *testing.B, flops float64, f func()) {
	best := time.Duration(math.MaxInt64)
	for b.Loop() {
		from := time.Now()
		f()
		best = min(best, time.Since(from))
	}
	b.ReportMetric(flops*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
	b.ReportMetric(flops/best.Seconds()/1e9, "best-GFLOP/s")
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
					repeat(b, 2*float64(l.M)*float64(l.N)*float64(l.K), func() {
						if err := k.Run(pool(2), &l, scratch); err != nil {
							b.Fatal(err)
						}
					})
					b.ReportMetric(float64(len(l.W))*float64(b.N)/b.Elapsed().Seconds()/1e9, "weights-GB/s")
				})
			}
		}
	}
}
