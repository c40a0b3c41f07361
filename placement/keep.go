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
	d.add("placement/1", p.Deployment)
	m := p.Model
	d.add(m.Name, string(m.ComputeDType), string(m.StoredDType))
	d.ints(int64(m.Vec), int64(m.Input), int64(m.Output), int64(len(m.Runs)))
	d.cost(m.Head)
	d.cost(m.Tail)
	for _, r := range m.Runs {
		d.add(r.Name)
		d.ints(int64(r.Count), int64(r.Boundary))
		d.cost(r.Block)
	}
	c := p.Constraints
	d.ints(int64(c.MaxNodes), int64(c.slots()), int64(c.inFlight()), int64(len(c.Pins)))
	for _, pin := range c.Pins {
		d.add(pin.String())
	}
	exclude := slices.Clone(c.Exclude)
	slices.Sort(exclude)
	d.add(slices.Compact(exclude)...)
	for _, n := range sortedNodes(p.Nodes) {
		d.node(n)
	}
	return hex.EncodeToString(d.h.Sum(nil))
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
	d.ints(int64(c.Weights), int64(c.Staging), int64(c.Expansion), int64(c.Elementwise), int64(c.Scratch))
	d.floats(c.Linear, c.Attention)
}

func (d digester) node(n Node) {
	d.add(string(n.ID), n.Name, strconv.FormatBool(n.HasModel), string(n.Rejected.Kind), n.Rejected.Detail)
	d.floats(n.Link.BytesPerSecond, n.Link.Latency, n.Load)
	d.ints(int64(len(n.Devices)))
	for _, v := range n.Devices {
		d.add(v.ID, string(v.Kind), strconv.FormatBool(v.Overlap))
		d.ints(int64(v.Allocatable), int64(v.Reserve), int64(len(v.Rates)))
		d.floats(v.Expansion, v.Memory)
		rates := slices.Clone(v.Rates)
		slices.SortStableFunc(rates, func(a, b Rate) int { return cmp.Compare(a.DType, b.DType) })
		for _, r := range rates {
			d.add(string(r.DType))
			d.floats(r.Linear, r.Attention)
		}
	}
}

// Equal reports whether both problems have the same inputs.
func (p Problem) Equal(o Problem) bool { return p.Digest() == o.Digest() }

// CutError says why a given cut is no plan for a problem.
type CutError struct{ Problem string }

func (e *CutError) Error() string { return "cut: " + e.Problem }

// Reprice forecasts an existing cut under new inputs. It takes each stage's node and run counts and honours the
// constraints; it does not search. Errors: those of [Place], *[CutError] and *[MisfitError].
func Reprice(p Problem, stages []Stage) (*Plan, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	nodes := sortedNodes(p.Nodes)
	cuts, err := p.cuts(nodes, stages)
	if err != nil {
		return nil, err
	}
	plan, misfit := p.forecast(nodes, cuts)
	if misfit != nil {
		return nil, &MisfitError{Label: p.label(), Stage: *misfit}
	}
	plan.Forced = len(p.Constraints.Pins) > 0
	plan.InputDigest = p.Digest()
	return plan, nil
}

func (p Problem) cuts(nodes []Node, stages []Stage) ([]cut, error) {
	m, limit := p.Model, p.Constraints.MaxNodes
	barred := p.eligible(nodes)
	if limit > 0 && len(stages) > limit {
		return nil, &CutError{fmt.Sprintf("it has %d stages and max nodes is %d", len(stages), limit)}
	}
	seen := make(map[NodeID]bool, len(stages))
	cuts := make([]cut, 0, len(stages))
	at := 0
	for _, s := range stages {
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == s.Node })
		switch {
		case i < 0:
			return nil, &CutError{fmt.Sprintf("node %q is gone", s.Node)}
		case barred[i].Kind != "":
			return nil, &CutError{fmt.Sprintf("node %q cannot be used: %s", s.Node, barred[i])}
		case seen[s.Node]:
			return nil, &CutError{fmt.Sprintf("node %q has two stages", s.Node)}
		case s.Blocks < 1 || s.Blocks > m.Blocks()-at:
			return nil, &CutError{fmt.Sprintf("the stage on %q has %d blocks at %d of %d", s.Node, s.Blocks, at, m.Blocks())}
		}
		seen[s.Node] = true
		cuts = append(cuts, cut{i, m.split(at, s.Blocks)})
		at += s.Blocks
	}
	if at != m.Blocks() {
		return nil, &CutError{fmt.Sprintf("it has %d blocks and model %s has %d", at, m.Name, m.Blocks())}
	}
	if len(p.Constraints.Pins) > 0 {
		forced, err := p.resolvePins(nodes)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(forced, cuts) {
			return nil, &CutError{"the pins force another one"}
		}
	}
	return cuts, nil
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
	f := newField(p, sortedNodes(p.Nodes))
	kept.Certificate = certify(kept.StepSeconds, best.Certificate.LowerBound)
	kept.Single, kept.Notes = best.Single, best.Notes
	kept.Unused = f.unused(kept)
	if opt.SkipLosses {
		return nil
	}
	var err error
	kept.IfLost, err = f.losses(kept)
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
