// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
)

// kind is the objective's, latency when it is not set.
func (o Objective) kind() ObjectiveKind {
	if o.Kind == "" {
		return ObjectiveLatency
	}
	return o.Kind
}

func (o Objective) size() int { return max(o.Size, 1) }

// String is "latency" or "batch of 4".
func (o Objective) String() string {
	if o.kind() == ObjectiveBatch {
		return fmt.Sprintf("batch of %d", o.size())
	}
	return string(o.kind())
}

const maxBatch = 1024

func (o Objective) validate() error {
	switch o.kind() {
	case ObjectiveLatency, ObjectivePair, ObjectiveThroughput:
		if o.Size > 1 {
			return &ConstraintError{fmt.Sprintf("objective %s has no size; a batch of %d is objective batch", o.kind(), o.Size)}
		}
	case ObjectiveBatch:
		if o.Size < 0 || o.Size > maxBatch {
			return &ConstraintError{fmt.Sprintf("a batch of %d: must be 1 to %d", o.Size, maxBatch)}
		}
	default:
		return &ConstraintError{fmt.Sprintf("objective %q: want latency, pair, batch or throughput", string(o.Kind))}
	}
	return nil
}

// mode is a single pipeline's cost s + weight*x, or x alone.
type mode struct {
	weight  float64
	busiest bool    // x alone
	micro   int     // requests of a micro-batch
	beat    float64 // what another mode reached, or 0: a pipeline that does not take less need not be found
}

// ceiling is what a pipeline must stay below to be worth finding.
func (m mode) ceiling() float64 {
	if m.beat > 0 {
		return m.beat * (1 - proof)
	}
	return math.Inf(1)
}

// of is what the mode makes of s and x.
func (m mode) of(s, x float64) float64 {
	if m.busiest {
		return x
	}
	return s + m.weight*x
}

// worth is what an objective makes of priced pipelines.
type worth struct {
	seconds       float64
	parts         Parts
	band          Band
	steps         []float64
	shares, micro []int
}

// worth1 is the value of one pipeline in a mode.
func worth1(p *priced, m mode) worth {
	v := worth{seconds: m.of(p.s, p.x), shares: []int{0}, micro: []int{m.micro}}
	if m.busiest {
		v.parts, v.band = p.bottleneck, Band{p.xLow, p.xHi}
	} else {
		v.parts, v.band = p.parts, Band{p.low + m.weight*p.xLow, p.high + m.weight*p.xHi}
		v.parts.Waiting += m.weight * p.x
		v.seconds = v.parts.Total()
	}
	v.steps = []float64{v.seconds}
	return v
}

// worthMany is the value of several pipelines over disjoint nodes.
func worthMany(o Objective, pipes []*priced) worth {
	v := worth{shares: make([]int, len(pipes)), micro: make([]int, len(pipes)), steps: make([]float64, len(pipes))}
	switch o.kind() {
	case ObjectiveThroughput:
		rate, low, high := 0.0, 0.0, 0.0
		slowest := 0
		for i, p := range pipes {
			v.steps[i] = p.x
			rate += 1 / p.x
			low += 1 / p.xHi
			high += 1 / p.xLow
			if p.x > pipes[slowest].x {
				slowest = i
			}
		}
		v.seconds, v.band = 1/rate, Band{1 / high, 1 / low}
		v.parts = pipes[slowest].bottleneck.scaled(v.seconds / pipes[slowest].x)
	case ObjectiveBatch:
		return worthShares(pipes, shares(o.size(), pipes))
	default:
		at := 0
		for i, p := range pipes {
			v.steps[i] = p.s
			if p.s > pipes[at].s {
				at = i
			}
		}
		v.seconds, v.parts, v.band = pipes[at].s, pipes[at].parts, Band{pipes[at].low, pipes[at].high}
	}
	return v
}

// worthShares is the value of pipelines that share a batch in this way.
func worthShares(pipes []*priced, shares []int) worth {
	v := worth{shares: shares, micro: make([]int, len(pipes)), steps: make([]float64, len(pipes))}
	at := 0
	for i, p := range pipes {
		v.micro[i] = 1
		if v.shares[i] > 0 {
			v.steps[i] = p.s + float64(v.shares[i]-1)*p.x
		}
		if v.steps[i] > v.steps[at] {
			at = i
		}
	}
	p, n := pipes[at], float64(v.shares[at]-1)
	v.parts = p.parts
	v.parts.Waiting += n * p.x
	v.seconds, v.band = v.parts.Total(), Band{p.low + n*p.xLow, p.high + n*p.xHi}
	return v
}

func (p Parts) plus(o Parts) Parts {
	return Parts{p.Compute + o.Compute, p.Streaming + o.Streaming, p.Hops + o.Hops, p.Waiting + o.Waiting}
}

func (p Parts) scaled(k float64) Parts {
	return Parts{p.Compute * k, p.Streaming * k, p.Hops * k, p.Waiting * k}
}

// shares deals a batch out so that the last pipeline ends as soon as possible: one request after the other to the one
// that would end it first.
func shares(size int, pipes []*priced) []int {
	out := make([]int, len(pipes))
	for range size {
		at, best := 0, math.Inf(1)
		for i, p := range pipes {
			if t := p.s + float64(out[i])*p.x; t < best {
				at, best = i, t
			}
		}
		out[at]++
	}
	return out
}
