// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/report"
)

// Proposal is a plan and how it came about.
type Proposal struct {
	Plan        Plan
	Explanation string // for people; empty where there are no stages
	Report      *report.Report
	Err         error // why there are no stages
}

// Propose places one deployment as Step would if nothing ran under its name,
// whether or not the snapshot has its spec. The memory that all others use is
// taken off.
func Propose(s Snapshot, spec Spec) Proposal {
	return *newWorld(s).propose(&spec, nil)
}

// propose places a deployment beside all others. It is nil when the plan that
// stands refused the same inputs.
func (w *world) propose(spec *Spec, now *Plan) *Proposal {
	barred := w.barred(spec, now)
	out := &Proposal{Plan: Plan{
		Deployment: spec.Name, DeploymentID: spec.ID, Generation: spec.Generation,
		Model: spec.Model, Workload: spec.Workload, DType: spec.DType, Barred: barred,
	}}
	out.Plan.Workload.InFlight = spec.Workload.inFlight()
	refuse := func(err error) *Proposal {
		out.Err, out.Plan.Infeasible = err, err.Error()
		return out
	}
	m := w.model[spec.Model]
	if m == nil {
		return refuse(fmt.Errorf("%s: no model %s is known; start an agent whose models.dirs has the file", label(spec), spec.Model))
	}
	out.Plan.ModelName = m.Name
	if m.Graph == nil {
		return refuse(fmt.Errorf("%s: model %s cannot be used: %s", label(spec), m.Name, m.Problem))
	}
	dtype := computeDType(spec, m)
	out.Plan.DType = dtype
	var suffix string
	var err error
	m, out.Plan.LoRAs, suffix, err = WithLoRAs(m, func(id string) *Model { return w.model[id] }, spec.LoRAs, dtype)
	if err != nil {
		return refuse(fmt.Errorf("%s: %w", label(spec), err))
	}
	t, err := specialise(spec, m, dtype)
	if err != nil {
		return refuse(fmt.Errorf("%s: %w", label(spec), err))
	}
	problem := placement.Problem{Deployment: spec.Name, Model: t.packed, Nodes: w.offer(spec, m, dtype, barred), Constraints: constraints(spec)}
	out.Plan.InputDigest = problem.Digest()
	if now != nil && now.of(spec) && len(now.Stages) == 0 && now.InputDigest == out.Plan.InputDigest && slices.Equal(now.Barred, barred) {
		return nil
	}
	best, stored, err := choose(t, problem)
	if err != nil {
		return refuse(err)
	}
	if err := w.fill(&out.Plan, t, m.Stored, best, stored); err != nil {
		return refuse(fmt.Errorf("%s: %w", label(spec), err))
	}
	if suffix != "" {
		for i := range out.Plan.Stages {
			out.Plan.Stages[i].Class += suffix
		}
		out.Plan.Numerics = numerics(&out.Plan)
	}
	if stored {
		problem.Model = t.stored
	}
	if out.Report, err = report.New(problem, best, report.Options{}); err != nil {
		return refuse(fmt.Errorf("%s: %w", label(spec), err))
	}
	out.Report.Model, out.Report.DType, out.Report.Stored = m.Name, dtype, string(t.stored.StoredDType)
	out.Explanation = best.Explain() + "numerics: " + out.Plan.Numerics + "\n"
	return out
}

// label names the deployment; a plan that is only asked for may have no name.
func label(spec *Spec) string {
	if spec.Name == "" {
		return "plan"
	}
	return "deployment " + spec.Name
}

func computeDType(spec *Spec, m *Model) string {
	switch {
	case spec.DType != "":
		return strings.ToLower(spec.DType)
	case m.DefaultDType != "":
		return strings.ToLower(m.DefaultDType)
	}
	return "bf16"
}

func specialise(spec *Spec, m *Model, dtype string) (*table, error) {
	compute, err := tensor.ParseDType(strings.ToUpper(dtype))
	if err != nil {
		return nil, fmt.Errorf("compute dtype %q: use f32 or bf16", dtype)
	}
	dims, err := m.Graph.Request(spec.Workload.Dims)
	if err != nil {
		return nil, fmt.Errorf("workload: %w", err)
	}
	p, err := graph.Specialise(m.Graph, dims, compute)
	if err != nil {
		return nil, fmt.Errorf("workload: %w", err)
	}
	t, err := newTable(m.Name, p, m.Stored, spec.Workload.inFlight())
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", m.Name, err)
	}
	return t, nil
}

func constraints(spec *Spec) placement.Constraints {
	// What agents execute: one pipeline, each block on one device.
	c := placement.Constraints{Exclude: spec.Excludes, InFlight: 1, MaxPipelines: 1, MaxDegree: 1}
	for _, p := range spec.Pins {
		c.Pins = append(c.Pins, placement.Pin{Node: p.Node, Ranged: true, First: p.First, Count: p.Blocks})
	}
	return c
}

// choose places packed weights and, where they are smaller, stored ones, and
// takes the faster plan.
func choose(t *table, problem placement.Problem) (best *placement.Plan, stored bool, err error) {
	best, err = placement.Place(problem, placement.Options{})
	if !t.smaller || err != nil && !placement.Infeasible(err) {
		return best, false, err
	}
	problem.Model = t.stored
	other, otherErr := placement.Place(problem, placement.Options{})
	switch {
	case otherErr != nil && err != nil:
		return nil, false, moreRoom(err, otherErr)
	case otherErr != nil:
		return best, false, nil
	case err != nil || other.StepSeconds < best.StepSeconds:
		return other, true, nil
	}
	for i := range best.IfLost {
		if l := &best.IfLost[i]; !l.Continues && !best.Forced {
			l.Continues, l.StepSeconds = without(problem, l.Node)
		}
	}
	return best, false, nil
}

// moreRoom is the refusal that counts: weights as stored need less, if that
// was the cause at all.
func moreRoom(packed, stored error) error {
	var nowhere *placement.InfeasibleError
	var misfit *placement.MisfitError
	if errors.As(stored, &nowhere) || errors.As(stored, &misfit) {
		return stored
	}
	return packed
}

// without says whether the problem can be placed when a node dies.
func without(problem placement.Problem, node placement.NodeID) (bool, float64) {
	problem.Nodes = slices.DeleteFunc(slices.Clone(problem.Nodes), func(n placement.Node) bool { return n.ID == node })
	p, err := placement.Place(problem, placement.Options{SkipLosses: true})
	if err != nil {
		return false, 0
	}
	return true, p.StepSeconds
}

// fill turns a placement into the plan that agents execute.
func (w *world) fill(out *Plan, t *table, stored map[string]tensor.DType, best *placement.Plan, rested bool) error {
	for i := range best.Stages {
		s := &best.Stages[i]
		n := w.node[string(s.Node)]
		f, err := StageFootprint(t.program, stored, StageShape{
			First: s.First, Blocks: s.Blocks, Head: s.Head, Tail: s.Tail,
			Stored: rested, Slots: s.Slots, InFlight: out.Workload.InFlight,
		})
		if err != nil {
			return err
		}
		// placement counts the largest regions everywhere; this is the stage's own.
		s.Peak = min(s.Peak, placement.Bytes(f.Peak()))
		out.Stages = append(out.Stages, Stage{
			Node: n.ID, Name: s.Name, Device: s.Device, Address: n.Address, Incarnation: n.Incarnation,
			First: s.First, Blocks: s.Blocks, Head: s.Head, Tail: s.Tail, Stored: rested, Slots: s.Slots,
			Class: n.cpu().class(out.DType),
			Forecast: StageForecast{
				Compute: s.Compute, Expand: s.Expansion, Hop: s.Hop, Load: s.Load, PeakBytes: uint64(f.Peak()),
				Correction: n.cpu().correction(out.DType, activation(t.program.Model, out.Workload)), Calibration: n.cpu().Calibration,
			},
		})
	}
	out.Forecast = Forecast{
		Step: best.StepSeconds, Pair: best.Pair.StepSeconds, Compute: best.Parts.Compute, Expand: best.Parts.Streaming,
		Hop: best.Parts.Hops, Waiting: best.Parts.Waiting, Load: best.LoadSeconds,
	}
	for _, u := range best.Unused {
		out.Unused = append(out.Unused, Unused{Node: u.Name, Reason: u.Reason.String()})
	}
	for _, l := range best.IfLost {
		out.IfLost = append(out.IfLost, Loss{Node: l.Name, Consequence: l.String()})
	}
	out.Certificate = Certificate{Optimal: best.Certificate.Optimal, LowerBound: best.Certificate.LowerBound, Gap: best.Certificate.Gap}
	out.Numerics = numerics(out)
	return nil
}

// numerics is the sentence that says what the plan's bits equal.
func numerics(p *Plan) string {
	var classes, parts []string
	spans := map[string][]string{}
	for i := range p.Stages {
		s := &p.Stages[i]
		if len(spans[s.Class]) == 0 {
			classes = append(classes, s.Class)
		}
		spans[s.Class] = append(spans[s.Class], fmt.Sprintf("%d-%d", s.First, s.First+s.Blocks-1))
	}
	if len(classes) == 1 {
		return fmt.Sprintf("equals one device (%s)", strings.Replace(classes[0], "/"+p.DType, "", 1))
	}
	for _, c := range classes {
		parts = append(parts, fmt.Sprintf("%s blocks %s", c, strings.Join(spans[c], " and ")))
	}
	return fmt.Sprintf("stable for this plan (%d classes: %s)", len(classes), strings.Join(parts, ", "))
}
