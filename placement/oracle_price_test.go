// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	. "github.com/distorch/distorch/placement"
)

// price values a plan's stages by the oracle's cost function and refuses what the rules forbid or what does not fit.
func (o *oracle) price(plan *Plan) (float64, error) {
	if len(plan.Pipelines) == 0 || (o.p.Constraints.MaxPipelines > 0 && len(plan.Pipelines) > o.p.Constraints.MaxPipelines) {
		return 0, fmt.Errorf("%d pipelines", len(plan.Pipelines))
	}
	if err := o.owed(plan); err != nil {
		return 0, err
	}
	used, class, next := uint(0), "", 0
	var total sum
	for i, pipe := range plan.Pipelines {
		if pipe.First != next || pipe.Stages < 1 || pipe.First+pipe.Stages > len(plan.Stages) {
			return 0, fmt.Errorf("pipeline %d has stages %d+%d of %d", i, pipe.First, pipe.Stages, len(plan.Stages))
		}
		next += pipe.Stages
		stages := plan.Stages[pipe.First:next]
		micro := max(pipe.MicroBatch, 1)
		m, ok := o.tables()[micro]
		if !ok {
			return 0, fmt.Errorf("pipeline %d: micro-batches of %d have no table", i, micro)
		}
		r, mask, err := o.atlas(m, "").pipeline(i, stages, &class)
		if err != nil {
			return 0, fmt.Errorf("pipeline %d: %w", i, err)
		}
		if used&mask != 0 {
			return 0, fmt.Errorf("pipeline %d shares a node with another", i)
		}
		if !near(r.s, pipe.Forward) || !near(r.x, pipe.Bottleneck) {
			return 0, fmt.Errorf("pipeline %d: S %.12g X %.12g, the plan says %.12g and %.12g", i, r.s, r.x, pipe.Forward, pipe.Bottleneck)
		}
		used |= mask
		total.add(r, pipe, micro)
	}
	if next != len(plan.Stages) {
		return 0, fmt.Errorf("%d stages of %d are in pipelines", next, len(plan.Stages))
	}
	if limit := o.p.Constraints.MaxNodes; limit > 0 && countNodes(used) > limit {
		return 0, fmt.Errorf("%d nodes, at most %d", countNodes(used), limit)
	}
	if len(plan.Pipelines) == 1 {
		p := plan.Pipelines[0]
		return o.single(total.s, total.x, max(p.MicroBatch, 1)), nil
	}
	return total.value(o.p.Objective)
}

// sum gathers the pipelines of a plan.
type sum struct {
	s, x      float64 // of the last
	worst     float64 // S
	rate      float64
	finished  float64 // of the last share of a batch
	shares    int
	pipelines int
	micro     int // the largest
}

func (t *sum) add(r run, p Pipeline, micro int) {
	t.s, t.x, t.pipelines = r.s, r.x, t.pipelines+1
	t.worst = math.Max(t.worst, r.s)
	t.rate += 1 / r.x
	t.shares += p.Share
	t.micro = max(t.micro, micro)
	t.finished = math.Max(t.finished, r.s+float64(p.Share-1)*r.x)
}

func (t *sum) value(o Objective) (float64, error) {
	switch o.Kind {
	case ObjectivePair:
		if t.pipelines != 2 {
			return 0, fmt.Errorf("a pair in %d pipelines", t.pipelines)
		}
		return t.worst, nil
	case ObjectiveThroughput:
		return 1 / t.rate, nil
	case ObjectiveBatch:
		if t.shares != max(o.Size, 1) || t.micro > 1 {
			return 0, fmt.Errorf("shares of %d requests, micro-batches of %d, for a batch of %d", t.shares, t.micro, o.Size)
		}
		return t.finished, nil
	}
	return 0, errors.New("several pipelines for the latency of one request")
}

// pipeline prices the stages of one pipeline; class is that of the stages before, when all must have one.
func (a *atlas) pipeline(index int, stages []Stage, class *string) (run, uint, error) {
	var r run
	var used uint
	at, last := 0, place{}
	for from := 0; from < len(stages); {
		to := from + 1
		for to < len(stages) && stages[to].Node == stages[from].Node {
			to++
		}
		here, w := a.match(stages[from:to])
		if w == nil {
			return r, 0, fmt.Errorf("no way to run %s", describe(stages[from:to]))
		}
		if used&here.mask != 0 {
			return r, 0, fmt.Errorf("node %s is used twice", stages[from].Node)
		}
		used |= here.mask
		if a.p.Constraints.Numerics == NumericsOne {
			if w.class == mixedClasses || (*class != "" && w.class != *class) {
				return r, 0, errors.New("more than one numerics class")
			}
			*class = w.class
		}
		if at == 0 {
			r.s += a.outside(here, a.model.Input)
		} else {
			t := a.between(last, here, a.boundaryBehind(at-1))
			r.s, r.x = r.s+t, math.Max(r.x, t)
		}
		for i, s := range stages[from:to] {
			if s.Pipeline != index || s.First != at || s.Blocks < 1 || at+s.Blocks > a.blocks() || s.Head != (at == 0) || s.Tail != (at+s.Blocks == a.blocks()) {
				return r, 0, fmt.Errorf("%s does not follow block %d", describe(stages[from:to]), at)
			}
			if i > 0 {
				t := linkTime(a.boundaryBehind(at-1), w.hops[i-1].rate, w.hops[i-1].latency)
				r.s, r.x = r.s+t, math.Max(r.x, t)
			}
			c := a.stage(w.seats[i], at, at+s.Blocks)
			if slices.ContainsFunc(s.Tiers, func(t Tier) bool { return t.Kind == TierRemote }) {
				c = a.stageFilled(w.seats[i], at, at+s.Blocks, func(x *work) bool { return x.ring == s.Ring && a.borrows(w.seats[i], s, x) })
			}
			if err := agrees(s, c, w.seats[i]); err != nil {
				return r, 0, fmt.Errorf("%s: %w", describe(stages[from:to]), err)
			}
			r.s, r.x = r.s+c.seconds, math.Max(r.x, c.seconds)
			at += s.Blocks
		}
		last, from = here, to
	}
	if at != a.blocks() {
		return r, 0, fmt.Errorf("%d blocks of %d", at, a.blocks())
	}
	r.s += a.outside(last, a.model.Output)
	return r, used, nil
}

func describe(stages []Stage) string {
	var out []string
	for _, s := range stages {
		out = append(out, fmt.Sprintf("%s %s blocks %d+%d", s.Node, strings.Join(s.Devices, "+"), s.First, s.Blocks))
	}
	return strings.Join(out, ", ")
}

// match finds the way that these stages of one place take.
func (o *oracle) match(stages []Stage) (place, *way) {
	for _, p := range o.places {
		member := slices.IndexFunc(o.p.Nodes, func(n Node) bool { return n.ID == stages[0].Node })
		if member < 0 || p.mask&(1<<member) == 0 {
			continue
		}
		for i, w := range p.ways {
			if len(w.seats) != len(stages) {
				continue
			}
			same := true
			for k, s := range stages {
				same = same && max(s.Degree, 1) == w.seats[k].degree && slices.Equal(slices.Sorted(slices.Values(s.Devices)), w.seats[k].devices)
			}
			if same {
				return p, &p.ways[i]
			}
		}
	}
	return place{}, nil
}

// agrees compares what a plan says of a stage with what the oracle counts.
func agrees(s Stage, c work, at *seat) error {
	switch {
	case !c.fits:
		return errors.New("it does not fit")
	case int64(s.Peak) != c.peak || int64(s.Available) != at.free:
		return fmt.Errorf("it takes %d of %d bytes, the plan says %d of %d", c.peak, at.free, int64(s.Peak), int64(s.Available))
	case s.Slots != c.slots || s.Ring != c.ring:
		return fmt.Errorf("%d slots and a ring of %d, the plan says %d and %d", c.slots, c.ring, s.Slots, s.Ring)
	case !near(s.Compute, c.compute) || !near(s.Stream, c.stream):
		return fmt.Errorf("compute %.12g s and copies %.12g s, the plan says %.12g and %.12g", c.compute, c.stream, s.Compute, s.Stream)
	}
	return nil
}

func near(a, b float64) bool {
	return a == b || math.Abs(a-b) <= 1e-9*math.Max(math.Abs(a), math.Abs(b))
}
