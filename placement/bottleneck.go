// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"math"
	"slices"
)

// found is a pipeline of the search: its sum s, its busiest stage or link x, and the parts.
type found struct {
	s, x    float64
	choices []choice
}

// value is what an objective of s + weight*x makes of it.
func (f found) value(weight float64) float64 { return f.s + weight*f.x }

// busiestOf is the largest stage or link of a pipeline that was found within a limit.
func (q *search) busiestOf(choices []choice, limit float64) float64 {
	x := 0.0
	for i, c := range choices {
		o := c.host.pick(q.shape, c, limit)
		x = max(x, o.x)
		if i > 0 {
			x = max(x, c.host.hop, choices[i-1].host.hop)
		}
	}
	return x
}

// pick is the option that a class's cost stands for.
func (c *class) pick(s shape, ch choice, limit float64) option {
	for _, o := range c.table.parts.at(ch.role, ch.x*s.width()+ch.y) {
		if o.x <= limit {
			return o
		}
	}
	panic("placement: a part has no option within its limit")
}

// cheapest is the pipeline with the least sum, and of these one with the least busiest stage that its limit shows.
func (q *search) cheapest(limit, bound float64) (found, bool) {
	s, choices := q.below(limit, bound)
	if choices == nil {
		return found{}, false
	}
	return found{s, q.busiestOf(choices, limit), choices}, true
}

const (
	proof  = 1e-10 // relative; what is closer counts as equal
	strict = 1 - 1e-12
)

// stretch is a range of values that x may have: low < x < high. No pipeline in it has less than s.
type stretch struct {
	low, high float64
	s         float64
	searched  bool // s is that of the cheapest pipeline with x < high, not just a bound
}

func (g stretch) bound(weight float64) float64 { return g.s + weight*g.low }

// best minimises s + weight*x exactly: a branch and bound over the busiest stage, the most promising stretch first. A
// stretch is bounded by the relaxation for its upper end, then by a search there, then divided. least is a lower bound
// of x over all pipelines. It finds nothing where nothing is below the ceiling.
func (q *search) best(weight, least, ceiling float64) (found, bool) {
	best, ok := q.cheapest(math.Inf(1), ceiling)
	if !ok || weight == 0 {
		return best, ok
	}
	below := best.value(weight) < ceiling
	work := []stretch{{min(least, best.x) * strict, best.x, best.s, true}}
	for len(work) > 0 {
		at := 0
		for i, g := range work {
			if g.bound(weight) < work[at].bound(weight) {
				at = i
			}
		}
		g := work[at]
		work = slices.Delete(work, at, at+1)
		enough := min(ceiling, best.value(weight)*(1-proof))
		if g.bound(weight) >= enough {
			break
		}
		if !g.searched {
			f, ok := q.cheapest(g.high, enough-weight*g.low)
			if !ok {
				continue
			}
			if f.value(weight) < best.value(weight) {
				best, below = f, f.value(weight) < ceiling
			}
			work = append(work, stretch{g.low, f.x, f.s, true})
			continue
		}
		high := g.high * strict
		if high <= g.low {
			continue
		}
		width := weight * (high - g.low)
		if spare := g.s + weight*g.high - enough; width < 0.003*enough && spare < width/4 {
			work = append(work, stretch{g.low, high, g.s, false})
			continue
		}
		middle := (g.low + g.high) / 2
		work = append(work, stretch{middle, g.high, g.s, true})
		if s := q.lower(middle); s < math.Inf(1) {
			work = append(work, stretch{g.low, middle, max(s, g.s), false})
		}
	}
	return best, below
}

// soonest minimises x exactly, and then s: a bisection over all values that x may have, first by what fits and from there
// on by searches.
func (q *search) soonest(least float64) (found, bool) {
	values := q.thresholds(least)
	low, _ := slices.BinarySearchFunc(values, true, func(x float64, _ bool) int {
		if q.possible(x) {
			return 1
		}
		return -1
	})
	var best found
	ok := false
	at := func(i int) bool {
		f, fits := q.cheapest(values[i], math.Inf(1))
		if fits {
			best, ok = f, true
		}
		return fits
	}
	high := low
	for step := 1; high < len(values) && !at(high); step *= 2 {
		low = high + 1
		if high == len(values)-1 {
			return found{}, false
		}
		high = min(high+step, len(values)-1)
	}
	for low < high {
		if mid := (low + high) / 2; at(mid) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return best, ok
}

// thresholds are the values of all stages and links, sorted, from least on.
func (q *search) thresholds(least float64) []float64 {
	var out []float64
	for _, c := range q.classes {
		if c.hop >= least*strict {
			out = append(out, c.hop)
		}
		for r := range c.table.parts.list {
			for _, o := range c.table.parts.list[r] {
				if o.x >= least*strict {
					out = append(out, o.x)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// possible reports whether a pipeline may stay within a limit; a no is certain.
func (q *search) possible(limit float64) bool {
	q.limit(limit, true)
	for _, c := range q.classes {
		if c.cost[first|last][q.shape.cells()-1] < math.Inf(1) {
			return true
		}
	}
	f := newFill(q.shape, 0)
	if q.layers > 1 {
		f = newFill(q.shape, q.most)
	}
	for _, u := range q.units {
		before := f
		if u.whole != nil {
			before = f.clone()
		}
		for _, h := range u.members {
			if h.hop <= limit {
				f.add(h.capacity(), 1)
			}
		}
		if u.whole != nil {
			if u.whole.hop <= limit {
				before.add(u.whole.capacity(), len(u.whole.nodes))
			}
			f.merge(before)
		}
	}
	for k := range f.reach {
		if f.done(k) {
			return true
		}
	}
	return false
}

// capacity is what fits within the present limit.
func (c *class) capacity() capacity {
	var out capacity
	for r := range out.most {
		out.most[r] = c.top[r]
	}
	return out
}

// fluid is a lower bound on x for one pipeline and, as its rate is the sum of its hosts', on the time per request of any
// number of replicas: every host works all the time on what it does best, blocks may be divided. Work is weighed so that
// the whole model is 1.
func (q *search) fluid() float64 {
	w1, w2 := q.weigh()
	per := make(map[*class]float64, len(q.classes))
	w := q.shape.width()
	for _, c := range q.classes {
		for r := range role(roles) {
			for cell := range q.shape.cells() {
				list := c.table.parts.at(r, cell)
				if len(list) == 0 {
					continue
				}
				work := w1*float64(cell/w) + w2*float64(cell%w)
				per[c] = max(per[c], work/list[len(list)-1].x)
			}
		}
	}
	rate := 0.0
	for _, u := range q.units {
		sum := 0.0
		for _, h := range u.members {
			sum += per[h.class]
		}
		if u.whole != nil {
			sum = max(sum, per[u.whole.class])
		}
		rate += sum
	}
	return 1 / rate
}

// weigh gives a block of each region its share of the work: that of the fastest host's times.
func (q *search) weigh() (one, two float64) {
	w := q.shape.width()
	t1, t2 := math.Inf(1), math.Inf(1)
	for _, c := range q.classes {
		if q.shape.n1 > 0 {
			if list := c.table.parts.at(0, w); len(list) > 0 {
				t1 = min(t1, list[len(list)-1].x)
			}
		}
		if list := c.table.parts.at(0, 1); len(list) > 0 {
			t2 = min(t2, list[len(list)-1].x)
		}
	}
	finite := func(t float64) float64 {
		if math.IsInf(t, 1) || t <= 0 {
			return 1
		}
		return t
	}
	t1, t2 = finite(t1), finite(t2)
	total := t1*float64(q.shape.n1) + t2*float64(q.shape.n2)
	return t1 / total, t2 / total
}
