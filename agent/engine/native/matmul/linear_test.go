// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/numeric"
)

// chain is the rule for each dtype, on factors that are not packed.
func chain(d DType, s float32, x, w []float32) float32 {
	if d == F32 {
		for k := range x {
			s = numeric.FMA32(x[k], w[k], s)
		}
		return s
	}
	for k := 0; k < len(x); k += 2 {
		var xo, wo float32
		if k+1 < len(x) {
			xo, wo = x[k+1], w[k+1]
		}
		s = flushFMA(x[k], w[k], flushFMA(xo, wo, s))
	}
	return s
}

func encode(d DType, v []float32) []byte {
	b := make([]byte, 0, len(v)*d.Size())
	for _, f := range v {
		if d == F32 {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
		} else {
			b = binary.LittleEndian.AppendUint16(b, roundBF16(f))
		}
	}
	return b
}

func roundBF16(f float32) uint16 {
	if f != f {
		return canonicalNaN >> 16
	}
	u := math.Float32bits(f)
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// values makes n numbers of a kind, representable in d.
func values(d DType, kind string, r *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		f := float32(r.NormFloat64())
		switch kind {
		case "cancel":
			f = float32(math.Ldexp(float64(f), r.IntN(40)-20))
		case "denormal":
			f = float32(math.Ldexp(float64(f), -r.IntN(75)-20))
		case "bits":
			f = math.Float32frombits(r.Uint32())
		case "special":
			switch r.IntN(24) {
			case 0:
				f = float32(math.Inf(1 - 2*r.IntN(2)))
			case 1, 2, 3, 4:
				f = float32(math.Copysign(0, -1))
			case 5:
				f = float32(math.NaN())
			case 6:
				f = math.MaxFloat32
			}
		case "negzero":
			f = float32(math.Copysign(0, float64(f)))
		}
		if d == BF16 {
			f = math.Float32frombits(math.Float32bits(f) & 0xffff0000)
		}
		v[i] = f
	}
	return v
}

type problem struct {
	l    Linear
	x, w []float32
	bias []float32
}

func newProblem(t testing.TB, d, out DType, kind string, m, n, k, pad int, bias bool) *problem {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(m*1000+n), uint64(k)))
	p := &problem{x: values(d, kind, r, m*(k+pad)), w: values(d, kind, r, n*k)}
	p.l = Linear{
		Type: d, M: m, N: n, K: k, OutType: out, BiasType: d,
		X:   Matrix{encode(d, p.x), k + pad},
		W:   make([]byte, PackedLen(d, n, k)),
		Out: Matrix{make([]byte, m*(n+pad)*out.Size()), n + pad},
	}
	if bias {
		p.bias = values(d, kind, r, n)
		p.l.Bias = encode(d, p.bias)
	}
	src := encode(d, p.w)
	for from := 0; from < n; from += 2 * PanelColumns {
		to := min(n, from+2*PanelColumns)
		if err := Pack(d, p.l.W, src[from*k*d.Size():to*k*d.Size()], n, k, from, to); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *problem) expect() []byte {
	l := &p.l
	out := make([]byte, len(l.Out.Data))
	for i := range l.M {
		row := make([]float32, l.N)
		for j := range row {
			row[j] = chain(l.Type, 0, p.x[i*l.X.Stride:][:l.K], p.w[j*l.K:][:l.K])
			if p.bias != nil {
				row[j] += p.bias[j]
			}
			if row[j] != row[j] {
				row[j] = math.Float32frombits(canonicalNaN)
			}
		}
		copy(out[i*l.Out.Stride*l.OutType.Size():], encode(l.OutType, row))
	}
	return out
}

func (p *problem) run(t testing.TB, set isa.ISA, threads int) []byte {
	t.Helper()
	k, err := New(set)
	if err != nil {
		t.Fatal(err)
	}
	clear(p.l.Out.Data)
	scratch := make([]byte, ScratchLen(p.l.Type, p.l.M, p.l.K, threads))
	for i := range scratch {
		scratch[i] = 0xff
	}
	if err := k.Run(pool(threads), &p.l, scratch); err != nil {
		t.Fatal(err)
	}
	return p.l.Out.Data
}

var kinds = []string{"normal", "cancel", "denormal", "bits", "special", "negzero"}

func TestLinearEqualsTheRule(t *testing.T) {
	shapes := [][3]int{
		{1, 32, 8}, {1, 1, 1}, {2, 33, 7}, {3, 31, 9}, {14, 64, 256}, {29, 70, 257}, {13, 96, 511},
		{5, 40, 515}, {28, 32, 513}, {7, 65, 0}, {42, 32, 1030},
	}
	for _, d := range []DType{F32, BF16} {
		for i, s := range shapes {
			some := kinds
			if s[0]*s[1]*s[2] > 100_000 {
				some = []string{kinds[i%6], kinds[(i+1)%6]}
			}
			for _, kind := range some {
				out := d
				if d == BF16 && i%3 == 2 {
					out = F32
				}
				p := newProblem(t, d, out, kind, s[0], s[1], s[2], i%2, i%4 != 1)
				want := p.expect()
				for _, set := range isa.Supported() {
					for threads := 1; threads <= 3; threads++ {
						if got := p.run(t, set, threads); !bytes.Equal(got, want) {
							t.Errorf("%s→%s %s %v %s threads=%d: %s", d, out, kind, s, set, threads, firstDifference(got, want, out))
						}
					}
				}
			}
		}
	}
}

// TestLinearCutsOfRows compares shapes that are cut into several parts and
// blocks of rows with the same rows one by one.
func TestLinearCutsOfRows(t *testing.T) {
	for _, d := range []DType{F32, BF16} {
		for _, m := range []int{561} {
			p := newProblem(t, d, d, "cancel", m, 70, 40, 3, true)
			want := p.expect()
			for _, set := range isa.Supported() {
				if got := p.run(t, set, 2); !bytes.Equal(got, want) {
					t.Errorf("%s m=%d %s: %s", d, m, set, firstDifference(got, want, d))
				}
			}
		}
	}
}

func firstDifference(a, b []byte, d DType) string {
	n := 0
	first := ""
	for i := 0; i < len(a); i += d.Size() {
		if !bytes.Equal(a[i:i+d.Size()], b[i:i+d.Size()]) {
			if n == 0 {
				first = fmt.Sprintf("element %d is %x, want %x", i/d.Size(), a[i:i+d.Size()], b[i:i+d.Size()])
			}
			n++
		}
	}
	return fmt.Sprintf("%d differ, first: %s", n, first)
}
