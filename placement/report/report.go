// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package report turns a problem and its plan into what people and programs read: the plan with its numerics, runner-up
// plans, the plans of other rules, what would help most, and the reason for every node that is not used. Its JSON form
// is docs/schema/plan.schema.json.
//
// The command line and the coordinator import it. It is pure: it must not import os, net, context, sync, a logger or a
// clock. It searches by [placement.Place]; how often is bounded by the number of nodes, whatever the time.
package report

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/rivals"
	"github.com/distorch/distorch/placement/whatif"
)

// Schema names the version of the JSON form. A field that is added leaves it as it is; one that changes its meaning or
// goes away counts it up.
const Schema = "distorch.plan/1"

// Report is a plan and what is to be said of it. Lists are never null in JSON.
type Report struct {
	Schema string `json:"schema"`
	placement.Plan
	Model        string           `json:"model,omitempty"`      // these four are filled in by the caller
	DType        string           `json:"dtype,omitempty"`      // of the computation
	Stored       string           `json:"stored,omitempty"`     // dtype of the weights
	Workload     string           `json:"workload,omitempty"`   // as --workload takes it
	Size         int              `json:"batch_size,omitempty"` // requests of a batch
	LoRAs        []LoRA           `json:"loras,omitempty"`      // filled in by the caller too
	Unused       []Unused         `json:"unused"`
	IfLost       []Loss           `json:"if_lost"`
	Notes        []string         `json:"notes"`
	Numerics     string           `json:"numerics"`  // "equals one device (...)"; empty where a class is not known
	Published    []string         `json:"published"` // figures of the plan that nobody measured here
	Queue        *Queue           `json:"queue,omitempty"`
	Alternatives []Alternative    `json:"alternatives"`
	Rivals       []rivals.Outcome `json:"rivals"`
	Sensitivity  []Gain           `json:"sensitivity"`
	WhatIf       []whatif.Row     `json:"what_if,omitempty"` // filled in by the caller
}

// LoRA is one on the planned model.
type LoRA struct {
	Name       string   `json:"name"`
	ID         string   `json:"id"`
	Mode       string   `json:"mode"` // add, merge
	Strength   float32  `json:"strength"`
	Layers     uint32   `json:"layers,omitempty"`      // of the file, applied
	NotApplied []string `json:"not_applied,omitempty"` // tensors of the file, and why
}

// Unused is a node that the plan leaves out.
type Unused struct {
	Node   placement.NodeID     `json:"node"`
	Name   string               `json:"name"`
	Reason placement.ReasonKind `json:"reason"`
	Detail string               `json:"detail,omitempty"`
}

// Loss is what happens when a node of the plan dies.
type Loss struct {
	placement.Loss
	Text string `json:"text"`
}

// Queue is what a queue of requests would get from the best plan for it, beside this plan.
type Queue struct {
	Pipelines   int     `json:"pipelines"`
	Seconds     float64 `json:"seconds"`           // between two outputs
	PlanSeconds float64 `json:"this_plan_seconds"` // between two outputs of this plan
}

// Options say what is worth searching for.
type Options struct {
	Queue        bool // compare with the best plan for a queue
	Alternatives bool // runner-up plans, and numbers for unused nodes
	Rivals       bool
	Sensitivity  bool
	Variants     []Variant // other tables of the model that sensitivity may try
}

// Variant is the same problem with another table, such as weights stored in eight bits.
type Variant struct {
	Name    string
	Problem placement.Problem
}

// New completes a plan of [placement.Place]. Errors are those of Place for problems that are wrong; one that does not
// fit is only left out.
func New(p placement.Problem, plan *placement.Plan, opt Options) (*Report, error) {
	r := &Report{Schema: Schema, Plan: *plan, Notes: slices.Clone(plan.Notes), Numerics: plan.Numerics(), Published: published(p, plan)}
	if p.Objective.Kind == placement.ObjectiveBatch {
		r.Size = max(p.Objective.Size, 1)
	}
	r.Objective = string(cmp.Or(p.Objective.Kind, placement.ObjectiveLatency)) // without the size
	s := &searcher{problem: p, plan: plan}
	if opt.Queue && !plan.Forced {
		r.Queue = s.queue()
	}
	if opt.Alternatives {
		r.Alternatives = s.alternatives()
		r.Plan.Unused = s.reasons()
	}
	if opt.Rivals && s.err == nil {
		r.Rivals, s.err = rivals.Compare(p, plan.StepSeconds)
	}
	if opt.Sensitivity && !plan.Forced {
		r.Sensitivity = s.sensitivity(opt.Variants)
	}
	r.complete()
	return r, s.err
}

// complete fills in what JSON shows in another form than the plan, and makes no list null.
func (r *Report) complete() {
	r.Unused, r.IfLost = []Unused{}, []Loss{}
	for _, u := range r.Plan.Unused {
		r.Unused = append(r.Unused, Unused{u.Node, u.Name, u.Reason.Kind, u.Reason.Detail})
	}
	for _, l := range r.Plan.IfLost {
		r.IfLost = append(r.IfLost, Loss{l, l.String()})
	}
	r.Stages = slices.Clone(r.Stages)
	for i := range r.Stages {
		s := &r.Stages[i]
		if len(s.Devices) == 0 {
			s.Devices = []string{s.Device}
		}
		s.Degree = max(s.Degree, 1)
		fill(&s.Tiers)
		fill(&s.Runs)
	}
	if len(r.Pipelines) == 0 {
		forward := r.Parts.Compute + r.Parts.Streaming + r.Parts.Hops
		r.Pipelines = []placement.Pipeline{{Stages: len(r.Stages), Forward: forward, Bottleneck: r.Pair.Bottleneck, Where: r.Pair.Where, StepSeconds: r.StepSeconds}}
	}
	fill(&r.Stages)
	fill(&r.Notes)
	fill(&r.Published)
	fill(&r.Alternatives)
	fill(&r.Rivals)
	fill(&r.Sensitivity)
}

func fill[T any](list *[]T) {
	if *list == nil {
		*list = []T{}
	}
}

// Parse reads the JSON form.
func Parse(data []byte) (*Report, error) {
	r := &Report{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("plan: schema %q, this build reads %s: use the same version on both machines", r.Schema, Schema)
	}
	r.Plan.Notes = r.Notes
	for _, u := range r.Unused {
		r.Plan.Unused = append(r.Plan.Unused, placement.Unused{Node: u.Node, Name: u.Name, Reason: placement.Reason{Kind: u.Reason, Detail: u.Detail}})
	}
	for _, l := range r.IfLost {
		r.Plan.IfLost = append(r.Plan.IfLost, l.Loss)
	}
	return r, nil
}

// published names the figures that the plan rests on and nobody measured.
func published(p placement.Problem, plan *placement.Plan) []string {
	used := map[placement.NodeID][]string{}
	for _, s := range plan.Stages {
		devices := s.Devices
		if len(devices) == 0 {
			devices = []string{s.Device}
		}
		used[s.Node] = append(used[s.Node], devices...)
	}
	var out, links []string
	for _, n := range p.Nodes {
		devices, ok := used[n.ID]
		if !ok {
			continue
		}
		kinds := map[string][]string{}
		for _, d := range n.Devices {
			whole := "/" + d.ID
			if d.Source != placement.SourcePublished || !slices.Contains(devices, d.ID) && !slices.Contains(devices, n.Label()+whole) && !slices.Contains(devices, string(n.ID)+whole) {
				continue
			}
			kinds[d.Model] = append(kinds[d.Model], d.ID)
		}
		for model, ids := range kinds {
			text := n.Label() + "/" + ids[0]
			if len(ids) > 1 {
				text += " to " + ids[len(ids)-1]
			}
			if model != "" {
				text += " (" + model + ")"
			}
			out = append(out, text)
		}
		if n.Link.Source == placement.SourcePublished {
			links = append(links, n.Label())
		}
	}
	slices.Sort(out)
	if slices.Sort(links); len(links) > 0 {
		out = append(out, "network of "+listed(links))
	}
	return out
}

// searcher places variations of a problem beside its plan.
type searcher struct {
	problem placement.Problem
	plan    *placement.Plan
	err     error // the first that is not a lack of room
}

// place is the plan of a variation, or nil where it does not fit.
func (s *searcher) place(p placement.Problem) *placement.Plan {
	if s.err != nil {
		return nil
	}
	plan, err := placement.Place(p, placement.Options{SkipLosses: true})
	var pin *placement.PinError
	switch {
	case err == nil:
		return plan
	case placement.Infeasible(err), errors.As(err, &pin):
		return nil
	}
	s.err = err
	return nil
}

func (s *searcher) queue() *Queue {
	if s.problem.Objective.Kind == placement.ObjectiveThroughput || len(s.plan.Pipelines) > 1 {
		return nil
	}
	p := s.problem
	p.Objective = placement.Objective{Kind: placement.ObjectiveThroughput}
	best := s.place(p)
	mine := s.plan.Pair.Bottleneck
	if len(s.plan.Pipelines) == 1 {
		mine = s.plan.Pipelines[0].Bottleneck
	}
	if best == nil || mine <= 0 || best.Objective != string(placement.ObjectiveThroughput) {
		return nil
	}
	return &Queue{Pipelines: max(1, len(best.Pipelines)), Seconds: best.StepSeconds, PlanSeconds: mine}
}

func (q *Queue) String() string {
	switch {
	case q.Seconds >= q.PlanSeconds*(1-1e-9):
		return "this plan; one output every " + placement.Seconds(q.PlanSeconds)
	case q.Pipelines > 1:
		return fmt.Sprintf("%d replicas give an output every %s, this plan every %s: %.2f times as many (--objective throughput)", q.Pipelines, placement.Seconds(q.Seconds), placement.Seconds(q.PlanSeconds), q.PlanSeconds/q.Seconds)
	default:
		return fmt.Sprintf("another cut gives an output every %s, this plan every %s: %.2f times as many (--objective throughput)", placement.Seconds(q.Seconds), placement.Seconds(q.PlanSeconds), q.PlanSeconds/q.Seconds)
	}
}

// Summary is the plan for people, without reasons and comparisons.
func (r *Report) Summary() string { return r.Plan.Summary() + r.closing() }

// Explain is all of the report for people.
func (r *Report) Explain() string {
	var b strings.Builder
	b.WriteString(r.Plan.Explain())
	b.WriteString(r.closing())
	section := func(title string, n int, line func(i int) string) {
		if n > 0 {
			fmt.Fprintf(&b, "%s:\n", title)
		}
		for i := range n {
			fmt.Fprintf(&b, "  %s\n", line(i))
		}
	}
	section("other plans", len(r.Alternatives), func(i int) string { return r.Alternatives[i].String() })
	section("other rules, in this cost model", len(r.Rivals), func(i int) string { return r.Rivals[i].Title + ": " + r.Rivals[i].String() })
	section("what would help most", len(r.Sensitivity), func(i int) string { return r.Sensitivity[i].String() })
	return b.String()
}

func (r *Report) closing() string {
	var b strings.Builder
	if r.Queue != nil {
		fmt.Fprintf(&b, "a queue of requests: %s\n", r.Queue)
	}
	if r.Numerics != "" {
		fmt.Fprintf(&b, "numerics: %s\n", r.Numerics)
	}
	if len(r.Published) > 0 {
		fmt.Fprintf(&b, "published, not measured: %s\n", listed(r.Published))
	}
	return b.String()
}

// listed joins the first eight.
func listed(names []string) string {
	const named = 8
	if len(names) > named {
		return strings.Join(names[:named], ", ") + fmt.Sprintf(", %d more", len(names)-named)
	}
	return strings.Join(names, ", ")
}
