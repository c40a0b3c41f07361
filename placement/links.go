// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"math"
	"slices"
)

// pipeline finds one pipeline for a mode, and a lower bound on any other's value. The list is nil when nothing fits.
//
// Where the links are a star and all cuts carry the same, one search is exact. Otherwise the search runs on a star that
// flatters every link, which gives the bound, and on several that do not, whose plans are priced on the true links.
func (f *field) pipeline(m mode) ([]part, float64, error) {
	list, bound, err := f.nested(m)
	if err != nil || f.model.unfolded == nil {
		return list, bound, err
	}
	if _, bound, err = f.cheap().nested(m); err != nil {
		return nil, 0, err
	}
	return f.improve(list, m, bound), bound, nil
}

// nested is pipeline for the runs as the search sees them.
func (f *field) nested(m mode) ([]part, float64, error) {
	if f.distinct() > maxDistinct {
		return f.bucketed(m)
	}
	list, bound, err := f.local(m)
	if err != nil || !f.lends() {
		return list, bound, err
	}
	return f.remotely(m, list, bound)
}

// local is pipeline without other nodes' memory.
func (f *field) local(m mode) ([]part, float64, error) {
	star := view{f.model.widest(), func(i int) float64 { return hopCost(f.model.widest(), f.nodes[i].Link) }, false}
	if f.isStar() {
		fd, ok, err := f.searched(star, m)
		if err != nil || !ok {
			return nil, math.Inf(1), err // or no better than another mode's
		}
		return f.realise(fd, star.boundary), m.of(fd.s, fd.x), nil
	}
	low, _ := f.model.boundaryRange()
	best := view{low, func(i int) float64 { return f.nearest(i, low) }, true}
	fd, ok, err := f.searched(best, m)
	if err != nil || !ok {
		return nil, math.Inf(1), err
	}
	bound := m.of(fd.s, fd.x)
	var list []part
	value := math.Inf(1)
	take := func(fd found, boundary Bytes) {
		l := f.realise(fd, boundary)
		p, misfit := f.price(l)
		if misfit != nil {
			return
		}
		if v := m.of(p.s, p.x); v < value {
			list, value = l, v
		}
	}
	take(fd, low)
	if l := f.unsplit(m); l != nil {
		if p, misfit := f.price(l); misfit == nil && m.of(p.s, p.x) < value {
			list, value = l, m.of(p.s, p.x)
		}
	}
	views := []view{star, {f.model.widest(), func(i int) float64 { return f.typical(i, f.model.widest(), nil) }, false}}
	for round := 0; round < len(views) && value > bound*(1+1e-9); round++ {
		fd, ok, err := f.searched(views[round], m)
		if err != nil {
			return nil, 0, err
		}
		if !ok {
			continue
		}
		take(fd, views[round].boundary)
		if round == 1 {
			used := nodesOf(list)
			views = append(views, view{f.model.widest(), func(i int) float64 { return f.typical(i, f.model.widest(), used) }, false})
		}
	}
	if value > bound*(1+1e-9) {
		list = f.improve(list, m, bound)
	}
	return list, bound, nil
}

// unsplit is the best of one node alone, which no link can make slower than it looks; nil where none holds the model.
func (f *field) unsplit(m mode) []part {
	var out []part
	best := math.Inf(1)
	s := shapeOf(f.model)
	for _, i := range f.usable() {
		for _, o := range f.table(i, f.model.widest()).parts.at(first|last, s.cells()-1) {
			if v := m.of(o.s+endpointHops(f.model, f.nodes[i].Link, first|last), o.x); v < best {
				best, out = v, nil
				for _, st := range f.ways(i, f.model.widest())[o.way].stages(first|last, s.n1, s.n2, o.x) {
					out = append(out, part{st.engine, st.x, st.y})
				}
			}
		}
	}
	return out
}

// searched is the exact search in a view, first without the limit on nodes and with it where that is too many.
func (f *field) searched(v view, m mode) (found, bool, error) {
	fd, ok, err := f.searchedWith(v, m, 0)
	limit := f.problem.Constraints.MaxNodes
	if err != nil || !ok || limit == 0 || countNodes(fd) <= limit {
		return fd, ok, err
	}
	f.bound = true
	return f.searchedWith(v, m, limit)
}

func (f *field) searchedWith(v view, m mode, most int) (found, bool, error) {
	q, err := newSearch(shapeOf(f.model), f.auto, f.units(v), most)
	if err != nil {
		return found{}, false, err
	}
	least := q.fluid()
	if m.busiest {
		fd, ok := q.soonest(least)
		return fd, ok, nil
	}
	fd, ok := q.best(m.weight, least, m.ceiling())
	return fd, ok, nil
}

func countNodes(fd found) int {
	n := 0
	for _, c := range fd.choices {
		n += len(c.host.nodes)
	}
	return n
}

// isStar reports whether every cut carries the same and every hop is the slower of its ends.
func (f *field) isStar() bool {
	low, high := f.model.boundaryRange()
	if low != high {
		return false
	}
	for _, l := range f.problem.Links {
		if indexOf(f.nodes, l.From) >= 0 && indexOf(f.nodes, l.To) >= 0 {
			return false
		}
	}
	for _, list := range f.members() {
		for _, i := range list {
			if f.nodes[i].Link != f.nodes[list[0]].Link {
				return false
			}
		}
	}
	return len(f.racks) == 0
}

// nearest is the cheapest of a node's hops to and from the others.
func (f *field) nearest(i int, size Bytes) float64 {
	best := math.Inf(1)
	for _, j := range f.usable() {
		if i == j {
			continue
		}
		a, _ := f.link(i, j, size)
		b, _ := f.link(j, i, size)
		best = min(best, a, b)
	}
	if math.IsInf(best, 1) {
		return hopCost(size, f.nodes[i].Link)
	}
	return best
}

// typical is the median of a node's hops to the others, or to those used.
func (f *field) typical(i int, size Bytes, used []int) float64 {
	if used == nil {
		used = f.usable()
	}
	var all []float64
	for _, j := range used {
		if i == j {
			continue
		}
		a, _ := f.link(i, j, size)
		b, _ := f.link(j, i, size)
		all = append(all, (a+b)/2)
	}
	if len(all) == 0 {
		return f.nearest(i, size)
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

func nodesOf(list []part) []int {
	var out []int
	for _, p := range list {
		for _, i := range p.engine.members() {
			if !slices.Contains(out, i) {
				out = append(out, i)
			}
		}
	}
	return out
}

// segment is one node's part of a pipeline; an island's keeps its engine.
type segment struct {
	node   int
	x, y   int
	engine *engine
}

func (f *field) segments(list []part) []segment {
	var out []segment
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].engine == nil && out[n-1].node == p.engine.node && len(p.engine.nodes) == 0 {
			out[n-1].x += p.x
			out[n-1].y += p.y
			continue
		}
		s := segment{node: p.engine.node, x: p.x, y: p.y}
		if len(p.engine.nodes) > 0 {
			s.engine = p.engine
		}
		out = append(out, s)
	}
	return out
}
