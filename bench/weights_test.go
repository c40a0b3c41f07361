// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// TestFillInPieces: a checkpoint is the same however it is cut for writing.
func TestFillInPieces(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F8E4M3} {
		e := safetensors.Entry{Name: "x.weight", DType: d, Shape: tensor.Shape{10, 10}}
		whole, cut := make([]byte, 100*d.Size()), make([]byte, 100*d.Size())
		fill(whole, e, 1, 0)
		for _, at := range []int{0, 3, 8, 21} {
			fill(cut[at*d.Size():], e, 1, uint64(at))
		}
		if !bytes.Equal(whole, cut) {
			t.Errorf("%v: pieces differ from the whole", d)
		}
	}
}

// TestFloat8IsFinite: no code is a NaN, and scales stay near 1.
func TestFloat8IsFinite(t *testing.T) {
	for name, want := range map[string]struct {
		shape    tensor.Shape
		from, to float64
	}{
		"a.weight":           {tensor.Shape{4, 3072}, -1. / 16, 1. / 16},
		"a.bias":             {tensor.Shape{4096}, -1. / 8, 1. / 8},
		"query_norm.scale":   {tensor.Shape{128}, 7. / 8, 9. / 8},
		"wide.linear.weight": {tensor.Shape{1, 12288}, -1. / 32, 1. / 32},
	} {
		n, err := want.shape.Elements()
		if err != nil {
			t.Fatal(err)
		}
		raw, values := make([]byte, n), make([]float32, n)
		fill(raw, safetensors.Entry{Name: name, DType: tensor.F8E4M3, Shape: want.shape}, 1, 0)
		if err := tensor.ToF32(values, raw, tensor.F8E4M3); err != nil {
			t.Fatal(err)
		}
		least, most := float64(slices.Min(values)), float64(slices.Max(values))
		if !(least >= want.from && most <= want.to && least < most) {
			t.Errorf("%s: values from %g to %g, want them within %g to %g", name, least, most, want.from, want.to)
		}
	}
}

// TestWriteCheckpoint: what is written is a model that distorch recognises.
func TestWriteCheckpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.safetensors")
	m := fluxOf(256, 2, 1, 2)
	entries := entriesOf(m.Build(arch.Options{}), func(string) tensor.DType { return tensor.F8E4M3 })
	if err := writeCheckpoint(path, entries); err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := map[string]arch.Tensor{}
	for _, x := range f.Tensors() {
		found[x.Name] = arch.Tensor{Shape: x.Shape, DType: x.DType}
	}
	r, err := arch.Recognise(found, f.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	if r.Variant != "FLUX.1 dev" || len(found) != len(entries) {
		t.Errorf("recognised %q with %d tensors, wrote %d", r.Variant, len(found), len(entries))
	}
}

// TestRealHasFluxDevsTensors: 780, as published.
func TestRealHasFluxDevsTensors(t *testing.T) {
	m := fluxOf(blockHidden, blockHeads, 19, 38).Build(arch.Options{})
	if n := len(entriesOf(m, func(string) tensor.DType { return tensor.F8E4M3 })); n != realTensors {
		t.Errorf("%d tensors, want %d", n, realTensors)
	}
}

func TestAlternate(t *testing.T) {
	var order strings.Builder
	turn := func(name string, d time.Duration) side {
		return func(context.Context) (time.Duration, error) {
			order.WriteString(name)
			return d, nil
		}
	}
	times, err := alternate(t.Context(), 3, turn("a", 2), turn("b", 3))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := order.String(), "baabbaab"; got != want {
		t.Errorf("order %s, want %s: first to warm, then by turns", got, want)
	}
	if got := medianRatio(times[0], times[1]); len(times[0]) != 3 || got != 1.5 {
		t.Errorf("%d rounds, a is %g times as fast; want 3 and 1.5", len(times[0]), got)
	}
}

func TestRelative(t *testing.T) {
	if got := relative([]float32{1, 2}, []float32{1, 4}); got != 0.5 {
		t.Errorf("got %g, want 0.5", got)
	}
	if got := relative([]float32{float32(math.NaN())}, []float32{1}); !math.IsInf(got, 1) {
		t.Errorf("a NaN gives %g, want +Inf", got)
	}
}
