// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"math"
	"slices"
)

// class is what equal hosts have in common: the frontier of their parts, and their link.
type class struct {
	table *table
	link  Link    // to the endpoint
	hop   float64 // a, for the boundary of this view
	edge  [roles]float64

	// For one limit on the busiest stage: the least seconds of every part, hops to the endpoint included, and the
	// largest parts of one region alone.
	cost [roles][]float64
	top  [roles][]int // for each x the largest y that is possible beside it, or -1

	mixed []float64 // see [relaxation]
}

// host is a place that runs one contiguous part of a pipeline: a node, or a whole island.
type host struct {
	*class
	nodes []int // indices into the sorted nodes
}

// unit is a host, or the nodes of an island beside the whole of it; either some nodes are used or the whole.
type unit struct {
	members []*host
	whole   *host // nil for a lone node
}

func (u unit) hosts() []*host {
	if u.whole == nil {
		return u.members
	}
	return append(slices.Clone(u.members), u.whole)
}

// sortUnits puts the fastest links first, as the automaton needs them.
func sortUnits(units []unit) {
	for _, u := range units {
		slices.SortFunc(u.members, byHop)
	}
	slices.SortFunc(units, func(a, b unit) int { return byHop(a.members[len(a.members)-1], b.members[len(b.members)-1]) })
}

func byHop(a, b *host) int {
	return cmp.Or(cmp.Compare(a.hop, b.hop), cmp.Compare(a.nodes[0], b.nodes[0]))
}

// limit fills in the costs for stages and links of at most busiest seconds. A host with a slower link can only run the
// whole model.
func (c *class) limit(s shape, busiest float64, r role) {
	if c.cost[r] == nil {
		c.cost[r] = make([]float64, s.cells())
	}
	cost, list, from := c.cost[r], c.table.parts.list[r], c.table.parts.from[r]
	at := 0
	for cell := range cost {
		cost[cell] = math.Inf(1)
		end := int(from[cell+1])
		for ; at < end; at++ {
			if list[at].x <= busiest {
				cost[cell] = list[at].s + c.edge[r]
				break
			}
		}
		at = end
	}
	if c.hop > busiest {
		for cell := range len(cost) - 1 {
			cost[cell] = math.Inf(1)
		}
	}
	c.top[r] = slices.Grow(c.top[r][:0], s.n1+1)
	for x := 0; x <= s.n1; x++ {
		y := s.n2
		for row := cost[x*s.width() : (x+1)*s.width()]; y >= 0 && row[y] == math.Inf(1); {
			y--
		}
		c.top[r] = append(c.top[r], y)
	}
}

// usable reports whether the host can hold a single block.
func (c *class) usable(s shape) bool {
	p := c.table.parts
	return (s.n1 > 0 && len(p.at(0, s.width())) > 0) || len(p.at(0, 1)) > 0 || len(p.at(first|last, s.cells()-1)) > 0
}
