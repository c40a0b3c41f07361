// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"math"
	"testing"
)

func TestToleranceByPrefix(t *testing.T) {
	var c goldenCase
	if err := c.parse([]byte(`{"tolerance": {"out": 1, "out.f32": 2, "out.bf16": 3, "tap": 4}}`)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"out": 1, "out.other": 1, "out.f32": 2, "out.f32.x": 2, "out.f32_rounded_guidance": 1, "tap.double.0.img": 4, "tap_bf16.vec": 3, "tape": 0, "in.x": 0,
	} {
		if got, ok := c.tolerance(name); got != want || ok != (want != 0) {
			t.Errorf("%s: %g, %v; want %g", name, got, ok, want)
		}
	}
}

func TestRelative(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		got, want []float32
		off       float64
	}{
		{[]float32{1, 2}, []float32{1, 4}, 0.5},
		{[]float32{0.25}, []float32{0}, 0.25},
		{[]float32{1}, []float32{1, 2}, math.Inf(1)},
		{[]float32{nan, 1}, []float32{1, 1}, math.Inf(1)},
		{[]float32{inf}, []float32{inf}, math.Inf(1)},
		{nil, nil, 0},
	} {
		if off := relative(c.got, c.want); off != c.off {
			t.Errorf("%v against %v: %g, want %g", c.got, c.want, off, c.off)
		}
	}
}

func FuzzCase(f *testing.F) {
	f.Add([]byte(`{"name": "flux/dev", "model": "model.safetensors", "architecture": "flux", "tolerance": {"out": 1e-5, "tap": 1e-5}}`))
	f.Add([]byte(`{"name": "flux/schedules", "model": null, "tolerance": {"sigmas": 1e-6}, "shift": {"dev": 1.15}}`))
	f.Add([]byte(`{"name": "tables", "tolerance": "in words"}`))
	f.Add([]byte(`{"tolerance": {"out": "x"}}`))
	f.Add([]byte(`{"options": {"a": [1, {"b": 2}]}, "lora": "x", "tolerance": {}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var c goldenCase
		if c.parse(text) != nil {
			return
		}
		if tol, ok := c.tolerance("out"); !ok && tol != 0 {
			t.Errorf("tolerance %g of an output that has none", tol)
		}
		c.levels("dev.simple.20") //nolint:errcheck // must not panic
	})
}
