// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// Several pipelines over disjoint nodes: replicas for a queue or a batch, or one pipeline for each branch of a pair. Up to
// a few nodes every way to share them out is tried. Beyond, some that suggest themselves are, and a bound says what others
// could reach.

// fewNodes is up to how many nodes every partition is tried, and fewSolves how many searches that may take.
const (
	fewNodes  = 6
	fewSolves = 400
)

// several is the best plan of two or more pipelines, nil when none was found, and a lower bound on any such plan.
func (s *solver) several() (*candidate, float64, error) {
	s = s.narrowed(func(f *field) *field { return f.withoutRemote() })
	nodes := s.field.usable()
	if len(nodes) < 2 {
		return nil, math.Inf(1), nil
	}
	shares := 1
	if s.problem.Objective.kind() == ObjectiveBatch {
		shares = s.problem.Objective.size()
	}
	if len(nodes) <= fewNodes && shares<<len(nodes) <= fewSolves {
		return s.everyPartition(nodes, shares)
	}
	bound, err := s.severalBound()
	if err != nil {
		return nil, 0, err
	}
	best, err := s.somePartitions(nodes)
	return best, bound, err
}

// withoutRemote is the field without other nodes' memory, which pipelines that run at once would have to share.
func (f *field) withoutRemote() *field {
	g := *f
	g.apart = true
	return &g
}

// shareMode is what a pipeline that serves so many requests of the objective is to make small.
func (s *solver) shareMode(share int) mode {
	switch s.problem.Objective.kind() {
	case ObjectiveThroughput:
		return mode{busiest: true}
	case ObjectiveBatch:
		return mode{weight: float64(share - 1), micro: 1}
	default:
		return mode{}
	}
}

// outcome is the best pipeline of a set of nodes and what no pipeline of them goes below.
type outcome struct {
	pipe         *priced
	value, bound float64
}

func (s *solver) run(nodes []int, m mode) (outcome, error) {
	f := s.field.among(nodes)
	list, bound, err := f.pipeline(m)
	if err != nil || list == nil {
		return outcome{value: math.Inf(1), bound: math.Inf(1)}, err
	}
	p := f.mustPrice(list)
	return outcome{p, m.of(p.s, p.x), bound}, nil
}

// everyPartition tries all ways to share out the nodes, some of them to nobody.
func (s *solver) everyPartition(nodes []int, shares int) (*candidate, float64, error) {
	sets := 1 << len(nodes)
	table := make([][]outcome, sets)
	for set := 1; set < sets; set++ {
		var members []int
		for i, n := range nodes {
			if set&(1<<i) != 0 {
				members = append(members, n)
			}
		}
		for share := 1; share <= shares; share++ {
			o, err := s.run(members, s.shareMode(share))
			if err != nil {
				return nil, 0, err
			}
			table[set] = append(table[set], o)
		}
	}
	var best *candidate
	bound := math.Inf(1)
	c := s.problem.Constraints
	var choose func(left, from int, chosen []int)
	choose = func(left, from int, chosen []int) {
		if len(chosen) > 1 {
			got, lower := s.valueSets(table, chosen, shares)
			bound = min(bound, lower)
			if got.better(best) {
				best = got
			}
		}
		if c.MaxPipelines > 0 && len(chosen) == c.MaxPipelines {
			return
		}
		for set := from; set < sets; set++ {
			if set&left != set || math.IsInf(table[set][0].value, 1) {
				continue
			}
			if c.MaxNodes > 0 && bits.OnesCount(uint((sets-1)&^left|set)) > c.MaxNodes {
				continue
			}
			choose(left&^set, set+1, append(slices.Clone(chosen), set))
		}
	}
	choose(sets-1, 1, nil)
	return best, bound, nil
}

// valueSets is what pipelines over these sets are worth, and a lower bound.
func (s *solver) valueSets(table [][]outcome, chosen []int, shares int) (*candidate, float64) {
	o := s.problem.Objective
	if o.kind() == ObjectivePair && len(chosen) != 2 {
		return nil, math.Inf(1)
	}
	if o.kind() != ObjectiveBatch {
		var pipes []*priced
		rate, slowest := 0.0, 0.0
		for _, set := range chosen {
			pipes = append(pipes, table[set][0].pipe)
			rate += 1 / table[set][0].bound
			slowest = max(slowest, table[set][0].bound)
		}
		lower := slowest
		if o.kind() == ObjectiveThroughput {
			lower = 1 / rate
		}
		return &candidate{pipes: pipes, worth: worthMany(o, pipes)}, lower
	}
	if len(chosen) > shares {
		return nil, math.Inf(1)
	}
	value, lower := math.Inf(1), math.Inf(1)
	var dealt []int
	deal := make([]int, len(chosen))
	var share func(i, left int, worst, floor float64)
	share = func(i, left int, worst, floor float64) {
		if i == len(chosen) {
			if left == 0 {
				lower = min(lower, floor)
				if worst < value {
					value, dealt = worst, slices.Clone(deal)
				}
			}
			return
		}
		for b := 1; b <= left-(len(chosen)-1-i); b++ {
			deal[i] = b
			t := table[chosen[i]][b-1]
			share(i+1, left-b, max(worst, t.value), max(floor, t.bound))
		}
	}
	share(0, shares, 0, 0)
	if dealt == nil {
		return nil, lower
	}
	var pipes []*priced
	for i, set := range chosen {
		pipes = append(pipes, table[set][dealt[i]-1].pipe)
	}
	return &candidate{pipes: pipes, worth: worthShares(pipes, dealt)}, lower
}

// severalBound is what no plan of several pipelines goes below: each is as slow as the best alone, and all together do
// not work faster than every node does on its own.
func (s *solver) severalBound() (float64, error) {
	f := s.field
	low, _ := f.model.boundaryRange()
	q, err := newSearch(shapeOf(f.model), f.auto, f.units(view{low, func(i int) float64 { return 0 }, true}), 0)
	if err != nil {
		return 0, err
	}
	all := q.fluid()
	switch o := s.problem.Objective; o.kind() {
	case ObjectiveThroughput:
		return all, nil
	case ObjectiveBatch:
		_, alone, err := f.pipeline(mode{})
		return max(alone, float64(o.size())*all), err
	default:
		_, alone, err := f.pipeline(mode{})
		return alone, err
	}
}

// somePartitions tries partitions that suggest themselves.
func (s *solver) somePartitions(nodes []int) (*candidate, error) {
	if s.problem.Objective.kind() == ObjectivePair {
		return s.twoBranches(nodes)
	}
	var best *candidate
	take := func(pipes []*priced) {
		pipes = s.allowed(pipes)
		if len(pipes) < 2 {
			return
		}
		if c := (&candidate{pipes: pipes, worth: worthMany(s.problem.Objective, pipes)}); c.better(best) {
			best = c
		}
	}
	alone, rest, err := s.lone(nodes)
	if err != nil {
		return nil, err
	}
	pooled, err := s.pools(rest)
	if err != nil {
		return nil, err
	}
	take(append(slices.Clone(alone), pooled...))
	whole, err := s.run(rest, s.shareMode(1))
	if err != nil {
		return nil, err
	}
	if whole.pipe != nil {
		take(append(slices.Clone(alone), whole.pipe))
	}
	// The best of all nodes, and then the same of those that it leaves.
	var peeled []*priced
	left := nodes
	for len(peeled) < peels && len(left) > 0 {
		o, err := s.run(left, s.shareMode(1))
		if err != nil {
			return nil, err
		}
		if o.pipe == nil {
			break
		}
		peeled = append(peeled, o.pipe)
		left = slices.DeleteFunc(slices.Clone(left), func(i int) bool { return slices.Contains(o.pipe.nodes, i) })
		take(peeled)
	}
	return best, nil
}

// peels bounds how many pipelines are taken one after the other, each from a search over all nodes that are left.
const peels = 4

// lone are the nodes that hold the whole model, each a pipeline of its own, and the others.
func (s *solver) lone(nodes []int) (pipes []*priced, rest []int, err error) {
	for _, i := range nodes {
		if len(s.field.table(i, s.field.model.widest()).parts.at(first|last, shapeOf(s.field.model).cells()-1)) == 0 {
			rest = append(rest, i)
			continue
		}
		o, err := s.run([]int{i}, s.shareMode(1))
		if err != nil {
			return nil, nil, err
		}
		pipes = append(pipes, o.pipe)
	}
	return pipes, rest, nil
}

// pools joins nodes, those of the fastest links first, until each pool holds the model.
func (s *solver) pools(nodes []int) ([]*priced, error) {
	f := s.field
	order := slices.Clone(nodes)
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(hopCost(f.model.widest(), f.nodes[a].Link), hopCost(f.model.widest(), f.nodes[b].Link))
	})
	var out []*priced
	var pool []int
	for _, i := range order {
		pool = append(pool, i)
		if !f.fits(f.capacities(pool), 0) {
			continue
		}
		o, err := s.run(pool, s.shareMode(1))
		if err != nil {
			return nil, err
		}
		if o.pipe != nil {
			out, pool = append(out, o.pipe), nil
		}
	}
	return out, nil
}

// allowed keeps the pipelines that the limits on pipelines and nodes allow, the fastest first.
func (s *solver) allowed(pipes []*priced) []*priced {
	c := s.problem.Constraints
	out := slices.Clone(pipes)
	slices.SortStableFunc(out, func(a, b *priced) int { return cmp.Compare(a.x*float64(len(a.nodes)), b.x*float64(len(b.nodes))) })
	if s.problem.Objective.kind() == ObjectiveBatch {
		slices.SortStableFunc(out, func(a, b *priced) int { return cmp.Compare(a.s, b.s) })
		out = out[:min(len(out), s.problem.Objective.size())]
	}
	if c.MaxPipelines > 0 {
		out = out[:min(len(out), c.MaxPipelines)]
	}
	if c.MaxNodes > 0 {
		used := 0
		for i, p := range out {
			if used += len(p.nodes); used > c.MaxNodes {
				return out[:i]
			}
		}
	}
	return out
}

// twoBranches finds two disjoint pipelines for the branches of a pair.
func (s *solver) twoBranches(nodes []int) (*candidate, error) {
	var best *candidate
	take := func(a, b outcome) {
		if a.pipe == nil || b.pipe == nil {
			return
		}
		pipes := s.allowed([]*priced{a.pipe, b.pipe})
		if len(pipes) < 2 {
			return
		}
		if c := (&candidate{pipes: pipes, worth: worthMany(s.problem.Objective, pipes)}); c.better(best) {
			best = c
		}
	}
	without := func(from []int, p *priced) []int {
		return slices.DeleteFunc(slices.Clone(from), func(i int) bool { return slices.Contains(p.nodes, i) })
	}
	a, err := s.run(nodes, mode{})
	if err != nil || a.pipe == nil {
		return nil, err
	}
	for range 2 {
		b, err := s.run(without(nodes, a.pipe), mode{})
		if err != nil {
			return nil, err
		}
		take(a, b)
		if b.pipe == nil {
			break
		}
		if a, err = s.run(without(nodes, b.pipe), mode{}); err != nil {
			return nil, err
		}
		take(a, b)
	}
	var halves [2][]int
	order := slices.Clone(nodes)
	slices.SortStableFunc(order, func(i, j int) int {
		return cmp.Compare(hopCost(s.field.model.widest(), s.nodes[i].Link), hopCost(s.field.model.widest(), s.nodes[j].Link))
	})
	for k, i := range order {
		halves[k%2] = append(halves[k%2], i)
	}
	b, err := s.run(halves[0], mode{})
	if err != nil {
		return nil, err
	}
	c, err := s.run(halves[1], mode{})
	if err != nil {
		return nil, err
	}
	take(b, c)
	return best, nil
}
