// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import "testing"

// A row of FLUX.1's hidden size with a LoRA of rank 16: what merging repeats.
func BenchmarkAddRows(b *testing.B) {
	const k, rank = 3072, 16
	to, rows, by := make([]float32, k), make([]float32, rank*k), make([]float32, rank)
	b.SetBytes(4 * k)
	for b.Loop() {
		addRows(to, rows, by)
	}
}

func TestAddRows(t *testing.T) {
	for rank := range 10 {
		const k = 7
		rows, by := make([]float32, rank*k), make([]float32, rank)
		for i := range rows {
			rows[i] = float32(i%11) - 4.7
		}
		for i := range by {
			by[i] = float32(i) / 3
		}
		got, want := make([]float32, k), make([]float32, k)
		addRows(got, rows, by)
		for r, x := range by {
			addTimes(want, rows[r*k:(r+1)*k], x)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("rank %d: element %d is %g, want %g", rank, i, got[i], want[i])
			}
		}
	}
}
