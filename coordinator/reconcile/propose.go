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
	"github.com/distorch/distorch/placement/allocation"
	"github.com/distorch/distorch/placement/byhand"
	"github.com/distorch/distorch/placement/report"
)

// Proposal is a plan and how it came about.
type Proposal struct {
	Plan        Plan
	Explanation string // for people; empty where there are no stages
	Report      *report.Report
	Err         error // why there are no stages
}

// Infeasible reports whether an error of a proposal is about room: there may be
// some when nodes come or change.
func Infeasible(err error) bool {
	var short *allocation.FitError
	return placement.Infeasible(err) || errors.As(err, &short) || errors.Is(err, byhand.ErrNoGPU)
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
		Model: spec.Model, Workload: spec.Workload, DType: spec.DType, Barred: barred, Fit: spec.Fit,
	}}
	if spec.manual() {
		out.Plan.Fit = string(placement.FitStrict)
	}
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
	in := &inputs{spec: spec, model: m, dtype: dtype, table: t, barred: barred, suffix: suffix, cuts: newCuts()}
	problem := w.problem(in, formPacked)
	out.Plan.InputDigest = problem.Digest()
	if now != nil && now.of(spec) && len(now.Stages) == 0 && now.InputDigest == out.Plan.InputDigest && slices.Equal(now.Barred, barred) {
		return nil
	}
	in.keep = kept(spec, now)
	best, problem, err := w.settleMemory(&out.Plan, in)
	if err != nil && in.keep != nil {
		in.keep, in.cuts = nil, newCuts()
		best, problem, err = w.settleMemory(&out.Plan, in)
	}
	if err != nil {
		return refuse(err)
	}
	if out.Report, err = report.New(problem, best, report.Options{}); err != nil {
		return refuse(fmt.Errorf("%s: %w", label(spec), err))
	}
	out.Report.Model, out.Report.DType, out.Report.Stored = m.Name, dtype, string(t.stored.StoredDType)
	out.Report.Notes = append(out.Report.Notes, out.Plan.Notes...)
	out.Report.Plan.Notes = out.Report.Notes
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
	t, err := newTable(m.Name, p, m.Stored, spec.Storage, spec.Workload.inFlight())
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", m.Name, err)
	}
	return t, nil
}

func constraints(spec *Spec) placement.Constraints {
	// What agents execute: one pipeline, each block on one device.
	c := placement.Constraints{
		Exclude: spec.Excludes, InFlight: 1, MaxPipelines: 1, MaxDegree: 1,
		Fit: placement.Fit(spec.Fit), Reserve: bytesIn(spec.Reserve),
	}
	for _, p := range spec.Pins {
		c.Pins = append(c.Pins, placement.Pin{Node: p.Node, Ranged: true, First: p.First, Count: p.Blocks})
	}
	return c
}

// problem is what is to be placed, with weights resting in a form.
func (w *world) problem(in *inputs, form int) placement.Problem {
	own := w.onlyOwn(in)
	slack := in.table.slack[form]
	if own {
		slack = 0
	}
	return placement.Problem{
		Deployment: in.spec.Name, Model: in.table.model(form, own), Nodes: w.offer(in, slack), Constraints: constraints(in.spec),
	}
}

// onlyOwn says whether every node that may run the model does so on devices with
// memory of their own.
func (w *world) onlyOwn(in *inputs) bool {
	for i := range w.nodes {
		n := &w.nodes[i]
		if !w.holds[Holder{Model: in.model.ID, Node: n.ID}] {
			continue
		}
		computes := false
		for k := range n.Devices {
			_, rated := n.Devices[k].rates(in.dtype, 0)
			gone := slices.ContainsFunc(in.barred, func(b Barred) bool { return b.Node == n.ID && b.Device == n.Devices[k].Name })
			computes = computes || n.Devices[k].own() && rated && !gone
		}
		if !computes {
			return false
		}
	}
	_, compute, _ := strings.Cut(in.spec.Allocation, "#")
	return !strings.Contains(compute, cpu) || strings.Contains(compute, ";") // by hand the cpu may compute beside GPUs
}

// choose places packed weights and, where they are smaller, stored ones, and
// takes the faster plan. What a person wrote counts the bytes of the file.
func (w *world) choose(in *inputs) (best *placement.Plan, problem placement.Problem, form int, err error) {
	if in.keep != nil {
		return w.keep(in)
	}
	only := in.table.storage != "" || in.spec.manual() && in.table.smaller
	if only {
		problem = w.problem(in, formStored)
		best, err = w.place(in, &problem, formStored)
		return best, problem, formStored, err
	}
	problem = w.problem(in, formPacked)
	best, err = w.place(in, &problem, formPacked)
	if !in.table.smaller || err != nil && !Infeasible(err) {
		return best, problem, formPacked, err
	}
	other := w.problem(in, formStored)
	plan, otherErr := w.place(in, &other, formStored)
	switch {
	case otherErr != nil && err != nil:
		return nil, problem, formPacked, moreRoom(err, otherErr)
	case otherErr != nil:
		return best, problem, formPacked, nil
	case err != nil || plan.StepSeconds < best.StepSeconds:
		return plan, other, formStored, nil
	}
	for i := range best.IfLost {
		if l := &best.IfLost[i]; !l.Continues && !best.Forced {
			l.Continues, l.StepSeconds = without(other, l.Node)
		}
	}
	return best, problem, formPacked, nil
}

// place is place, with the memory of a misfit as its device has it: a stage is
// counted with regions that a device of its own memory leaves to RAM.
func (w *world) place(in *inputs, p *placement.Problem, form int) (*placement.Plan, error) {
	best, err := place(in.spec, p)
	if misfit, ok := errors.AsType[*placement.MisfitError](err); ok {
		n := w.node[string(misfit.Stage.Node)]
		if d := n.device(misfit.Stage.Device); d != nil && d.own() {
			off := -bytesIn(d.Overhead)
			if !w.onlyOwn(in) {
				off += in.table.slack[form]
			}
			misfit.Stage.Peak -= off
			misfit.Stage.Available -= off
		}
	}
	return best, err
}

// place finds the best plan, by hand where a person wrote one.
func place(spec *Spec, p *placement.Problem) (*placement.Plan, error) {
	switch {
	case spec.Allocation != "":
		a, _, err := byhand.Read(spec.Allocation, spec.Compat, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", label(spec), err)
		}
		p.Constraints.Allocation = a
	case spec.VirtualVRAM > 0:
		all, err := byhand.Virtual(bytesIn(spec.VirtualVRAM), p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", label(spec), err)
		}
		return fastest(all, p)
	}
	return placement.Place(*p, placement.Options{})
}

// fastest places by each of several assignments.
func fastest(all []*placement.Allocation, p *placement.Problem) (best *placement.Plan, err error) {
	var which *placement.Allocation
	for _, a := range all {
		p.Constraints.Allocation = a
		plan, problem := placement.Place(*p, placement.Options{})
		switch {
		case problem != nil && err == nil:
			err = problem
		case problem == nil && (best == nil || plan.StepSeconds < best.StepSeconds):
			best, which = plan, a
		}
	}
	if p.Constraints.Allocation = which; best == nil {
		return nil, err
	}
	return best, nil
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
