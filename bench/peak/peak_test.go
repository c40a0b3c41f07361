// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package peak

import (
	"testing"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

func TestF32(t *testing.T) {
	for _, set := range isa.Supported() {
		want := 0.0
		if l, has := loopOf(set); has {
			want = 2 * rounds * l.flops
		}
		if flops := F32(set, 2); flops != want {
			t.Errorf("%v: %g FLOP, want %g", set, flops, want)
		}
	}
}

func BenchmarkF32(b *testing.B) {
	for _, set := range isa.Supported() {
		b.Run(set.String(), func(b *testing.B) {
			flops := 0.0
			for b.Loop() {
				flops += F32(set, 2)
			}
			b.ReportMetric(flops/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
