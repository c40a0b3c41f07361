// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

func benchmarkOps[T Elem](b *testing.B, set isa.ISA, kind string, o *Ops[T]) {
	const n = 3072
	r := rand.New(rand.NewPCG(1, 1))
	f := fill{"", func(r *rand.Rand) float32 { return float32(r.NormFloat64()) }}
	in := inputs[T]{
		a: operand[T](r, f, n), b: operand[T](r, f, n), c: operand[T](r, f, n),
		s: operand[float32](r, f, n), cos: operand[float32](r, f, n), sin: operand[float32](r, f, n),
		eps: 1e-6, one: 0.1, two: 1,
	}
	dst := make([]T, n)
	for name, op := range operations[T]() {
		b.Run(fmt.Sprintf("%s/%s/%v", name, kind, set), func(b *testing.B) {
			for b.Loop() {
				op(o, dst, in, n)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/elem")
		})
	}
}

// BenchmarkOps runs each operation on one row of 3072 in the first-level cache.
func BenchmarkOps(b *testing.B) {
	for _, set := range isa.Supported() {
		k, err := New(set)
		if err != nil {
			b.Fatal(err)
		}
		benchmarkOps(b, set, "f32", &k.F32)
		benchmarkOps(b, set, "bf16", &k.BF16)
	}
}

// BenchmarkConversions reports the rate of the expanded bytes, out of the cache.
func BenchmarkConversions(b *testing.B) {
	const n = 1 << 22
	f32, h, f8 := make([]float32, n), make([]uint16, n), make([]byte, n)
	for i := range n {
		f32[i], h[i], f8[i] = float32(i), uint16(i), byte(i)
	}
	d32, d16 := make([]float32, n), make([]uint16, n)
	for _, set := range isa.Supported() {
		k, err := New(set)
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range []struct {
			name string
			size int64
			run  func()
		}{
			{"f32 to bf16", 2 * n, func() { k.F32ToBF16(d16, f32) }},
			{"bf16 to f32", 4 * n, func() { k.BF16ToF32(d32, h) }},
			{"f16 to f32", 4 * n, func() { k.F16ToF32(d32, h) }},
			{"f16 to bf16", 2 * n, func() { k.F16ToBF16(d16, h) }},
			{"e4m3 to f32", 4 * n, func() { k.F8E4M3ToF32(d32, f8) }},
			{"e4m3 to bf16", 2 * n, func() { k.F8E4M3ToBF16(d16, f8) }},
			{"e5m2 to f32", 4 * n, func() { k.F8E5M2ToF32(d32, f8) }},
			{"e5m2 to bf16", 2 * n, func() { k.F8E5M2ToBF16(d16, f8) }},
		} {
			b.Run(fmt.Sprintf("%s/%v", c.name, set), func(b *testing.B) {
				b.SetBytes(c.size)
				for b.Loop() {
					c.run()
				}
			})
		}
	}
}
