// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/distorch/distorch/model/tensor"
)

// bruteSSIM is the formula written out, window by window in two dimensions,
// with variances about the mean.
func bruteSSIM(a, b []float32, planes, h, w int, peak float64) float64 {
	var g [11][11]float64
	total := 0.0
	for y := range g {
		for x := range g[y] {
			g[y][x] = math.Exp(-float64((y-5)*(y-5)+(x-5)*(x-5)) / 4.5)
			total += g[y][x]
		}
	}
	c1, c2 := 0.0001*peak*peak, 0.0009*peak*peak
	sum, n := 0.0, 0
	for p := range planes {
		for y := range h - 10 {
			for x := range w - 10 {
				each := func(f func(weight, va, vb float64)) {
					for i := range 11 {
						for j := range 11 {
							at := (p*h+y+i)*w + x + j
							f(g[i][j]/total, float64(a[at]), float64(b[at]))
						}
					}
				}
				var ma, mb, sa, sb, sab float64
				each(func(weight, va, vb float64) { ma += weight * va; mb += weight * vb })
				each(func(weight, va, vb float64) {
					sa += weight * (va - ma) * (va - ma)
					sb += weight * (vb - mb) * (vb - mb)
					sab += weight * (va - ma) * (vb - mb)
				})
				sum += (2*ma*mb + c1) * (2*sab + c2) / ((ma*ma + mb*mb + c1) * (sa + sb + c2))
				n++
			}
		}
	}
	return sum / float64(n)
}

func TestSSIMAgainstTheFormula(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, w := rapid.IntRange(11, 16).Draw(t, "h"), rapid.IntRange(11, 16).Draw(t, "w")
		n := 2 * h * w
		a := rapid.SliceOfN(rapid.Float32Range(-3, 3), n, n).Draw(t, "a")
		b := rapid.SliceOfN(rapid.Float32Range(-3, 3), n, n).Draw(t, "b")
		shape := tensor.Shape{1, 2, int64(h), int64(w)}
		r, err := Tensors(f32s(shape, a...), f32s(shape, b...))
		if err != nil {
			t.Fatal(err)
		}
		if r.MaxError == 0 {
			return
		}
		want := bruteSSIM(a, b, 2, h, w, float64(r.Peak))
		if math.Abs(float64(r.SSIM)-want) > 1e-9 || r.SSIM > 1 {
			t.Fatalf("SSIM %v, by the formula %v", r.SSIM, want)
		}
	})
}

// Two constant planes have no variance: what is left of the formula is
// (2ab + c1) / (a² + b² + c1), with c1 = (0.01·1)² as the range is 1.
func TestSSIMOfConstants(t *testing.T) {
	shape := tensor.Shape{1, 1, 11, 12}
	a, b := make([]float32, 132), make([]float32, 132)
	for i := range a {
		a[i], b[i] = 1, 2
	}
	r, err := Tensors(f32s(shape, a...), f32s(shape, b...))
	want := (4 + 1e-4) / (5 + 1e-4)
	if err != nil || math.Abs(float64(r.SSIM)-want) > 1e-12 {
		t.Errorf("SSIM %v, %v; want %v", r.SSIM, err, want)
	}
}

// One window with one value off at its middle, worked out by hand: the middle
// tap of the plane is g = (1/Σexp(-d²/4.5))², so μ = g and σ² = g - g².
func TestSSIMOfOneWindow(t *testing.T) {
	shape := tensor.Shape{1, 1, 11, 11}
	a, b := make([]float32, 121), make([]float32, 121)
	a[60] = 1
	r, err := Tensors(f32s(shape, a...), f32s(shape, b...))
	const g = 0.07076223776394 // 1/Σ is 0.2660117249

	c1, c2 := 1e-4, 9e-4
	want := c1 * c2 / ((g*g + c1) * (g - g*g + c2))
	if err != nil || math.Abs(float64(r.SSIM)-want) > 1e-9 {
		t.Errorf("SSIM %v, %v; want %v", r.SSIM, err, want)
	}
}

// The numbers are those of scikit-image 0.26: structural_similarity with
// gaussian_weights, sigma 1.5 and use_sample_covariance False, and
// peak_signal_noise_ratio, both with data_range 255.
func TestAgainstScikitImage(t *testing.T) {
	a, b := make([]byte, 3*19*23), make([]byte, 3*19*23)
	for i := range a {
		a[i] = byte(i * i % 251)
		b[i] = byte(i*i%251 + i%7*5)
	}
	picture := func(v []byte) Tensor {
		return Tensor{Name: "p", DType: tensor.U8, Shape: tensor.Shape{3, 19, 23}, Planes: true, Peak: 255, Read: memory(v)}
	}
	r, err := Tensors(picture(a), picture(b))
	if err != nil || math.Abs(float64(r.SSIM)-0.7800022928436042) > 1e-12 || math.Abs(float64(r.PSNR)-14.46315724821016) > 1e-12 {
		t.Errorf("SSIM %.17g, PSNR %.17g, %v", r.SSIM, r.PSNR, err)
	}
}

func TestNoSSIM(t *testing.T) {
	big := make([]float32, 121)
	odd := append([]float32{}, big...)
	odd[3] = nan
	for name, tc := range map[string]struct {
		a, b Tensor
		want string
	}{
		"small":      {f32s(tensor.Shape{1, 1, 10, 12}, make([]float32, 120)...), f32s(tensor.Shape{1, 1, 10, 12}, make([]float32, 120)...), "12x10 is smaller than its window of 11x11"},
		"not finite": {f32s(tensor.Shape{1, 1, 11, 11}, odd...), f32s(tensor.Shape{1, 1, 11, 11}, big...), "values that are not finite"},
		"empty":      {f32s(tensor.Shape{1, 0, 11, 11}), f32s(tensor.Shape{1, 0, 11, 11}), "no values"},
		"flat":       {f32s(tensor.Shape{1}, 1), f32s(tensor.Shape{1}, 1), "not a picture or a latent"},
	} {
		r, err := Tensors(tc.a, tc.b)
		if err != nil || r.NoSSIM != tc.want || !math.IsNaN(float64(r.SSIM)) {
			t.Errorf("%s: %v, %q, %v", name, r.SSIM, r.NoSSIM, err)
		}
	}
}
