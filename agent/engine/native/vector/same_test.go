// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/tensor"
)

// lengths are every tail, and rows longer than a chunk of the pure Go kernels.
func lengths() []int {
	var n []int
	for i := 1; i <= 70; i++ {
		n = append(n, i)
	}
	return append(n, 128, 255, 256, 257, 272, 527, 3072)
}

var specials = [...]uint32{
	0, 1 << 31, 1, 1<<31 | 1, 0x7fffff, 0x807fffff, 0x800000, 0x80800000, // zeros, denormals, smallest
	0x7f800000, 0xff800000, 0x7fc00000, 0xffc00123, 0x7f800001, // infinities, not numbers
	0x7f7fffff, 0xff7fffff, 0x7f000000, 0x3f800000, 0xbf800000, // huge, one
	0x42b00000, 0xc2b00000, 0xc2aeac4f, 0xc2aeac50, 0xc1380000, 0xc2fc0000, // ends of exp's and GELU's ranges
	0x3f808000, 0x3f818000, 0x00018000, 0x7f7f8000, // ties of bf16
}

// A fill makes the elements of one operand.
type fill struct {
	name string
	next func(r *rand.Rand) float32
}

func fills() []fill {
	return []fill{
		{"normal", func(r *rand.Rand) float32 { return float32(4 * r.NormFloat64()) }},
		{"bits", func(r *rand.Rand) float32 { return math.Float32frombits(r.Uint32()) }},
		{"finite", func(r *rand.Rand) float32 {
			return math.Float32frombits(r.Uint32()&0x807fffff | uint32(r.IntN(255))<<23)
		}},
		{"tiny", func(r *rand.Rand) float32 { return math.Float32frombits(r.Uint32() & 0x80ffffff) }},
		{"special", func(r *rand.Rand) float32 { return math.Float32frombits(specials[r.IntN(len(specials))]) }},
		{"mixed", func(r *rand.Rand) float32 {
			if r.IntN(40) == 0 {
				return math.Float32frombits(specials[r.IntN(len(specials))])
			}
			return float32(30 * r.NormFloat64())
		}},
	}
}

// operand returns n elements stored as T, not aligned to anything.
func operand[T Elem](r *rand.Rand, f fill, n int) []T {
	out := make([]T, n+3)[3:]
	switch s := any(out).(type) {
	case []float32:
		for i := range s {
			s[i] = f.next(r)
		}
	case []uint16:
		for i := range s {
			s[i] = uint16(math.Float32bits(f.next(r)) >> 16)
		}
	}
	return out
}

func bitsOf[T Elem](x []T) []uint32 {
	out := make([]uint32, len(x))
	switch s := any(x).(type) {
	case []float32:
		for i, v := range s {
			out[i] = math.Float32bits(v)
		}
	case []uint16:
		for i, v := range s {
			out[i] = uint32(v)
		}
	}
	return out
}

// inputs are the operands that one case is run on.
type inputs[T Elem] struct {
	a, b, c       []T
	s, cos, sin   []float32
	eps, one, two float32
}

// operations runs each operation of Ops and returns what it wrote and returned.
func operations[T Elem]() map[string]func(o *Ops[T], dst []T, in inputs[T], n int) []float32 {
	v := func(x []T) Rows[T] { return Rows[T]{x, 0} }
	h := func(x []T) Heads[T] { return Heads[T]{x, 0, 0} }
	type op = func(o *Ops[T], dst []T, in inputs[T], n int) []float32
	quiet := func(f func(o *Ops[T], dst Rows[T], in inputs[T], n int)) op {
		return func(o *Ops[T], dst []T, in inputs[T], n int) []float32 { f(o, v(dst), in, n); return nil }
	}
	rotation := func(in inputs[T]) Rotation { return Rotation{in.cos, in.sin, 0} }
	return map[string]op{
		"add":             quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.Add(d, v(in.a), v(in.b), 1, n) }),
		"mul":             quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.Mul(d, v(in.a), v(in.b), 1, n) }),
		"add bias":        quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.AddBias(d, v(in.a), in.b, 1, n) }),
		"silu":            quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.SiLU(d, v(in.a), 1, n) }),
		"gelu":            quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.GELUTanh(d, v(in.a), 1, n) }),
		"modulate":        quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.Modulate(d, v(in.a), in.b, in.c, 1, n) }),
		"gated add":       quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.GatedAdd(d, v(in.a), in.b, v(in.c), 1, n) }),
		"gated add fused": quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.GatedAddFused(d, v(in.a), in.b, v(in.c), 1, n) }),
		"layer norm":      quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.LayerNorm(d, v(in.a), in.eps, 1, n) }),
		"layer norm affine": quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) {
			o.LayerNormAffine(d, v(in.a), in.b, in.c, in.eps, 1, n)
		}),
		"layer norm modulate": quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) {
			o.LayerNormModulate(d, v(in.a), in.b, in.c, in.eps, 1, n)
		}),
		"rms norm":       quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.RMSNorm(d, v(in.a), in.b, in.eps, 1, n) }),
		"rms norm plain": quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.RMSNormPlain(d, v(in.a), in.eps, 1, n) }),
		"scale":          quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) { o.Scale(d, v(in.a), in.two, 1, n) }),
		"rope": func(o *Ops[T], dst []T, in inputs[T], n int) []float32 {
			o.RoPE(h(dst), h(in.a), rotation(in), 1, 1, n&^1)
			return nil
		},
		"rms norm rope": func(o *Ops[T], dst []T, in inputs[T], n int) []float32 {
			o.RMSNormRoPE(h(dst), h(in.a), in.b, in.eps, rotation(in), 1, 1, n&^1)
			return nil
		},
		"row max": func(o *Ops[T], _ []T, in inputs[T], n int) []float32 {
			out := make([]float32, 1)
			o.RowMax(out, v(in.a), 1, n)
			return out
		},
		"row sum": func(o *Ops[T], _ []T, in inputs[T], n int) []float32 {
			out := make([]float32, 1)
			o.RowSum(out, v(in.a), 1, n)
			return out
		},
		"exp sub": func(o *Ops[T], dst []T, in inputs[T], n int) []float32 {
			sum := make([]float32, 1)
			o.ExpSub(v(dst), Rows[float32]{in.s, 0}, in.one, []float32{in.two}, sum, 1, n)
			return sum
		},
		"row scale": quiet(func(o *Ops[T], d Rows[T], in inputs[T], n int) {
			o.RowScale(d, Rows[float32]{in.s, 0}, []float32{in.two}, 1, n)
		}),
	}
}

// everySet returns the kernels of each set of this CPU.
func everySet(t *testing.T) map[isa.ISA]*Kernels {
	t.Helper()
	all := map[isa.ISA]*Kernels{}
	for _, set := range isa.Supported() {
		k, err := New(set)
		if err != nil {
			t.Fatal(err)
		}
		all[set] = k
	}
	return all
}

func sameOnEverySet[T Elem](t *testing.T, pick func(*Kernels) *Ops[T]) {
	sets, want := everySet(t), pick(generic())
	for name, op := range operations[T]() {
		t.Run(name, func(t *testing.T) {
			for _, f := range fills() {
				for _, n := range lengths() {
					r := rand.New(rand.NewPCG(uint64(n), 7))
					in := inputs[T]{
						a: operand[T](r, f, n), b: operand[T](r, f, n), c: operand[T](r, f, n),
						s: operand[float32](r, f, n), cos: operand[float32](r, f, n), sin: operand[float32](r, f, n),
						eps: 1e-6, one: 0.25 + r.Float32(), two: f.next(r),
					}
					// One guard element: a kernel must not write past the row.
					fresh := operand[T](r, f, n+1)
					dst := slices.Clone(fresh)
					returned := op(want, dst, in, n)
					expect := append(bitsOf(dst), bitsOf(returned)...)
					for set, k := range sets {
						copy(dst, fresh)
						returned := op(pick(k), dst, in, n)
						got := append(bitsOf(dst), bitsOf(returned)...)
						if i := firstDifference(got, expect); i >= 0 {
							t.Fatalf("%v, %s, length %d: element %d is %#x, pure Go gives %#x", set, f.name, n, i, got[i], expect[i])
						}
						if name == "exp sub" || name == "row scale" || len(returned) > 0 {
							continue // the source is of another type
						}
						copy(dst, in.a)
						inPlace := in
						inPlace.a = dst[:n]
						op(pick(k), dst, inPlace, n)
						if firstDifference(bitsOf(dst[:n&^1]), expect[:n&^1]) >= 0 {
							t.Fatalf("%v, %s, length %d: in place gives other bits", set, f.name, n)
						}
					}
				}
			}
		})
	}
}

// firstDifference is where a and b differ first, -1 where they do not.
func firstDifference(a, b []uint32) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func TestSameBitsF32(t *testing.T) {
	sameOnEverySet(t, func(k *Kernels) *Ops[float32] { return &k.F32 })
}

func TestSameBitsBF16(t *testing.T) {
	sameOnEverySet(t, func(k *Kernels) *Ops[uint16] { return &k.BF16 })
}

func TestConversionsSameBits(t *testing.T) {
	want := generic()
	for set, k := range everySet(t) {
		for _, n := range lengths() {
			r := rand.New(rand.NewPCG(uint64(n), 9))
			f32, f16, f8 := make([]float32, n), make([]uint16, n), make([]byte, n)
			for i := range n {
				f32[i], f16[i], f8[i] = math.Float32frombits(r.Uint32()), uint16(r.Uint32()), byte(r.Uint32())
				if i%3 == 0 {
					f32[i] = math.Float32frombits(specials[r.IntN(len(specials))])
				}
			}
			run := func(k *Kernels) (out []uint32) {
				d32, d16 := make([]float32, n+1), make([]uint16, n+1)
				for _, f := range []func([]float32, []uint16){k.BF16ToF32, k.F16ToF32} {
					f(d32[:n], f16)
					out = append(out, bitsOf(d32)...)
				}
				for _, f := range []func([]float32, []byte){k.F8E4M3ToF32, k.F8E5M2ToF32} {
					f(d32[:n], f8)
					out = append(out, bitsOf(d32)...)
				}
				for _, f := range []func([]uint16, []byte){k.F8E4M3ToBF16, k.F8E5M2ToBF16} {
					f(d16[:n], f8)
					out = append(out, bitsOf(d16)...)
				}
				k.F32ToBF16(d16[:n], f32)
				out = append(out, bitsOf(d16)...)
				k.F16ToBF16(d16[:n], f16)
				return append(out, bitsOf(d16)...)
			}
			if a, b := run(want), run(k); !slices.Equal(a, b) {
				t.Errorf("%v: conversions of %d elements differ from pure Go's", set, n)
			}
		}
	}
}

// Every block type gives the same bits on every set, for numbers those of
// model/tensor, whatever the bytes are.
func TestBlocksSameBits(t *testing.T) {
	want := generic()
	for d := tensor.Bool; d.Valid(); d++ {
		if !d.Blocked() {
			continue
		}
		elements, size := d.Block()
		for set, k := range everySet(t) {
			for _, n := range []int{0, 1, 2, 3, 7, 50} {
				r := rand.New(rand.NewPCG(uint64(n), uint64(d)))
				src := make([]byte, n*size)
				for i := range src {
					src[i] = byte(r.Uint32())
				}
				values, half := make([]float32, n*elements), make([]uint16, n*elements)
				if err := errors.Join(tensor.ToF32(values, src, d), want.BlocksToBF16(half, src, d)); err != nil {
					t.Fatal(err)
				}
				got, gotHalf := make([]float32, n*elements+1), make([]uint16, n*elements+1)
				got[len(values)], gotHalf[len(values)] = 7, 7
				if err := errors.Join(k.BlocksToF32(got[:len(values)], src, d), k.BlocksToBF16(gotHalf[:len(values)], src, d)); err != nil {
					t.Fatal(err)
				}
				for i, x := range values {
					if math.Float32bits(got[i]) != math.Float32bits(canonical(x)) || gotHalf[i] != half[i] || half[i] != roundBF16(x) {
						t.Fatalf("%v, %v, %d blocks: element %d is %#x and %#x, pure Go gives %#x and %#x", set, d, n, i,
							math.Float32bits(got[i]), gotHalf[i], math.Float32bits(x), half[i])
					}
				}
				if got[len(values)] != 7 || gotHalf[len(values)] != 7 {
					t.Fatalf("%v, %v: written past the end", set, d)
				}
			}
			if k.BlocksToF32(make([]float32, elements+1), make([]byte, size), d) == nil || k.BlocksToBF16(make([]uint16, elements), make([]byte, size+1), d) == nil {
				t.Errorf("%v, %v: a wrong length was accepted", set, d)
			}
		}
	}
}
