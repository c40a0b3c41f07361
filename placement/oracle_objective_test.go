// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"math"
	"math/bits"
	"slices"

	. "github.com/distorch/distorch/placement"
)

// optimum is the best that brute force found.
type optimum struct {
	value     float64 // +Inf when nothing fits
	nodes     int
	pipelines int
	micro     int // requests of a micro-batch
	traits    trait
	how       string // of one pipeline
}

func (o *optimum) offer(value float64, used uint, pipelines, micro int, traits trait) bool {
	if !(value < o.value) {
		return false
	}
	*o = optimum{value: value, nodes: bits.OnesCount(used), pipelines: pipelines, micro: micro, traits: traits}
	return true
}

// single is the objective's value for one pipeline in micro-batches of this size.
func (o *oracle) single(s, x float64, micro int) float64 {
	switch o.p.Objective.Kind {
	case ObjectivePair:
		return s + x
	case ObjectiveBatch:
		return s + float64(max(o.p.Objective.Size, 1)/micro-1)*x
	case ObjectiveThroughput:
		return x
	default:
		return s
	}
}

// tables are the model at each size of micro-batch that the objective may use.
func (o *oracle) tables() map[int]Model {
	out := map[int]Model{1: o.p.Model}
	if o.p.Objective.Kind == ObjectiveBatch {
		for _, b := range o.p.Batches {
			if max(o.p.Objective.Size, 1)%b.Size == 0 && b.Size > 1 {
				out[b.Size] = b.Model
			}
		}
	}
	return out
}

// classes are what all blocks may have in common; "" stands for anything.
func (o *oracle) classes() []string {
	if o.p.Constraints.Numerics != NumericsOne {
		return []string{""}
	}
	var out []string
	for _, place := range o.places {
		for _, w := range place.ways {
			if w.class != mixedClasses && !slices.Contains(out, w.class) {
				out = append(out, w.class)
			}
		}
	}
	return out
}

// bruteForce is the best plan of one pipeline.
func bruteForce(p Problem) optimum {
	o := newOracle(p)
	best := optimum{value: math.Inf(1)}
	for _, class := range o.classes() {
		for micro, m := range o.tables() {
			a := o.atlas(m, class)
			a.walk(func(_, _ int, _ uint, r run) bool { return o.single(r.s, r.x, micro) < best.value },
				func(used uint, r run) {
					if best.offer(o.single(r.s, r.x, micro), used, 1, micro, r.traits) {
						best.how = a.legs()
					}
				})
		}
	}
	return best
}

// fronts is, for each exact set of nodes, the front of its pipelines.
func (a *atlas) fronts() map[uint][]run {
	type corner struct {
		used     uint
		last, at int
	}
	seen := map[corner][]run{}
	out := map[uint][]run{}
	a.walk(func(at, last int, used uint, r run) bool {
		c := corner{used, last, at}
		if slices.ContainsFunc(seen[c], func(o run) bool { return o.covers(r) }) {
			return false
		}
		seen[c] = front(seen[c], r)
		return true
	}, func(used uint, r run) { out[used] = front(out[used], r) })
	return out
}

// bruteForceMany is the best plan of one pipeline or of several over disjoint nodes.
func bruteForceMany(p Problem) optimum {
	best := bruteForce(p)
	limit := p.Constraints.MaxPipelines
	if limit == 1 || p.Objective.Kind == ObjectiveLatency || p.Objective.Kind == "" {
		return best
	}
	o := newOracle(p)
	for _, class := range o.classes() {
		fronts := o.atlas(p.Model, class).fronts()
		var sets []uint
		for used := range fronts {
			sets = append(sets, used)
		}
		slices.Sort(sets)
		var choose func(from int, used uint, chosen []uint)
		choose = func(from int, used uint, chosen []uint) {
			if len(chosen) > 1 {
				o.several(fronts, used, chosen, &best)
			}
			if limit > 0 && len(chosen) == limit {
				return
			}
			for i := from; i < len(sets); i++ {
				all := used | sets[i]
				if used&sets[i] == 0 && (p.Constraints.MaxNodes == 0 || bits.OnesCount(all) <= p.Constraints.MaxNodes) {
					choose(i+1, all, append(slices.Clone(chosen), sets[i]))
				}
			}
		}
		choose(0, 0, nil)
	}
	return best
}

// several values pipelines over disjoint sets of nodes.
func (o *oracle) several(fronts map[uint][]run, used uint, chosen []uint, best *optimum) {
	// least is the smallest of f over a set's front, with what that pipeline makes use of.
	least := func(set uint, f func(run) float64) (float64, trait) {
		value, traits := math.Inf(1), trait(0)
		for _, r := range fronts[set] {
			if v := f(r); v < value {
				value, traits = v, r.traits
			}
		}
		return value, traits
	}
	n := len(chosen)
	switch o.p.Objective.Kind {
	case ObjectivePair:
		if n == 2 {
			a, ta := least(chosen[0], func(r run) float64 { return r.s })
			b, tb := least(chosen[1], func(r run) float64 { return r.s })
			best.offer(math.Max(a, b), used, 2, 1, ta|tb)
		}
	case ObjectiveThroughput:
		sum, traits := 0.0, trait(0)
		for _, set := range chosen {
			x, t := least(set, func(r run) float64 { return r.x })
			sum, traits = sum+1/x, traits|t
		}
		best.offer(1/sum, used, n, 1, traits)
	case ObjectiveBatch:
		var share func(i, left int, worst float64, traits trait)
		share = func(i, left int, worst float64, traits trait) {
			if i == n {
				if left == 0 {
					best.offer(worst, used, n, 1, traits)
				}
				return
			}
			for b := 1; b <= left; b++ {
				v, t := least(chosen[i], func(r run) float64 { return r.s + float64(b-1)*r.x })
				share(i+1, left-b, math.Max(worst, v), traits|t)
			}
		}
		share(0, max(o.p.Objective.Size, 1), 0, 0)
	}
}
