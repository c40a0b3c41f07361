// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package numeric

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// fmaOracle computes a*b+c exactly and rounds once.
func fmaOracle(a, b, c float32) float32 {
	x, y, z := float64(a), float64(b), float64(c)
	p := x * y
	if math.IsNaN(p) || math.IsInf(p, 0) || math.IsNaN(z) || math.IsInf(z, 0) {
		return float32(p + z)
	}
	exact := new(big.Float).SetPrec(1000).SetFloat64(p)
	exact.Add(exact, new(big.Float).SetPrec(1000).SetFloat64(z))
	if exact.Sign() == 0 {
		return float32(p + z)
	}
	r, _ := exact.Float32()
	return r
}

func checkFMA(t *testing.T, a, b, c float32) {
	t.Helper()
	got, want := FMA32(a, b, c), fmaOracle(a, b, c)
	if math.Float32bits(got) != math.Float32bits(want) && (got == got || want == want) {
		t.Fatalf("%x * %x + %x: got %x, want %x", a, b, c, got, want)
	}
}

func TestFMA32RandomBits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200_000 {
		checkFMA(t, math.Float32frombits(r.Uint32()), math.Float32frombits(r.Uint32()), math.Float32frombits(r.Uint32()))
	}
}

// Operands whose exact sum lies at or beside a tie of float32, where rounding
// twice goes wrong.
func TestFMA32NearTies(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	twice := 0
	for range 200_000 {
		// a*b = 2^-24 * (1 +- k^2 * 2^-46): half an ulp of c and a little more or less.
		k := float64(r.IntN(512))
		a, b := float32(1+k*0x1p-23), float32(math.Ldexp(1-k*0x1p-23, -24))
		if r.IntN(2) == 0 {
			b = float32(math.Ldexp(1+float64(r.IntN(3))*0x1p-23, -24))
		}
		c := math.Float32frombits(r.Uint32()&0x007fffff | 0x3f800000)
		if r.IntN(2) == 0 {
			a = -a
		}
		if r.IntN(2) == 0 {
			c = -c
		}
		checkFMA(t, a, b, c)
		if float32(float64(a)*float64(b)+float64(c)) != fmaOracle(a, b, c) {
			twice++
		}
	}
	if twice == 0 {
		t.Error("no operand here shows rounding twice: the test proves nothing")
	}
}

func TestFMA32Denormals(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 200_000 {
		a := float32(math.Ldexp(1+float64(r.Uint32()&0x7fffff)*0x1p-23, -60-r.IntN(30)))
		b := float32(math.Ldexp(1+float64(r.Uint32()&0x7fffff)*0x1p-23, -60-r.IntN(30)))
		c := math.Float32frombits(r.Uint32() & 0x80ffffff)
		if r.IntN(2) == 0 {
			a = -a
		}
		checkFMA(t, a, b, c)
	}
	// A tie of a denormal plus a bit beyond the float64 sum.
	checkFMA(t, 0x1.000002p-75, 0x1p-75, 0x1p-127)
	checkFMA(t, 0x1.000002p-75, 0x1.000002p-75, 0x1p-127)
	checkFMA(t, -0x1.000002p-75, 0x1.000002p-75, 0x1p-127+0x1p-149)
}

func TestFMA32Specials(t *testing.T) {
	inf := float32(math.Inf(1))
	vals := []float32{0, float32(math.Copysign(0, -1)), 1, -1, inf, -inf, float32(math.NaN()),
		math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, -math.SmallestNonzeroFloat32,
		0x1p-126, -0x1p-126, 0x1.fffffcp-127, 0x1p-24, -0x1p-24, 0x1.000002p0, 3, 0x1p64, 0x1p-75}
	for _, a := range vals {
		for _, b := range vals {
			for _, c := range vals {
				checkFMA(t, a, b, c)
			}
		}
	}
}

func BenchmarkFMA32(b *testing.B) {
	x := make([]float32, 1024)
	for i := range x {
		x[i] = float32(i)*0.37 - 100
	}
	b.SetBytes(1024)
	for b.Loop() {
		acc := float32(0)
		for _, v := range x {
			acc = FMA32(v, 0.7, acc)
		}
		x[0] = acc * 1e-9
	}
}
