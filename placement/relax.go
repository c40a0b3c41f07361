// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"math"
	"slices"
)

// relaxation bounds what a search can still find. It keeps the number of blocks and every hop exact and forgets which
// run a block is of: a host that takes k blocks takes the cheapest mixture, where a block of region 1 is worth price (a
// Lagrangian multiplier, chosen so that the mixtures add up to the model as well as they can). Ends cost at least what
// they add on the host where they add least.
type relaxation struct {
	price       float64
	first, last float64
	value       float64     // no pipeline within the limit takes less
	ahead       [][]float64 // per table: least cost of the hosts from there on to take m more blocks, hops included
	behind      [][]float64 // per table: the same of the hosts before it, whose first pays no hop
}

// relax evaluates the relaxation at a price.
func (q *search) relax(price float64) *relaxation {
	n := q.shape.n1 + q.shape.n2
	r := &relaxation{price: price}
	r.first, r.last = q.head, q.tail
	for _, c := range q.classes {
		c.mix(q.shape, price)
	}
	tables := len(q.steps) + 1
	r.ahead = unreached(tables, n+1)
	r.ahead[tables-1][0] = 0
	for i := range slices.Backward(q.steps) {
		q.look(r, i)
	}
	root := math.Inf(1)
	for i, st := range q.steps {
		mixed, after := st.host.mixed, r.ahead[i+1]
		for k := 1; k <= n; k++ {
			root = min(root, mixed[k]+after[n-k])
		}
	}
	r.value = root + price*float64(q.shape.n1) + r.first + r.last
	return r
}

// look fills in what the hosts from turn i on can do.
func (q *search) look(r *relaxation, i int) {
	st := q.steps[i]
	after := r.ahead[i+1]
	out := r.ahead[i]
	// The turn of a whole island stands between its members and the next unit; those that come from before the members
	// may take either.
	copy(out, after)
	if st.join < 0 {
		grow(out, after, st.host.mixed, st.host.hop)
		if q.opens(i) {
			whole := q.steps[q.wholeOf(i)]
			grow(out, r.ahead[q.wholeOf(i)+1], whole.host.mixed, whole.host.hop)
		}
	}
}

// grow offers a host's parts on top of what the others do.
func grow(out, others, mixed []float64, hop float64) {
	for k := 1; k < len(mixed); k++ {
		c := mixed[k] + hop
		if math.IsInf(c, 1) {
			continue
		}
		o := others[:len(out)-k]
		t := out[k:][:len(o)]
		for m, v := range o {
			if v+c < t[m] {
				t[m] = v + c
			}
		}
	}
}

// opens reports whether turn i is the first of an island that has a whole.
func (q *search) opens(i int) bool {
	w := q.wholeOf(i)
	return w >= 0 && q.steps[w].from == i
}

// wholeOf is the turn of the whole island that turn i's host is a member of, or -1.
func (q *search) wholeOf(i int) int { return q.wholes[q.steps[i].after] }

// unreached is a table of infinities.
func unreached(rows, columns int) [][]float64 {
	flat := make([]float64, rows*columns)
	for i := range flat {
		flat[i] = math.Inf(1)
	}
	out := make([][]float64, rows)
	for i := range out {
		out[i], flat = flat[:columns], flat[columns:]
	}
	return out
}

// tally fills in what the hosts before each table can do, at the price for which parts were mixed last.
func (q *search) tally(r *relaxation) {
	r.behind = unreached(len(q.steps)+1, q.shape.n1+q.shape.n2+1)
	r.behind[0][0] = 0
	for _, st := range q.steps {
		stay := st.from
		if st.join >= 0 {
			stay = st.join
		}
		out := r.behind[st.to]
		copy(out, r.behind[stay])
		from := r.behind[st.from]
		for k := 1; k < len(out); k++ {
			if v := st.host.mixed[k]; v < out[k] {
				out[k] = v // the first host pays no hop
			}
		}
		for m := 1; m < len(out); m++ {
			if math.IsInf(from[m], 1) {
				continue
			}
			for k := 1; m+k < len(out); k++ {
				if v := from[m] + st.host.mixed[k] + st.host.hop; v < out[m+k] {
					out[m+k] = v
				}
			}
		}
	}
}

// mix makes the least cost of k blocks, whatever their regions, less what those of region 1 are worth.
func (c *class) mix(s shape, price float64) {
	n := s.n1 + s.n2
	if c.mixed == nil {
		c.mixed = make([]float64, n+1)
	}
	for k := range c.mixed {
		c.mixed[k] = math.Inf(1)
	}
	w := s.width()
	for x := 0; x <= s.n1; x++ {
		worth := price * float64(x)
		row := c.cost[0][x*w : x*w+c.top[0][x]+1]
		out := c.mixed[x:][:len(row)]
		for y, t := range row {
			if t-worth < out[y] {
				out[y] = t - worth
			}
		}
	}
	c.mixed[0] = math.Inf(1)
}

// ends are the least that head and tail add to any part on any host.
func (q *search) ends() (head, tail float64) {
	head, tail = math.Inf(1), math.Inf(1)
	for _, c := range q.classes {
		for cell := range c.cost[0] {
			for _, r := range []role{0, last} {
				if t := c.cost[r|first][cell] - c.cost[r][cell]; t < head {
					head = t
				}
			}
			for _, r := range []role{0, first} {
				if t := c.cost[r|last][cell] - c.cost[r][cell]; t < tail {
					tail = t
				}
			}
		}
	}
	if math.IsInf(head, 0) || math.IsNaN(head) {
		head = 0
	}
	if math.IsInf(tail, 0) || math.IsNaN(tail) {
		tail = 0
	}
	return max(head, 0), max(tail, 0)
}

// tuned is the relaxation at the price with the best value that a few steps find; the value is concave in it. What was
// found for a limit is kept.
func (q *search) tuned() *relaxation {
	if price, ok := q.prices[q.busiest]; ok {
		q.price = price
		return q.relax(price)
	}
	best := q.relax(q.price)
	if q.shape.n1 > 0 && !math.IsInf(best.value, 1) {
		step := q.stride
		if step == 0 {
			step = 0.25 * best.value / float64(q.shape.n1+q.shape.n2)
		}
		for range 12 {
			if up := q.relax(best.price + step); up.value > best.value {
				best = up
				step *= 1.6
				continue
			}
			if down := q.relax(best.price - step); down.value > best.value {
				best = down
				step *= 1.6
				continue
			}
			if step /= 4; step*float64(q.shape.n1) < 6e-3*math.Abs(best.value) {
				break
			}
		}
		q.stride = step
	}
	q.price, q.prices[q.busiest] = best.price, best.price
	return best
}
