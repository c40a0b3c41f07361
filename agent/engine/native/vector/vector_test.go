// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

// eachSet runs a test on every instruction set of this CPU.
func eachSet(t *testing.T, f func(t *testing.T, k *Kernels)) {
	for _, set := range isa.Supported() {
		t.Run(set.String(), func(t *testing.T) {
			k, err := New(set)
			if err != nil {
				t.Fatal(err)
			}
			f(t, k)
		})
	}
}

func TestNewRefusesUnknownSet(t *testing.T) {
	if _, err := New(isa.ISA(200)); err == nil {
		t.Error("New(isa(200)) succeeded")
	}
}

func fusedEqualsSequence[T Elem](t *testing.T, o *Ops[T]) {
	const rows, heads, size = 3, 2, 40
	const n = heads * size
	r := rand.New(rand.NewPCG(5, 6))
	f := fills()[0]
	x, w, b := operand[T](r, f, rows*(n+5)), operand[T](r, f, n), operand[T](r, f, n)
	in, steps, fused := Rows[T]{x, n + 5}, make([]T, rows*n), make([]T, rows*n)

	o.LayerNorm(Rows[T]{steps, n}, in, 1e-6, rows, n)
	o.Modulate(Rows[T]{steps, n}, Rows[T]{steps, n}, w, b, rows, n)
	o.LayerNormModulate(Rows[T]{fused, n}, in, w, b, 1e-6, rows, n)
	if !slices.Equal(bitsOf(steps), bitsOf(fused)) {
		t.Error("LayerNormModulate differs from LayerNorm, Modulate")
	}

	rot := Rotation{operand[float32](r, f, rows*size), operand[float32](r, f, rows*size), size / 2}
	view := Heads[T]{x, n + 5, size}
	// The result goes head by head: [heads, rows, size].
	at, turned := Heads[T]{steps, size, rows * size}, Heads[T]{fused, size, rows * size}
	o.RMSNormHeads(at, view, w, 1e-6, rows, heads, size)
	o.RoPE(at, at, rot, rows, heads, size)
	o.RMSNormRoPE(turned, view, w, 1e-6, rot, rows, heads, size)
	if !slices.Equal(bitsOf(steps), bitsOf(fused)) {
		t.Error("RMSNormRoPE differs from RMSNorm, RoPE")
	}
}

func TestFusedEqualsSequence(t *testing.T) {
	eachSet(t, func(t *testing.T, k *Kernels) {
		fusedEqualsSequence(t, &k.F32)
		fusedEqualsSequence(t, &k.BF16)
	})
}

func TestRoPETurnsAdjacentPairs(t *testing.T) {
	eachSet(t, func(t *testing.T, k *Kernels) {
		x := []float32{1, 2, 3, 4}
		k.F32.RoPE(Heads[float32]{x, 4, 4}, Heads[float32]{x, 4, 4}, Rotation{[]float32{0, 0.5}, []float32{1, 2}, 2}, 1, 1, 4)
		if want := []float32{-2, 1, 3*0.5 - 4*2, 3*2 + 4*0.5}; !slices.Equal(x, want) {
			t.Errorf("got %v, want %v", x, want)
		}
	})
}

func TestModulateAndGateRounding(t *testing.T) {
	eachSet(t, func(t *testing.T, k *Kernels) {
		// 1 + 2⁻⁸ is a tie in bf16 and goes to 1; 3·(1+2⁻⁷) needs more than 8 bits.
		one, tie, third := roundBF16(1), roundBF16(1.0/256), roundBF16(1+1.0/128)
		dst := []uint16{0}
		v := func(x uint16) Rows[uint16] { return Rows[uint16]{[]uint16{x}, 1} }
		k.BF16.Modulate(Rows[uint16]{dst, 1}, v(roundBF16(256)), []uint16{tie}, []uint16{0}, 1, 1)
		if dst[0] != roundBF16(256) {
			t.Errorf("modulate does not round 1+scale: %#x", dst[0])
		}
		product := float32(1+1.0/128) * (1 + 1.0/128)
		k.BF16.GatedAdd(Rows[uint16]{dst, 1}, v(one^0x8000), []uint16{third}, v(third), 1, 1)
		if want := roundBF16(widenBF16(roundBF16(product)) - 1); dst[0] != want {
			t.Errorf("gated add is %#x, want %#x", dst[0], want)
		}
		k.BF16.GatedAddFused(Rows[uint16]{dst, 1}, v(one^0x8000), []uint16{third}, v(third), 1, 1)
		if want := roundBF16(product - 1); dst[0] != want {
			t.Errorf("fused gated add is %#x, want %#x", dst[0], want)
		}
	})
}

func TestSoftmaxOverTiles(t *testing.T) {
	const rows, keys, tile, scale = 3, 100, 33, 0.125
	minusInf := float32(math.Inf(-1))
	eachSet(t, func(t *testing.T, k *Kernels) {
		r := rand.New(rand.NewPCG(8, 9))
		scores, values := normal(r, rows*keys, 0, 40), normal(r, keys, 0, 1)
		for i := range tile + 5 { // row 2 begins with a tile that has no key
			scores[2*keys+i] = minusInf
		}
		st := Softmax{make([]float32, rows), make([]float32, rows), make([]float32, rows)}
		st.Start(rows)
		out, p := make([]float64, rows), make([]float32, rows*tile)
		for from := 0; from < keys; from += tile {
			n := min(tile, keys-from)
			k.F32.SoftmaxTile(Rows[float32]{p, tile}, Rows[float32]{scores[from:], keys}, scale, st, &k.F32, rows, n)
			for i := range out {
				out[i] *= float64(st.Alpha[i])
				for j := range n {
					out[i] += float64(p[i*tile+j]) * float64(values[from+j])
				}
			}
		}
		for i := range out {
			sum, want := 0.0, 0.0
			for j, v := range values {
				e := math.Exp(float64(scores[i*keys+j])*scale - float64(st.Max[i]))
				sum, want = sum+e, want+e*float64(v)
			}
			if math.Abs(float64(st.Sum[i])-sum) > 1e-5*sum {
				t.Errorf("row %d: sum is %g, want %g", i, st.Sum[i], sum)
			}
			if got := out[i] / float64(st.Sum[i]); math.Abs(got-want/sum) > 1e-5 {
				t.Errorf("row %d: softmax is %g, want %g", i, got, want/sum)
			}
		}
		if st.Alpha[2] == 0 || st.Sum[2] == 0 {
			t.Errorf("row 2 kept nothing: %+v", st)
		}
	})
}

func TestSoftmaxTileSameBits(t *testing.T) {
	const rows, keys = 4, 77
	run := func(k *Kernels) []uint32 {
		r := rand.New(rand.NewPCG(1, 9))
		st := Softmax{make([]float32, rows), make([]float32, rows), make([]float32, rows)}
		st.Start(rows)
		p, h := make([]float32, rows*keys), make([]uint16, rows*keys)
		var out []uint32
		for _, f := range fills() {
			x := Rows[float32]{operand[float32](r, f, rows*keys), keys}
			k.F32.SoftmaxTile(Rows[float32]{p, keys}, x, 0.3, st, &k.F32, rows, keys)
			out = slices.Concat(out, bitsOf(p), bitsOf(st.Max), bitsOf(st.Sum), bitsOf(st.Alpha))
			k.BF16.SoftmaxTile(Rows[uint16]{h, keys}, x, 0.3, st, &k.F32, rows, keys)
			out = slices.Concat(out, bitsOf(h), bitsOf(st.Max), bitsOf(st.Sum), bitsOf(st.Alpha))
			if f.name == "bits" {
				st.Start(rows)
			}
		}
		return out
	}
	want := run(generic())
	eachSet(t, func(t *testing.T, k *Kernels) {
		if !slices.Equal(run(k), want) {
			t.Error("differs from pure Go")
		}
	})
}

func TestShortSlicePanics(t *testing.T) {
	eachSet(t, func(t *testing.T, k *Kernels) {
		defer func() {
			if recover() == nil {
				t.Error("a source of 3 elements for a row of 4 did not panic")
			}
		}()
		k.F32.Add(Rows[float32]{make([]float32, 4), 4}, Rows[float32]{make([]float32, 3), 4}, Rows[float32]{make([]float32, 4), 4}, 1, 4)
	})
}

func TestNoAllocation(t *testing.T) {
	eachSet(t, func(t *testing.T, k *Kernels) {
		const n = 300
		x, w := make([]float32, n), make([]float32, n)
		h := make([]uint16, n)
		st := Softmax{make([]float32, 1), make([]float32, 1), make([]float32, 1)}
		v, vh := Rows[float32]{x, n}, Rows[uint16]{h, n}
		rot := Rotation{w, w, n / 2}
		if a := testing.AllocsPerRun(10, func() {
			k.F32.GELUTanh(v, v, 1, n)
			k.BF16.GatedAdd(vh, vh, h, vh, 1, n)
			k.F32.LayerNormModulate(v, v, w, w, 1e-6, 1, n)
			k.BF16.RMSNormRoPE(Heads[uint16]{h, n, n}, Heads[uint16]{h, n, n}, h, 1e-6, rot, 1, 1, n)
			k.BF16.SoftmaxTile(vh, v, 1, st, &k.F32, 1, n)
			k.F32ToBF16(h, x)
		}); a != 0 {
			t.Errorf("%v allocations, want none", a)
		}
	})
}
