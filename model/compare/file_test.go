// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"bytes"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

func encoded(t testing.TB, tensors ...safetensors.Data) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := safetensors.Encode(&b, tensors, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func one(name string, values ...float32) safetensors.Data {
	return safetensors.FromFloat32s(name, tensor.Shape{int64(len(values))}, values)
}

func asPNG(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func opened(t testing.TB, raw []byte) *File {
	t.Helper()
	f, err := Open(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// pixels draws an image of any form, x + 20 y in red or grey.
func pixels[I interface {
	image.Image
	Set(x, y int, c color.Color)
}](img I, alpha uint8) I {
	b := img.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			v := uint8(x + 20*y)
			img.Set(x, y, color.NRGBA{v, v, v, alpha})
		}
	}
	return img
}

func TestPictures(t *testing.T) {
	r := image.Rect(0, 0, 12, 11)
	grey, rgb := pixels(image.NewGray(r), 255), pixels(image.NewRGBA(r), 255)
	brighter := pixels(image.NewRGBA(r), 255)
	brighter.Set(3, 2, color.NRGBA{43, 43 + 51, 43, 255})
	half := pixels(image.NewNRGBA(r), 128)
	half.SetNRGBA(0, 0, color.NRGBA{7, 9, 200, 0}) // colours behind alpha 0 count
	for name, tc := range map[string]struct {
		a, b          []byte
		shape         tensor.Shape
		dtype         tensor.DType
		differing     int64
		maxError      Float
		psnr          float64
		notes, noSSIM string
	}{
		"itself":    {asPNG(t, rgb), asPNG(t, rgb), tensor.Shape{3, 11, 12}, tensor.U8, 0, 0, math.Inf(1), "", ""},
		"one green": {asPNG(t, rgb), asPNG(t, brighter), tensor.Shape{3, 11, 12}, tensor.U8, 1, 51, 20 * math.Log10(255/(51/math.Sqrt(396))), "", ""},
		"grey and colours": {
			asPNG(t, grey), asPNG(t, rgb), tensor.Shape{3, 11, 12}, tensor.U8, 0, 0, math.Inf(1),
			"A is grey, 8 bit and B RGB, 8 bit; both are compared as RGB, 8 bit", "",
		},
		"eight and sixteen bits": {
			asPNG(t, grey), asPNG(t, pixels(image.NewGray16(r), 255)), tensor.Shape{1, 11, 12}, tensor.U16, 0, 0, math.Inf(1),
			"A is grey, 8 bit and B grey, 16 bit; both are compared as grey, 16 bit", "",
		},
		"alpha":    {asPNG(t, half), asPNG(t, half), tensor.Shape{4, 11, 12}, tensor.U8, 0, 0, math.Inf(1), "", ""},
		"a corner": {asPNG(t, rgb.SubImage(image.Rect(0, 0, 4, 4))), asPNG(t, grey.SubImage(image.Rect(0, 0, 4, 4))), tensor.Shape{3, 4, 4}, tensor.U8, 0, 0, math.Inf(1), "A is RGB, 8 bit and B grey, 8 bit; both are compared as RGB, 8 bit", "4x4 is smaller than its window of 11x11"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Match(opened(t, tc.a), opened(t, tc.b), nil)
			if err != nil || len(m.Pairs) != 1 {
				t.Fatalf("%d pairs, %v", len(m.Pairs), err)
			}
			p := m.Pairs[0]
			got, err := Tensors(p.A, p.B)
			if err != nil {
				t.Fatal(err)
			}
			if !p.A.Shape.Equal(tc.shape) || p.A.DType != tc.dtype || strings.Join(m.Notes, ";") != tc.notes {
				t.Errorf("%v %v, notes %q", p.A.Shape, p.A.DType, m.Notes)
			}
			if got.Differing != tc.differing || got.MaxError != tc.maxError || !cmp.Equal(got.PSNR, Float(tc.psnr), near(1e-12)) || got.NoSSIM != tc.noSSIM {
				t.Errorf("%+v", got)
			}
			if tc.differing == 0 && tc.noSSIM == "" && got.SSIM != 1 {
				t.Errorf("SSIM %g of equal pictures", got.SSIM)
			}
		})
	}
}

func TestAlphaKeepsColours(t *testing.T) {
	img := image.NewNRGBA(image.Rect(0, 0, 1, 1))
	img.SetNRGBA(0, 0, color.NRGBA{7, 9, 200, 0})
	f := opened(t, asPNG(t, img))
	got := make([]byte, 4)
	if err := f.Picture.tensor(f.Picture.form).Read(got, 0); err != nil || !bytes.Equal(got, []byte{7, 9, 200, 0}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestJPEG(t *testing.T) {
	var b bytes.Buffer
	if err := jpeg.Encode(&b, pixels(image.NewRGBA(image.Rect(0, 0, 12, 11)), 255), nil); err != nil {
		t.Fatal(err)
	}
	m, err := Match(opened(t, b.Bytes()), opened(t, b.Bytes()), nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Tensors(m.Pairs[0].A, m.Pairs[0].B)
	if err != nil || !r.EqualBits || r.Values != 3*12*11 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestMatch(t *testing.T) {
	version := safetensors.FromFloat32s("latent_format_version_0", tensor.Shape{0}, nil)
	half := safetensors.Data{Entry: safetensors.Entry{Name: "latent_tensor", DType: tensor.BF16, Shape: tensor.Shape{1}}, Bytes: []byte{0x80, 0x3f}}
	type want struct {
		Pairs, OnlyA, OnlyB, Notes []string
	}
	for name, tc := range map[string]struct {
		a, b []safetensors.Data
		only []string
		want want
		err  string
	}{
		"two of run's":         {a: []safetensors.Data{one("latent", 1), one("latent_tensor", 2), version}, b: []safetensors.Data{one("latent", 1), one("latent_tensor", 2), version}, want: want{Pairs: []string{"latent"}}},
		"one is ComfyUI's":     {a: []safetensors.Data{one("latent", 1), one("latent_tensor", 2), version}, b: []safetensors.Data{one("latent_tensor", 2), version}, want: want{Pairs: []string{"latent_tensor"}}},
		"both are ComfyUI's":   {a: []safetensors.Data{one("latent_tensor", 1), version}, b: []safetensors.Data{one("latent_tensor", 2), version}, want: want{Pairs: []string{"latent_tensor"}}},
		"another dtype":        {a: []safetensors.Data{one("latent_tensor", 1)}, b: []safetensors.Data{half}, want: want{Pairs: []string{"latent_tensor"}, Notes: []string{"latent_tensor is F32 in A and BF16 in B; their values are compared"}}},
		"named":                {a: []safetensors.Data{one("latent", 1), one("latent_tensor", 2)}, b: []safetensors.Data{one("latent", 1), one("latent_tensor", 2)}, only: []string{"latent_tensor"}, want: want{Pairs: []string{"latent_tensor"}}},
		"steps in their order": {a: []safetensors.Data{one("step.10", 1), one("step.9", 1), one("a", 1)}, b: []safetensors.Data{one("step.9", 1), one("step.10", 1), one("b", 1)}, want: want{Pairs: []string{"step.9", "step.10"}, OnlyA: []string{"a"}, OnlyB: []string{"b"}}},
		"nothing in common":    {a: []safetensors.Data{one("a", 1)}, b: []safetensors.Data{one("b", 1)}, err: "the files have no tensor of the same name"},
		"named and in A alone": {a: []safetensors.Data{one("a", 1)}, b: []safetensors.Data{one("b", 1)}, only: []string{"a"}, err: `side B has no tensor "a"; it has "b"`},
		"named and in B alone": {a: []safetensors.Data{one("a", 1)}, b: []safetensors.Data{one("b", 1)}, only: []string{"b"}, err: `side A has no tensor "b"; it has "a"`},
		"named and nowhere":    {a: []safetensors.Data{one("a", 1)}, b: []safetensors.Data{one("b", 1)}, only: []string{"c"}, err: `neither file has a tensor "c"; A has "a"`},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Match(opened(t, encoded(t, tc.a...)), opened(t, encoded(t, tc.b...)), tc.only)
			if text := errorText(err); !strings.Contains(text, tc.err) || (tc.err == "") != (err == nil) {
				t.Fatalf("error %q, want %q", text, tc.err)
			}
			if err != nil {
				return
			}
			got := want{OnlyA: m.OnlyA, OnlyB: m.OnlyB, Notes: m.Notes}
			for _, p := range m.Pairs {
				got.Pairs = append(got.Pairs, p.A.Name)
				if _, err := Tensors(p.A, p.B); err != nil {
					t.Error(err)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestOpenRefuses(t *testing.T) {
	picture := asPNG(t, image.NewGray(image.Rect(0, 0, 9, 8)))
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"empty":             {nil, "file is empty"},
		"text":              {[]byte("these are words, not numbers"), "neither PNG nor JPEG, and not a valid safetensors file"},
		"gguf":              {[]byte("GGUF\x03\x00\x00\x00"), "a GGUF file; safetensors, PNG and JPEG are taken"},
		"webp":              {[]byte("RIFF\x00\x00\x00\x00WEBP"), "a RIFF file"},
		"a torn PNG":        {picture[:len(picture)-20], "not a valid PNG picture"},
		"a PNG's beginning": {picture[:8], "not a valid PNG picture"},
		"a JPEG's":          {[]byte("\xff\xd8\xff\xe0"), "not a valid JPEG picture"},
		"a torn latent":     {encoded(t, one("latent_tensor", 1, 2))[:40], "file ends inside the header"},
	} {
		if _, err := Open(bytes.NewReader(tc.raw)); !strings.Contains(errorText(err), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if _, err := open(bytes.NewReader(picture), 71); !strings.Contains(errorText(err), "PNG picture of 9x8 pixels; 1 to 71 pixels are taken") {
		t.Errorf("over the limit: %v", err)
	}
	a, b := opened(t, picture), opened(t, encoded(t, one("a", 1)))
	for _, err := range []error{second(Match(a, b, nil)), second(Match(b, a, nil)), second(Match(a, a, []string{"x"}))} {
		if err == nil {
			t.Error("a picture and tensors, or tensors of a picture: accepted")
		}
	}
}

func second(_ Matched, err error) error { return err }

// FuzzOpen: whatever two files hold, they are compared or refused.
func FuzzOpen(f *testing.F) {
	picture := asPNG(f, pixels(image.NewNRGBA(image.Rect(0, 0, 12, 11)), 200))
	latent := encoded(f, safetensors.FromFloat32s("latent_tensor", tensor.Shape{1, 1, 11, 11}, make([]float32, 121)))
	f.Add(picture, picture)
	f.Add(latent, latent)
	f.Add(latent, picture)
	f.Add([]byte("\xff\xd8\xff\xe0\x00\x10JFIF"), []byte("GGUF"))
	f.Fuzz(func(t *testing.T, rawA, rawB []byte) {
		a, err := open(bytes.NewReader(rawA), 1<<12)
		if err != nil {
			return
		}
		b, err := open(bytes.NewReader(rawB), 1<<12)
		if err != nil {
			return
		}
		m, err := Match(a, b, nil)
		if err != nil {
			return
		}
		for _, p := range m.Pairs {
			r, err := Tensors(p.A, p.B)
			if err == nil && (r.Differing > r.Values || r.EqualBits && !r.Within(0)) {
				t.Fatalf("%+v", r)
			}
		}
	})
}
