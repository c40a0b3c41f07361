// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"math"
	"testing"

	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// Blocks in another node's RAM come compressed where their link is slower than
// decoding, and the forecast says so.
func TestCompress(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		own, other, decode   float64
		dtype                tensor.DType
		kind                 placement.TierKind
		stream, stall        float64
		compressed           bool
		streamLeft, lessStep float64
	}{
		{"100 Mbit/s", 12.5e6, 125e6, 1e9, tensor.BF16, placement.TierRemote, 80, 78, true, 53.34, 26.66},
		{"hidden already", 12.5e6, 125e6, 1e9, tensor.BF16, placement.TierRemote, 80, 2, true, 53.34, 2},
		{"fast link", 1.25e9, 1.25e9, 1e9, tensor.BF16, placement.TierRemote, 0.8, 0.5, false, 0.8, 0},
		{"decoding not measured", 12.5e6, 125e6, 0, tensor.BF16, placement.TierRemote, 80, 78, false, 80, 0},
		{"codes as good as random", 12.5e6, 125e6, 1e9, tensor.Q4_K, placement.TierRemote, 80, 78, false, 80, 0},
		{"own RAM", 12.5e6, 125e6, 1e9, tensor.BF16, placement.TierRAM, 80, 78, false, 80, 0},
	} {
		w := &world{node: map[string]*Node{
			"a": {ID: "a", Decode: tc.decode, Link: &Link{BytesPerSecond: tc.own}}, "b": {ID: "b", Link: &Link{BytesPerSecond: tc.other}},
		}}
		s := &Stage{Node: "a", Tiers: []Tier{{Kind: tc.kind, Node: "b", Bytes: 1e9}}, Forecast: StageForecast{Stream: tc.stream, Stall: tc.stall}}
		sooner := w.compress(s, tc.dtype)
		if s.Tiers[0].Compressed != tc.compressed || math.Abs(s.Forecast.Stream-tc.streamLeft) > 0.02 || math.Abs(sooner-tc.lessStep) > 0.02 ||
			math.Abs(s.Forecast.Stall-(tc.stall-sooner)) > 1e-9 {
			t.Errorf("%s: compressed %v, %.2f s sooner, %+v", tc.name, s.Tiers[0].Compressed, sooner, s.Forecast)
		}
	}
	p := &Plan{Forecast: Forecast{Step: 90, Pair: 170, Expand: 78}, Certificate: Certificate{LowerBound: 88}}
	p.hasten(26)
	if p.Forecast.Step != 64 || p.Forecast.Pair != 144 || p.Forecast.Expand != 52 || p.Certificate.LowerBound != 62 {
		t.Errorf("%+v", p)
	}
}
