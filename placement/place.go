// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Options say how much [Place] reports beyond the plan itself.
type Options struct {
	SkipLosses bool // leave Plan.IfLost empty: it costs one search per used node
}

// Place finds the plan with the least step for the problem's objective.
//
// Errors: *[ModelError], *[NodeError], *[ConstraintError], *[PinError], *[UnknownNodeError], [ErrNoNodes],
// *[TooLargeError], and *[InfeasibleError] when no cut fits.
func Place(p Problem, opt Options) (*Plan, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	s := newSolver(p)
	plan, err := s.solve()
	if err != nil {
		return nil, err
	}
	s.complete(plan)
	if !opt.SkipLosses {
		plan.IfLost, err = s.losses(plan)
	}
	return plan, err
}

// solver is a problem with one field per block table.
type solver struct {
	problem Problem
	nodes   []Node
	field   *field         // of the model: micro-batches of one
	batches map[int]*field // by micro-batch
	limited bool           // the limit on nodes changed the plan
}

func newSolver(p Problem) *solver {
	nodes := sortedNodes(p.Nodes)
	s := &solver{problem: p, nodes: nodes, batches: map[int]*field{}}
	s.field = settled(p, nodes, p.Model.folded(true))
	s.batches[1] = s.field
	if p.Objective.kind() == ObjectiveBatch {
		for _, b := range p.Batches {
			if b.Size > 1 && p.Objective.size()%b.Size == 0 {
				s.batches[b.Size] = newField(p, nodes, b.Model.folded(true))
			}
		}
	}
	return s
}

// without is the solver after the loss of one node.
func (s *solver) without(node int) *solver {
	return s.narrowed(func(f *field) *field { return f.without(node) })
}

func (s *solver) narrowed(change func(*field) *field) *solver {
	out := &solver{problem: s.problem, nodes: s.nodes, batches: map[int]*field{}}
	for size, f := range s.batches {
		out.batches[size] = change(f)
	}
	out.field = out.batches[1]
	return out
}

// candidate is a plan with what it is worth and a lower bound on any other of its kind.
type candidate struct {
	pipes []*priced
	worth worth
	bound float64
}

// better prefers less time, then fewer stages.
func (c *candidate) better(o *candidate) bool {
	if o == nil || c == nil {
		return c != nil
	}
	if math.Abs(c.worth.seconds-o.worth.seconds) > 1e-12*o.worth.seconds {
		return c.worth.seconds < o.worth.seconds
	}
	return c.stages() < o.stages()
}

func (c *candidate) stages() int {
	n := 0
	for _, p := range c.pipes {
		n += len(p.stages)
	}
	return n
}

func (s *solver) solve() (*Plan, error) {
	if s.problem.Constraints.Allocation != nil {
		return s.allocated()
	}
	if len(s.problem.Constraints.Pins) > 0 {
		return s.pinned()
	}
	best, err := s.best()
	if err != nil {
		return nil, err
	}
	if best == nil {
		return nil, s.field.infeasible()
	}
	plan := s.field.compose(best.pipes, best.worth)
	plan.Certificate = certify(plan.StepSeconds, best.bound)
	return plan, nil
}

// best is the best plan of all kinds; nil when nothing fits. With one numerics class it is the best of any class.
func (s *solver) best() (*candidate, error) {
	if s.problem.Constraints.Numerics != NumericsOne {
		return s.overall()
	}
	var best *candidate
	bound := math.Inf(1)
	for _, c := range s.classes() {
		of := s.narrowed(func(f *field) *field { return f.within(c) })
		found, err := of.overall()
		s.limited = s.limited || of.limited
		if err != nil {
			return nil, err
		}
		if found == nil {
			continue
		}
		bound = min(bound, found.bound)
		if found.better(best) {
			best = found
		}
	}
	if best != nil {
		best.bound = bound
	}
	return best, nil
}

// within is the field whose engines are all of one numerics class. A node without any may still be part of an island.
func (f *field) within(numerics string) *field {
	g := *f
	g.only = numerics
	return &g
}

// classes are the numerics classes that engines of the usable nodes have, sorted.
func (s *solver) classes() []string {
	var out []string
	for _, i := range s.field.usable() {
		for _, w := range s.field.table(i, s.field.model.widest()).ways {
			for _, e := range w.engines {
				out = append(out, e.class)
			}
		}
	}
	for g, list := range s.field.members() {
		for _, w := range s.field.island(s.problem.Groups[g], list) {
			out = append(out, w.engines[0].class)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// overall is the best of one pipeline and, where they are allowed and can help, several.
func (s *solver) overall() (*candidate, error) {
	one, err := s.single()
	if err != nil {
		return nil, err
	}
	limit := s.problem.Constraints.MaxPipelines
	if one == nil || limit == 1 || s.problem.Objective.kind() == ObjectiveLatency {
		return one, nil
	}
	many, bound, err := s.several()
	if err != nil {
		return nil, err
	}
	best := one
	if many.better(one) {
		best = many
	}
	best.bound = min(one.bound, bound)
	return best, nil
}

// modes are the ways in which one pipeline may serve the objective.
func (s *solver) modes() []mode {
	switch o := s.problem.Objective; o.kind() {
	case ObjectivePair:
		return []mode{{weight: 1}}
	case ObjectiveThroughput:
		return []mode{{busiest: true}}
	case ObjectiveBatch:
		var out []mode
		for size := range s.batches {
			out = append(out, mode{weight: float64(o.size()/size - 1), micro: size})
		}
		slices.SortFunc(out, func(a, b mode) int { return cmp.Compare(a.micro, b.micro) })
		return out
	default:
		return []mode{{}}
	}
}

// single is the best plan of one pipeline.
func (s *solver) single() (*candidate, error) {
	var best *candidate
	bound := math.Inf(1)
	for _, m := range s.modes() {
		f := s.batches[max(m.micro, 1)]
		if best != nil {
			if m.beat = best.worth.seconds; f.floor() >= m.ceiling() {
				continue
			}
		}
		list, lower, err := f.pipeline(m)
		s.limited = s.limited || f.bound
		if err != nil {
			return nil, err
		}
		if list == nil {
			continue
		}
		p := f.mustPrice(list)
		bound = min(bound, lower)
		if c := (&candidate{pipes: []*priced{p}, worth: worth1(p, m)}); c.better(best) {
			best = c
		}
	}
	if best != nil {
		best.bound = bound
	}
	return best, nil
}

// floor is what no pipeline's sum goes below: every block on the engine that is fastest with it. It takes no table.
func (f *field) floor() float64 {
	var least [2]float64
	least[0], least[1] = math.Inf(1), math.Inf(1)
	take := func(ways []way) {
		for _, w := range ways {
			for _, e := range w.engines {
				least[0], least[1] = min(least[0], e.runs[0].compute), min(least[1], e.runs[1].compute)
			}
		}
	}
	for i := range f.nodes {
		if (f.barred[i].Kind == "" || f.barred[i].Kind == ReasonMemory) && !f.gone[i] {
			take(f.ways(i, 0))
		}
	}
	islands := map[int][]int{}
	for i := range f.nodes {
		if g, ok := f.islands[i]; ok && !f.gone[i] {
			islands[g] = append(islands[g], i)
		}
	}
	for g, list := range islands {
		take(f.island(f.problem.Groups[g], list))
	}
	if f.model.unfolded != nil {
		return 0
	}
	s := shapeOf(f.model)
	t := float64(s.n2) * least[1]
	if s.n1 > 0 {
		t += float64(s.n1) * least[0]
	}
	return t * (1 - proof)
}

func (f *field) mustPrice(list []part) *priced {
	p, misfit := f.price(list)
	if misfit != nil {
		panic("placement: the search chose a stage that does not fit: " + misfit.Name)
	}
	return p
}

// certify compares a price with a lower bound; a difference in the last bits is rounding.
func certify(step, bound float64) Certificate {
	if step-bound <= 1e-9*step {
		return Certificate{Optimal: true, LowerBound: math.Min(step, bound)}
	}
	return Certificate{LowerBound: bound, Gap: (step - bound) / step}
}

// complete fills in what is told beside the plan.
func (s *solver) complete(plan *Plan) {
	plan.Notes = append(plan.Notes, s.problem.strayExcludes(s.nodes)...)
	plan.InputDigest = s.problem.Digest()
	plan.Single = s.alone()
	plan.Unused = s.unused(plan)
}

// alone is the best plan on one node, whatever the pins say.
func (s *solver) alone() Single {
	best := Single{}
	classes := []string{""}
	if s.problem.Constraints.Numerics == NumericsOne {
		classes = s.classes()
	}
	for _, m := range s.modes() {
		for _, c := range classes {
			s.aloneIn(m, c, &best)
		}
	}
	return best
}

// aloneIn improves the best of one node with engines of one numerics class, or any where it is empty.
func (s *solver) aloneIn(m mode, numerics string, best *Single) {
	f := s.batches[max(m.micro, 1)].within(numerics)
	if best.Fits && f.floor() >= best.StepSeconds {
		return
	}
	shape := shapeOf(f.model)
	for _, i := range f.usable() {
		t := f.table(i, f.model.widest())
		for _, o := range t.parts.at(first|last, shape.cells()-1) {
			v := m.of(o.s+endpointHops(f.model, f.nodes[i].Link, first|last), o.x)
			if best.Fits && v >= best.StepSeconds {
				continue
			}
			*best = Single{Fits: true, Node: f.nodes[i].ID, Name: f.nodes[i].Label(), StepSeconds: v}
			for _, st := range t.ways[o.way].stages(first|last, shape.n1, shape.n2, o.x) {
				best.Peak = max(best.Peak, st.cost.peak)
			}
		}
	}
}

// unused gives every node outside the plan its reason, in id order.
func (s *solver) unused(plan *Plan) []Unused {
	used := plan.nodes()
	var out []Unused
	for i, n := range s.nodes {
		if slices.Contains(used, n.ID) {
			continue
		}
		r := s.field.barred[i]
		switch {
		case r.Kind != "":
		case plan.Forced:
			r = Reason{ReasonPinned, "the pins give it no blocks"}
			if plan.ByHand {
				r.Detail = "the allocation keeps to another node"
			}
		case s.limited:
			r = Reason{ReasonMaxNodes, fmt.Sprintf("with more than %d nodes it could be faster", s.problem.Constraints.MaxNodes)}
		case s.problem.Constraints.Numerics == NumericsOne && !s.hasClass(i, plan):
			r = Reason{ReasonNumerics, "it has no device of class " + plan.Stages[0].Class}
		default:
			r = Reason{ReasonSlower, "no plan with it has a faster step"}
		}
		out = append(out, Unused{n.ID, n.Label(), r})
	}
	return out
}

func (s *solver) hasClass(i int, plan *Plan) bool {
	for _, w := range s.field.table(i, s.field.model.widest()).ways {
		if w.engines[0].class == plan.Stages[0].Class {
			return true
		}
	}
	return false
}

// nodes are the ids of all nodes that compute in the plan, in order, each once.
func (p *Plan) nodes() []NodeID {
	var out []NodeID
	for _, s := range p.Stages {
		for _, id := range s.nodes() {
			if !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	return out
}

func (s *Stage) nodes() []NodeID {
	if len(s.Island) > 0 {
		return s.Island
	}
	return []NodeID{s.Node}
}

// losses answers for each used node what its death would do, in pipeline order.
func (s *solver) losses(plan *Plan) ([]Loss, error) {
	var out []Loss
	for _, id := range plan.nodes() {
		at := indexOf(s.nodes, id)
		l := Loss{Node: id, Name: s.nodes[at].Label()}
		if plan.Forced {
			l.Why = plan.heldBy(id) + " pinned to it"
			if plan.ByHand {
				l.Why = "the allocation names it"
			}
			out = append(out, l)
			continue
		}
		g := s.without(at)
		rest, err := g.best()
		if err != nil {
			return nil, err
		}
		if rest != nil {
			l.Continues, l.StepSeconds = true, rest.worth.seconds
		} else {
			g.field.explainShort(&l)
		}
		out = append(out, l)
	}
	return out, nil
}

// heldBy is "blocks 0-3 are" of a node's stages.
func (p *Plan) heldBy(id NodeID) string {
	var spans []string
	for _, s := range p.Stages {
		if slices.Contains(s.nodes(), id) {
			spans = append(spans, fmt.Sprintf("%d-%d", s.First, s.First+s.Blocks-1))
		}
	}
	return "blocks " + strings.Join(spans, " and ") + " are"
}
