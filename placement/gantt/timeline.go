// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package gantt shows one step of a plan over time: which device computes when, when weights are copied to it, and when
// activations travel.
//
// Commands import it. It is pure: it must not import os, net, context, sync, a logger or a clock. The same plan gives
// the same drawing.
package gantt

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
)

// RowKind says what a row shows.
type RowKind int

// The kinds of rows.
const (
	RowEndpoint RowKind = iota // hops from and to the endpoint; they delay, and do not hold each other up
	RowCompute                 // a stage's device, or group of devices
	RowCopies                  // the copy engine of that device
	RowLink                    // between two stages
)

// Row is one line of the drawing.
type Row struct {
	Kind     RowKind
	Name     string
	Pipeline int
	Stage    int // index into Plan.Stages; of a link the stage before it
}

// SpanKind says what happens in a span.
type SpanKind int

// The kinds of spans.
const (
	SpanCompute SpanKind = iota
	SpanWeights          // the device waits for weights, or expands them
	SpanCopy
	SpanHop
)

// Span is one thing that happens on a row, in seconds from the begin of the step.
type Span struct {
	Row        int
	Kind       SpanKind
	MicroBatch int // of its pipeline, from 0
	Start, End float64
	Label      string
}

// Timeline is one step of a plan.
type Timeline struct {
	Title    string
	Subtitle string
	Rows     []Row
	Spans    []Span
	End      float64 // when the last output has reached the endpoint
	Step     float64 // the plan's forecast; equal to End but for throughput, where it is the time between two outputs
	Forwards int     // micro-batches of the pipeline with the most

	Pipelines int
}

// steadyForwards are shown of a queue, whose steps have no end.
const steadyForwards = 4

// New simulates a step: a stage or a link between stages takes one micro-batch at a time, in order, as soon as it is
// free and the activation has arrived. The problem is the one that the plan answers; it gives the endpoint's hops.
func New(plan *placement.Plan, problem placement.Problem) *Timeline {
	t := &Timeline{
		Title:    fmt.Sprintf("%s: %s", plan.Label, placement.PerStep(plan.StepSeconds)),
		Subtitle: subtitle(plan), Step: plan.StepSeconds,
	}
	pipelines := Pipelines(plan)
	t.Pipelines = len(pipelines)
	for i, r := range pipelines {
		t.pipeline(plan, problem, i, r, forwards(len(pipelines), r, problem.Objective))
	}
	return t
}

func subtitle(plan *placement.Plan) string {
	objective := plan.Objective
	if objective == "" {
		objective = string(placement.ObjectiveLatency)
	}
	parts := []string{"objective " + objective, plan.CertificateText()}
	if plan.Band.High > plan.Band.Low && plan.Band.Low > 0 {
		parts = append(parts, fmt.Sprintf("%s to %s", placement.Seconds(plan.Band.Low), placement.Seconds(plan.Band.High)))
	}
	return strings.Join(parts, " · ")
}

// Pipelines are the plan's pipelines; a plan that lists none is one pipeline.
func Pipelines(plan *placement.Plan) []placement.Pipeline {
	if len(plan.Pipelines) > 0 {
		return plan.Pipelines
	}
	return []placement.Pipeline{{Stages: len(plan.Stages), Forward: plan.StepSeconds, Bottleneck: plan.Pair.Bottleneck, Where: plan.Pair.Where}}
}

// forwards is how many micro-batches a pipeline runs in one step.
func forwards(pipelines int, r placement.Pipeline, o placement.Objective) int {
	kind := o.Kind
	switch {
	case kind == placement.ObjectivePair && pipelines == 1:
		return 2
	case kind == placement.ObjectiveBatch && pipelines == 1:
		size, micro := max(o.Size, 1), max(r.MicroBatch, 1)
		return (size + micro - 1) / micro
	case kind == placement.ObjectiveBatch:
		return max(r.Share, 1)
	case kind == placement.ObjectiveThroughput:
		return steadyForwards
	default:
		return 1
	}
}

func (t *Timeline) row(kind RowKind, name string, pipeline, stage int) int {
	t.Rows = append(t.Rows, Row{kind, name, pipeline, stage})
	return len(t.Rows) - 1
}

func (t *Timeline) span(row int, kind SpanKind, m int, start, end float64, label string) {
	if end > start {
		t.Spans = append(t.Spans, Span{row, kind, m, start, end, label})
	}
	t.End = math.Max(t.End, end)
}

func (t *Timeline) pipeline(plan *placement.Plan, problem placement.Problem, index int, r placement.Pipeline, n int) {
	t.Forwards = max(t.Forwards, n)
	stages := plan.Stages[r.First : r.First+r.Stages]
	input := inputHop(plan, problem, r, stages)
	name := "endpoint"
	if t.Pipelines > 1 {
		name = "pipeline " + placement.PipelineName(index) + ": endpoint"
	}
	endpoint := t.row(RowEndpoint, name, index, r.First)
	devices, copies, links := make([]int, len(stages)), make([]int, len(stages)), make([]int, len(stages))
	for i, s := range stages {
		devices[i] = t.row(RowCompute, s.Name+" "+deviceNames(s), index, r.First+i)
		if s.Stream > 0 {
			copies[i] = t.row(RowCopies, "copies", index, r.First+i)
		}
		if i+1 < len(stages) {
			links[i] = t.row(RowLink, s.Name+" → "+stages[i+1].Name, index, r.First+i)
		}
	}
	free, taken := make([]float64, len(stages)), make([]float64, len(stages)) // until when: stage, link behind it
	for m := range n {
		t.span(endpoint, SpanHop, m, 0, input, "in")
		at := input
		for i, s := range stages {
			start := math.Max(at, free[i])
			at = start + busy(s)
			free[i] = at
			t.stage(s, devices[i], copies[i], m, start)
			if i+1 == len(stages) {
				t.span(endpoint, SpanHop, m, at, at+s.Hop, "out")
				continue
			}
			start = math.Max(at, taken[i])
			at = start + s.Hop
			taken[i] = at
			t.span(links[i], SpanHop, m, start, at, "")
		}
	}
}

// busy is how long a stage takes for one forward.
func busy(s placement.Stage) float64 { return s.Compute + s.Expansion + s.Stall }

// maxPieces is how many turns of copying and computing are drawn where they do not overlap.
const maxPieces = 8

// stage adds what one stage does with one micro-batch.
func (t *Timeline) stage(s placement.Stage, device, copies, m int, start float64) {
	end := start + busy(s)
	if s.Stream <= 0 || s.Ring != 1 { // copies run beside compute; what they take longer, the device waits
		if s.Stream > 0 {
			t.span(copies, SpanCopy, m, start, math.Min(start+s.Stream, end), "")
		}
		expanded := start + s.Compute + s.Expansion
		t.span(device, SpanCompute, m, start, start+s.Compute, s.Span())
		t.span(device, SpanWeights, m, start+s.Compute, expanded, "expand")
		t.span(device, SpanWeights, m, expanded, end, "wait")
		return
	}
	n := 0
	for _, tier := range s.Tiers {
		if tier.Kind != placement.TierDevice {
			n += tier.Blocks
		}
	}
	n = min(max(n, 1), maxPieces)
	piece := (end - start) / float64(n)
	copying := math.Min(s.Stream, end-start) / float64(n)
	for i := range n {
		from := start + float64(i)*piece
		to := from + piece
		if i == n-1 {
			to = end
		}
		t.span(copies, SpanCopy, m, from, from+copying, "")
		t.span(device, SpanCompute, m, from+copying, to, "")
	}
}

// inputHop is what the endpoint's input takes to the first stage.
func inputHop(plan *placement.Plan, problem placement.Problem, r placement.Pipeline, stages []placement.Stage) float64 {
	if len(stages) == 0 {
		return 0
	}
	m := problem.Model
	for _, b := range problem.Batches {
		if b.Size == r.MicroBatch && b.Size > 1 && len(plan.Pipelines) == 1 {
			m = b.Model
		}
	}
	for _, n := range problem.Nodes {
		if n.ID == stages[0].Node && len(stages[0].Island) == 0 {
			return float64(m.Input)/n.Link.BytesPerSecond + n.Link.Latency
		}
	}
	rest := r.Forward
	for _, s := range stages {
		rest -= busy(s) + s.Hop
	}
	return math.Max(0, rest)
}

func deviceNames(s placement.Stage) string {
	names := s.Devices
	if len(names) == 0 {
		return s.Device
	}
	short := slices.Clone(names)
	for i := 1; i < len(short); i++ {
		if kind, number, ok := strings.Cut(short[i], ":"); ok && strings.HasPrefix(names[0], kind+":") {
			short[i] = number
		}
	}
	if len(short) > 4 {
		return short[0] + "…" + short[len(short)-1]
	}
	return strings.Join(short, ",")
}
