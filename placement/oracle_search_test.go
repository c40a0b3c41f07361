// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	. "github.com/distorch/distorch/placement"
)

// oracle enumerates every plan that docs/cost-model.md allows and shares nothing with the search but its input.
type oracle struct {
	p      Problem
	links  map[[2]NodeID]PeerLink
	rack   []int // group index of each node, -1 without
	island []int
	places []place
	debts  debts // of the plan that is priced
}

// place is a node, or an island used as a whole.
type place struct {
	node int  // an island's first
	mask uint // of nodes
	ways []way
}

// trait says what a pipeline makes use of.
type trait uint8

const (
	usesStream trait = 1 << iota
	usesTensor
	usesInside
	usesIsland
)

// run is one pipeline as far as it goes, or a part of one.
type run struct {
	s, x   float64
	traits trait
	way    *way // of a part
}

func (a run) covers(b run) bool { return a.s <= b.s && a.x <= b.x }

// front keeps the runs that no other covers.
func front(runs []run, r run) []run {
	if slices.ContainsFunc(runs, func(o run) bool { return o.covers(r) }) {
		return runs
	}
	return append(slices.DeleteFunc(runs, r.covers), r)
}

func newOracle(p Problem) *oracle {
	p.Nodes = slices.Clone(p.Nodes)
	slices.SortFunc(p.Nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	o := &oracle{p: p, links: map[[2]NodeID]PeerLink{}, rack: make([]int, len(p.Nodes)), island: make([]int, len(p.Nodes))}
	for _, l := range p.Links {
		o.links[[2]NodeID{l.From, l.To}] = l
	}
	usable := func(n Node) bool {
		out := func(ref string) bool { return ref == string(n.ID) || ref == n.Name }
		return n.HasModel && n.Rejected.Kind == "" && !slices.ContainsFunc(p.Constraints.Exclude, out)
	}
	for i, n := range p.Nodes {
		o.rack[i], o.island[i] = -1, -1
		for g, group := range p.Groups {
			if !slices.Contains(group.Nodes, n.ID) {
				continue
			}
			if group.Kind == GroupRack {
				o.rack[i] = g
			} else {
				o.island[i] = g
			}
		}
		if usable(n) {
			o.places = append(o.places, place{i, 1 << i, o.nodeWays(i)})
		}
	}
	for g, group := range p.Groups {
		var nodes []int
		mask := uint(0)
		for i, n := range p.Nodes {
			if o.island[i] == g && usable(n) {
				nodes, mask = append(nodes, i), mask|1<<i
			}
		}
		if len(nodes) > 1 {
			o.places = append(o.places, place{nodes[0], mask, o.islandWays(nodes, group)})
		}
	}
	return o
}

func linkTime(size Bytes, rate, latency float64) float64 { return float64(size)/rate + latency }

func star(size Bytes, n Node) float64 { return linkTime(size, n.Link.BytesPerSecond, n.Link.Latency) }

// between is the time from one place to another, for an island the longest of its nodes.
func (o *oracle) between(from, to place, size Bytes) float64 {
	t := 0.0
	for _, a := range o.members(from) {
		for _, b := range o.members(to) {
			t = math.Max(t, o.hop(a, b, size))
		}
	}
	return t
}

// outside is the endpoint's hop to or from a place.
func (o *oracle) outside(p place, size Bytes) float64 {
	t := 0.0
	for _, i := range o.members(p) {
		t = math.Max(t, star(size, o.p.Nodes[i]))
	}
	return t
}

func (o *oracle) members(p place) []int {
	var out []int
	for i := range o.p.Nodes {
		if p.mask&(1<<i) != 0 {
			out = append(out, i)
		}
	}
	return out
}

// hop is the time between two nodes.
func (o *oracle) hop(from, to int, size Bytes) float64 {
	a, b := o.p.Nodes[from], o.p.Nodes[to]
	if l, ok := o.links[[2]NodeID{a.ID, b.ID}]; ok {
		return linkTime(size, l.BytesPerSecond, l.Latency)
	}
	t := math.Max(star(size, a), star(size, b))
	if o.rack[from] != o.rack[to] {
		for _, g := range []int{o.rack[from], o.rack[to]} {
			if g >= 0 {
				t = math.Max(t, linkTime(size, o.p.Groups[g].BytesPerSecond, o.p.Groups[g].Latency))
			}
		}
	}
	return t
}

func (b bench) boundaryBehind(block int) Bytes {
	return b.model.Runs[b.runAt(block)].Boundary + b.model.Vec
}

// atlas holds, for one model and one numerics class, what each place can make of each part.
type atlas struct {
	*oracle
	bench
	class string // "" for any
	parts map[[3]int][]run
	works map[*seat][]work
	trail []leg // of the pipeline that walk is in
}

// leg is one place's part of a pipeline.
type leg struct {
	at, from, to int
	way          *way
}

func (o *oracle) atlas(m Model, class string) *atlas {
	return &atlas{oracle: o, bench: bench{m, o.p.Constraints}, class: class, parts: map[[3]int][]run{}, works: map[*seat][]work{}}
}

func (a *atlas) work(s *seat, from, to int) work {
	side := a.blocks() + 1
	if a.works[s] == nil {
		a.works[s] = make([]work, side*side)
		for f := range side {
			for t := f + 1; t < side; t++ {
				a.works[s][f*side+t] = a.stage(s, f, t)
			}
		}
	}
	return a.works[s][from*side+to]
}

// part is the front of all ways of a place to run blocks from..to-1.
func (a *atlas) part(at, from, to int) []run {
	key := [3]int{at, from, to}
	if runs, ok := a.parts[key]; ok {
		return runs
	}
	var out []run
	for i := range a.places[at].ways {
		w := a.places[at].ways[i]
		if a.class != "" && w.class != a.class {
			continue
		}
		var extend func(seat, at int, done run)
		extend = func(seat, at int, done run) {
			if seat == len(w.seats) {
				if at == to {
					out = front(out, done)
				}
				return
			}
			first := to
			if seat < len(w.seats)-1 {
				first = at + 1
			}
			for end := first; end <= to-(len(w.seats)-1-seat); end++ {
				c := a.work(w.seats[seat], at, end)
				if !c.fits {
					continue
				}
				next := done
				if seat > 0 {
					h := w.hops[seat-1]
					t := linkTime(a.boundaryBehind(at-1), h.rate, h.latency)
					next.s, next.x = next.s+t, math.Max(next.x, t)
				}
				next.s, next.x = next.s+c.seconds, math.Max(next.x, c.seconds)
				if c.ring > 0 {
					next.traits |= usesStream
				}
				if w.seats[seat].degree > 1 {
					next.traits |= usesTensor
				}
				if len(w.seats) > 1 {
					next.traits |= usesInside
				}
				if len(w.seats[seat].shelves) > 1 {
					next.traits |= usesIsland
				}
				extend(seat+1, end, next)
			}
		}
		extend(0, from, run{way: &w})
	}
	a.parts[key] = out
	return out
}

// walk lays pipelines of every ordered choice of places and every cut; enter may prune, done gets each whole one.
func (a *atlas) walk(enter func(at, last int, used uint, r run) bool, done func(used uint, r run)) {
	total := a.blocks()
	limit := a.p.Constraints.MaxNodes
	var extend func(at, last int, used uint, so run)
	extend = func(at, last int, used uint, so run) {
		if !enter(at, last, used, so) {
			return
		}
		if at == total {
			so.s += a.outside(a.places[last], a.model.Output)
			done(used, so)
			return
		}
		for i, next := range a.places {
			if used&next.mask != 0 || (limit > 0 && countNodes(used|next.mask) > limit) {
				continue
			}
			with := so
			if last < 0 {
				with.s += a.outside(next, a.model.Input)
			} else {
				t := a.between(a.places[last], next, a.boundaryBehind(at-1))
				with.s, with.x = with.s+t, math.Max(with.x, t)
			}
			for end := at + 1; end <= total; end++ {
				for _, r := range a.part(i, at, end) {
					a.trail = append(a.trail, leg{i, at, end, r.way})
					extend(end, i, used|next.mask, run{s: with.s + r.s, x: math.Max(with.x, r.x), traits: with.traits | r.traits})
					a.trail = a.trail[:len(a.trail)-1]
				}
			}
		}
	}
	extend(0, -1, 0, run{})
}

func countNodes(mask uint) int {
	n := 0
	for ; mask > 0; mask >>= 1 {
		n += int(mask & 1)
	}
	return n
}

// legs says how a pipeline runs, for messages.
func (a *atlas) legs() string {
	var out []string
	for _, l := range a.trail {
		text := fmt.Sprintf("%s blocks %d+%d on", a.p.Nodes[a.places[l.at].node].ID, l.from, l.to-l.from)
		for _, s := range l.way.seats {
			text += " " + strings.Join(s.devices, "+")
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}
