// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/sampling"
)

const files = "../../demo/"

func open(t *testing.T, name string) *safetensors.File {
	t.Helper()
	f, err := safetensors.Open(files + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func words(t *testing.T) *Vocabulary {
	t.Helper()
	v, err := Words()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestEmbeddedWordsAreTheDemos(t *testing.T) {
	raw, err := os.ReadFile(files + "words.safetensors")
	if err != nil || !bytes.Equal(raw, embedded) {
		t.Errorf("demo/words.safetensors differs from the embedded copy: %v", err)
	}
}

func TestEncode(t *testing.T) {
	v, f := words(t), open(t, "words.safetensors")
	word, _, _ := f.Float32s("word")
	position, _, _ := f.Float32s("position")
	c, err := v.Encode("Large red  circle on blue")
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range []int{16, 0, 8, 14, 2} { // large red circle on blue
		for j := range Width {
			if got, want := c.Context[i*Width+j], word[w*Width+j]+position[i*Width+j]; got != want {
				t.Fatalf("context[%d,%d] = %g, want %g", i, j, got, want)
			}
		}
	}
	for j := range Width {
		sum := 0.0
		for i := range Tokens {
			sum += float64(c.Context[i*Width+j])
		}
		if math.Abs(sum/5-float64(c.Y[j])) > 1e-6 {
			t.Fatalf("y[%d] = %g, want %g", j, c.Y[j], sum/5)
		}
	}
	u := v.Unconditional()
	if got, want := u.Context[2*Width+1], word[17*Width+1]+position[2*Width+1]; got != want {
		t.Errorf("unconditional %g, want %g", got, want)
	}
	for _, p := range SheetPrompts() {
		if _, err := v.Encode(p); err != nil {
			t.Error(err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for prompt, parts := range map[string][]string{
		"large red circel on blue":      {`"circel"`, `"circle"`, "diamond on small large"},
		"large read circle on blue":     {`"read"`, `"red"`},
		"large red circle":              {"3 words", "large red circle on blue"},
		"":                              {"0 words"},
		"a photo of a cat, high detail": {`"a"`},
		strings.Repeat("x", 100_000):    {`did you mean`},
	} {
		_, err := words(t).Encode(prompt)
		if err == nil {
			t.Errorf("%.40q accepted", prompt)
			continue
		}
		if len(err.Error()) > 500 {
			t.Errorf("%.40q: an error of %d bytes", prompt, len(err.Error()))
		}
		for _, p := range parts {
			if !strings.Contains(err.Error(), p) {
				t.Errorf("%.200q lacks %q", err, p)
			}
		}
	}
}

func TestReferenceNoiseIsOurs(t *testing.T) {
	f := open(t, "reference.safetensors")
	checked := 0
	for key, text := range f.Metadata() {
		var seed uint64
		for part := range strings.SplitSeq(text, "; ") {
			if s, ok := strings.CutPrefix(part, "seed "); ok {
				seed, _ = strconv.ParseUint(s, 10, 64)
			}
		}
		if _, ok := f.Lookup(key + ".noise"); !ok {
			continue
		}
		checked++
		want, shape, err := f.Float32s(key + ".noise")
		if err != nil || fmt.Sprint(shape) != "[1,16,16,16]" {
			t.Fatal(shape, err)
		}
		got := sampling.Randn(seed, len(want))
		diff, top := 0.0, 0.0
		for i := range want {
			diff = max(diff, math.Abs(float64(got[i]-want[i])))
			top = max(top, math.Abs(float64(want[i])))
		}
		if !(diff/top <= 5e-7) {
			t.Errorf("%s: seed %d is off by %.2g", key, seed, diff/top)
		}
	}
	if checked != 3 {
		t.Errorf("%d of 3 noises checked", checked)
	}
}

// The first reference latent is the picture a.png and the sheet's first cell.
func TestReferenceLatentIsThePicture(t *testing.T) {
	latent, _, err := open(t, "reference.safetensors").Float32s("a.latent")
	if err != nil {
		t.Fatal(err)
	}
	small, err := Decode(latent, DefaultSide, DefaultSide)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := EncodePNG(&out, Enlarge(small, Zoom)); err != nil {
		t.Fatal(err)
	}
	got, err := png.Decode(&out)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, picture(t, "a.png"))
	sheet, err := Sheet([]*image.NRGBA{Enlarge(small, 4)}, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	same(t, sheet.SubImage(image.Rect(0, 0, 134, 134)), picture(t, "sheet.png").(*image.RGBA).SubImage(image.Rect(0, 0, 134, 134)))
}

func picture(t *testing.T, name string) image.Image {
	t.Helper()
	f, err := os.Open(files + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func same(t *testing.T, got, want image.Image) {
	t.Helper()
	if got.Bounds() != want.Bounds() {
		t.Fatalf("picture is %v, want %v", got.Bounds(), want.Bounds())
	}
	b := got.Bounds()
	differ := 0
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			g, w := color.NRGBAModel.Convert(got.At(x, y)), color.NRGBAModel.Convert(want.At(x, y))
			if g != w {
				differ++
			}
		}
	}
	if differ > 0 {
		t.Errorf("%d of %d pixels differ", differ, b.Dx()*b.Dy())
	}
}

func TestPictureRefuses(t *testing.T) {
	if _, err := Decode(make([]float32, 100), 16, 16); err == nil {
		t.Error("a latent of the wrong length was accepted")
	}
	if _, err := Decode(nil, 1<<40, 1<<40); err == nil {
		t.Error("an enormous latent was accepted")
	}
	if _, err := Sheet(nil, 3, 8); err == nil {
		t.Error("an empty sheet was made")
	}
	a, b := image.NewNRGBA(image.Rect(0, 0, 2, 2)), image.NewNRGBA(image.Rect(0, 0, 3, 2))
	if _, err := Sheet([]*image.NRGBA{a, b}, 2, 2); err == nil {
		t.Error("a sheet of unlike pictures was made")
	}
	if level(float32(math.NaN())) != 0 || level(7) != 255 || level(-7) != 0 {
		t.Error("values outside [-1,1] are not clamped")
	}
}
