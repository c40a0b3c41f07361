// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
	"slices"
)

// search finds the cheapest pipeline over units that are sorted by their hosts' hops. One search serves many limits on
// the busiest stage and many bounds on the sum.
type search struct {
	shape   shape
	auto    *automaton
	units   []unit
	classes []*class
	most    int // nodes, or 0 for no limit

	busiest float64 // the limit that the classes' costs were made for
	whole   bool    // for all roles
	layers  int
	steps   []layerStep // the hosts in their order
	live    [][]state   // of each table, those that may still lead below the bound
	wholes  []int       // per unit: the turn of its whole, or -1
	price   float64     // of a block of region 1 in the last good relaxation
	stride  float64     // by which the next search for a price begins
	head    float64     // least that the model's ends add to a part
	tail    float64
	relaxed *relaxation
	bound   float64   // of the present pass
	rest    []float64 // per set, for the present turn
	others  []float64
	offers  [roles][kinds][]offer // of the present turn's host
	now     []float64             // values of the listed states of the present turn
	stamp   []int32               // the turn in which a state was last listed
	turn    int32
	prices  map[float64]float64 // good ones, by limit
}

// layerStep is one host's turn: it extends table from into table to. Where a unit has a whole island, join merges the
// table after its members and the one after the whole.
type layerStep struct {
	host     *host
	from, to int
	join     int // index of another table to merge into to, or -1
	after    int // suffix index of the units that follow
}

// choice is one host's part of the found pipeline, in pipeline order.
type choice struct {
	host *host
	x, y int
	role role
}

// maxStates bounds the states of one table.
const maxStates = 1 << 26

// TooLargeError says that the search would not fit its memory bound.
type TooLargeError struct {
	Hosts, Cells, MaxNodes int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("placing over %d nodes with %d combinations of blocks and max nodes %d needs too much memory: exclude nodes or lower max nodes", e.Hosts, e.Cells, e.MaxNodes)
}

func newSearch(s shape, auto *automaton, units []unit, most int) (*search, error) {
	q := &search{shape: s, auto: auto, units: units, most: most, layers: 1, busiest: math.NaN(), prices: map[float64]float64{}}
	sortUnits(units)
	seen := map[*class]bool{}
	hosts := 0
	for _, u := range units {
		for _, h := range u.hosts() {
			hosts += len(h.nodes)
			if !seen[h.class] {
				seen[h.class] = true
				q.classes = append(q.classes, h.class)
			}
		}
	}
	if most > 0 && most < hosts {
		q.layers = most + 1
	}
	q.order()
	if q.layers*len(auto.sets)*s.cells() > maxStates {
		return nil, &TooLargeError{hosts, s.cells(), most}
	}
	return q, nil
}

// order lists the hosts' turns. Tables: 0 is empty, each turn makes one more.
func (q *search) order() {
	at := 0
	for i, u := range q.units {
		start := at
		q.wholes = append(q.wholes, -1)
		for _, h := range u.members {
			q.steps = append(q.steps, layerStep{host: h, from: at, to: len(q.steps) + 1, join: -1, after: i})
			at = len(q.steps)
		}
		if u.whole != nil {
			q.steps = append(q.steps, layerStep{host: u.whole, from: start, to: len(q.steps) + 1, join: at, after: i})
			q.wholes[i] = len(q.steps) - 1
			at = len(q.steps)
		}
	}
}

func (q *search) at(layer, set, cell int) int {
	return (layer*len(q.auto.sets)+set)*q.shape.cells() + cell
}

// limit makes the costs of all classes for a limit on the busiest stage or link, of every role or of the middle one.
func (q *search) limit(busiest float64, whole bool) {
	if q.busiest == busiest && (q.whole || !whole) {
		return
	}
	for _, c := range q.classes {
		for r := range role(roles) {
			if r > 0 && !whole {
				break
			}
			c.limit(q.shape, busiest, r)
		}
	}
	q.busiest, q.whole = busiest, whole
	if q.head, q.tail = 0, 0; whole {
		q.head, q.tail = q.ends()
	}
}

// lower is a lower bound on the sum of any pipeline within a limit.
func (q *search) lower(busiest float64) float64 {
	q.limit(busiest, false)
	return q.tuned().value
}

// below finds the cheapest pipeline with a sum under bound within the limit; nil when there is none.
func (q *search) below(busiest, bound float64) (float64, []choice) {
	if q.lower(busiest) > bound {
		return math.Inf(1), nil
	}
	q.limit(busiest, true)
	q.relaxed = q.relax(q.price)
	q.tally(q.relaxed)
	lower := q.relaxed.value
	if lower > bound {
		return math.Inf(1), nil
	}
	for slack := 0.001; ; slack *= 2 {
		guess := bound
		if slack < 4 && lower > 0 {
			guess = min(bound, lower*(1+slack))
		}
		v, c := q.pass(guess)
		if c != nil {
			return v, c
		}
		if guess == bound {
			return math.Inf(1), nil
		}
	}
}

// state is a point of the dynamic programme that may still lead below the bound, and its cost so far.
type state struct {
	at int32
	v  float64
}

// pass is one dynamic programme over the hosts that keeps the states which may still end at most at bound.
func (q *search) pass(bound float64) (float64, []choice) {
	q.bound = bound + 1e-11*math.Abs(bound)
	if q.live == nil {
		size := q.layers * len(q.auto.sets) * q.shape.cells()
		q.live = make([][]state, len(q.steps)+1)
		q.stamp, q.now = make([]int32, size), make([]float64, size)
	}
	q.live[0] = append(q.live[0][:0], state{0, 0})
	for i, st := range q.steps {
		q.sift(i)
		q.open(i + 1)
		q.remain(i+1, st.stay())
		q.lay(i, st)
	}
	best, layer := math.Inf(1), 0
	for _, s := range q.live[len(q.steps)] {
		if k, set, cell := q.split(s.at); set == 1 && cell == q.shape.cells()-1 && s.v < best {
			best, layer = s.v, k
		}
	}
	if best > q.bound || math.IsInf(best, 1) {
		return math.Inf(1), nil
	}
	return best, q.trace(layer)
}

// split is the layer, set and cell of a state.
func (q *search) split(at int32) (layer, set, cell int) {
	cells, sets := q.shape.cells(), len(q.auto.sets)
	return int(at) / cells / sets, int(at) / cells % sets, int(at) % cells
}

// stay is the table of those that leave this turn's host out.
func (st layerStep) stay() int {
	if st.join >= 0 {
		return st.join
	}
	return st.from
}

// offer is a part that may be worth taking.
type offer struct {
	cost, net float64 // net of what its blocks of region 1 are worth
	x, y      int32
}

// sift lists for a turn's host and every role the parts with which a pipeline may still end at most at the bound: with
// the best that the hosts before and after it can do for the rest.
func (q *search) sift(i int) {
	st, r, n := q.steps[i], q.relaxed, q.shape.n1+q.shape.n2
	before, after := r.behind[st.from], r.ahead[i+1]
	others := slices.Grow(q.others[:0], n+1)[:n+1] // by blocks of this host: the rest's least, its own hop included
	for k := 1; k <= n; k++ {
		t := after[n-k]
		for m := 1; m <= n-k; m++ {
			t = min(t, before[m]+st.host.hop+after[n-k-m])
		}
		others[k] = t + r.price*float64(q.shape.n1)
	}
	q.others = others
	w := q.shape.width()
	for role := range role(roles) {
		limit := q.bound
		if role&first == 0 {
			limit -= r.first
		}
		if role&last == 0 {
			limit -= r.last
		}
		for k := range q.offers[role] {
			q.offers[role][k] = q.offers[role][k][:0]
		}
		for x := 0; x <= q.shape.n1; x++ {
			room := limit + r.price*float64(x)
			for y, t := range st.host.cost[role][x*w : x*w+st.host.top[role][x]+1] {
				if x+y > 0 && t+others[x+y] <= room {
					k := kindOf(x, y)
					q.offers[role][k] = append(q.offers[role][k], offer{t, t - r.price*float64(x), int32(x), int32(y)})
				}
			}
		}
	}
}

// open is for table i what every set still lacks beside blocks: its ends, and joins of its pieces that the next hosts pay.
func (q *search) open(i int) {
	hop := 0.0
	if i < len(q.steps) {
		hop = q.steps[i].host.hop
	}
	q.rest = slices.Grow(q.rest[:0], len(q.auto.sets))[:len(q.auto.sets)]
	for set := range q.rest {
		a := q.auto.lacks[set]
		t := float64(a.pieces-1) * hop
		if a.first {
			t += q.relaxed.first
		}
		if a.last {
			t += q.relaxed.last
		}
		q.rest[set] = t
	}
}

// remain lists the states that leave a host out and may still end at most at the bound.
func (q *search) remain(i, stay int) {
	w, r := q.shape.width(), q.relaxed
	live := q.live[i][:0]
	q.turn++
	for _, s := range q.live[stay] {
		_, set, cell := q.split(s.at)
		d, e := q.shape.n1-cell/w, q.shape.n2-cell%w
		if set <= 1 || s.v+q.rest[set]+r.ahead[i][d+e]+r.price*float64(d) <= q.bound {
			live = append(live, s)
			q.stamp[s.at], q.now[s.at] = q.turn, s.v
		}
	}
	q.live[i] = live
}

// lay extends the live states of a turn's table by its host.
func (q *search) lay(i int, turn layerStep) {
	h, w := turn.host, q.shape.width()
	n1, n2 := q.shape.n1, q.shape.n2
	ahead, price := q.relaxed.ahead[i+1], q.relaxed.price
	live := q.live[i+1]
	put := func(target int, t float64) {
		if q.stamp[target] != q.turn {
			q.stamp[target] = q.turn
			live = append(live, state{at: int32(target)})
		} else if q.now[target] <= t {
			return
		}
		q.now[target] = t
	}
	for _, s := range q.live[turn.from] {
		k, set, cell := q.split(s.at)
		if k += q.deeper(h); k >= q.layers {
			continue
		}
		d, e := n1-cell/w, n2-cell%w
		for _, st := range q.auto.out[set] {
			hops := float64(st.links) * h.hop
			if st.to == 1 {
				if d+e > 0 && kindOf(d, e) == st.kind && h.cost[st.role][d*w+e] < math.Inf(1) {
					put(q.at(k, 1, q.shape.cells()-1), s.v+(h.cost[st.role][d*w+e]+hops))
				}
				continue
			}
			slack := q.bound - s.v - hops - q.rest[st.to] - price*float64(d)
			to := q.at(k, st.to, cell)
			for _, o := range q.offers[st.role][st.kind] {
				x, y := int(o.x), int(o.y)
				if x > d || y > e || o.net+ahead[d+e-x-y] > slack {
					continue
				}
				put(to+x*w+y, s.v+(o.cost+hops))
			}
		}
	}
	for k := range live {
		live[k].v = q.now[live[k].at]
	}
	q.live[i+1] = live
}

func kindOf(x, y int) kind {
	switch {
	case y == 0:
		return inOne
	case x == 0:
		return inTwo
	default:
		return inBoth
	}
}

// deeper is by how many layers a host leads down.
func (q *search) deeper(h *host) int {
	if q.layers == 1 {
		return 0
	}
	return len(h.nodes)
}

// laid is a node with the step that laid it.
type laid struct {
	choice
	step step
}

// trace walks the tables back from the finished pipeline. A host that need not be used is not.
func (q *search) trace(layer int) []choice {
	var order []laid
	set, cell, at := 1, q.shape.cells()-1, len(q.steps)
	for at > 0 {
		st := q.steps[at-1]
		v, ok := q.valueAt(at, q.at(layer, set, cell))
		if !ok {
			panic("placement: a search lost a state")
		}
		if was, ok := q.valueAt(st.stay(), q.at(layer, set, cell)); ok && was == v {
			at = st.stay()
			continue
		}
		deeper := q.deeper(st.host)
		l, from, ok := q.origin(st.host, st.from, layer-deeper, set, cell, v)
		if !ok {
			panic("placement: a search value has no origin")
		}
		order = append(order, l)
		layer -= deeper
		set, cell, at = l.step.from, from, st.from
	}
	slices.Reverse(order)
	return q.assemble(order)
}

func (q *search) valueAt(table, at int) (float64, bool) {
	for _, s := range q.live[table] {
		if int(s.at) == at {
			return s.v, true
		}
	}
	return 0, false
}

// origin finds the state and the step that gave a value.
func (q *search) origin(h *host, table, layer, set, cell int, v float64) (laid, int, bool) {
	w := q.shape.width()
	for _, s := range q.live[table] {
		k, from, was := q.split(s.at)
		x, y := cell/w-was/w, cell%w-was%w
		if k != layer || x < 0 || y < 0 || x+y == 0 {
			continue
		}
		for _, st := range q.auto.out[from] {
			if st.to != set || kindOf(x, y) != st.kind {
				continue
			}
			hops := float64(st.links) * h.hop
			if s.v+(h.cost[st.role][x*w+y]+hops) == v {
				return laid{choice{h, x, y, st.role}, st}, was, true
			}
		}
	}
	return laid{}, 0, false
}

// assemble replays the steps into the pipeline's order.
func (q *search) assemble(order []laid) []choice {
	open := make([][]choice, len(pieces())+1)
	for _, l := range order {
		made := []choice{l.choice}
		ends := ends(l)
		if l.step.left != none {
			made = append(slices.Clone(open[l.step.left]), made...)
			open[l.step.left] = nil
			ends.left = pieces()[l.step.left].left
		}
		if l.step.right != none {
			made = append(made, open[l.step.right]...)
			open[l.step.right] = nil
			ends.right = pieces()[l.step.right].right
		}
		i := slices.Index(pieces(), ends)
		if i < 0 {
			i = len(pieces())
		}
		open[i] = made
	}
	return open[len(pieces())]
}

func ends(l laid) piece {
	p := piece{one, two}
	if l.step.kind == inTwo {
		p.left = two
	}
	if l.step.kind == inOne {
		p.right = one
	}
	if l.role&first != 0 {
		p.left = closed
	}
	if l.role&last != 0 {
		p.right = closed
	}
	return p
}
