// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
)

// Digest identifies the inputs: equal for equal problems whatever the order of nodes, devices' rates and excludes,
// different when any figure that a plan depends on differs. 64 hexadecimal digits.
func (p Problem) Digest() string {
	d := digester{sha256.New()}
	d.add("placement/2", p.Deployment)
	d.model(p.Model)
	batches := slices.Clone(p.Batches)
	slices.SortStableFunc(batches, func(a, b Batch) int { return cmp.Compare(a.Size, b.Size) })
	d.ints(int64(len(batches)))
	for _, b := range batches {
		d.ints(int64(b.Size))
		d.model(b.Model)
	}
	c := p.Constraints
	d.add(string(p.Objective.kind()), c.numerics(), c.fit())
	d.ints(int64(p.Objective.size()), int64(c.MaxNodes), int64(c.slots()), int64(c.inFlight()), int64(len(c.Pins)))
	d.ints(int64(c.MaxPipelines), int64(c.Reserve), int64(c.MaxDegree))
	if a := c.Allocation; a != nil {
		d.add(a.Node, a.Compute)
		for _, s := range a.Spans {
			d.add(s.Device)
			d.ints(int64(s.First), int64(s.Blocks))
		}
	}
	for _, pin := range c.Pins {
		d.add(pin.String())
	}
	exclude := slices.Clone(c.Exclude)
	slices.Sort(exclude)
	d.add(slices.Compact(exclude)...)
	for _, n := range sortedNodes(p.Nodes) {
		d.node(n)
	}
	d.links(p)
	return hex.EncodeToString(d.h.Sum(nil))
}

func (c Constraints) numerics() string { return cmp.Or(string(c.Numerics), string(NumericsAny)) }

func (c Constraints) fit() string { return cmp.Or(string(c.Fit), string(FitFallback)) }

func (d digester) model(m Model) {
	d.add(m.Name, string(m.ComputeDType), string(m.StoredDType))
	d.ints(int64(m.Vec), int64(m.Input), int64(m.Output), int64(len(m.Runs)), int64(m.Heads))
	d.floats(m.Tokens)
	d.cost(m.Head)
	d.cost(m.Tail)
	for _, r := range m.Runs {
		d.add(r.Name)
		d.ints(int64(r.Count), int64(r.Boundary))
		d.cost(r.Block)
	}
}

func (d digester) links(p Problem) {
	links := slices.Clone(p.Links)
	slices.SortStableFunc(links, func(a, b PeerLink) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	d.ints(int64(len(links)))
	for _, l := range links {
		d.add(string(l.From), string(l.To))
		d.floats(l.BytesPerSecond, l.Latency)
	}
	groups := slices.Clone(p.Groups)
	slices.SortStableFunc(groups, func(a, b Group) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	d.ints(int64(len(groups)))
	for _, g := range groups {
		d.add(g.Name, string(g.Kind))
		d.floats(g.BytesPerSecond, g.Latency)
		nodes := slices.Clone(g.Nodes)
		slices.Sort(nodes)
		for _, n := range nodes {
			d.add(string(n))
		}
	}
}

type digester struct{ h hash.Hash }

func (d digester) add(texts ...string) {
	for _, t := range append([]string{strconv.Itoa(len(texts))}, texts...) {
		_, _ = d.h.Write([]byte(strconv.Itoa(len(t)) + ":" + t))
	}
}

func (d digester) ints(values ...int64) {
	for _, v := range values {
		d.add(strconv.FormatInt(v, 10))
	}
}

func (d digester) floats(values ...float64) {
	for _, v := range values {
		d.add(strconv.FormatFloat(v, 'x', -1, 64))
	}
}

func (d digester) cost(c Cost) {
	d.ints(int64(c.Weights), int64(c.Staging), int64(c.Expansion), int64(c.Elementwise), int64(c.Scratch), int64(c.Collective))
	d.floats(c.Linear, c.Attention)
}

func (d digester) node(n Node) {
	d.add(string(n.ID), n.Name, strconv.FormatBool(n.HasModel), string(n.Rejected.Kind), n.Rejected.Detail)
	d.floats(n.Link.BytesPerSecond, n.Link.Latency, n.Load, n.Disk, n.HostBus, n.PeerLatency)
	d.add(string(n.Link.Source))
	d.ints(int64(n.RAM), int64(n.Lend))
	d.ints(int64(len(n.Devices)))
	for _, v := range n.Devices {
		d.add(v.ID, string(v.Kind), strconv.FormatBool(v.Overlap), v.Model, v.Class, string(v.Source))
		d.floats(v.HostToDevice, v.Peer, v.Spread)
		d.ints(int64(v.Allocatable), int64(v.Reserve), int64(len(v.Rates)))
		d.floats(v.Expansion, v.Memory)
		rates := slices.Clone(v.Rates)
		slices.SortStableFunc(rates, func(a, b Rate) int { return cmp.Or(cmp.Compare(a.DType, b.DType), cmp.Compare(a.Tokens, b.Tokens)) })
		for _, r := range rates {
			d.add(string(r.DType))
			d.floats(r.Linear, r.Attention, r.Tokens)
		}
	}
}

// Equal reports whether both problems have the same inputs.
func (p Problem) Equal(o Problem) bool { return p.Digest() == o.Digest() }

// CutError says why a given cut is no plan for a problem.
type CutError struct{ Problem string }

func (e *CutError) Error() string { return "cut: " + e.Problem }

// Reprice forecasts existing stages under new inputs. It takes each stage's node, devices and run counts and honours the
// constraints; it does not search. Stages of several pipelines keep theirs. Errors: those of [Place], *[CutError] and
// *[MisfitError].
func Reprice(p Problem, stages []Stage) (*Plan, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	s := newSolver(p)
	if p.Constraints.Allocation != nil {
		plan, err := s.allocated()
		if err == nil {
			plan.InputDigest = p.Digest()
		}
		return plan, err
	}
	pipes := map[int][]Stage{}
	for _, st := range stages {
		pipes[st.Pipeline] = append(pipes[st.Pipeline], st)
	}
	if len(pipes) > 1 {
		return s.repriceMany(pipes)
	}
	if err := s.problem.checkCut(s.nodes, s.field, stages); err != nil {
		return nil, err
	}
	plan, err := s.forced(func(f *field, _ mode) ([]part, *Stage) { return f.partsOf(stages), nil })
	if err != nil {
		return nil, err
	}
	plan.Forced = len(p.Constraints.Pins) > 0
	plan.InputDigest = p.Digest()
	return plan, nil
}

// repriceMany forecasts replicas, or the two branches of a pair.
func (s *solver) repriceMany(pipes map[int][]Stage) (*Plan, error) {
	var list []*priced
	for i := range len(pipes) {
		stages := pipes[i]
		if err := s.problem.checkCut(s.nodes, s.field, stages); err != nil {
			return nil, err
		}
		p, misfit := s.field.price(s.field.partsOf(stages))
		if misfit != nil {
			return nil, &MisfitError{Label: s.problem.label(), Stage: *misfit}
		}
		list = append(list, p)
	}
	plan := s.field.compose(list, worthMany(s.problem.Objective, list))
	plan.InputDigest = s.problem.Digest()
	return plan, nil
}

// partsOf finds the engines that stages name; their devices were checked.
func (f *field) partsOf(stages []Stage) []part {
	var out []part
	for i := 0; i < len(stages); {
		n := i + 1
		for n < len(stages) && stages[n].Node == stages[i].Node && len(stages[i].Island) == 0 {
			n++
		}
		w := f.wayOf(stages[i:n])
		for k, e := range w.engines {
			st := stages[i+k]
			x, y := shapeOf(f.model).region(f.model.split(st.First, st.Blocks))
			out = append(out, part{e, x, y})
		}
		i = n
	}
	return out
}

// wayOf is the way of a node that consecutive stages name by their devices, or nil. A stage that names none takes the
// node's one device.
func (f *field) wayOf(stages []Stage) *way {
	if len(stages[0].Island) > 0 {
		for g, list := range f.members() {
			for _, w := range f.island(f.problem.Groups[g], list) {
				if slices.Equal(w.engines[0].devices, stages[0].Devices) {
					return &w
				}
			}
		}
		return nil
	}
	i := indexOf(f.nodes, stages[0].Node)
	for _, w := range f.ways(i, f.model.widest()) {
		if len(w.engines) != len(stages) {
			continue
		}
		same := true
		for k, e := range w.engines {
			named := stages[k].Devices
			if len(named) == 0 && stages[k].Device != "" {
				named = []string{stages[k].Device}
			}
			same = same && (len(named) == 0 || slices.Equal(e.devices, named))
		}
		if same {
			return &w
		}
	}
	return nil
}

// checkCut says why stages are no plan for a problem.
func (p Problem) checkCut(nodes []Node, f *field, stages []Stage) error {
	m, limit := p.Model, p.Constraints.MaxNodes
	seen := map[NodeID]bool{}
	at := 0
	for k, s := range stages {
		i := indexOf(nodes, s.Node)
		again := k > 0 && stages[k-1].Node == s.Node && len(s.Island) == 0
		switch {
		case i < 0:
			return &CutError{fmt.Sprintf("node %q is gone", s.Node)}
		case f.barred[i].Kind != "" && f.barred[i].Kind != ReasonMemory:
			return &CutError{fmt.Sprintf("node %q cannot be used: %s", s.Node, f.barred[i])}
		case seen[s.Node] && !again:
			return &CutError{fmt.Sprintf("node %q has two stages", s.Node)}
		case s.Blocks < 1 || s.Blocks > m.Blocks()-at:
			return &CutError{fmt.Sprintf("the stage on %q has %d blocks at %d of %d", s.Node, s.Blocks, at, m.Blocks())}
		case s.First != at:
			return &CutError{fmt.Sprintf("the stage on %q begins at block %d, the one before ends at %d", s.Node, s.First, at)}
		}
		if !again {
			n := k + 1
			for n < len(stages) && stages[n].Node == s.Node && len(s.Island) == 0 {
				n++
			}
			if f.wayOf(stages[k:n]) == nil {
				return &CutError{fmt.Sprintf("node %q cannot run it: a device is gone or may not work with the others", s.Node)}
			}
		}
		for _, id := range s.nodes() {
			seen[id] = true
		}
		at += s.Blocks
	}
	if at != m.Blocks() {
		return &CutError{fmt.Sprintf("it has %d blocks and model %s has %d", at, m.Name, m.Blocks())}
	}
	if limit > 0 && len(seen) > limit {
		return &CutError{fmt.Sprintf("it has %d stages and max nodes is %d", len(seen), limit)}
	}
	if len(p.Constraints.Pins) == 0 {
		return nil
	}
	forced, err := p.resolvePins(nodes)
	if err != nil {
		return err
	}
	if !slices.Equal(forced, cutsOf(nodes, m.folded(true), stages)) {
		return &CutError{"the pins force another one"}
	}
	return nil
}

// cutsOf is what each node holds, in pipeline order.
func cutsOf(nodes []Node, m Model, stages []Stage) []cut {
	var out []cut
	at := 0
	for k, s := range stages {
		i := indexOf(nodes, s.Node)
		blocks := m.split(at, s.Blocks)
		if k > 0 && stages[k-1].Node == s.Node {
			out[len(out)-1].blocks[0] += blocks[0]
			out[len(out)-1].blocks[1] += blocks[1]
		} else {
			out = append(out, cut{i, blocks})
		}
		at += s.Blocks
	}
	return out
}

// DefaultGain is the predicted gain below which a running plan is kept.
const DefaultGain = 0.10

// Decision is what to do with a running plan.
type Decision struct {
	Plan    *Plan  // the plan to have; the current one with a fresh forecast when it is kept
	Changed bool   // whether the cut differs from the current one's
	Why     string // for the log and for status
}

// Decide keeps the current plan unless it can no longer run or a new one is faster by more than gain (0.10 means that
// the current step takes over 1.10 times the new one's; 0 means [DefaultGain]). The problem must describe memory as if
// the current plan were not loaded. A nil current plan is placed. Errors are those of [Place]: a current plan that can
// no longer run and cannot be replaced.
func Decide(p Problem, current *Plan, gain float64, opt Options) (Decision, error) {
	if gain <= 0 {
		gain = DefaultGain
	}
	if current != nil && current.InputDigest == p.Digest() {
		return Decision{Plan: current, Why: "nothing changed"}, nil
	}
	best, err := Place(p, opt)
	if err != nil {
		return Decision{}, err
	}
	if current == nil {
		return Decision{Plan: best, Changed: true, Why: "first plan"}, nil
	}
	if best.SameCut(current) {
		return Decision{Plan: best, Why: "the same cut is still the best"}, nil
	}
	kept, err := Reprice(p, current.Stages)
	if err != nil {
		return Decision{Plan: best, Changed: true, Why: "the current plan cannot run: " + err.Error()}, nil
	}
	if kept.StepSeconds > (1+gain)*best.StepSeconds {
		why := fmt.Sprintf("%s instead of %s, a gain of more than %.0f%%", perStep(best.StepSeconds), perStep(kept.StepSeconds), 100*gain)
		return Decision{Plan: best, Changed: true, Why: why}, nil
	}
	if !kept.SameCut(current) {
		return Decision{Plan: kept, Changed: true, Why: "the same blocks with another number of staging slots"}, nil
	}
	if err := completeKept(p, kept, best, opt); err != nil {
		return Decision{}, err
	}
	why := fmt.Sprintf("kept at %s: the best, %s, gains less than %.0f%%", perStep(kept.StepSeconds), perStep(best.StepSeconds), 100*gain)
	return Decision{Plan: kept, Why: why}, nil
}

// completeKept fills in what a reprice does not search for.
func completeKept(p Problem, kept, best *Plan, opt Options) error {
	s := newSolver(p)
	kept.Certificate = certify(kept.StepSeconds, best.Certificate.LowerBound)
	kept.Single, kept.Notes = best.Single, best.Notes
	kept.Unused = s.unused(kept)
	if opt.SkipLosses {
		return nil
	}
	var err error
	kept.IfLost, err = s.losses(kept)
	return err
}

// Infeasible reports whether an error of [Place] means that there is no room now, but may be when nodes come or change:
// the model does not fit, or a pinned node is missing or cannot be used.
func Infeasible(err error) bool {
	var nowhere *InfeasibleError
	var misfit *MisfitError
	var unknown *UnknownNodeError
	var pin *PinError
	return errors.As(err, &nowhere) || errors.As(err, &misfit) || errors.As(err, &unknown) || errors.Is(err, ErrNoNodes) ||
		(errors.As(err, &pin) && pin.Barred != "")
}
