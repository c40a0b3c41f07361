// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// search finds the cheapest pipeline over hosts that are sorted by (hop, node).
type search struct {
	shape shape
	auto  *automaton
	hosts []*host
	limit int // most nodes, or 0
}

// choice is one stage of the found pipeline, in pipeline order.
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

func sortHosts(hosts []*host) {
	slices.SortFunc(hosts, func(a, b *host) int {
		return cmp.Or(cmp.Compare(a.hop, b.hop), cmp.Compare(a.node, b.node))
	})
}

// layers is how many copies of the table the node limit needs: one per number of used nodes.
func (s *search) layers() int {
	if s.limit == 0 || s.limit >= len(s.hosts) {
		return 1
	}
	return s.limit + 1
}

// table indexes [layer][set][x][y].
func (s *search) at(layer, set, cell int) int {
	return (layer*len(s.auto.sets)+set)*s.shape.cells() + cell
}

// run returns the cheapest value and its pipeline; nil when there is none.
func (s *search) run() (float64, []choice, error) {
	size := s.layers() * len(s.auto.sets) * s.shape.cells()
	if (len(s.hosts)+1)*size > maxSearchBytes/8 {
		return 0, nil, &TooLargeError{len(s.hosts), s.shape.cells(), s.limit}
	}
	tables := make([][]float64, len(s.hosts)+1)
	tables[0] = make([]float64, size)
	for i := range tables[0] {
		tables[0][i] = math.Inf(1)
	}
	tables[0][s.at(0, 0, 0)] = 0
	for i, h := range s.hosts {
		tables[i+1] = slices.Clone(tables[i])
		s.lay(h, tables[i], tables[i+1])
	}
	end := tables[len(s.hosts)]
	best, layer := math.Inf(1), 0
	for k := range s.layers() {
		if v := end[s.at(k, 1, s.shape.cells()-1)]; v < best {
			best, layer = v, k
		}
	}
	if math.IsInf(best, 1) {
		return best, nil, nil
	}
	return best, s.trace(tables, layer), nil
}

// lay extends every state of prev by one host into next.
func (s *search) lay(h *host, prev, next []float64) {
	deeper := boolInt(s.layers() > 1)
	for k := 0; k+deeper < s.layers() || (deeper == 0 && k == 0); k++ {
		for _, steps := range s.auto.steps {
			for _, st := range steps {
				from := prev[s.at(k, st.from, 0):][:s.shape.cells()]
				to := next[s.at(k+deeper, st.to, 0):][:s.shape.cells()]
				s.relax(h, st, from, to)
			}
		}
	}
}

// relax applies one step of the automaton to all block counts. The sum is v + (cost + hops), in trace as here, so that
// trace finds the same bits.
func (s *search) relax(h *host, st step, from, to []float64) {
	n1, n2, w := s.shape.n1, s.shape.n2, s.shape.width()
	hops := float64(st.links) * h.hop
	cost := h.cost[st.role]
	xlow, xhigh, ylow, yhigh := s.bounds(h, st)
	for d := 0; d <= n1; d++ {
		for e := 0; e <= n2; e++ {
			v := from[d*w+e]
			if v == math.Inf(1) {
				continue
			}
			x0, y0 := xlow, ylow
			if st.to == 1 {
				x0, y0 = max(xlow, n1-d), max(ylow, n2-e)
			}
			ys := min(yhigh, n2-e)
			if y0 > ys {
				continue
			}
			for x := x0; x <= xhigh && d+x <= n1; x++ {
				row := cost[x*w+y0 : x*w+ys+1]
				out := to[(d+x)*w+e+y0:][:len(row)]
				for i, c := range row {
					if t := v + (c + hops); t < out[i] {
						out[i] = t
					}
				}
			}
		}
	}
}

func (s *search) bounds(h *host, st step) (xlow, xhigh, ylow, yhigh int) {
	switch st.kind {
	case inOne:
		return 1, h.fx[st.role], 0, 0
	case inTwo:
		return 0, 0, 1, h.fy[st.role]
	default:
		return 1, h.fx[st.role], 1, h.fy[st.role]
	}
}

// laid is a node with the step that laid it.
type laid struct {
	choice
	step step
}

// trace walks the tables back from the finished pipeline. A host that need not be used is not.
func (s *search) trace(tables [][]float64, layer int) []choice {
	var order []laid
	set, cell := 1, s.shape.cells()-1
	for i := len(s.hosts); i > 0; i-- {
		v := tables[i][s.at(layer, set, cell)]
		if tables[i-1][s.at(layer, set, cell)] == v {
			continue
		}
		l, from, ok := s.origin(s.hosts[i-1], tables[i-1], layer, set, cell, v)
		if !ok {
			panic("placement: a search value has no origin")
		}
		order = append(order, l)
		layer -= boolInt(s.layers() > 1)
		set, cell = l.step.from, from
	}
	slices.Reverse(order)
	return s.assemble(order)
}

func (s *search) origin(h *host, prev []float64, layer, set, cell int, v float64) (laid, int, bool) {
	w := s.shape.width()
	d, e := cell/w, cell%w
	k := layer - boolInt(s.layers() > 1)
	if k < 0 {
		return laid{}, 0, false
	}
	for _, steps := range s.auto.steps {
		for _, st := range steps {
			if st.to != set {
				continue
			}
			hops := float64(st.links) * h.hop
			xlow, xhigh, ylow, yhigh := s.bounds(h, st)
			for x := xlow; x <= min(xhigh, d); x++ {
				for y := ylow; y <= min(yhigh, e); y++ {
					from := (d-x)*w + e - y
					if prev[s.at(k, st.from, from)]+(h.cost[st.role][x*w+y]+hops) == v {
						return laid{choice{h, x, y, st.role}, st}, from, true
					}
				}
			}
		}
	}
	return laid{}, 0, false
}

// assemble replays the steps into the pipeline's order.
func (s *search) assemble(order []laid) []choice {
	open := make([][]choice, len(pieces())+1)
	for _, l := range order {
		made := []choice{l.choice}
		ends := s.ends(l)
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

func (s *search) ends(l laid) piece {
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
