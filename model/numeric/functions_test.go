// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package numeric

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

const oraclePrec = 300

func bf(x float64) *big.Float { return new(big.Float).SetPrec(oraclePrec).SetFloat64(x) }

func newBig() *big.Float { return new(big.Float).SetPrec(oraclePrec) }

// bigExp sums the Taylor series of x/2^k and squares k times.
func bigExp(x *big.Float) *big.Float {
	k := max(0, x.MantExp(nil)+12)
	y := newBig().SetMantExp(x, -k)
	sum, term := bf(1), bf(1)
	for i := 1; i < 60; i++ {
		term.Mul(term, y)
		term.Quo(term, bf(float64(i)))
		sum.Add(sum, term)
	}
	for range k {
		sum.Mul(sum, sum)
	}
	return sum
}

// bigLog is Newton's iteration on bigExp.
func bigLog(x float64) *big.Float {
	m, e := math.Frexp(x) // math.Log itself is wrong for denormals on amd64
	y := bf(math.Log(m) + float64(e)*math.Ln2)
	for range 4 {
		e := bigExp(newBig().Neg(y))
		e.Mul(e, bf(x))
		e.Sub(e, bf(1))
		// log(1+e) = e - e^2/2
		h := newBig().Mul(e, e)
		h.Quo(h, bf(2))
		y.Add(y, e)
		y.Sub(y, h)
	}
	return y
}

// bigPi is Machin's formula.
func bigPi() *big.Float {
	atan := func(n float64) *big.Float {
		term := newBig().Quo(bf(1), bf(n))
		sum := newBig().Set(term)
		for i := 3; i < 300; i += 2 {
			term.Quo(term, bf(-n*n))
			sum.Add(sum, newBig().Quo(term, bf(float64(i))))
		}
		return sum
	}
	a := newBig().Mul(atan(5), bf(16))
	return a.Sub(a, newBig().Mul(atan(239), bf(4)))
}

// bigSin is sin(x+shift), the argument reduced by pi first.
func bigSin(x float64, shift, pi *big.Float) *big.Float {
	y := newBig().Add(bf(x), shift)
	n, _ := newBig().Quo(y, pi).Int(nil)
	y.Sub(y, newBig().Mul(newBig().SetInt(n), pi))
	term, sum := newBig().Set(y), newBig().Set(y)
	sq := newBig().Mul(y, y)
	for i := 2.0; i < 120; i += 2 {
		term.Mul(term, sq)
		term.Quo(term, bf(-i*(i+1)))
		sum.Add(sum, term)
	}
	if n.Bit(0) == 1 {
		sum.Neg(sum)
	}
	return sum
}

// ulps is |got-want| in units of the last place of want.
func ulps(got float64, want *big.Float) float64 {
	w, _ := want.Float64()
	e := -1074
	if w != 0 {
		e = max(math.Ilogb(w)-52, -1074)
	}
	d := newBig().Sub(bf(got), want)
	d.SetMantExp(d, -e)
	v, _ := d.Float64()
	return math.Abs(v)
}

func worst(t *testing.T, name string, limit float64, n int, sample func(*rand.Rand) float64, got func(float64) float64, want func(float64) *big.Float) {
	t.Helper()
	r := rand.New(rand.NewPCG(5, 6))
	w, at := 0.0, 0.0
	for range n {
		x := sample(r)
		if u := ulps(got(x), want(x)); !(u <= w) {
			w, at = u, x
		}
	}
	t.Logf("%s: worst %.4f ulp at %g", name, w, at)
	if !(w <= limit) {
		t.Errorf("%s(%g) is %.4f ulp off, limit %g", name, at, w, limit)
	}
}

func TestAccuracy(t *testing.T) {
	pi := bigPi()
	half := newBig().Quo(pi, bf(2))
	expOf := func(x float64) *big.Float { return bigExp(bf(x)) }
	worst(t, "exp", 0.51, 2000, func(r *rand.Rand) float64 { return r.Float64()*1400 - 700 }, Exp, expOf)
	worst(t, "exp near 0", 0.51, 2000, func(r *rand.Rand) float64 { return (r.Float64() - 0.5) * math.Ldexp(1, -r.IntN(30)) }, Exp, expOf)
	worst(t, "exp denormal", 1, 300, func(r *rand.Rand) float64 { return -708 - 36*r.Float64() }, Exp, expOf)
	worst(t, "log", 0.51, 1000, func(r *rand.Rand) float64 {
		return math.Ldexp(1+r.Float64(), r.IntN(2090)-1070)
	}, Log, bigLog)
	worst(t, "log near 1", 0.51, 1000, func(r *rand.Rand) float64 {
		return 1 + (r.Float64()-0.5)*math.Ldexp(1, -r.IntN(40))
	}, Log, bigLog)
	angle := func(r *rand.Rand) float64 { return (r.Float64() - 0.5) * math.Ldexp(1, 22-r.IntN(32)) }
	worst(t, "sin", 0.7, 1000, angle, Sin, func(x float64) *big.Float { return bigSin(x, bf(0), pi) })
	worst(t, "cos", 0.7, 1000, angle, Cos, func(x float64) *big.Float { return bigSin(x, half, pi) })
	nearMultiple := func(r *rand.Rand) float64 { return float64(r.IntN(600_000)) * (math.Pi / 2) }
	worst(t, "sin at multiples of pi/2", 0.6, 500, nearMultiple, Sin, func(x float64) *big.Float { return bigSin(x, bf(0), pi) })
	for _, y := range []float64{-0.9375, 0.1, 0.5, -3.7, 13.3} {
		worst(t, "pow", 0.52, 200, func(r *rand.Rand) float64 { return r.Float64() * 20000 },
			func(x float64) float64 { return Pow(x, y) },
			func(x float64) *big.Float { return bigExp(newBig().Mul(bigLog(x), bf(y))) })
	}
}

func TestExp32IsCorrectlyRounded(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 5000 {
		x := float32(r.Float64()*200 - 106)
		if r.IntN(3) == 0 {
			x = float32(math.Ldexp(r.Float64()-0.5, -r.IntN(40)))
		}
		want, _ := bigExp(bf(float64(x))).Float32()
		if got := Exp32CorrectlyRounded(x); got != want {
			t.Fatalf("exp(%x): got %x, want %x", x, got, want)
		}
	}
}

func TestSpecialValues(t *testing.T) {
	inf, nan, zero := math.Inf(1), math.NaN(), math.Copysign(0, -1)
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"exp inf", Exp(inf), inf}, {"exp -inf", Exp(-inf), 0}, {"exp nan", Exp(nan), nan}, {"exp 0", Exp(0), 1},
		{"exp big", Exp(710), inf}, {"exp32 big", float64(Exp32CorrectlyRounded(89)), inf}, {"exp32 -inf", float64(Exp32CorrectlyRounded(float32(-inf))), 0},
		{"log 1", Log(1), 0}, {"log 0", Log(0), -inf}, {"log -1", Log(-1), nan}, {"log inf", Log(inf), inf},
		{"sin -0", Sin(zero), zero}, {"cos 0", Cos(0), 1}, {"sin inf", Sin(inf), nan}, {"cos nan", Cos(nan), nan},
		{"2^10", Pow(2, 10), 1024}, {"10000^0", Pow(10000, 0), 1}, {"0^-1", Pow(0, -1), inf}, {"-2^3", Pow(-2, 3), -8},
		{"-2^0.5", Pow(-2, 0.5), nan}, {"2^2000", Pow(2, 2000), inf}, {"2^-2000", Pow(2, -2000), 0}, {"10^-2", Pow(10, -2), 0.01},
		{"nan^0", Pow(nan, 0), 1}, {"2^inf", Pow(2, inf), inf}, {"sqrt 2", Sqrt(2), math.Sqrt2},
	} {
		if math.Float64bits(c.got) != math.Float64bits(c.want) && (c.got == c.got || c.want == c.want) {
			t.Errorf("%s: got %g, want %g", c.name, c.got, c.want)
		}
	}
	if s := Sin(1e300); !(math.Abs(s) <= 1) {
		t.Errorf("sin(1e300) = %g", s)
	}
}

func BenchmarkFunctions(b *testing.B) {
	x := 0.0
	for name, f := range map[string]func(float64) float64{"exp": Exp, "log": Log, "sin": Sin} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				x += 0.37
				if x > 100 {
					x = 0.1
				}
				_ = f(x)
			}
		})
	}
}
