// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"slices"
	"time"
)

// timing is what repetitions of one piece of work took, in seconds.
type timing struct{ median, low, high float64 } // low and high: the 10th and 90th percentile

// uncertainty is half of the distance between the rates of low and high, over
// the median's rate.
func (t timing) uncertainty() float64 {
	if t.low <= 0 {
		return 0
	}
	return (t.median/t.low - t.median/t.high) / 2
}

// repeat runs the work until the bound is reached. The first execution, which
// touches memory for the first time, does not count where there are others.
func repeat(ctx context.Context, lim bound, work func() error) (timing, error) {
	return clocked(ctx, lim, func() (time.Duration, error) { return 0, work() })
}

// clocked is repeat of work that may know better how long it took; 0: it does
// not.
func clocked(ctx context.Context, lim bound, work func() (time.Duration, error)) (timing, error) {
	var took []float64
	began := time.Now()
	for len(took) < lim.rounds || time.Since(began) < lim.each && len(took) < lim.most {
		if ctx.Err() != nil {
			return timing{}, context.Cause(ctx)
		}
		t := time.Now()
		own, err := work()
		if err != nil {
			return timing{}, err
		}
		if own == 0 {
			own = time.Since(t)
		}
		took = append(took, max(own.Seconds(), 1e-9))
	}
	if len(took) > 1 {
		took = took[1:]
	}
	return summary(took), nil
}

// summary sorts the times it is given.
func summary(took []float64) timing {
	slices.Sort(took)
	return timing{took[len(took)/2], percentile(took, 0.1), percentile(took, 0.9)}
}

// percentile lies between the two nearest of sorted values.
func percentile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	i := min(int(at), len(sorted)-1)
	next := min(i+1, len(sorted)-1)
	return sorted[i] + (at-float64(i))*(sorted[next]-sorted[i])
}
