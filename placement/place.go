// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
)

// Options say how much [Place] reports beyond the plan itself.
type Options struct {
	SkipLosses bool // leave Plan.IfLost empty: it costs one search per used node
}

// Place finds the plan with the least sequential latency of one request.
//
// Errors: *[ModelError], *[NodeError], *[ConstraintError], *[PinError], *[UnknownNodeError], [ErrNoNodes],
// *[TooLargeError], and *[InfeasibleError] when no cut fits.
func Place(p Problem, opt Options) (*Plan, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	nodes := sortedNodes(p.Nodes)
	f := newField(p, nodes)
	plan, err := f.solve()
	if err != nil {
		return nil, err
	}
	plan.Notes = append(plan.Notes, p.strayExcludes(nodes)...)
	plan.InputDigest = p.Digest()
	plan.Single = f.single()
	plan.Unused = f.unused(plan)
	if !opt.SkipLosses {
		plan.IfLost, err = f.losses(plan)
	}
	return plan, err
}

// field is a problem with its nodes sorted and priced.
type field struct {
	problem Problem
	nodes   []Node
	barred  []Reason // per node
	hosts   []*host  // usable nodes, priced with the largest boundary
	auto    *automaton
	bound   bool // the limit on nodes changed the plan
}

func newField(p Problem, nodes []Node) *field {
	f := &field{problem: p, nodes: nodes, barred: p.eligible(nodes), auto: newAutomaton(len(p.Model.Runs) == 2)}
	_, high := p.Model.boundaryRange()
	for i := range nodes {
		n := &f.nodes[i]
		if f.barred[i].Kind != "" {
			continue
		}
		h := newHost(i, n, newPricer(p.Model, n, p.Constraints), hopCost(high, n.Link))
		if !h.usable() {
			o := f.offer(i)
			f.barred[i] = Reason{ReasonMemory, fmt.Sprintf("%s for weights, less than one block", o)}
			continue
		}
		f.hosts = append(f.hosts, h)
	}
	sortHosts(f.hosts)
	return f
}

// without is the field after the loss of one node.
func (f *field) without(node int) *field {
	g := *f
	g.hosts = nil
	for _, h := range f.hosts {
		if h.node != node {
			g.hosts = append(g.hosts, h)
		}
	}
	return &g
}

func (f *field) solve() (*Plan, error) {
	if len(f.problem.Constraints.Pins) > 0 {
		return f.pinned()
	}
	plan, err := f.cheapest(f.hosts)
	if err != nil {
		return nil, err
	}
	if plan == nil {
		return nil, f.infeasible()
	}
	if low, high := f.problem.Model.boundaryRange(); low < high {
		if plan, err = f.bounded(plan, low); err != nil {
			return nil, err
		}
	}
	return plan, nil
}

// cheapest searches over hosts and prices what it found; nil when nothing fits.
func (f *field) cheapest(hosts []*host) (*Plan, error) {
	s := &search{shape: shapeOf(f.problem.Model), auto: f.auto, hosts: hosts}
	value, choices, err := s.run()
	if err != nil || choices == nil {
		return nil, err
	}
	if limit := f.problem.Constraints.MaxNodes; limit > 0 && len(choices) > limit {
		s.limit, f.bound = limit, true
		if value, choices, err = s.run(); err != nil || choices == nil {
			return nil, err
		}
	}
	cuts := make([]cut, len(choices))
	for i, c := range choices {
		cuts[i] = cut{c.host.node, s.shape.load(c.x, c.y, c.role).blocks}
	}
	plan, misfit := f.problem.forecast(f.nodes, cuts)
	if misfit != nil {
		panic("placement: the search chose a stage that does not fit: " + misfit.Name)
	}
	plan.Certificate = certify(plan.StepSeconds, value)
	return plan, nil
}

// certify compares a price with a lower bound; a difference in the last bits is rounding.
func certify(step, bound float64) Certificate {
	if step-bound <= 1e-9*step {
		return Certificate{Optimal: true, LowerBound: math.Min(step, bound)}
	}
	return Certificate{LowerBound: bound, Gap: (step - bound) / step}
}

// bounded handles runs with unequal boundaries: the plan was found with the larger one everywhere; the smaller one
// everywhere gives a lower bound and a second candidate.
func (f *field) bounded(plan *Plan, low Bytes) (*Plan, error) {
	hosts := make([]*host, len(f.hosts))
	for i, h := range f.hosts {
		c := *h
		c.hop = hopCost(low, f.nodes[h.node].Link)
		hosts[i] = &c
	}
	sortHosts(hosts)
	other, err := f.cheapest(hosts)
	if err != nil || other == nil {
		return plan, err
	}
	bound := other.Certificate.LowerBound
	if other.StepSeconds < plan.StepSeconds {
		plan = other
	}
	plan.Certificate = certify(plan.StepSeconds, bound)
	return plan, nil
}

// pinned prices the cut that the pins force.
func (f *field) pinned() (*Plan, error) {
	cuts, err := f.problem.resolvePins(f.nodes)
	if err != nil {
		return nil, err
	}
	for i, c := range cuts {
		if r := f.barred[c.node]; r.Kind != "" && r.Kind != ReasonMemory {
			return nil, &PinError{Pins: []string{f.problem.Constraints.Pins[i].String()}, Problem: "the node cannot be used: " + r.String(), Barred: r.Kind}
		}
	}
	plan, misfit := f.problem.forecast(f.nodes, cuts)
	if misfit != nil {
		return nil, f.misfit(misfit)
	}
	plan.Forced = true
	plan.Certificate = Certificate{Optimal: true, LowerBound: plan.StepSeconds}
	return plan, nil
}

// single is the best plan on one host, whatever the pins say.
func (f *field) single() Single {
	best := Single{}
	s := shapeOf(f.problem.Model)
	for i := range f.nodes {
		for _, h := range f.hosts {
			if h.node != i {
				continue
			}
			t := h.cost[first|last][s.cells()-1]
			if math.IsInf(t, 1) || (best.Fits && t >= best.StepSeconds) {
				continue
			}
			n := &f.nodes[i]
			c, _ := newPricer(f.problem.Model, n, f.problem.Constraints).price(s.load(s.n1, s.n2, first|last))
			best = Single{Fits: true, Node: n.ID, Name: n.Label(), StepSeconds: t, Peak: c.peak}
		}
	}
	return best
}

// unused gives every node outside the plan its reason, in id order.
func (f *field) unused(plan *Plan) []Unused {
	used := make(map[NodeID]bool, len(plan.Stages))
	for _, s := range plan.Stages {
		used[s.Node] = true
	}
	var out []Unused
	for i, n := range f.nodes {
		if used[n.ID] {
			continue
		}
		r := f.barred[i]
		switch {
		case r.Kind != "":
		case plan.Forced:
			r = Reason{ReasonPinned, "the pins give it no blocks"}
		case f.bound:
			r = Reason{ReasonMaxNodes, fmt.Sprintf("with more than %d nodes it could be faster", f.problem.Constraints.MaxNodes)}
		default:
			r = Reason{ReasonSlower, "no plan with it has a faster step"}
		}
		out = append(out, Unused{n.ID, n.Label(), r})
	}
	return out
}

// losses answers for each used node what its death would do, in pipeline order.
func (f *field) losses(plan *Plan) ([]Loss, error) {
	var out []Loss
	for _, s := range plan.Stages {
		l := Loss{Node: s.Node, Name: s.Name}
		if plan.Forced {
			l.Why = fmt.Sprintf("blocks %d-%d are pinned to it", s.First, s.First+s.Blocks-1)
			out = append(out, l)
			continue
		}
		at, _ := find(f.nodes, string(s.Node))
		g := f.without(at)
		rest, err := g.cheapest(g.hosts)
		if err != nil {
			return nil, err
		}
		if rest != nil {
			l.Continues, l.StepSeconds = true, rest.StepSeconds
		} else {
			g.explainShort(&l)
		}
		out = append(out, l)
	}
	return out, nil
}
