// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"math"
	"slices"
)

// Outside the exact class a plan is improved on the true links and the true blocks: for a given order of nodes the best
// cut, leaving out any of them, is found exactly; orders are tried.

// lane finds the best cut for orders of nodes.
type lane struct {
	f      *field
	mode   mode
	blocks int
	limit  float64 // on stages and links
	priced map[laneKey][]option
	ways   map[int][]way // per node
	rounds int           // cuts that may still be made
}

type laneKey struct {
	node, from, to int
	role           role
}

// laneRounds bounds the work of one improvement.
const laneRounds = 400

// options is what a node may do with blocks from up to to, sorted by s.
func (l *lane) options(node, from, to int, r role) []option {
	f := l.f
	if f.model.unfolded == nil {
		s := shapeOf(f.model)
		x, y := s.region(f.model.split(from, to-from))
		return f.table(node, f.model.widest()).parts.at(r, x*s.width()+y)
	}
	key := laneKey{node, from, to, r}
	if got, ok := l.priced[key]; ok {
		return got
	}
	var out []option
	for i, w := range f.table(node, f.model.widest()).ways {
		if len(w.engines) > 1 {
			continue
		}
		if c, ok := w.engines[0].priceRuns(f.model.spread(from, to-from), r); ok {
			out = insert(out, 0, option{s: c.total(), x: c.total(), way: int32(i)})
		}
	}
	l.priced[key] = out
	return out
}

// stop is a node of an order that ends with some block.
type stop struct{ at, block int }

// cut is the pipeline with the least sum over nodes in this order, within the limit; nil when there is none.
func (l *lane) cut(order []int) []part {
	l.rounds--
	f, n := l.f, l.blocks
	best := make([][]float64, len(order))
	from := make([][]stop, len(order))
	way := make([][]option, len(order))
	end, value := -1, math.Inf(1)
	for k, i := range order {
		best[k], from[k], way[k] = make([]float64, n+1), make([]stop, n+1), make([]option, n+1)
		for to := range best[k] {
			best[k][to] = math.Inf(1)
		}
		l.extend(order, best, k, func(p stop, before float64) {
			r := role(0)
			if p.block == 0 {
				r |= first
			}
			for to := p.block + 1; to <= n; to++ {
				if to == n {
					r |= last
				}
				at := slices.IndexFunc(l.options(i, p.block, to, r), func(o option) bool { return o.x <= l.limit })
				if at < 0 {
					continue
				}
				o := l.options(i, p.block, to, r)[at]
				if t := before + o.s; t < best[k][to] {
					best[k][to], from[k][to], way[k][to] = t, p, o
				}
			}
		})
		out := hopCost(f.model.Output, f.nodes[i].Link)
		if t := best[k][n] + out; t < value {
			end, value = k, t
		}
	}
	if end < 0 {
		return nil
	}
	return l.trace(order, from, way, end)
}

// extend offers node k every point from which it may go on.
func (l *lane) extend(order []int, best [][]float64, k int, offer func(p stop, before float64)) {
	f := l.f
	offer(stop{-1, 0}, hopCost(f.model.Input, f.nodes[order[k]].Link))
	for j := range k {
		for at := 1; at < l.blocks; at++ {
			if math.IsInf(best[j][at], 1) {
				continue
			}
			if hop, _ := f.link(order[j], order[k], f.model.behind(at-1)); hop <= l.limit {
				offer(stop{j, at}, best[j][at]+hop)
			}
		}
	}
}

func (l *lane) trace(order []int, from [][]stop, way [][]option, k int) []part {
	to := l.blocks
	var out [][]part
	for k >= 0 {
		p, o := from[k][to], way[k][to]
		out = append(out, l.laid(order[k], p.block, to, o))
		k, to = p.at, p.block
	}
	slices.Reverse(out)
	return slices.Concat(out...)
}

func (l *lane) laid(node, from, to int, o option) []part {
	f := l.f
	s := shapeOf(f.model)
	x, y := s.region(f.model.split(from, to-from))
	if l.ways[node] == nil {
		l.ways[node] = f.ways(node, f.model.widest())
	}
	w := l.ways[node][o.way]
	if f.model.unfolded != nil {
		return []part{{w.engines[0], x, y}}
	}
	r := role(0)
	if from == 0 {
		r |= first
	}
	if to == l.blocks {
		r |= last
	}
	var out []part
	for _, st := range w.stages(r, x, y, o.x) {
		out = append(out, part{st.engine, st.x, st.y})
	}
	return out
}

// best is the best cut for an order in the mode: that with the least sum, then those with ever smaller x.
func (l *lane) best(order []int) ([]part, float64) {
	var list []part
	value := math.Inf(1)
	l.limit = math.Inf(1)
	for range 12 {
		c := l.cut(order)
		if c == nil {
			break
		}
		p, misfit := l.f.price(c)
		if misfit != nil {
			break
		}
		if v := l.mode.of(p.s, p.x); v < value {
			list, value = c, v
		}
		if l.mode.weight == 0 && !l.mode.busiest || (!l.mode.busiest && p.s >= value) {
			break
		}
		l.limit = p.x * strict
	}
	return list, value
}

// improve looks for a better pipeline than one found on a star, which may be nil, until it meets the bound: on other orders of its nodes, and with
// one more. A pipeline over an island as a whole stays as it is.
func (f *field) improve(list []part, m mode, bound float64) []part {
	if slices.ContainsFunc(list, func(p part) bool { return len(p.engine.nodes) > 0 }) {
		return list
	}
	l := &lane{f: f, mode: m, blocks: f.model.Blocks(), priced: map[laneKey][]option{}, ways: map[int][]way{}, rounds: laneRounds}
	limit := f.problem.Constraints.MaxNodes
	value := math.Inf(1)
	if list != nil {
		if p, misfit := f.price(list); misfit == nil {
			value = m.of(p.s, p.x)
		}
	}
	try := func(order []int) bool {
		got, v := l.best(order)
		if got == nil || v >= value*(1-1e-12) || (limit > 0 && len(nodesOf(got)) > limit) {
			return false
		}
		list, value = got, v
		return true
	}
	usable := f.usable()
	if len(usable) <= fewOrders {
		for order := range permutations(usable) {
			if value <= bound*(1+proof) {
				break
			}
			try(order)
		}
		return list
	}
	if list == nil {
		for _, order := range f.orders(usable) {
			try(order)
		}
		return list
	}
	for moved := true; moved && l.rounds > 0 && value > bound*(1+proof); {
		moved = f.step(nodesOf(list), usable, l, try)
	}
	return list
}

// fewOrders is up to how many nodes every order is tried.
const fewOrders = 5

// step tries to swap two of the nodes in use, to move one, and to add one that is not; it ends at the first gain.
func (f *field) step(used, usable []int, l *lane, try func([]int) bool) bool {
	if try(used) {
		return true
	}
	for i := range used {
		for j := range used {
			if i == j || l.rounds <= 0 {
				continue
			}
			moved := slices.Delete(slices.Clone(used), i, i+1)
			if moved = slices.Insert(moved, j, used[i]); try(moved) {
				return true
			}
			swapped := slices.Clone(used)
			if swapped[i], swapped[j] = swapped[j], swapped[i]; i < j && try(swapped) {
				return true
			}
		}
	}
	others := slices.DeleteFunc(slices.Clone(usable), func(i int) bool { return slices.Contains(used, i) })
	slices.SortStableFunc(others, func(a, b int) int {
		return cmp.Compare(f.typical(a, f.model.widest(), used), f.typical(b, f.model.widest(), used))
	})
	for _, o := range others[:min(len(others), 8)] {
		for at := 0; at <= len(used) && l.rounds > 0; at++ {
			if try(slices.Insert(slices.Clone(used), at, o)) {
				return true
			}
		}
	}
	return false
}

// orders are some of all nodes: by memory, by link, and back.
func (f *field) orders(usable []int) [][]int {
	byMemory, byLink := slices.Clone(usable), slices.Clone(usable)
	slices.SortStableFunc(byMemory, func(a, b int) int { return cmp.Compare(f.offer(b), f.offer(a)) })
	slices.SortStableFunc(byLink, func(a, b int) int {
		return cmp.Compare(f.nearest(a, f.model.widest()), f.nearest(b, f.model.widest()))
	})
	var out [][]int
	for _, o := range [][]int{byMemory, byLink} {
		back := slices.Clone(o)
		slices.Reverse(back)
		out = append(out, o, back)
	}
	return out
}

// permutations are all orders of a few nodes.
func permutations(nodes []int) func(yield func([]int) bool) {
	return func(yield func([]int) bool) {
		var extend func(chosen []int) bool
		extend = func(chosen []int) bool {
			if len(chosen) == len(nodes) {
				return yield(slices.Clone(chosen))
			}
			for _, i := range nodes {
				if !slices.Contains(chosen, i) && !extend(append(chosen, i)) {
					return false
				}
			}
			return true
		}
		extend(nil)
	}
}
