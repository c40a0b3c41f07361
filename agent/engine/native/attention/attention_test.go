// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package attention

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/agent/engine/native/vector"
	"github.com/distorch/distorch/model/numeric"
)

type pool int

func (p pool) Workers() int { return int(p) }

func (p pool) Do(n int, f func(worker, i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range int(p) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(w, i)
			}
		})
	}
	wg.Wait()
}

func flush(v float32) float32 {
	if math.Abs(float64(v)) < 0x1p-126 {
		return float32(math.Copysign(0, float64(v)))
	}
	return v
}

// extend adds x·w to the chain s by the rule of package matmul. (Its own tests
// cover results at the very edge of the normal range.)
func extend(d matmul.DType, s float32, x, w []float32) float32 {
	step := numeric.FMA32
	if d == matmul.F32 {
		for k := range x {
			s = step(x[k], w[k], s)
		}
		return s
	}
	step = func(a, b, c float32) float32 { return flush(numeric.FMA32(flush(a), flush(b), flush(c))) }
	for k := 0; k < len(x); k += 2 {
		if k+1 < len(x) {
			s = step(x[k+1], w[k+1], s)
		} else {
			s = step(0, 0, s)
		}
		s = step(x[k], w[k], s)
	}
	return s
}

func decode(d matmul.DType, b []byte) []float32 {
	v := make([]float32, len(b)/d.Size())
	for i := range v {
		if d == matmul.F32 {
			v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		} else {
			v[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
		}
	}
	return v
}

func encode(d matmul.DType, v []float32) []byte {
	var b []byte
	for _, f := range v {
		u := math.Float32bits(f)
		switch {
		case d == matmul.F32:
			b = binary.LittleEndian.AppendUint32(b, u)
		case f != f:
			b = binary.LittleEndian.AppendUint16(b, 0x7fc0)
		default:
			b = binary.LittleEndian.AppendUint16(b, uint16((u+0x7fff+u>>16&1)>>16))
		}
	}
	return b
}

// naive computes one query row as the package comment says, key tile by key
// tile, with the generic softmax on a single row.
func naive(d matmul.DType, scale float32, q []float32, k, v [][]float32, mask []float32) []float32 {
	vec, err := vector.New(isa.Generic)
	if err != nil {
		panic(err)
	}
	st := vector.Softmax{Max: make([]float32, 1), Sum: make([]float32, 1), Alpha: make([]float32, 1)}
	st.Start(1)
	out := make([]float32, len(q))
	for at := 0; at < len(k); at += KeyTile {
		n := min(KeyTile, len(k)-at)
		scores, p := make([]float32, n), make([]float32, n)
		for i := range scores {
			scores[i] = extend(d, 0, q, k[at+i])
		}
		factor := scale
		if mask != nil {
			factor = 1
			for i := range scores {
				scores[i] = float32(scores[i]*scale) + mask[at+i]
			}
		}
		vec.F32.SoftmaxTile(vector.Rows[float32]{Data: p, Stride: n}, vector.Rows[float32]{Data: scores, Stride: n}, factor, st, &vec.F32, 1, n)
		p = decode(d, encode(d, p))
		for j := range out {
			column := make([]float32, n)
			for i := range column {
				column[i] = v[at+i][j]
			}
			if at > 0 {
				out[j] *= st.Alpha[0]
			}
			out[j] = extend(d, out[j], p, column)
		}
	}
	inv := 1 / st.Sum[0]
	for j := range out {
		out[j] = float32(out[j] * inv)
		if out[j] != out[j] {
			out[j] = math.Float32frombits(0x7fc00000)
		}
	}
	return out
}

// exact is the same in f64 and by the plain formula.
func exact(scale float32, q []float32, k, v [][]float32) []float64 {
	s := make([]float64, len(k))
	top := math.Inf(-1)
	for i := range k {
		for j := range q {
			s[i] += float64(q[j]) * float64(k[i][j])
		}
		s[i] *= float64(scale)
		top = max(top, s[i])
	}
	sum := 0.0
	out := make([]float64, len(q))
	for i := range s {
		p := math.Exp(s[i] - top)
		sum += p
		for j := range out {
			out[j] += p * float64(v[i][j])
		}
	}
	for j := range out {
		out[j] /= sum
	}
	return out
}

func sample(r *rand.Rand, kind string) float32 {
	f := r.NormFloat64()
	switch kind {
	case "wide":
		f *= 12
	case "denormal":
		f = math.Ldexp(f, -r.IntN(90)-30)
	case "special":
		switch r.IntN(400) {
		case 0:
			f = math.Inf(1 - 2*r.IntN(2))
		case 1:
			f = math.NaN()
		}
		if r.IntN(4) == 0 {
			f = math.Copysign(0, -1)
		}
	}
	return float32(f)
}

// fused makes an attention over a fused [batch, sequence, 3, heads, dim] and
// gives row i of part (0 q, 1 k, 2 v).
func fused(d matmul.DType, kind string, batch, heads, queries, keys, dim int) (Attention, func(part, b, row, h int) []float32) {
	r := rand.New(rand.NewPCG(uint64(queries), uint64(keys)))
	s := max(queries, keys)
	row := 3*heads*dim + 5
	v := make([]float32, batch*s*row)
	for i := range v {
		v[i] = sample(r, kind)
	}
	data := encode(d, v)
	v = decode(d, data)
	part := func(p int) View {
		return View{Data: data[p*heads*dim*d.Size():], Batch: s * row, Row: row, Head: dim}
	}
	a := Attention{
		Type: d, Batch: batch, Heads: heads, Queries: queries, Keys: keys, Dim: dim,
		Scale: float32(1 / math.Sqrt(float64(dim))), Q: part(0), K: part(1), V: part(2),
		Out: View{Data: make([]byte, batch*queries*(heads*dim+3)*d.Size()), Batch: queries * (heads*dim + 3), Row: heads*dim + 3, Head: dim},
	}
	return a, func(p, b, i, h int) []float32 { return v[b*s*row+i*row+p*heads*dim+h*dim:][:dim] }
}

func TestAttentionEqualsTheRule(t *testing.T) {
	for _, s := range []struct{ batch, heads, queries, keys, dim int }{
		{1, 1, 1, 1, 1}, {1, 2, 3, 5, 7}, {2, 1, 15, 33, 32}, {1, 1, 9, 255, 40}, {1, 1, 7, 257, 64},
		{2, 2, 5, 530, 16}, {1, 1, 100, 19, 33}, {1, 1, 30, 512, 128},
	} {
		for _, d := range []matmul.DType{matmul.F32, matmul.BF16} {
			for _, kind := range []string{"normal", "wide", "denormal", "special"} {
				a, row := fused(d, kind, s.batch, s.heads, s.queries, s.keys, s.dim)
				want := bytes.Clone(a.Out.Data)
				for b := range s.batch {
					for h := range s.heads {
						var k, v [][]float32
						for i := range s.keys {
							k, v = append(k, row(1, b, i, h)), append(v, row(2, b, i, h))
						}
						for i := range s.queries {
							at := (b*a.Out.Batch + i*a.Out.Row + h*a.Out.Head) * d.Size()
							copy(want[at:], encode(d, naive(d, a.Scale, row(0, b, i, h), k, v, nil)))
						}
					}
				}
				for _, set := range isa.Supported() {
					for threads := 1; threads <= 3; threads++ {
						if got := compute(t, set, threads, a); !bytes.Equal(got, want) {
							t.Errorf("%s %s %+v %s threads=%d: other bytes", d, kind, s, set, threads)
						}
					}
				}
			}
		}
	}
}

// masked gives a an additive mask whose rows lie further apart than they are
// long, with some keys hidden, and all but one of row 0's first tile.
func masked(a *Attention) (row func(b, i int) []float32) {
	r := rand.New(rand.NewPCG(7, uint64(a.Keys)))
	stride := a.Keys + 3
	v := make([]float32, a.Batch*a.Queries*stride)
	for i := range v {
		v[i] = float32(r.NormFloat64())
		if r.IntN(5) == 0 {
			v[i] = float32(math.Inf(-1))
		}
	}
	for b := range a.Batch {
		for k := range min(KeyTile, a.Keys-1) {
			v[b*a.Queries*stride+k] = float32(math.Inf(-1))
		}
		for i := range a.Queries {
			v[(b*a.Queries+i)*stride+a.Keys-1] = 0
		}
	}
	a.Mask = View{Data: encode(a.Type, v), Batch: a.Queries * stride, Row: stride}
	v = decode(a.Type, a.Mask.Data)
	return func(b, i int) []float32 { return v[(b*a.Queries+i)*stride:][:a.Keys] }
}

func TestMaskedAttentionEqualsTheRule(t *testing.T) {
	for _, s := range []struct{ batch, heads, queries, keys, dim int }{
		{1, 1, 1, 1, 1}, {1, 2, 3, 5, 7}, {2, 1, 15, 33, 32}, {1, 1, 7, 257, 64}, {2, 2, 90, 530, 16}, {1, 1, 600, 300, 8},
	} {
		for _, d := range []matmul.DType{matmul.F32, matmul.BF16} {
			a, row := fused(d, "normal", s.batch, s.heads, s.queries, s.keys, s.dim)
			mask := masked(&a)
			want := bytes.Clone(a.Out.Data)
			for b := range s.batch {
				for h := range s.heads {
					var k, v [][]float32
					for i := range s.keys {
						k, v = append(k, row(1, b, i, h)), append(v, row(2, b, i, h))
					}
					for i := range s.queries {
						at := (b*a.Out.Batch + i*a.Out.Row + h*a.Out.Head) * d.Size()
						copy(want[at:], encode(d, naive(d, a.Scale, row(0, b, i, h), k, v, mask(b, i))))
					}
				}
			}
			if got := decode(d, want); slices.ContainsFunc(got, func(x float32) bool { return x != x }) {
				t.Errorf("%s %+v: the rule gives something that is no number", d, s)
			}
			for _, set := range isa.Supported() {
				for threads := 1; threads <= 3; threads++ {
					if got := compute(t, set, threads, a); !bytes.Equal(got, want) {
						t.Errorf("%s %+v %s threads=%d: other bytes", d, s, set, threads)
					}
				}
			}
		}
	}
}

// A key that the mask hides is as if it were not there.
func TestHiddenKeysCountForNothing(t *testing.T) {
	const seen, hidden = 200, 90
	for _, d := range []matmul.DType{matmul.F32, matmul.BF16} {
		a, _ := fused(d, "normal", 1, 1, 20, seen+hidden, 16)
		mask := make([]float32, a.Queries*a.Keys)
		for i := range mask {
			if i%a.Keys >= seen {
				mask[i] = float32(math.Inf(-1))
			}
		}
		a.Mask = View{Data: encode(d, mask), Batch: len(mask), Row: a.Keys}
		sets := isa.Supported()
		got := decode(d, compute(t, sets[len(sets)-1], 2, a))
		a.Keys, a.Mask = seen, View{}
		want := decode(d, compute(t, sets[len(sets)-1], 2, a))
		tolerance := map[matmul.DType]float64{matmul.F32: 1e-6, matmul.BF16: 1e-2}[d]
		for i := range want {
			if math.Abs(float64(got[i]-want[i])) > tolerance {
				t.Fatalf("%s: element %d is %g, %g without the hidden keys", d, i, got[i], want[i])
			}
		}
	}
}

func compute(t testing.TB, set isa.ISA, threads int, a Attention) []byte {
	t.Helper()
	k, err := New(set)
	if err != nil {
		t.Fatal(err)
	}
	clear(a.Out.Data)
	scratch := bytes.Repeat([]byte{0xff}, ScratchLen(a.Type, a.Dim, threads))
	if err := k.Run(pool(threads), &a, scratch); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(a.Out.Data)
}

// TestAttentionCutsOfRows compares several chunks of rows with single rows.
func TestAttentionCutsOfRows(t *testing.T) {
	for _, d := range []matmul.DType{matmul.F32, matmul.BF16} {
		a, _ := fused(d, "normal", 1, 1, 1100, 300, 24)
		sets := isa.Supported()
		best := sets[len(sets)-1]
		want := compute(t, best, 1, a)
		for threads := 2; threads <= 3; threads++ {
			if !bytes.Equal(compute(t, best, threads, a), want) {
				t.Errorf("%s: %d threads give other bytes", d, threads)
			}
		}
		for _, i := range []int{0, 83, 84, 503, 504, 700, 1099} {
			one := a
			one.Queries = 1
			one.Q.Data = a.Q.Data[i*a.Q.Row*d.Size():]
			one.Out.Data = make([]byte, a.Dim*d.Size())
			at := i * a.Out.Row * d.Size()
			if !bytes.Equal(compute(t, best, 1, one), want[at:at+a.Dim*d.Size()]) {
				t.Errorf("%s: row %d alone gives other bytes", d, i)
			}
		}
	}
}

func TestAttentionAccuracy(t *testing.T) {
	for d, tolerance := range map[matmul.DType]float64{matmul.F32: 5e-6, matmul.BF16: 1e-2} {
		a, row := fused(d, "wide", 1, 1, 20, 700, 64)
		a.Scale /= 12
		sets := isa.Supported()
		got := decode(d, compute(t, sets[len(sets)-1], 2, a))
		var k, v [][]float32
		for i := range a.Keys {
			k, v = append(k, row(1, 0, i, 0)), append(v, row(2, 0, i, 0))
		}
		worst, scale := 0.0, 0.0
		for i := range a.Queries {
			for j, w := range exact(a.Scale, row(0, 0, i, 0), k, v) {
				worst = max(worst, math.Abs(float64(got[i*a.Out.Row+j])-w))
				scale = max(scale, math.Abs(w))
			}
		}
		if worst/scale > tolerance {
			t.Errorf("%s: error %.2g is over %.2g", d, worst/scale, tolerance)
		}
	}
}

func TestRunRefusesWhatDoesNotFit(t *testing.T) {
	k, err := New(isa.Generic)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Attention){
		"short q":         func(a *Attention) { a.Q.Data = a.Q.Data[:10] },
		"short out":       func(a *Attention) { a.Out.Data = a.Out.Data[:10] },
		"no keys":         func(a *Attention) { a.Keys = 0 },
		"large head":      func(a *Attention) { a.Dim = MaxDim + 1 },
		"negative stride": func(a *Attention) { a.K.Row = -1 },
		"scale":           func(a *Attention) { a.Scale = 0 },
		"short mask":      func(a *Attention) { a.Mask = View{Data: make([]byte, 4*8*8-1), Row: 8, Batch: 64} },
		"mask by head":    func(a *Attention) { a.Mask = View{Data: make([]byte, 4*8*8), Row: 8, Batch: 64, Head: 1} },
		"mask stride":     func(a *Attention) { a.Mask = View{Data: make([]byte, 4*8*8), Row: -8, Batch: 64} },
	} {
		a, _ := fused(matmul.F32, "normal", 1, 2, 8, 8, 8)
		spoil(&a)
		if err := k.Run(pool(1), &a, make([]byte, 8<<20)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	a, _ := fused(matmul.F32, "normal", 1, 2, 8, 8, 8)
	if err := k.Run(pool(1), &a, make([]byte, 100)); err == nil {
		t.Error("short scratch: no error")
	}
}

func BenchmarkAttention(b *testing.B) {
	for _, s := range []int{512, 1280} {
		for _, d := range []matmul.DType{matmul.F32, matmul.BF16} {
			for _, set := range isa.Supported()[1:] {
				b.Run(fmt.Sprintf("S%d/%s/%s", s, d, set), func(b *testing.B) {
					k, err := New(set)
					if err != nil {
						b.Fatal(err)
					}
					a, _ := fused(d, "normal", 1, 24, s, s, 128)
					scratch := make([]byte, ScratchLen(d, 128, 2))
					for b.Loop() {
						if err := k.Run(pool(2), &a, scratch); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(4*24*128*float64(s)*float64(s)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
				})
			}
		}
	}
}
