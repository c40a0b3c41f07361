// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"
)

// report prints figures as they come.
type report struct{ w io.Writer }

func newReport(w io.Writer) *report {
	fmt.Fprintf(w, "distorch bench, %s/%s, %d CPUs\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	return &report{w}
}

func (r *report) heading(what string) { fmt.Fprintf(r.w, "\n%s\n", what) }

func (r *report) note(format string, args ...any) { fmt.Fprintf(r.w, "  "+format+"\n", args...) }

// target is what a ratio is held against.
type target struct {
	want  float64
	below bool // the ratio must not be above want
}

// figure prints one ratio with its target and, behind it, where it came from.
func (r *report) figure(name string, ratio float64, t target, detail string, args ...any) {
	sign, ok := "≥", ratio >= t.want
	if t.below {
		sign, ok = "≤", ratio <= t.want
	}
	verdict := "PASS"
	if !ok {
		verdict = "short"
	}
	fmt.Fprintf(r.w, "  %-44s %6.3f  %s%-5.4g %-5s  %s\n", name, ratio, sign, t.want, verdict, fmt.Sprintf(detail, args...))
}

// side is one of the things compared: do it once and say how long it took.
type side func(context.Context) (time.Duration, error)

// alternate lets the sides take turns, first one warming round each, and
// gives the times of each, round by round. The order turns round too.
func alternate(ctx context.Context, rounds int, sides ...side) ([][]time.Duration, error) {
	times := make([][]time.Duration, len(sides))
	for round := -1; round < rounds; round++ {
		for i := range sides {
			at := i
			if round%2 != 0 {
				at = len(sides) - 1 - i
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			d, err := sides[at](ctx)
			if err != nil {
				return nil, err
			}
			if round >= 0 {
				times[at] = append(times[at], d)
			}
		}
	}
	return times, nil
}

// medianRatio is the median over the rounds of b's time divided by a's: how
// many times as fast a is.
func medianRatio(a, b []time.Duration) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = float64(b[i]) / float64(a[i])
	}
	return median(ratios)
}

func median[T float64 | time.Duration](v []T) T {
	s := slices.Clone(v)
	slices.Sort(s)
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.4g s", d.Seconds()) }
