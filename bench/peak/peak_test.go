// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package peak

import (
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

func TestF32(t *testing.T) {
	for _, set := range isa.Supported() {
		_, has := loopOf(set)
		if rate := F32(set, 2); (rate > 0) != has || rate > 1e14 {
			t.Errorf("%v: %g FLOP/s, has a loop: %v", set, rate, has)
		}
	}
}

func BenchmarkF32(b *testing.B) {
	for _, set := range isa.Supported() {
		b.Run(set.String(), func(b *testing.B) {
			best := 0.0
			for b.Loop() {
				best = max(best, F32(set, 2))
			}
			b.ReportMetric(best/1e9, "GFLOP/s")
		})
	}
}
