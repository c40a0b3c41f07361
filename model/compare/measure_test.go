// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/model/tensor"
)

func f32s(shape tensor.Shape, values ...float32) Tensor {
	return FromFloat32s("t", shape, values)
}

func raw(d tensor.DType, shape tensor.Shape, bytes ...byte) Tensor {
	return Tensor{Name: "t", DType: d, Shape: shape, Read: memory(bytes)}
}

var (
	nan = float32(math.NaN())
	inf = float32(math.Inf(1))
)

// near takes numbers as equal that are off by a share, and NaN as itself.
func near(share float64) cmp.Option {
	return cmp.Comparer(func(a, b Float) bool {
		x, y := float64(a), float64(b)
		return x == y || math.IsNaN(x) && math.IsNaN(y) || math.Abs(x-y) <= share*max(math.Abs(x), math.Abs(y), 1e-3)
	})
}

// The expected values are worked out by hand.
func TestTensors(t *testing.T) {
	none := Float(math.NaN())
	infinite := Float(math.Inf(1))
	const no = "not a picture or a latent"
	for name, tc := range map[string]struct {
		a, b Tensor
		want Result
	}{
		"equal": {
			f32s(tensor.Shape{3}, 1, 2, 5), f32s(tensor.Shape{3}, 1, 2, 5),
			Result{Values: 3, EqualBits: true, MaxAt: []int64{}, PSNR: infinite, Peak: 4, SSIM: none, NoSSIM: no},
		},
		// |a-b| = 0 0 4 3, norm 5; b's norm is 10; rms 2.5; peak 4-(-6) = 10: 20 log10(10/2.5).
		"errors": {
			f32s(tensor.Shape{2, 2}, 4, 4, 4, -3), f32s(tensor.Shape{2, 2}, 4, 4, 0, -6),
			Result{Values: 4, Differing: 2, MaxError: 4, MaxAt: []int64{1, 0}, Relative: Float(5 / math.Sqrt(68)), PSNR: Float(20 * math.Log10(4)), Peak: 10, SSIM: none, NoSSIM: no},
		},
		"b all zero": {
			f32s(tensor.Shape{1}, 3), f32s(tensor.Shape{1}, 0),
			Result{Values: 1, Differing: 1, MaxError: 3, MaxAt: []int64{0}, Relative: infinite, PSNR: 0, Peak: 3, SSIM: none, NoSSIM: no},
		},
		"signs of zero": {
			f32s(tensor.Shape{2}, 0, 1), f32s(tensor.Shape{2}, float32(math.Copysign(0, -1)), 1),
			Result{Values: 2, Differing: 1, MaxAt: []int64{}, PSNR: infinite, Peak: 1, SSIM: none, NoSSIM: no},
		},
		// The pair (1, 3) alone is counted: error 2, norm 3, rms 2, peak 9-0.
		"not finite": {
			f32s(tensor.Shape{5}, nan, nan, inf, -inf, 1), f32s(tensor.Shape{5}, nan, 0, inf, 9, 3),
			Result{
				Values: 5, Differing: 3, MaxError: 2, MaxAt: []int64{4}, Relative: 2.0 / 3, PSNR: Float(20 * math.Log10(4.5)), Peak: 9,
				SSIM: none, NoSSIM: no, A: Odd{NaN: 2, Inf: 2}, B: Odd{NaN: 1, Inf: 1}, Unlike: 2,
			},
		},
		"dtypes": {
			f32s(tensor.Shape{2}, 1, 1.0078125), raw(tensor.BF16, tensor.Shape{2}, 0x80, 0x3f, 0x80, 0x3f),
			Result{Values: 2, Differing: 1, MaxError: 1.0 / 128, MaxAt: []int64{1}, Relative: Float(1.0 / 128 / math.Sqrt2), PSNR: Float(20 * math.Log10(math.Sqrt2)), Peak: 1.0 / 128, SSIM: none, NoSSIM: no},
		},
		"same values in two dtypes": {
			f32s(tensor.Shape{1}, 1), raw(tensor.BF16, tensor.Shape{1}, 0x80, 0x3f),
			Result{Values: 1, MaxAt: []int64{}, PSNR: infinite, SSIM: none, NoSSIM: no},
		},
		// (3+4i) and (3+0i): parts 3 4 and 3 0.
		"complex": {
			raw(tensor.C64, tensor.Shape{1}, 0, 0, 0x40, 0x40, 0, 0, 0x80, 0x40), raw(tensor.C64, tensor.Shape{1}, 0, 0, 0x40, 0x40, 0, 0, 0, 0),
			Result{Values: 2, Differing: 1, MaxError: 4, MaxAt: []int64{0, 1}, Relative: 4.0 / 3, PSNR: Float(20 * math.Log10(math.Sqrt2)), Peak: 4, SSIM: none, NoSSIM: no},
		},
		"four bits": {
			raw(tensor.F4, tensor.Shape{4}, 0x12, 0x34), raw(tensor.F4, tensor.Shape{4}, 0x12, 0x35),
			Result{Values: 4, Differing: 1, MaxError: none, MaxAt: []int64{}, Relative: infinite, PSNR: none, Peak: none, SSIM: none, NoSSIM: "F4 is compared by its bytes"},
		},
		"nothing": {
			f32s(tensor.Shape{0, 4}), f32s(tensor.Shape{0, 4}),
			Result{EqualBits: true, MaxAt: []int64{}, PSNR: infinite, SSIM: none, NoSSIM: no},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Tensors(tc.a, tc.b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, near(1e-14)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestIntegers(t *testing.T) {
	for d, tc := range map[tensor.DType]struct {
		bytes []byte
		want  float64
	}{
		tensor.Bool: {[]byte{1}, 1}, tensor.U8: {[]byte{0xff}, 255}, tensor.I8: {[]byte{0xff}, -1},
		tensor.U16: {[]byte{0xfe, 0xff}, 65534}, tensor.I16: {[]byte{0xfe, 0xff}, -2},
		tensor.U32: {[]byte{0xfd, 0xff, 0xff, 0xff}, 4294967293}, tensor.I32: {[]byte{0xfd, 0xff, 0xff, 0xff}, -3},
		tensor.U64: {binary.LittleEndian.AppendUint64(nil, 1<<63), 0x1p63}, tensor.I64: {binary.LittleEndian.AppendUint64(nil, 1<<63), -0x1p63},
		tensor.F64: {binary.LittleEndian.AppendUint64(nil, math.Float64bits(0.1)), 0.1}, tensor.F16: {[]byte{0, 0x3c}, 1}, tensor.F8E4M3: {[]byte{0x38}, 1},
	} {
		zero := raw(d, tensor.Shape{1}, make([]byte, len(tc.bytes))...)
		got, err := Tensors(raw(d, tensor.Shape{1}, tc.bytes...), zero)
		if err != nil || float64(got.MaxError) != math.Abs(tc.want) {
			t.Errorf("%v: off by %g from 0, %v; want %g", d, got.MaxError, err, tc.want)
		}
	}
}

func TestTensorsRefuse(t *testing.T) {
	_, err := Tensors(f32s(tensor.Shape{2, 1}, 1, 2), f32s(tensor.Shape{2}, 1, 2))
	if _, ok := errors.AsType[*ShapeError](err); !ok {
		t.Errorf("shapes: %v", err)
	}
	if _, err := Tensors(raw(tensor.F4, tensor.Shape{2}, 1), raw(tensor.U8, tensor.Shape{2}, 1, 2)); err == nil {
		t.Error("four bits against eight: accepted")
	}
	short := f32s(tensor.Shape{2}, 1)
	if _, err := Tensors(f32s(tensor.Shape{2}, 1, 2), short); err == nil {
		t.Error("a side that ends early: accepted")
	}
}

func TestWithin(t *testing.T) {
	for name, tc := range map[string]struct {
		r         Result
		tolerance float64
		want      bool
	}{
		"equal at 0":             {Result{}, 0, true},
		"sign of a zero at 0":    {Result{Differing: 1}, 0, false},
		"sign of a zero":         {Result{Differing: 1}, 1e-9, true},
		"at the tolerance":       {Result{Differing: 1, Relative: 1e-4}, 1e-4, true},
		"beyond":                 {Result{Differing: 1, Relative: 2e-4}, 1e-4, false},
		"a NaN on one side":      {Result{Differing: 1, Unlike: 1}, 1, false},
		"against nothing but 0s": {Result{Differing: 1, Relative: Float(math.Inf(1))}, 1e9, false},
	} {
		if got := tc.r.Within(tc.tolerance); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestExtremes: squares of these leave float64's range.
func TestExtremes(t *testing.T) {
	f64s := func(values ...float64) Tensor {
		var b []byte
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		}
		return raw(tensor.F64, tensor.Shape{int64(len(values))}, b...)
	}
	for _, scale := range []float64{1e-300, 1, 1e300} {
		r, err := Tensors(f64s(3*scale, 4*scale), f64s(6*scale, 8*scale))
		if err != nil || math.Abs(float64(r.Relative)-0.5) > 1e-15 {
			t.Errorf("scale %g: relative %g, %v", scale, r.Relative, err)
		}
	}
}

// values draws numbers of which some are equal, some odd.
func values(t *rapid.T, n int, label string) []float32 {
	return rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom([]float32{0, 1, -1, nan, inf, -inf}), rapid.Float32Range(-8, 8)), n, n).Draw(t, label)
}

func drawnShape(t *rapid.T) (tensor.Shape, int) {
	h, w := rapid.IntRange(1, 14).Draw(t, "h"), rapid.IntRange(1, 14).Draw(t, "w")
	return tensor.Shape{1, 2, int64(h), int64(w)}, 2 * h * w
}

func TestIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shape, n := drawnShape(t)
		a := f32s(shape, values(t, n, "a")...)
		r, err := Tensors(a, a)
		if err != nil || !r.EqualBits || r.Differing != 0 || r.MaxError != 0 || r.Relative != 0 || !math.IsInf(float64(r.PSNR), 1) || r.Unlike != 0 || !r.Within(0) {
			t.Fatalf("%+v, %v", r, err)
		}
		if r.NoSSIM == "" && r.SSIM != 1 {
			t.Fatalf("SSIM of equal planes is %g", r.SSIM)
		}
	})
}

// TestSymmetry: all but the relative error are the same seen from the other side.
func TestSymmetry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shape, n := drawnShape(t)
		a, b := f32s(shape, values(t, n, "a")...), f32s(shape, values(t, n, "b")...)
		one, err := Tensors(a, b)
		if err != nil {
			t.Fatal(err)
		}
		other, err := Tensors(b, a)
		if err != nil {
			t.Fatal(err)
		}
		other.A, other.B = other.B, other.A
		other.Relative = one.Relative
		if diff := cmp.Diff(one, other, near(1e-12)); diff != "" {
			t.Fatalf("(-A,B +B,A):\n%s", diff)
		}
	})
}

// TestScale: errors grow with the values, what is relative to them stays.
func TestScale(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		a := rapid.SliceOfN(rapid.Float32Range(-8, 8), n, n).Draw(t, "a")
		b := rapid.SliceOfN(rapid.Float32Range(1, 8), n, n).Draw(t, "b")
		one, err := Tensors(f32s(tensor.Shape{int64(n)}, a...), f32s(tensor.Shape{int64(n)}, b...))
		if err != nil {
			t.Fatal(err)
		}
		for i := range a {
			a[i], b[i] = 4*a[i], 4*b[i]
		}
		four, err := Tensors(f32s(tensor.Shape{int64(n)}, a...), f32s(tensor.Shape{int64(n)}, b...))
		if err != nil {
			t.Fatal(err)
		}
		one.MaxError, one.Peak = 4*one.MaxError, 4*one.Peak
		if diff := cmp.Diff(one, four, near(1e-12)); diff != "" {
			t.Fatalf("(-once +four times):\n%s", diff)
		}
	})
}

// TestPieces: what lies beyond the first piece counts as what lies in it.
func TestPieces(t *testing.T) {
	n := piece + 3
	a := make([]float32, n)
	a[1] = 1
	b := append([]float32{}, a...)
	a[piece+1], b[piece+2] = 3, 4
	r, err := Tensors(f32s(tensor.Shape{int64(n)}, a...), f32s(tensor.Shape{int64(n)}, b...))
	if err != nil || r.Values != int64(n) || r.Differing != 2 || r.MaxError != 4 || !cmp.Equal(r.MaxAt, []int64{piece + 2}) {
		t.Errorf("%+v, %v", r, err)
	}
	if want := 5 / math.Sqrt(17); math.Abs(float64(r.Relative)-want) > 1e-15 {
		t.Errorf("relative %g, want %g", r.Relative, want)
	}
}
