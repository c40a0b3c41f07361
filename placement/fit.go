// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"math"
	"slices"
)

// capacity is how many blocks fit on one host: most[role][x] is the largest y beside x blocks of run 1, or -1.
type capacity struct{ most [roles][]int }

// capacity is what fits whatever it takes.
func (t *table) capacity(s shape) capacity {
	var c capacity
	for r := range role(roles) {
		c.most[r] = make([]int, s.n1+1)
		for x := range c.most[r] {
			y := s.n2
			for y >= 0 && len(t.parts.at(r, x*s.width()+y)) == 0 {
				y--
			}
			c.most[r][x] = y
		}
	}
	return c
}

const (
	straddled = 4 // beside first and last in fill's state: a node holds blocks of both runs
	fillFlags = 8
)

// fill answers whether blocks can be spread over hosts of these capacities, and with how few nodes. The order of hosts
// does not matter; for every number of run-1 blocks the most run-2 blocks are kept. A no is certain. A yes takes for
// granted that what holds many blocks also holds fewer, which a pipeline inside a node need not.
type fill struct {
	shape shape
	limit int // nodes counted; 0 counts none
	reach [][fillFlags][]int
}

func newFill(s shape, limit int) *fill {
	f := &fill{shape: s, limit: limit, reach: make([][fillFlags][]int, limit+1)}
	for k := range f.reach {
		for g := range f.reach[k] {
			f.reach[k][g] = make([]int, s.n1+1)
			for x := range f.reach[k][g] {
				f.reach[k][g][x] = -1
			}
		}
	}
	f.reach[0][0][0] = 0
	return f
}

func (f *fill) clone() *fill {
	g := &fill{shape: f.shape, limit: f.limit, reach: slices.Clone(f.reach)}
	for k := range g.reach {
		for i := range g.reach[k] {
			g.reach[k][i] = slices.Clone(g.reach[k][i])
		}
	}
	return g
}

// add offers one more host of so many nodes.
func (f *fill) add(c capacity, nodes int) {
	old := f.clone()
	for k := range old.reach {
		to := k + nodes
		if f.limit == 0 {
			to = k
		} else if to > f.limit {
			break
		}
		for flags := range old.reach[k] {
			for x, y := range old.reach[k][flags] {
				if y >= 0 {
					f.extend(to, flags, x, y, c)
				}
			}
		}
	}
}

func (f *fill) extend(k, flags, x, y int, c capacity) {
	n1, n2 := f.shape.n1, f.shape.n2
	put := func(r role, more, x, y int) {
		cell := &f.reach[k][flags|int(r)|more][x]
		*cell = max(*cell, min(y, n2))
	}
	for r := range role(roles) {
		if flags&int(r) != 0 {
			continue
		}
		alone := r == first|last
		// A lone block of run 2 is the last stage's.
		if n2 == 1 && (r&last == 0 || (n1 == 0 && !alone)) {
			for dx := 1; x+dx <= n1 && r&last == 0; dx++ {
				if c.most[r][dx] >= 0 {
					put(r, 0, x+dx, y)
				}
			}
			continue
		}
		if got := c.most[r][0]; got > 0 && (r&first == 0 || n1 == 0) && (!alone || got == n2) {
			put(r, 0, x, y+got)
		}
		for dx := 1; x+dx <= n1; dx++ {
			got := c.most[r][dx]
			if got < 0 {
				continue
			}
			if r&last == 0 {
				put(r, 0, x+dx, y)
			}
			all := (r&first == 0 || dx == n1) && (r&last == 0 || got == n2)
			if flags&straddled == 0 && got > 0 && all {
				put(r, straddled, x+dx, y+got)
			}
		}
	}
}

// done reports whether all blocks found a place with at most k nodes.
func (f *fill) done(k int) bool {
	ends := int(first | last)
	return f.reach[k][ends][f.shape.n1] >= f.shape.n2 || f.reach[k][ends|straddled][f.shape.n1] >= f.shape.n2
}

// merge keeps the better of both.
func (f *fill) merge(o *fill) {
	for k := range f.reach {
		for g := range f.reach[k] {
			for x, y := range o.reach[k][g] {
				f.reach[k][g][x] = max(f.reach[k][g][x], y)
			}
		}
	}
}

// fits reports whether the model fits these hosts, on at most so many when maxNodes is not 0.
func (f *field) fits(hosts []capacity, maxNodes int) bool {
	return f.fewest(hosts, maxNodes, maxNodes > 0 && maxNodes < len(hosts)) > 0
}

// fewest is the least number of hosts that hold the model, 0 when none does. When nothing is counted a fit gives 1.
func (f *field) fewest(hosts []capacity, limit int, count bool) int {
	if !count {
		limit = 0
	}
	l := newFill(shapeOf(f.model), limit)
	for _, c := range hosts {
		l.add(c, 1)
	}
	for k := range l.reach {
		if l.done(k) {
			return max(k, 1)
		}
	}
	return 0
}

// shortCandidates bounds how many nodes are tried for "this much more would do".
const shortCandidates = 4

// short is the least extra memory on one of the largest nodes that makes the model fit, to 1/256, and that node; -1 and
// the need of a lone device when there are no nodes.
func (f *field) short(nodes []int) (Bytes, int) {
	if len(nodes) == 0 {
		return f.model.lone(f.problem.Constraints.inFlight()), -1
	}
	best, at := Bytes(math.MaxInt64), -1
	for _, c := range f.numerics(nodes) {
		if b, i := f.within(c).shortIn(nodes); i >= 0 && b < best {
			best, at = b, i
		}
	}
	if at < 0 {
		best = f.model.lone(f.problem.Constraints.inFlight())
	}
	return best, at
}

// numerics are the classes of engines, of which all stages must have one; one empty class where they need not.
func (f *field) numerics(nodes []int) []string {
	if f.problem.Constraints.Numerics != NumericsOne {
		return []string{""}
	}
	var out []string
	for _, i := range nodes {
		for _, w := range f.ways(i, f.model.widest()) {
			for _, e := range w.engines {
				out = append(out, e.class)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// holds reports whether the nodes have room for the model, all in one class where that is asked.
func (f *field) holds(nodes []int) bool {
	return slices.ContainsFunc(f.numerics(nodes), func(c string) bool {
		g := f.within(c)
		return g.fits(g.capacities(nodes), f.problem.Constraints.MaxNodes)
	})
}

// grows reports whether more memory on the device would count.
func (f *field) grows(d *Device) bool {
	return f.only == "" || d.NumericsClass(f.model.ComputeDType, 1) == f.only
}

// shortIn is short with engines of one class; -1 where no such memory helps.
func (f *field) shortIn(nodes []int) (Bytes, int) {
	whole := f.model.lone(f.problem.Constraints.inFlight())
	hosts := f.capacities(nodes)
	order := make([]int, len(nodes))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(f.offer(nodes[b]), f.offer(nodes[a])) })
	order = order[:min(len(order), shortCandidates)]
	best, at := Bytes(math.MaxInt64), -1
	for _, i := range order {
		roomiest, ok := f.roomiest(nodes[i])
		if !ok {
			continue
		}
		try := func(extra Bytes) bool {
			more := slices.Clone(hosts)
			more[i] = f.enlarged(nodes[i], extra).capacity(shapeOf(f.model))
			return f.fits(more, f.problem.Constraints.MaxNodes)
		}
		low, high := Bytes(0), max(0, whole-roomiest)
		if !try(high) {
			continue
		}
		if high >= best && !try(best-1) {
			continue
		}
		high = min(high, best)
		for high-low > max(1, high/256) {
			mid := low + (high-low)/2
			if try(mid) {
				high = mid
			} else {
				low = mid
			}
		}
		if high < best {
			best, at = high, nodes[i]
		}
	}
	return best, at
}

// lone is what one device needs for everything, resident.
func (m Model) lone(inFlight int) Bytes {
	slot, scratch := max(m.Head.Staging, m.Tail.Staging), max(m.Head.Scratch, m.Tail.Scratch)
	for _, r := range m.Runs {
		slot, scratch = max(slot, r.Block.Staging), max(scratch, r.Block.Scratch)
	}
	return m.Weights() + slot + scratch*Bytes(inFlight)
}

func (f *field) capacities(nodes []int) []capacity {
	out := make([]capacity, len(nodes))
	for k, i := range nodes {
		out[k] = f.table(i, f.model.widest()).capacity(shapeOf(f.model))
	}
	return out
}

// roomiest is the memory of the node's device with the most; false where none counts.
func (f *field) roomiest(i int) (most Bytes, ok bool) {
	most = math.MinInt64
	for _, d := range f.nodes[i].computing(f.model) {
		if f.grows(d) {
			most, ok = max(most, d.available(f.problem.Constraints)), true
		}
	}
	return most, ok
}

// enlarged is what node i could do with more memory on the device that has the most.
func (f *field) enlarged(i int, extra Bytes) *table {
	g := *f
	g.nodes = slices.Clone(f.nodes)
	n := &g.nodes[i]
	n.Devices = slices.Clone(n.Devices)
	at := -1
	for k := range n.Devices {
		d := &n.Devices[k]
		if _, ok := d.rate(f.model.ComputeDType, f.model.Tokens); !ok || !f.grows(d) {
			continue
		}
		c := f.problem.Constraints
		if at < 0 || (d.Kind == KindGPU && n.Devices[at].Kind == KindCPU) ||
			(d.Kind == n.Devices[at].Kind && d.available(c) > n.Devices[at].available(c)) {
			at = k
		}
	}
	if at >= 0 {
		n.Devices[at].Allocatable += extra
	}
	return newTable(shapeOf(g.model), g.ways(i, g.model.widest()))
}
