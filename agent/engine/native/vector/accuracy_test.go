// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// ulps is |got − want| in units of the last place of want as a float32.
func ulps(got float32, want float64) float64 {
	if math.IsInf(want, 0) || math.Abs(want) > math.MaxFloat32 {
		if float64(got) == want || math.IsInf(float64(got), int(math.Copysign(1, want))) {
			return 0
		}
		return math.Inf(1)
	}
	_, e := math.Frexp(want)
	unit := math.Ldexp(1, max(e-24, -149))
	return math.Abs(float64(got)-want) / unit
}

// samples covers every exponent, dense where the functions bend.
func samples(low, high float32) []float32 {
	r := rand.New(rand.NewPCG(1, 2))
	var x []float32
	for b := uint32(0); b < 0x7f800000; b += 1<<16 - 7 {
		v := math.Float32frombits(b)
		x = append(x, v, -v)
	}
	for range 40000 {
		x = append(x, low+(high-low)*r.Float32())
	}
	return x
}

func TestActivationAccuracy(t *testing.T) {
	inf := math.Inf(1)
	sigmoid := func(x, u float64) float64 {
		if u < -700 {
			return math.Copysign(0, x)
		}
		return x / (1 + math.Exp(-u))
	}
	k, err := New(isa.Generic)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		run   func(dst, x Rows[float32], rows, n int)
		want  func(x float64) float64
		limit float64
	}{
		{"silu", k.F32.SiLU, func(x float64) float64 { return sigmoid(x, x) }, 4},
		{"gelu", k.F32.GELUTanh, func(x float64) float64 {
			return sigmoid(x, 2*math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x))
		}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := samples(-110, 20)
			x = append(x, samples(-12, 6)...)
			y := make([]float32, len(x))
			tc.run(Rows[float32]{y, 0}, Rows[float32]{x, 0}, 1, len(x))
			worst, at := 0.0, float32(0)
			for i := range x {
				if u := ulps(y[i], tc.want(float64(x[i]))); u > worst || u != u {
					worst, at = u, x[i]
				}
			}
			t.Logf("worst %.2f ulp at %g", worst, at)
			if !(worst <= tc.limit) {
				t.Errorf("worst error is %.2f ulp at %g, want at most %g", worst, at, tc.limit)
			}
			special := []float32{float32(inf), float32(-inf), float32(math.NaN()), 0, float32(math.Copysign(0, -1))}
			tc.run(Rows[float32]{y, 0}, Rows[float32]{special, 0}, 1, len(special))
			want := []uint32{0x7f800000, 0x80000000, 0x7fc00000, 0, 0x80000000}
			for i, w := range want {
				if b := math.Float32bits(y[i]); b != w {
					t.Errorf("%s(%g) = %#x, want %#x", tc.name, special[i], b, w)
				}
			}
		})
	}
}

func TestExpAccuracy(t *testing.T) {
	worst := 0.0
	for _, v := range samples(-90, 88) {
		if v > 88 {
			continue
		}
		got, want := expSoftmax(v), math.Exp(float64(v))
		if float64(v) < -87.33654 {
			if got != 0 {
				t.Fatalf("exp(%g) = %g, want 0 below the normal range", v, got)
			}
			continue
		}
		worst = max(worst, ulps(got, want))
	}
	t.Logf("worst %.2f ulp", worst)
	if worst > 1 {
		t.Errorf("worst error is %.2f ulp, want at most 1", worst)
	}
	if got := expSoftmax(float32(math.Inf(-1))); got != 0 {
		t.Errorf("exp(-Inf) = %g, want 0", got)
	}
	if got := expSoftmax(float32(math.NaN())); got == got {
		t.Errorf("exp(NaN) = %g, want NaN", got)
	}
}

// normal fills a row with a wide normal distribution around offset.
func normal(r *rand.Rand, n int, offset, width float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(offset + width*r.NormFloat64())
	}
	return x
}

func TestNormAccuracy(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	k := generic()
	for _, n := range []int{1, 5, 16, 128, 1000, 3072} {
		x, w, b := normal(r, n, 3, 10), normal(r, n, 1, 1), normal(r, n, 0, 1)
		mean, square := 0.0, 0.0
		for _, v := range x {
			mean += float64(v) / float64(n)
			square += float64(v) * float64(v) / float64(n)
		}
		variance := 0.0
		for _, v := range x {
			variance += (float64(v) - mean) * (float64(v) - mean) / float64(n)
		}
		view := func(s []float32) Rows[float32] { return Rows[float32]{s, len(s)} }
		ln, affine, rms := make([]float32, n), make([]float32, n), make([]float32, n)
		k.F32.LayerNorm(view(ln), view(x), 1e-6, 1, n)
		k.F32.LayerNormAffine(view(affine), view(x), w, b, 1e-6, 1, n)
		k.F32.RMSNorm(view(rms), view(x), w, 1e-6, 1, n)
		for i := range x {
			h := (float64(x[i]) - mean) / math.Sqrt(variance+1e-6)
			if n > 1 && math.Abs(float64(ln[i])-h) > 1e-5 {
				t.Errorf("n=%d: layer norm %d is %g, want %g", n, i, ln[i], h)
			}
			if a := h*float64(w[i]) + float64(b[i]); n > 1 && math.Abs(float64(affine[i])-a) > 1e-4 {
				t.Errorf("n=%d: affine layer norm %d is %g, want %g", n, i, affine[i], a)
			}
			q := float64(x[i]) / math.Sqrt(square+1e-6) * float64(w[i])
			if math.Abs(float64(rms[i])-q) > 1e-5*(1+math.Abs(q)) {
				t.Errorf("n=%d: rms norm %d is %g, want %g", n, i, rms[i], q)
			}
		}
	}
}

func TestRoundBF16(t *testing.T) {
	for _, tc := range []struct {
		name string
		x    uint32
		want uint16
	}{
		{"tie to even below", 0x3f808000, 0x3f80},
		{"tie to even above", 0x3f818000, 0x3f82},
		{"above a tie", 0x3f808001, 0x3f81},
		{"largest goes to infinity", 0x7f7fffff, 0x7f80},
		{"denormal", 0x00018000, 0x0002},
		{"minus zero", 0x80000000, 0x8000},
		{"minus infinity", 0xff800000, 0xff80},
		{"quiet NaN", 0xffffffff, 0x7fc0},
		{"signalling NaN", 0x7f800001, 0x7fc0},
	} {
		if got := roundBF16(math.Float32frombits(tc.x)); got != tc.want {
			t.Errorf("%s: %#x rounds to %#x, want %#x", tc.name, tc.x, got, tc.want)
		}
	}
}

// minifloat is the value of a small float by its definition.
func minifloat(bits, exponentBits, mantissaBits int, infinities bool) float64 {
	bias := 1<<(exponentBits-1) - 1
	m := bits & (1<<mantissaBits - 1)
	e := bits >> mantissaBits & (1<<exponentBits - 1)
	sign := 1.0
	if bits>>(mantissaBits+exponentBits)&1 == 1 {
		sign = -1
	}
	top := e == 1<<exponentBits-1
	switch {
	case infinities && top && m == 0:
		return math.Inf(int(sign))
	case infinities && top, top && m == 1<<mantissaBits-1:
		return math.NaN()
	case e == 0:
		return sign * math.Ldexp(float64(m), 1-bias-mantissaBits)
	}
	return sign * math.Ldexp(float64(m+1<<mantissaBits), e-bias-mantissaBits)
}

func TestExpansionsAreExact(t *testing.T) {
	same := func(kind string, bits int, got float32, want float64) {
		t.Helper()
		if want != want {
			if math.Float32bits(got) != nan32 {
				t.Errorf("%s %#x gives %#x, want the canonical NaN", kind, bits, math.Float32bits(got))
			}
		} else if float64(got) != want || math.Signbit(float64(got)) != math.Signbit(want) {
			t.Errorf("%s %#x gives %g, want %g", kind, bits, got, want)
		}
	}
	for _, set := range isa.Supported() {
		k, err := New(set)
		if err != nil {
			t.Fatal(err)
		}
		var bytes [256]byte
		for i := range bytes {
			bytes[i] = byte(i)
		}
		var f [256]float32
		var h [256]uint16
		k.F8E4M3ToF32(f[:], bytes[:])
		k.F8E4M3ToBF16(h[:], bytes[:])
		for i := range 256 {
			same("e4m3", i, f[i], minifloat(i, 4, 3, false))
			same("e4m3 as bf16", i, widenBF16(h[i]), minifloat(i, 4, 3, false))
		}
		k.F8E5M2ToF32(f[:], bytes[:])
		k.F8E5M2ToBF16(h[:], bytes[:])
		for i := range 256 {
			same("e5m2", i, f[i], minifloat(i, 5, 2, true))
			same("e5m2 as bf16", i, widenBF16(h[i]), minifloat(i, 5, 2, true))
		}
		all, wide, back := make([]uint16, 1<<16), make([]float32, 1<<16), make([]uint16, 1<<16)
		for i := range all {
			all[i] = uint16(i)
		}
		k.F16ToF32(wide, all)
		for i, v := range wide {
			same("f16", i, v, minifloat(i, 5, 10, true))
		}
		k.F16ToBF16(back, all)
		for i, v := range back {
			if want := roundBF16(float32(minifloat(i, 5, 10, true))); v != want {
				t.Errorf("f16 %#x gives bf16 %#x, want %#x", i, v, want)
			}
		}
		k.BF16ToF32(wide, all)
		k.F32ToBF16(back, wide)
		for i, v := range wide {
			same("bf16", i, v, minifloat(i, 8, 7, true))
			if v == v && back[i] != all[i] {
				t.Errorf("bf16 %#x comes back as %#x", all[i], back[i])
			}
		}
	}
}

func TestCosSin(t *testing.T) {
	k := generic()
	freqs := []float32{1, 0.5, 1e-3}
	dst := make([]float32, 12)
	k.F32.CosSin(Rows[float32]{dst, 6}, []float32{0, 0.7}, 1000, freqs)
	for i, step := range []float32{0, 0.7} {
		for j, f := range freqs {
			arg := float64(float32(float32(1000*step) * f))
			if got, want := dst[i*6+j], float32(math.Cos(arg)); math.Abs(float64(got-want)) > 6e-8 {
				t.Errorf("cos(%g) = %g, want %g", arg, got, want)
			}
			if got, want := dst[i*6+3+j], float32(math.Sin(arg)); math.Abs(float64(got-want)) > 6e-8 {
				t.Errorf("sin(%g) = %g, want %g", arg, got, want)
			}
		}
	}
	half := make([]uint16, 6)
	k.BF16.CosSin(Rows[uint16]{half, 6}, []float32{0.7}, 1000, freqs)
	for j := range half {
		if want := roundBF16(dst[6+j]); half[j] != want {
			t.Errorf("bf16 element %d is %#x, want %#x", j, half[j], want)
		}
	}
}

// In bf16 every result is the true value rounded, but where that is within a
// hundredth of a tie.
func TestActivationAccuracyBF16(t *testing.T) {
	k := generic()
	x, y := make([]uint16, 1<<16), make([]uint16, 1<<16)
	for i := range x {
		x[i] = uint16(i)
	}
	for _, tc := range []struct {
		name string
		run  func(dst, x Rows[uint16], rows, n int)
		u    func(x float64) float64
	}{
		{"silu", k.BF16.SiLU, func(x float64) float64 { return x }},
		{"gelu", k.BF16.GELUTanh, func(x float64) float64 { return 2 * math.Sqrt(2/math.Pi) * (x + 0.044715*x*x*x) }},
	} {
		tc.run(Rows[uint16]{y, 0}, Rows[uint16]{x, 0}, 1, len(x))
		for i := range x {
			v := float64(widenBF16(x[i]))
			want := v / (1 + math.Exp(-tc.u(v)))
			if math.IsInf(v, -1) {
				want = math.Copysign(0, -1)
			}
			got := float64(widenBF16(y[i]))
			if want != want || math.IsInf(want, 0) {
				if got != want && (got == got || want == want) {
					t.Errorf("%s(%g) = %g, want %g", tc.name, v, got, want)
				}
				continue
			}
			_, e := math.Frexp(want)
			if d := math.Abs(got-want) / math.Ldexp(1, max(e-8, -133)); !(d <= 0.51) {
				t.Errorf("%s(%g) = %g, %.3f ulp from %g", tc.name, v, got, d, want)
			}
		}
	}
}
