// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"math"
	"slices"
)

// lends reports whether any node keeps weights for others.
func (f *field) lends() bool {
	if f.apart || f.problem.Constraints.Fit == FitStrict {
		return false
	}
	for i := range f.nodes {
		if f.lender(i) && f.nodes[i].Lend > 0 {
			return true
		}
	}
	return false
}

// lender reports whether node i may keep weights for others: it needs neither the file nor a device that computes.
func (f *field) lender(i int) bool {
	k := f.barred[i].Kind
	return !f.gone[i] && (k == "" || k == ReasonNoFile || k == ReasonNoDevice || k == ReasonDType || k == ReasonMemory)
}

// remotely adds other nodes' memory. With every node given all of it at its own NIC's rate, one search bounds what it can
// bring. Its plan is then charged: the lenders' memory is dealt out to the stages that want it, and their NICs shared.
func (f *field) remotely(m mode, list []part, bound float64) ([]part, float64, error) {
	g := *f
	g.remote = map[NodeID][]remoteOffer{}
	for i := range f.nodes {
		var lent Bytes
		for j := range f.nodes {
			if i != j && f.lender(j) {
				lent += f.nodes[j].Lend
			}
		}
		if lent > 0 {
			g.remote[f.nodes[i].ID] = []remoteOffer{{where: "other nodes", capacity: lent, rate: f.nodes[i].Link.BytesPerSecond}}
		}
	}
	g.rebar()
	wishful, lower, err := g.local(m)
	if err != nil || wishful == nil || lower >= bound*(1-1e-9) && list != nil {
		return list, min(bound, lower), err
	}
	lower = min(bound, lower)
	value := func(l []part) float64 {
		if l == nil {
			return math.Inf(1)
		}
		p, misfit := f.price(l)
		if misfit != nil {
			return math.Inf(1)
		}
		return m.of(p.s, p.x)
	}
	if charged := f.charged(&g, wishful, m); value(charged) < value(list) {
		list = charged
	}
	apart, _, err := f.paired().local(m)
	if err != nil {
		return nil, 0, err
	}
	if value(apart) < value(list) {
		list = apart
	}
	return list, lower, nil
}

// paired is the field in which every lender serves one node alone: the lenders of the fastest links the nodes of the
// fastest devices.
func (f *field) paired() *field {
	var lenders []int
	for i := range f.nodes {
		if f.lender(i) && f.nodes[i].Lend > 0 {
			lenders = append(lenders, i)
		}
	}
	slices.SortStableFunc(lenders, func(a, b int) int {
		return cmp.Compare(f.nodes[b].Link.BytesPerSecond, f.nodes[a].Link.BytesPerSecond)
	})
	speed := func(i int) float64 {
		best := 0.0
		for _, d := range f.nodes[i].computing(f.model) {
			r, _ := d.rate(f.model.ComputeDType, f.model.Tokens)
			best = max(best, r.Linear)
		}
		return best
	}
	var borrowers []int
	for i := range f.nodes {
		if k := f.barred[i].Kind; !f.gone[i] && (k == "" || k == ReasonMemory) {
			borrowers = append(borrowers, i)
		}
	}
	slices.SortStableFunc(borrowers, func(a, b int) int { return cmp.Compare(speed(b), speed(a)) })
	g := *f
	g.remote = map[NodeID][]remoteOffer{}
	for _, i := range borrowers {
		k := slices.IndexFunc(lenders, func(j int) bool { return j != i })
		if k < 0 {
			break
		}
		n := &f.nodes[lenders[k]]
		g.remote[f.nodes[i].ID] = []remoteOffer{{where: n.Label(), capacity: n.Lend, rate: n.Link.BytesPerSecond, lend: n.Lend}}
		lenders = slices.Delete(lenders, k, k+1)
	}
	g.rebar()
	return &g
}

// rebar lifts the bar from nodes that hold blocks with the help of others.
func (f *field) rebar() {
	f.barred = slices.Clone(f.barred)
	for i := range f.barred {
		if f.barred[i].Kind == ReasonMemory {
			f.barred[i] = Reason{}
		}
	}
	f.small = false
	f.settle()
}

// loan is what a stage takes from other nodes.
type loan struct {
	node  int
	bytes Bytes
	from  []int
	parts []Bytes
}

// charged deals out the lenders' memory to the stages of a plan that wants it and prices the same cut with what each gets;
// nil where it does not suffice.
func (f *field) charged(g *field, list []part, m mode) []part {
	left := make([]Bytes, len(f.nodes))
	var lenders []int
	for i := range f.nodes {
		if f.lender(i) && f.nodes[i].Lend > 0 {
			left[i] = f.nodes[i].Lend
			lenders = append(lenders, i)
		}
	}
	slices.SortStableFunc(lenders, func(a, b int) int {
		return cmp.Compare(f.nodes[b].Link.BytesPerSecond, f.nodes[a].Link.BytesPerSecond)
	})
	wants := map[int]Bytes{}
	var order []int
	for i, p := range list {
		cost, _ := p.engine.price(p.x, p.y, roleAt(i, len(list)))
		for _, t := range p.engine.tiers(cost, p.x, p.y) {
			if t.Kind == TierRemote {
				if wants[p.engine.node] == 0 {
					order = append(order, p.engine.node)
				}
				wants[p.engine.node] += t.Bytes * Bytes(p.engine.degree)
			}
		}
	}
	users := make([]int, len(f.nodes))
	var loans []loan
	for _, i := range order {
		l := loan{node: i, bytes: wants[i]}
		need := l.bytes
		for _, j := range lenders {
			if n := min(need, left[j]); n > 0 && j != i {
				left[j] -= n
				need -= n
				users[j]++
				l.from, l.parts = append(l.from, j), append(l.parts, n)
			}
		}
		if need > 0 {
			return nil
		}
		loans = append(loans, l)
	}
	return f.withLoans(g, list, loans, users, m)
}

// withLoans prices a cut with each node's loan at the rate that is left of its lenders' NICs.
func (f *field) withLoans(g *field, list []part, loans []loan, users []int, m mode) []part {
	h := *f
	h.barred = g.barred
	h.remote = map[NodeID][]remoteOffer{}
	for _, l := range loans {
		var offers []remoteOffer
		for k, j := range l.from {
			offers = append(offers, remoteOffer{
				where: f.nodes[j].Label(), capacity: l.parts[k], rate: f.nodes[j].Link.BytesPerSecond / float64(users[j]), lend: f.nodes[j].Lend,
			})
		}
		h.remote[f.nodes[l.node].ID] = offers
	}
	cuts := make([]cut, 0, len(list))
	for _, s := range f.segments(list) {
		if s.engine != nil {
			return nil
		}
		cuts = append(cuts, cut{s.node, h.model.regions(s.x, s.y)})
	}
	out, misfit := h.cutParts(cuts, m)
	if misfit != nil {
		return nil
	}
	return out
}
