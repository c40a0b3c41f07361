// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/numeric"
)

func TestSelfTestPasses(t *testing.T) {
	for _, set := range isa.Supported() {
		if err := SelfTest(set); err != nil {
			t.Error(err)
		}
	}
}

// TestSelfTestRefuses gives the self-test kernels that break one rule each.
func TestSelfTestRefuses(t *testing.T) {
	pairs := func(f func(odd, even, wo, we, c float32) float32) func(*[PanelColumns]float32, uint32, *[PanelColumns]uint32) {
		return func(c *[PanelColumns]float32, a uint32, b *[PanelColumns]uint32) {
			for j, w := range b {
				c[j] = f(math.Float32frombits(a&0xffff0000), math.Float32frombits(a<<16),
					math.Float32frombits(w&0xffff0000), math.Float32frombits(w<<16), c[j])
			}
		}
	}
	for name, step := range map[string]func(odd, even, wo, we, c float32) float32{
		"even first":        func(o, e, wo, we, c float32) float32 { return flushFMA(o, wo, flushFMA(e, we, c)) },
		"denormals kept":    func(o, e, wo, we, c float32) float32 { return numeric.FMA32(e, we, numeric.FMA32(o, wo, c)) },
		"products rounded":  func(o, e, wo, we, c float32) float32 { return flush(flush(c+flush(o*wo)) + flush(e*we)) },
		"pair summed first": func(o, e, wo, we, c float32) float32 { return flush(c + flushFMA(e, we, flush(o*wo))) },
		"inputs not flushed": func(o, e, wo, we, c float32) float32 {
			return flush(numeric.FMA32(e, we, flush(numeric.FMA32(o, wo, c))))
		},
		"tiny before rounding": func(o, e, wo, we, c float32) float32 {
			return beforeRounding(e, we, beforeRounding(o, wo, c))
		},
	} {
		k := generic()
		for i := range k.tiles {
			k.tiles[i].bf16 = genericTile(k.tiles[i].rows, pairs(step))
		}
		if err := k.selfTest(); err == nil || !strings.Contains(err.Error(), "bf16") {
			t.Errorf("%s: self-test says %v", name, err)
		}
	}
}

// beforeRounding flushes whatever is exactly below 2^-126.
func beforeRounding(a, b, c float32) float32 {
	a, b, c = flush(a), flush(b), flush(c)
	s := float64(a)*float64(b) + float64(c)
	if math.Abs(s) < 0x1p-126 {
		return float32(math.Copysign(0, s))
	}
	return numeric.FMA32(a, b, c)
}

// TestFlushFMA compares with exact arithmetic at the edge of the normal range.
func TestFlushFMA(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	edge := 0
	for range 300_000 {
		c := math.Float32frombits(0x00800000 + uint32(r.IntN(6)) | r.Uint32()&0x80000000)
		a := math.Float32frombits((r.Uint32()&0x807f0000 | 0x20000000) - uint32(r.IntN(4))<<23)
		b := math.Float32frombits((r.Uint32()&0x007f0000 | 0x14000000) - uint32(r.IntN(24))<<23)
		exact := new(big.Float).SetPrec(600).SetFloat64(float64(a) * float64(b))
		exact.Add(exact, big.NewFloat(float64(c)))
		f, _ := new(big.Float).SetPrec(24).Set(exact).Float64() // no bound on the exponent
		want := numeric.FMA32(a, b, c)
		if math.Abs(f) < 0x1p-126 {
			want = float32(math.Copysign(0, f))
		}
		if x, _ := exact.Float64(); math.Abs(x) < 0x1p-126 && want != 0 {
			edge++
		}
		if got := flushFMA(a, b, c); math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("%x*%x+%x = %x, want %x", a, b, c, got, want)
		}
	}
	if edge == 0 {
		t.Error("no sample lies where tininess before and after rounding differ")
	}
}

func BenchmarkSelfTest(b *testing.B) {
	sets := isa.Supported()
	for b.Loop() {
		if err := SelfTest(sets[len(sets)-1]); err != nil {
			b.Fatal(err)
		}
	}
}
