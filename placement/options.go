// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"math"
	"slices"
)

// option is one undominated way to run a part: s seconds in all, x on the busiest of its stages and inner links.
type option struct {
	s, x float64
	way  int32
}

// frontier holds the options of every part and role, sorted by s; x falls. It is filled cell by cell in order.
type frontier struct {
	stages int            // that every part has, and so the fewest blocks
	from   [roles][]int32 // cells+1 offsets into list
	list   [roles][]option
}

func (f *frontier) at(r role, cell int) []option {
	return f.list[r][f.from[r][cell]:f.from[r][cell+1]]
}

// newFrontier fills a frontier; fill appends a cell's undominated options.
func newFrontier(s shape, stages int, fill func(r role, x, y int, out []option) []option) *frontier {
	f := &frontier{stages: stages}
	for r := range role(roles) {
		f.from[r] = make([]int32, 1, s.cells()+1)
		list := make([]option, 0, s.cells())
		for x := 0; x <= s.n1; x++ {
			for y := 0; y <= s.n2; y++ {
				if x+y > 0 {
					list = fill(r, x, y, list)
				}
				f.from[r] = append(f.from[r], int32(len(list)))
			}
		}
		f.list[r] = list
	}
	return f
}

// insert adds an option to the undominated ones from start on, which are sorted by s; of equals the first stays.
func insert(list []option, start int, o option) []option {
	at := start
	for at < len(list) && list[at].s <= o.s {
		if list[at].x <= o.x {
			return list
		}
		at++
	}
	end := at
	for end < len(list) && list[end].x >= o.x {
		end++
	}
	if end == at {
		list = append(list, o)
		copy(list[at+1:], list[at:])
		list[at] = o
		return list
	}
	list[at] = o
	return append(list[:at+1], list[end:]...)
}

// solo is the frontier of one engine: one option where the part fits.
func (e *engine) solo(s shape) *frontier {
	f := &frontier{stages: 1}
	for r := range role(roles) {
		from, list := make([]int32, 1, s.cells()+1), make([]option, 0, s.cells())
		for x := 0; x <= s.n1; x++ {
			for y := 0; y <= s.n2; y++ {
				if x+y > 0 {
					if c, ok := e.price(x, y, r); ok {
						t := c.total()
						list = append(list, option{s: t, x: t})
					}
				}
				from = append(from, int32(len(list)))
			}
		}
		f.from[r], f.list[r] = from, list
	}
	return f
}

// chain joins two frontiers by a link: every cut of a part into one part for each.
type chain struct {
	shape shape
	a, b  *frontier
	link  float64
	bound func(r role, x, y int) float64 // no cut has a smaller s; nil when unknown
	cut   int                            // where the last part of the same x was cut
}

func (c *chain) frontier() *frontier {
	return newFrontier(c.shape, c.a.stages+c.b.stages, func(r role, x, y int, out []option) []option {
		if y == 0 || x+y == 1 {
			c.cut = c.a.stages
		}
		return c.options(r, x, y, out)
	})
}

// split is the m-th cut of a part: how many blocks of each region go to the front.
func split(x, m int) (int, int) { return min(m, x), max(0, m-x) }

func (c *chain) sides(r role, x, y, m int) (front, back []option) {
	w := c.shape.width()
	fx, fy := split(x, m)
	return c.a.at(r&first, fx*w+fy), c.b.at(r&last, (x-fx)*w+y-fy)
}

// options appends what a part may do.
func (c *chain) options(r role, x, y int, out []option) []option {
	if c.bound != nil {
		if o, ok := c.balanced(r, x, y); ok {
			return append(out, o)
		}
	}
	start := len(out)
	for m := c.a.stages; m <= x+y-c.b.stages; m++ {
		front, back := c.sides(r, x, y, m)
		for _, p := range front {
			for _, q := range back {
				out = insert(out, start, option{s: p.s + c.link + q.s, x: max(p.x, q.x, c.link)})
			}
		}
	}
	return out
}

// balanced finds the cut with the least x where the front's grows and the back's falls with every block. It is the only
// undominated one when no cut has less s. The parts of one x come in the order of y, for which the cut only moves on.
func (c *chain) balanced(r role, x, y int) (option, bool) {
	n := x + y
	least := func(list []option) float64 {
		if len(list) == 0 {
			return math.Inf(1)
		}
		return list[len(list)-1].x
	}
	m := c.cut // the first at which the front is the busier
	for ; m < n-c.b.stages; m++ {
		front, back := c.sides(r, x, y, m)
		if least(front) >= least(back) {
			break
		}
	}
	c.cut = m
	best := option{s: math.Inf(1), x: math.Inf(1)}
	for k := max(c.a.stages, m-1); k <= min(n-c.b.stages, m); k++ {
		front, back := c.sides(r, x, y, k)
		if len(front) == 0 || len(back) == 0 {
			continue
		}
		p, q := front[len(front)-1], back[len(back)-1]
		o := option{s: p.s + c.link + q.s, x: max(p.x, q.x, c.link)}
		if o.x < best.x || (o.x == best.x && o.s < best.s) {
			best = o
		}
	}
	return best, best.s <= c.bound(r, x, y)*(1+1e-12)
}

// table is what a place may do with every part: the undominated options of all its ways.
type table struct {
	ways  []way
	parts *frontier
}

// newTable prices every way. Sequences of equal engines share their halves.
func newTable(s shape, ways []way) *table {
	t := &table{ways: ways}
	b := &builder{shape: s, solo: map[*engine]*frontier{}}
	fronts := make([]*frontier, len(ways))
	for i, w := range ways {
		fronts[i] = b.sequence(w)
	}
	if len(fronts) == 1 {
		t.parts = fronts[0]
		return t
	}
	w := s.width()
	t.parts = newFrontier(s, 1, func(r role, x, y int, out []option) []option {
		start := len(out)
		for i, f := range fronts {
			for _, o := range f.at(r, x*w+y) {
				o.way = int32(i)
				out = insert(out, start, o)
			}
		}
		return out
	})
	return t
}

type builder struct {
	shape shape
	solo  map[*engine]*frontier
	alike []alike
}

// alike remembers the frontiers of 1, 2, 4, ... equal engines.
type alike struct {
	engine *engine
	link   float64
	powers []*frontier
}

func (b *builder) one(e *engine) *frontier {
	for o, f := range b.solo {
		if o.equals(e) {
			return f
		}
	}
	f := e.solo(b.shape)
	b.solo[e] = f
	return f
}

// equals reports whether two engines price every part alike.
func (e *engine) equals(o *engine) bool {
	return e.degree == o.degree && e.available == o.available && e.overlap == o.overlap && e.slots == o.slots &&
		e.inFlight == o.inFlight && e.runs == o.runs && e.head == o.head && e.tail == o.tail && e.strict == o.strict &&
		slices.Equal(e.sources, o.sources) && len(e.others)+len(o.others) == 0
}

func (b *builder) sequence(w way) *frontier {
	if len(w.engines) == 1 {
		return b.one(w.engines[0])
	}
	var whole *frontier
	for i := 0; i < len(w.engines); {
		n := i + 1
		for n < len(w.engines) && w.engines[n].equals(w.engines[i]) && (n == i+1 || w.links[n-1] == w.links[i]) {
			n++
		}
		part := b.one(w.engines[i])
		if n-i > 1 {
			part = b.power(w.engines[i], w.links[i], n-i)
		}
		if whole == nil {
			whole = part
		} else {
			whole = (&chain{shape: b.shape, a: whole, b: part, link: w.links[i-1]}).frontier()
		}
		i = n
	}
	return whole
}

// power is the frontier of n equal engines in a row, by doubling.
func (b *builder) power(e *engine, link float64, n int) *frontier {
	at := slices.IndexFunc(b.alike, func(a alike) bool { return a.engine.equals(e) && a.link == link })
	if at < 0 {
		at = len(b.alike)
		b.alike = append(b.alike, alike{e, link, []*frontier{b.one(e)}})
	}
	a := &b.alike[at]
	var whole *frontier
	held := 0
	for k := 0; 1<<k <= n; k++ {
		if k == len(a.powers) {
			half := a.powers[k-1]
			a.powers = append(a.powers, (&chain{shape: b.shape, a: half, b: half, link: link, bound: e.bound(link, 1<<k)}).frontier())
		}
		if n&(1<<k) == 0 {
			continue
		}
		if whole == nil {
			whole = a.powers[k]
		} else {
			whole = (&chain{shape: b.shape, a: a.powers[k], b: whole, link: link, bound: e.bound(link, held+1<<k)}).frontier()
		}
		held += 1 << k
	}
	return whole
}

// bound is a lower bound of s for n equal engines in a row: all resident, nothing waited for.
func (e *engine) bound(link float64, n int) func(r role, x, y int) float64 {
	hidden := e.overlap && e.slots > 1
	return func(r role, x, y int) float64 {
		s := e.runs[0].times(x).plus(e.runs[1].times(y))
		if r&first != 0 {
			s = s.plus(e.head.seconds)
		}
		if r&last != 0 {
			s = s.plus(e.tail.seconds)
		}
		t := s.compute + float64(n-1)*link
		if !hidden {
			t += s.expansion
		}
		return t
	}
}

// chosen is one stage of a way that was taken for a part.
type chosen struct {
	engine *engine
	x, y   int
	role   role
	cost   stageCost
}

// stages finds the cut inside a way that gives a part's option: the least s with no stage or link over x.
func (w *way) stages(r role, x, y int, busiest float64) []chosen {
	n := x + y
	limit := busiest * (1 + 1e-12)
	k := len(w.engines)
	best := make([][]float64, k+1) // [engines used][blocks done]
	from := make([][]int, k+1)
	for i := range best {
		best[i], from[i] = make([]float64, n+1), make([]int, n+1)
		for j := range best[i] {
			best[i][j] = math.Inf(1)
		}
	}
	best[0][0] = 0
	stage := func(i, a, b int) (chosen, bool) {
		ax, ay := split(x, a)
		bx, by := split(x, b)
		c := chosen{engine: w.engines[i], x: bx - ax, y: by - ay}
		if i == 0 {
			c.role |= r & first
		}
		if i == k-1 {
			c.role |= r & last
		}
		cost, ok := c.engine.price(c.x, c.y, c.role)
		c.cost = cost
		return c, ok && cost.total() <= limit
	}
	for i := range k {
		link := 0.0
		if i > 0 {
			link = w.links[i-1]
		}
		for a := range n {
			if math.IsInf(best[i][a], 1) {
				continue
			}
			for b := a + 1; b <= n; b++ {
				if c, ok := stage(i, a, b); ok {
					if t := best[i][a] + link + c.cost.total(); t < best[i+1][b] {
						best[i+1][b], from[i+1][b] = t, a
					}
				}
			}
		}
	}
	if math.IsInf(best[k][n], 1) {
		panic("placement: a way's option has no cut")
	}
	out := make([]chosen, k)
	for i, b := k-1, n; i >= 0; i-- {
		a := from[i+1][b]
		out[i], _ = stage(i, a, b)
		b = a
	}
	return out
}
