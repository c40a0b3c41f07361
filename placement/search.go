// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
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
	layers  int
	steps   []layerStep // the hosts in their order
	tables  [][]float64
	live    [][]int32 // states of each table that may still lead below the bound
	warm    bool      // the multipliers have been near a best value before
	suffix  []float64 // of the reduced costs, per step
	duals   multipliers
	passes  int // searches made, for the record
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

// maxSearchBytes bounds the kept layers.
const maxSearchBytes = 1 << 30

// TooLargeError says that the search would not fit its memory bound.
type TooLargeError struct {
	Hosts, Cells, MaxNodes int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("placing over %d nodes with %d combinations of blocks and max nodes %d needs too much memory: exclude nodes or lower max nodes", e.Hosts, e.Cells, e.MaxNodes)
}

func newSearch(s shape, auto *automaton, units []unit, most int) (*search, error) {
	q := &search{shape: s, auto: auto, units: units, most: most, layers: 1, busiest: math.NaN()}
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
	size := q.layers * len(auto.sets) * s.cells()
	if (len(q.steps)+2)*size > maxSearchBytes/8 {
		return nil, &TooLargeError{hosts, s.cells(), most}
	}
	return q, nil
}

// order lists the hosts' turns. Tables: 0 is empty, each turn makes one more.
func (q *search) order() {
	at := 0
	for i, u := range q.units {
		start := at
		for _, h := range u.members {
			q.steps = append(q.steps, layerStep{host: h, from: at, to: len(q.steps) + 1, join: -1, after: i})
			at = len(q.steps)
		}
		if u.whole != nil {
			q.steps = append(q.steps, layerStep{host: u.whole, from: start, to: len(q.steps) + 1, join: at, after: i})
			at = len(q.steps)
		}
	}
}

func (q *search) at(layer, set, cell int) int {
	return (layer*len(q.auto.sets)+set)*q.shape.cells() + cell
}

// limit makes the costs of all classes for a limit on the busiest stage or link.
func (q *search) limit(busiest float64) {
	if q.busiest == busiest {
		return
	}
	q.busiest = busiest
	for _, c := range q.classes {
		c.limit(q.shape, busiest)
	}
}

// dual is about the least sum of any pipeline within the limit, by pricing blocks and ends and letting every host take
// what pays best (a Lagrangian relaxation; its best multipliers are approached by subgradient steps of Polyak's length).
// It counts a hop for every host, the first included, so it is no bound; [search.suffixes] makes one of it.
func (q *search) dual(target float64) float64 {
	rounds := 5
	if !q.warm {
		q.warm, rounds = true, 30
		q.guess()
	}
	best, keep := math.Inf(-1), q.duals
	factor := 1.0
	for round := 0; ; round++ {
		value, g := q.relaxed()
		if value > best {
			best, keep = value, q.duals
		} else {
			factor /= 1.5
		}
		norm := g.one*g.one + g.two*g.two + g.first*g.first + g.last*g.last
		if round >= rounds || norm == 0 {
			break
		}
		aim := target
		if math.IsInf(aim, 1) || aim <= value {
			aim = value + 0.05*math.Abs(value) + 1e-12
		}
		t := factor * (aim - value) / norm
		q.duals.one += t * g.one
		q.duals.two += t * g.two
		q.duals.first += t * g.first
		q.duals.last += t * g.last
	}
	q.duals = keep
	return best
}

// guess starts the multipliers at what a block costs on the dearest host that is needed when the cheapest fill up first.
func (q *search) guess() {
	type offer struct {
		price  float64
		blocks int
	}
	per := make(map[*class]offer, len(q.classes))
	w := q.shape.width()
	for _, c := range q.classes {
		o := offer{math.Inf(1), 0}
		for cell, t := range c.cost[0] {
			if n := cell/w + cell%w; n > 0 && t < math.Inf(1) {
				o.price = min(o.price, (t+c.hop)/float64(n))
				o.blocks = max(o.blocks, n)
			}
		}
		per[c] = o
	}
	var offers []offer
	for _, u := range q.units {
		for _, h := range u.members {
			if o := per[h.class]; o.blocks > 0 {
				offers = append(offers, o)
			}
		}
	}
	slices.SortFunc(offers, func(a, b offer) int { return cmp.Or(cmp.Compare(a.price, b.price), cmp.Compare(b.blocks, a.blocks)) })
	left, price := q.shape.n1+q.shape.n2, 0.0
	for _, o := range offers {
		price = o.price
		if left -= o.blocks; left <= 0 {
			break
		}
	}
	q.duals = multipliers{one: price, two: price}
}

// relaxed evaluates the relaxation and its subgradient: the demand that the hosts' choices leave unmet.
func (q *search) relaxed() (float64, multipliers) {
	s, m := q.shape, q.duals
	type taken struct {
		value float64
		x, y  int
		role  role
	}
	per := make(map[*class]taken, len(q.classes))
	for _, c := range q.classes {
		v, x, y, r := c.reduced(s, m)
		per[c] = taken{v, x, y, r}
	}
	value := m.one*float64(s.n1) + m.two*float64(s.n2) + m.first + m.last
	g := multipliers{float64(s.n1), float64(s.n2), 1, 1}
	add := func(t taken) {
		value += t.value
		g.one -= float64(t.x)
		g.two -= float64(t.y)
		g.first -= float64(boolInt(t.role&first != 0))
		g.last -= float64(boolInt(t.role&last != 0))
	}
	for _, u := range q.units {
		sum := 0.0
		for _, h := range u.members {
			sum += per[h.class].value
		}
		if u.whole != nil && per[u.whole.class].value < sum {
			add(per[u.whole.class])
			continue
		}
		for _, h := range u.members {
			add(per[h.class])
		}
	}
	return value, g
}

// suffixes sums the reduced costs from each turn on, which bounds what the hosts from there on can still bring. The result
// is a lower bound on the sum of any pipeline: the first host that is used pays no hop.
func (q *search) suffixes() float64 {
	per := make(map[*class]float64, len(q.classes))
	for _, c := range q.classes {
		per[c], _, _, _ = c.reduced(q.shape, q.duals)
	}
	q.suffix = slices.Grow(q.suffix[:0], len(q.steps)+1)[:len(q.steps)+1]
	m := q.duals
	base := m.one*float64(q.shape.n1) + m.two*float64(q.shape.n2) + m.first + m.last
	lower := math.Inf(1)
	after := 0.0
	at := len(q.steps)
	q.suffix[at] = 0
	for i := len(q.units) - 1; i >= 0; i-- {
		u := q.units[i]
		sum := 0.0
		if u.whole != nil {
			at--
			q.suffix[at] = after // between the members and the whole nothing of the unit is left
		}
		for k := len(u.members) - 1; k >= 0; k-- {
			sum += per[u.members[k].class]
			at--
			q.suffix[at] = after + sum
			lower = min(lower, base+after+sum-u.members[k].hop)
		}
		if u.whole != nil {
			sum = min(sum, per[u.whole.class])
			q.suffix[at] = after + sum
			lower = min(lower, base+after+sum-u.whole.hop)
		}
		after += sum
	}
	return lower
}

// below finds the cheapest pipeline with a sum under bound within the limit; nil when there is none.
func (q *search) below(busiest, bound float64) (float64, []choice) {
	q.limit(busiest)
	near := q.dual(bound)
	lower := q.suffixes()
	if lower > bound {
		return math.Inf(1), nil
	}
	near = max(near, lower)
	slack := 0.004
	for {
		guess := bound
		if slack < 4 && near > 0 {
			guess = min(bound, near*(1+slack))
		}
		if v, c := q.pass(guess); c != nil {
			return v, c
		}
		if guess == bound {
			return math.Inf(1), nil
		}
		slack *= 4
	}
}

// pass is one dynamic programme over the hosts that keeps the states which may still end at most at bound.
func (q *search) pass(bound float64) (float64, []choice) {
	q.passes++
	bound += 1e-11 * math.Abs(bound)
	size := q.layers * len(q.auto.sets) * q.shape.cells()
	for len(q.tables) < len(q.steps)+1 {
		q.tables = append(q.tables, make([]float64, size))
	}
	if q.live == nil {
		q.live = make([][]int32, len(q.steps)+1)
	}
	start := q.tables[0]
	for i := range start {
		start[i] = math.Inf(1)
	}
	start[q.at(0, 0, 0)] = 0
	q.live[0] = append(q.live[0][:0], 0)
	for i, st := range q.steps {
		if st.join >= 0 {
			copy(q.tables[st.to], q.tables[st.join])
		} else {
			copy(q.tables[st.to], q.tables[st.from])
		}
		q.lay(st.host, st.from, q.tables[st.to])
		q.survivors(i+1, bound)
	}
	end := q.tables[len(q.steps)]
	best, layer := math.Inf(1), 0
	for k := range q.layers {
		if v := end[q.at(k, 1, q.shape.cells()-1)]; v < best {
			best, layer = v, k
		}
	}
	if best > bound {
		return math.Inf(1), nil
	}
	return best, q.trace(layer)
}

// survivors lists the states after turn i that may still end at most at bound.
func (q *search) survivors(i int, bound float64) {
	table, cells, w := q.tables[i], q.shape.cells(), q.shape.width()
	live := q.live[i][:0]
	hop := 0.0
	if i < len(q.steps) {
		hop = q.steps[i].host.hop
	}
	// A whole island's turn begins from the table before its members.
	ahead := q.suffix[i]
	for k := range q.layers {
		for set := range q.auto.sets {
			if set == 1 {
				continue
			}
			base := (k*len(q.auto.sets) + set) * cells
			rest := ahead + q.open(set, hop)
			for cell, v := range table[base : base+cells] {
				if v == math.Inf(1) {
					continue
				}
				if set == 0 {
					live = append(live, int32(base+cell))
					continue
				}
				d, e := cell/w, cell%w
				if v+rest+q.duals.one*float64(q.shape.n1-d)+q.duals.two*float64(q.shape.n2-e) <= bound {
					live = append(live, int32(base+cell))
				}
			}
		}
	}
	q.live[i] = live
}

// open is what a set still lacks: its ends, and joins of its pieces that the next hosts pay.
func (q *search) open(set int, hop float64) float64 {
	s := q.auto.sets[set]
	t, n := 0.0, 0
	headed, tailed := false, false
	for i, p := range pieces() {
		if s&(1<<i) != 0 {
			n++
			headed = headed || p.left == closed
			tailed = tailed || p.right == closed
		}
	}
	if !headed {
		t += q.duals.first
	}
	if !tailed {
		t += q.duals.last
	}
	return t + float64(n-1)*hop
}

// lay extends every live state of table from by one host into next.
func (q *search) lay(h *host, from int, next []float64) {
	prev, cells, sets := q.tables[from], q.shape.cells(), len(q.auto.sets)
	deeper := 0
	if q.layers > 1 {
		deeper = len(h.nodes)
	}
	for _, at := range q.live[from] {
		cell := int(at) % cells
		set := int(at) / cells % sets
		k := int(at)/cells/sets + deeper
		if k >= q.layers {
			continue
		}
		v := prev[at]
		for _, st := range q.auto.out[set] {
			q.relax(h, st, v, cell, next[q.at(k, st.to, 0):][:cells])
		}
	}
}

// relax applies one step of the automaton to one state. The sum is v + (cost + hops), in trace as here, so that trace
// finds the same bits.
func (q *search) relax(h *host, st step, v float64, cell int, to []float64) {
	n1, n2, w := q.shape.n1, q.shape.n2, q.shape.width()
	d, e := cell/w, cell%w
	hops := float64(st.links) * h.hop
	cost := h.cost[st.role]
	x0, x1, y0, y1 := q.bounds(st)
	if st.to == 1 {
		x0, y0 = max(x0, n1-d), max(y0, n2-e)
	}
	for x := x0; x <= min(x1, n1-d); x++ {
		ys := min(y1, n2-e, h.top[st.role][x])
		if y0 > ys {
			continue
		}
		row := cost[x*w+y0 : x*w+ys+1]
		out := to[(d+x)*w+e+y0:][:len(row)]
		for i, c := range row {
			if t := v + (c + hops); t < out[i] {
				out[i] = t
			}
		}
	}
}

// bounds are the parts that a step may lay.
func (q *search) bounds(st step) (xlow, xhigh, ylow, yhigh int) {
	switch st.kind {
	case inOne:
		return 1, q.shape.n1, 0, 0
	case inTwo:
		return 0, 0, 1, q.shape.n2
	default:
		return 1, q.shape.n1, 1, q.shape.n2
	}
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
		v := q.tables[at][q.at(layer, set, cell)]
		skip := st.from
		if st.join >= 0 {
			skip = st.join
		}
		if q.tables[skip][q.at(layer, set, cell)] == v {
			at = skip
			continue
		}
		deeper := 0
		if q.layers > 1 {
			deeper = len(st.host.nodes)
		}
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

// origin finds the live state and the step that gave a value.
func (q *search) origin(h *host, table, layer, set, cell int, v float64) (laid, int, bool) {
	prev, cells, sets, w := q.tables[table], q.shape.cells(), len(q.auto.sets), q.shape.width()
	for _, at := range q.live[table] {
		was := int(at) % cells
		if int(at)/cells/sets != layer {
			continue
		}
		x, y := cell/w-was/w, cell%w-was%w
		if x < 0 || y < 0 || x+y == 0 {
			continue
		}
		for _, st := range q.auto.out[int(at)/cells%sets] {
			if st.to != set {
				continue
			}
			x0, x1, y0, y1 := q.bounds(st)
			if x < x0 || x > x1 || y < y0 || y > y1 {
				continue
			}
			hops := float64(st.links) * h.hop
			if prev[at]+(h.cost[st.role][x*w+y]+hops) == v {
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
