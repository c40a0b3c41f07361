// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

import "github.com/distorch/distorch/model/numeric"

const (
	betaShape = 0.6
	// betaNorm is the beta function at (0.6, 0.6): gamma(0.6)^2 / gamma(1.2).
	betaNorm = 2.4153442080024714
)

// betaQuantile is the p-quantile of the beta distribution with both shapes 0.6.
func betaQuantile(p float64) float64 {
	switch {
	case p <= 0:
		return 0
	case p >= 1:
		return 1
	case p == 0.5: // by symmetry; a hair less would round to another level
		return 0.5
	case p > 0.5: // symmetric; the series converges on the lower half
		return 1 - betaQuantile(1-p)
	}
	lo, hi := 0.0, 0.5
	for range 60 {
		mid := (lo + hi) / 2
		if betaCDF(mid) < p {
			lo = mid
		} else {
			hi = mid
		}
	}
	return (lo + hi) / 2
}

// betaCDF is the distribution function for x in (0, 0.5] by the power series
// of the incomplete beta function (DLMF 8.17.7):
// x^a/B * sum over n of (1-b)(2-b)…(n-b) / n! * x^n / (a+n).
func betaCDF(x float64) float64 {
	term, sum := 1.0, 1/betaShape
	for n := 1.0; n < 200; n++ {
		term *= (n - betaShape) / n * x
		add := term / (betaShape + n)
		sum += add
		if add < 1e-18*sum {
			break
		}
	}
	return numeric.Pow(x, betaShape) * sum / betaNorm
}
