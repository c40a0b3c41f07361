// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"math"
	"testing"
)

func TestRatesFollowTheSize(t *testing.T) {
	d := Device{Rates: []Rates{
		{DType: "bf16", Elements: 1 << 20, Linear: 400, Attention: 100, Expand: 10, Elementwise: 10},
		{DType: "bf16", Elements: 1 << 16, Linear: 100, Attention: 100, Expand: 20, Elementwise: 10},
		{DType: "f32", Elements: 1 << 16, Linear: 7},
	}}
	for _, c := range []struct {
		name           string
		dtype          string
		elements       float64
		linear, expand float64
	}{
		{"below", "bf16", 1 << 10, 100, 20},
		{"lower point", "bf16", 1 << 16, 100, 20},
		{"half way in powers", "bf16", 1 << 18, 200, 10 * math.Sqrt2},
		{"upper point", "bf16", 1 << 20, 400, 10},
		{"above", "bf16", 1 << 30, 400, 10},
		{"one point", "f32", 1 << 30, 7, 0},
	} {
		r, ok := d.rates(c.dtype, c.elements)
		if !ok || math.Abs(r.Linear-c.linear) > 1e-9*c.linear || math.Abs(r.Expand-c.expand) > 1e-9*c.expand || c.dtype == "bf16" && r.Attention != 100 {
			t.Errorf("%s: %+v, %v; want linear %g, expand %g", c.name, r, ok, c.linear, c.expand)
		}
	}
	if _, ok := d.rates("f16", 1); ok {
		t.Error("a dtype that was not measured has rates")
	}
}

func TestCorrection(t *testing.T) {
	d := Device{Feedback: []Feedback{
		{DType: "bf16", Elements: 1 << 20, Ratio: 1.3}, {DType: "bf16", Elements: 1 << 16, Ratio: 2}, {DType: "bf16", Elements: 1 << 10, Ratio: 1e9},
		{DType: "f32", Elements: 1 << 20, Ratio: 0.8}, {DType: "bf16", Ratio: 3},
	}}
	for _, c := range []struct {
		dtype    string
		elements float64
		want     float64
	}{
		{"bf16", 1 << 20, 1.3}, {"bf16", 1 << 22, 1.3}, {"bf16", 1<<22 + 1, 1}, {"bf16", 1 << 17, 2}, {"bf16", 1 << 18, 2},
		{"bf16", 1 << 10, 1}, {"f32", 1 << 20, 0.8}, {"f16", 1 << 20, 1}, {"bf16", 0, 1}, {"bf16", math.NaN(), 1},
	} {
		if got := d.correction(c.dtype, c.elements); got != c.want {
			t.Errorf("%s at %g elements: %g, want %g", c.dtype, c.elements, got, c.want)
		}
	}
}

func TestUncertaintyIsTheLarger(t *testing.T) {
	d := Device{Rates: []Rates{
		{DType: "f32", Elements: 4, Tokens: 2, Linear: 1, Uncertainty: Uncertainty{Linear: 0.1, Expand: 0.2}},
		{DType: "f32", Elements: 64, Tokens: 8, Linear: 1, Uncertainty: Uncertainty{Linear: 0.3, Attention: 0.4}},
	}}
	r, ok := d.rates("f32", 16)
	if want := (Uncertainty{Linear: 0.3, Attention: 0.4, Expand: 0.2}); !ok || r.Uncertainty != want || math.Abs(r.Tokens-4) > 1e-9 {
		t.Errorf("%+v", r)
	}
}

// What a node learned scales its forecast and nothing else, and the plan says
// by how much.
func TestPlansAreCorrected(t *testing.T) {
	c := newCluster()
	c.node("a", 64e9)
	spec := Spec{Name: "d", ID: "1", Model: "id-flux-bf16", Workload: Workload{Dims: map[string]int64{"width": 1024, "height": 1024, "text_tokens": 512, "batch": 1}}}
	before := Propose(c.snapshot, spec)
	if before.Err != nil {
		t.Fatal(before.Err)
	}
	d := c.find("a").device(cpu)
	d.Calibration = "0123"
	d.Feedback = []Feedback{{DType: "bf16", Elements: (4096 + 512) * 3072, Ratio: 1.25}}
	after := Propose(c.snapshot, spec)
	if after.Err != nil {
		t.Fatal(after.Err)
	}
	x, y := before.Plan.Stages[0].Forecast, after.Plan.Stages[0].Forecast
	if x.Correction != 1 || y.Correction != 1.25 || y.Calibration != "0123" || math.Abs(y.Compute/x.Compute-1.25) > 1e-9 || y.Hop != x.Hop {
		t.Errorf("before %+v, after %+v", x, y)
	}
}
