// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"math"
	"slices"
	"strings"
)

// A model of three runs or more is searched as one of two: runs that follow each other are counted as one whose blocks all
// cost what the dearest does, which gives a plan that fits, or what the cheapest does, which gives a bound. The plan is
// priced with the true blocks.

const maxRuns = 16

// folded is the model as the search sees it.
func (m Model) folded(dearest bool) Model {
	if len(m.Runs) <= 2 {
		return m
	}
	at := m.seam()
	out := m
	out.unfolded = m.Runs
	out.Runs = []Run{foldRuns(m.Runs[:at], dearest), foldRuns(m.Runs[at:], dearest)}
	return out
}

// seam is where the runs are parted: so that blocks counted as one differ least in work, then in weights.
func (m Model) seam() int {
	work := func(c Cost) float64 { return c.Linear + c.Attention }
	weights := func(c Cost) float64 { return float64(c.Weights) }
	waste := func(runs []Run, of func(Cost) float64) float64 {
		most, sum := 0.0, 0.0
		for _, r := range runs {
			most = max(most, of(r.Block))
		}
		for _, r := range runs {
			sum += float64(r.Count) * (most - of(r.Block))
		}
		return sum
	}
	best, least, light := 1, math.Inf(1), math.Inf(1)
	for at := 1; at < len(m.Runs); at++ {
		w := waste(m.Runs[:at], work) + waste(m.Runs[at:], work)
		l := waste(m.Runs[:at], weights) + waste(m.Runs[at:], weights)
		if w < least || (w == least && l < light) {
			best, least, light = at, w, l
		}
	}
	return best
}

func foldRuns(runs []Run, dearest bool) Run {
	out := runs[0]
	names := []string{runs[0].Name}
	bytes := func(a, b Bytes) Bytes {
		if dearest {
			return max(a, b)
		}
		return min(a, b)
	}
	flops := func(a, b float64) float64 {
		if dearest {
			return max(a, b)
		}
		return min(a, b)
	}
	read := func(c Cost) Bytes {
		if c.Staging > 0 {
			return c.Staging
		}
		return c.Weights
	}
	touched := read(runs[0].Block)
	for _, r := range runs[1:] {
		names = append(names, r.Name)
		out.Count += r.Count
		out.Boundary = bytes(out.Boundary, r.Boundary)
		a, b := &out.Block, r.Block
		a.Weights, a.Staging, a.Expansion = bytes(a.Weights, b.Weights), bytes(a.Staging, b.Staging), bytes(a.Expansion, b.Expansion)
		a.Linear, a.Attention = flops(a.Linear, b.Linear), flops(a.Attention, b.Attention)
		a.Elementwise, a.Scratch, a.Collective = bytes(a.Elementwise, b.Elementwise), bytes(a.Scratch, b.Scratch), bytes(a.Collective, b.Collective)
		touched = bytes(touched, read(b))
	}
	// What a product reads is Staging, or Weights where nothing is staged: keep that on the right side too.
	switch c := &out.Block; {
	case dearest && c.Staging > 0:
		c.Staging = max(c.Staging, touched)
	case !dearest && c.Staging == 0:
		c.Weights = min(c.Weights, touched)
	}
	out.Name = strings.Join(names, "+")
	return out
}

// spread gives count blocks from global index at, per run of the true model.
func (m Model) spread(at, count int) []int {
	runs := m.Runs
	if m.unfolded != nil {
		runs = m.unfolded
	}
	out := make([]int, len(runs))
	for i, r := range runs {
		n := min(max(r.Count-at, 0), count)
		out[i] = n
		count -= n
		at = max(at-r.Count, 0)
	}
	return out
}

// cheap is the field that bounds a folded one.
func (f *field) cheap() *field {
	m := f.model
	m.Runs, m.unfolded = m.unfolded, nil
	g := settled(f.problem, f.nodes, m.folded(false))
	g.gone, g.only, g.apart = f.gone, f.only, f.apart
	return g
}

// priceRuns is [engine.price] for any number of runs: count blocks of each.
func (e *engine) priceRuns(count []int, r role) (stageCost, bool) {
	var s seconds
	var weights, slot, scratch Bytes
	add := func(p share, n int) {
		s, weights = s.plus(p.times(n)), weights+Bytes(n)*p.weights
		slot, scratch = max(slot, p.staging), max(scratch, p.scratch)
	}
	for i, n := range count {
		if n > 0 {
			add(e.every[i], n)
		}
	}
	if r&first != 0 {
		add(e.head, 1)
	}
	if r&last != 0 {
		add(e.tail, 1)
	}
	c := stageCost{compute: s.compute, expansion: s.expansion, peak: weights + slot + scratch*e.inFlight, weights: weights}
	if slot > 0 {
		c.slots = 1
	}
	if c.peak > e.available {
		return e.streamedRuns(c, count)
	}
	if slot > 0 && s.expansion > 0 && e.overlap && e.slots > 1 && c.peak+slot <= e.available {
		c.slots, c.peak, c.expansion = 2, c.peak+slot, max(0, s.expansion-s.compute)
	}
	return c, true
}

func (e *engine) streamedRuns(c stageCost, count []int) (stageCost, bool) {
	if e.strict || len(e.sources) == 0 {
		return c, false
	}
	best, ok := c, false
	for ring := 2; ring >= 1; ring-- {
		k := e.fewestRuns(c.peak-e.available, ring, count)
		if k == nil {
			continue
		}
		var bytes, slot Bytes
		blocks := 0
		for i, n := range k {
			if n > 0 {
				bytes, slot, blocks = bytes+Bytes(n)*e.every[i].weights, max(slot, e.every[i].weights), blocks+n
			}
		}
		t := c
		t.ring, t.streamed, t.bytes, t.stream = ring, [2]int{0, blocks}, bytes, e.streamSeconds(bytes)
		if math.IsInf(t.stream, 1) {
			continue
		}
		t.weights -= bytes
		t.peak += Bytes(ring)*slot - bytes
		if t.stall = t.stream; ring == 2 {
			t.stall = max(0, t.stream-(c.compute+c.expansion))
		}
		if !ok || t.total() < best.total() {
			best, ok = t, true
		}
	}
	return best, ok
}

// fewestRuns is [engine.fewest] for any number of runs.
func (e *engine) fewestRuns(over Bytes, ring int, count []int) []int {
	best := Bytes(math.MaxInt64)
	var found []int
	k := make([]int, len(count))
	var try func(i int, freed, slot Bytes, any bool)
	try = func(i int, freed, slot Bytes, any bool) {
		if any && freed >= over+Bytes(ring)*slot && freed < best {
			best, found = freed, slices.Clone(k)
		}
		if i == len(count) || freed >= best {
			return
		}
		for n := 0; n <= count[i]; n++ {
			k[i] = n
			w := e.every[i].weights
			if n == 0 {
				try(i+1, freed, slot, any)
			} else {
				try(i+1, freed+Bytes(n)*w, max(slot, w), true)
			}
		}
		k[i] = 0
	}
	try(0, 0, 0, false)
	return found
}
