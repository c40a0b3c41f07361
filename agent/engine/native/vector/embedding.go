// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import "github.com/distorch/distorch/model/numeric"

// CosSin writes the embedding of timesteps: row i of dst has
// cos(args) in its first len(freqs) elements and sin(args) in the next, with
// args[k] = (factor·t[i])·freqs[k], both products rounded to f32, the cosines
// and sines computed in float64, rounded to f32 and then to T.
func (o *Ops[T]) CosSin(dst Rows[T], t []float32, factor float32, freqs []float32) {
	var cos, sin buffer
	half := len(freqs)
	for i, step := range t {
		row, scaled := dst.row(i, 2*half), float32(factor*step)
		for from, to := range pieces(half) {
			for k, f := range freqs[from:to] {
				s, c := numeric.Sincos(float64(float32(scaled * f)))
				cos[k], sin[k] = float32(c), float32(s)
			}
			store(row[from:to], cos[:to-from])
			store(row[half+from:half+to], sin[:to-from])
		}
	}
}
