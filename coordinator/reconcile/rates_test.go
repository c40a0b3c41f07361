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
