// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"slices"
)

// capacity is how many blocks fit on one node: most[role][x] is the largest y beside x blocks of run 1, or -1.
type capacity struct{ most [roles][]int }

func (m Model) capacity(available Bytes, inFlight int) capacity {
	s := shapeOf(m)
	var c capacity
	for r := range c.most {
		c.most[r] = make([]int, s.n1+1)
		y := s.n2
		for x := range c.most[r] {
			for ; y >= 0; y-- {
				if peak, _, _ := m.memory(s.load(x, y, role(r)), inFlight); peak <= available {
					break
				}
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

// fill answers whether blocks can be spread over nodes of these capacities, and with how few nodes. Only memory counts,
// so the order of nodes does not matter; for every number of run-1 blocks the most run-2 blocks are kept.
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

// add offers one more node.
func (f *fill) add(c capacity) {
	old := f.clone()
	for k := range old.reach {
		to := k + 1
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
		if got := c.most[r][0]; got > 0 && (r&first == 0 || n1 == 0) && (!alone || got == n2) {
			put(r, 0, x, y+got)
		}
		for dx := 1; x+dx <= n1; dx++ {
			got := c.most[r][dx]
			if got < 0 {
				break
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

// fits reports whether the model fits nodes with these amounts of memory.
func (m Model) fits(available []Bytes, inFlight, maxNodes int) bool {
	return m.fewest(available, inFlight, maxNodes, maxNodes > 0 && maxNodes < len(available)) > 0
}

// fewest is the least number of nodes that hold the model, 0 when none does. When nothing is counted a fit gives 1.
func (m Model) fewest(available []Bytes, inFlight, limit int, count bool) int {
	if !count {
		limit = 0
	}
	f := newFill(shapeOf(m), limit)
	for _, b := range available {
		f.add(m.capacity(b, inFlight))
	}
	for k := range f.reach {
		if f.done(k) {
			return max(k, 1)
		}
	}
	return 0
}

// shortCandidates bounds how many nodes are tried for "this much more would do".
const shortCandidates = 4

// short is the least extra memory on one of the largest nodes that makes the model fit, to 1/256, and that node's
// position in available; -1 and the need of a lone node when there are no nodes.
func (m Model) short(available []Bytes, inFlight, maxNodes int) (Bytes, int) {
	s := shapeOf(m)
	whole, _, _ := m.memory(s.load(s.n1, s.n2, first|last), inFlight)
	if len(available) == 0 {
		return whole, -1
	}
	order := make([]int, len(available))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(available[b], available[a]) })
	order = order[:min(len(order), shortCandidates)]
	best, at := whole+1, order[0]
	for _, i := range order {
		more := slices.Clone(available)
		low, high := Bytes(0), max(0, whole-available[i])
		try := func(extra Bytes) bool {
			more[i] = available[i] + extra
			return m.fits(more, inFlight, maxNodes)
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
			best, at = high, i
		}
	}
	return best, at
}
