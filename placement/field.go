// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// field is a problem with its nodes sorted and priced for one block table.
type field struct {
	problem Problem
	model   Model // what the search sees: one or two runs
	nodes   []Node
	barred  []Reason // per node
	auto    *automaton
	only    string                   // numerics class that every engine must have, or empty
	remote  map[NodeID][]remoteOffer // what each node may stream from others
	tables  map[string]*table        // by figures and boundary
	keys    []string                 // per node: its figures
	bound   bool                     // the limit on nodes changed the plan
	gone    map[int]bool             // nodes lost
	apart   bool                     // no other nodes' memory
	small   bool                     // nodes without room for a block are barred
	islands map[int]int              // node to index of its island in problem.Groups
	racks   map[int]int              // node to index of its rack in problem.Groups
	pairs   map[[2]NodeID]*PeerLink  // measured links
}

// remoteOffer is what a node may stream from another node's host memory.
type remoteOffer struct {
	where    string
	capacity Bytes
	rate     float64 // of the lender's share of its NIC
	lend     Bytes   // all that the lender gives
}

func newField(p Problem, nodes []Node, m Model) *field {
	f := &field{
		problem: p, model: m, nodes: nodes, auto: newAutomaton(len(m.Runs) == 2), tables: map[string]*table{}, keys: make([]string, len(nodes)),
		gone: map[int]bool{}, islands: map[int]int{}, racks: map[int]int{}, pairs: map[[2]NodeID]*PeerLink{},
	}
	f.barred = p.eligible(nodes, m)
	for g, group := range p.Groups {
		for _, id := range group.Nodes {
			i := indexOf(nodes, id)
			switch {
			case i < 0:
			case group.Kind == GroupIsland:
				f.islands[i] = g
			default:
				f.racks[i] = g
			}
		}
	}
	for i := range p.Links {
		l := &p.Links[i]
		f.pairs[[2]NodeID{l.From, l.To}] = l
	}
	for i := range nodes {
		f.keys[i] = nodes[i].figures()
	}
	return f
}

// settled is newField with all nodes priced at once.
func settled(p Problem, nodes []Node, m Model) *field {
	f := newField(p, nodes, m)
	f.settle()
	return f
}

// settle prices the nodes and bars those that cannot hold a block.
func (f *field) settle() {
	if !f.small {
		f.small = true
		f.barred = slices.Clone(f.barred)
		f.barSmall()
	}
}

func indexOf(nodes []Node, id NodeID) int {
	return slices.IndexFunc(nodes, func(n Node) bool { return n.ID == id })
}

// barSmall bars the nodes that cannot hold a single block, neither alone nor as a part of their island.
func (f *field) barSmall() {
	s := shapeOf(f.model)
	together := map[int]bool{}
	for g, list := range f.members() {
		ways := f.island(f.problem.Groups[g], list)
		if len(ways) > 0 {
			c := class{table: newTable(s, ways)}
			together[g] = c.usable(s)
		}
	}
	for i := range f.nodes {
		if f.barred[i].Kind != "" {
			continue
		}
		g, ok := f.islands[i]
		c := class{table: f.table(i, f.model.widest())}
		if !c.usable(s) && !(ok && together[g]) && !f.holdsAny(i) {
			f.barred[i] = Reason{ReasonMemory, fmt.Sprintf("%s for weights, less than one block", f.offer(i))}
		}
	}
}

// holdsAny reports whether node i holds a block of any run of a model that is searched as one of two.
func (f *field) holdsAny(i int) bool {
	for _, w := range f.table(i, f.model.widest()).ways {
		for r := range f.model.unfolded {
			count := make([]int, len(f.model.unfolded))
			count[r] = 1
			if _, ok := w.engines[0].priceRuns(count, 0); ok && len(w.engines) == 1 {
				return true
			}
		}
	}
	return false
}

// widest is the larger boundary of the runs.
func (m Model) widest() Bytes {
	_, high := m.boundaryRange()
	return high
}

// figures is everything of a node that its table depends on.
func (n *Node) figures() string {
	b := make([]byte, 0, 256)
	for _, f := range []float64{float64(n.RAM), n.Disk, n.HostBus, n.PeerLatency} {
		b = strconv.AppendFloat(append(b, ' '), f, 'x', -1, 64)
	}
	for i := range n.Devices {
		d := &n.Devices[i]
		b = append(b, d.ID...)
		b = strconv.AppendInt(append(b, ' '), int64(d.Allocatable), 10)
		b = strconv.AppendInt(append(b, ' '), int64(d.Reserve), 10)
		b = append(b, d.figures()...)
		b = append(b, ';')
	}
	return string(b)
}

// table is what node i may do, shared by all nodes of equal figures.
func (f *field) table(i int, boundary Bytes) *table {
	var b strings.Builder
	fmt.Fprintf(&b, "%s#%d#%s", f.keys[i], int64(boundary), f.only)
	for _, r := range f.remote[f.nodes[i].ID] {
		fmt.Fprintf(&b, "#%s %d %v %v", r.where, int64(r.capacity), r.rate, f.nodes[i].Link.BytesPerSecond)
	}
	key := b.String()
	t := f.tables[key]
	if t == nil {
		t = newTable(shapeOf(f.model), f.ways(i, boundary))
		f.tables[key] = t
	}
	return t
}

// view is one way to see the links: a size that every cut carries and each node's a. Exact where that is the truth.
type view struct {
	boundary Bytes
	hop      func(node int) float64
	flatters bool // of an island's nodes the best link counts, otherwise the worst
}

// usable lists the nodes that the search may use.
func (f *field) usable() []int {
	f.settle()
	var out []int
	for i := range f.nodes {
		if f.barred[i].Kind == "" && !f.gone[i] {
			out = append(out, i)
		}
	}
	return out
}

// without is the field after the loss of one node.
func (f *field) without(node int) *field {
	g := *f
	g.gone = map[int]bool{node: true}
	for i := range f.gone {
		g.gone[i] = true
	}
	return &g
}

// among is the field with these nodes alone.
func (f *field) among(nodes []int) *field {
	g := *f
	g.gone = map[int]bool{}
	for i := range f.nodes {
		if !slices.Contains(nodes, i) {
			g.gone[i] = true
		}
	}
	return &g
}

// units are the usable nodes as the search sees them.
func (f *field) units(v view) []unit {
	classes := map[string]*class{}
	classOf := func(t *table, key string, link Link, hop float64) *class {
		key += fmt.Sprintf("@%v %v %v", link.BytesPerSecond, link.Latency, hop)
		c := classes[key]
		if c == nil {
			c = &class{table: t, link: link, hop: hop}
			for r := range role(roles) {
				c.edge[r] = endpointHops(f.model, link, r)
			}
			classes[key] = c
		}
		return c
	}
	var out []unit
	members := map[int][]int{}
	for _, i := range f.usable() {
		if g, ok := f.islands[i]; ok {
			members[g] = append(members[g], i)
			continue
		}
		t := f.table(i, v.boundary)
		out = append(out, unit{members: []*host{{classOf(t, fmt.Sprintf("%p", t), f.nodes[i].Link, v.hop(i)), []int{i}}}})
	}
	for g := range f.problem.Groups {
		list := members[g]
		if len(list) == 0 {
			continue
		}
		// One hop for all, so that they stand together in the order of hops.
		hop, worst := v.hop(list[0]), f.nodes[list[0]].Link
		for _, i := range list {
			if h := v.hop(i); (h < hop) == v.flatters {
				hop = h
			}
			if l := f.nodes[i].Link; hopCost(f.model.Input, l) > hopCost(f.model.Input, worst) {
				worst = l
			}
		}
		u := unit{}
		for _, i := range list {
			t := f.table(i, v.boundary)
			u.members = append(u.members, &host{classOf(t, fmt.Sprintf("%p", t), f.nodes[i].Link, hop), []int{i}})
		}
		if ways := f.island(f.problem.Groups[g], list); len(ways) > 0 {
			t := newTable(shapeOf(f.model), ways)
			u.whole = &host{classOf(t, fmt.Sprintf("%p", t), worst, hop), list}
		}
		out = append(out, u)
	}
	return out
}

// part is one stage of a pipeline before it is priced.
type part struct {
	engine *engine
	x, y   int
}

// realise turns a search's choices, on these nodes or on like ones, into stages on this field's.
func (f *field) realise(fd found, boundary Bytes) []part {
	var out []part
	s := shapeOf(f.model)
	for _, c := range fd.choices {
		if len(c.host.nodes) > 1 {
			o := within(c.host.table.parts.at(c.role, c.x*s.width()+c.y), fd.x)
			out = append(out, part{c.host.table.ways[o.way].engines[0], c.x, c.y})
			continue
		}
		i := c.host.nodes[0]
		o := within(f.table(i, boundary).parts.at(c.role, c.x*s.width()+c.y), fd.x)
		for _, st := range f.ways(i, boundary)[o.way].stages(c.role, c.x, c.y, o.x) {
			out = append(out, part{st.engine, st.x, st.y})
		}
	}
	return out
}

// within is the option with the least s whose x is within a limit, or else the one with the least x.
func within(options []option, limit float64) option {
	for _, o := range options {
		if o.x <= limit*(1+1e-12) {
			return o
		}
	}
	return options[len(options)-1]
}

// members lists the usable nodes of each island, by index of its group.
func (f *field) members() map[int][]int {
	out := map[int][]int{}
	for _, i := range f.usable() {
		if g, ok := f.islands[i]; ok {
			out[g] = append(out[g], i)
		}
	}
	return out
}
