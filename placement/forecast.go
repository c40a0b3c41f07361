// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
	"slices"
)

// priced is a pipeline with its stages and times.
type priced struct {
	stages     []Stage
	nodes      []int // indices into the sorted nodes
	parts      Parts // of one forward
	s, x       float64
	where      string
	low, high  float64 // of s
	least      Parts   // the parts at their lowest
	most       Parts   // and highest
	spread     float64 // the largest of its devices
	load       float64
	known      bool // load rates
	classes    []string
	xLow, xHi  float64
	bottleneck Parts // what x is made of
}

// The relative uncertainty of a link.
func (l Link) spread() float64 { return l.Source.spread() }

// link is the time of a hop from one node to another for a size, as the cost model counts it, and its uncertainty.
func (f *field) link(p, q int, size Bytes) (seconds, spread float64) {
	if l := f.pairs[[2]NodeID{f.nodes[p].ID, f.nodes[q].ID}]; l != nil {
		return float64(size)/l.BytesPerSecond + l.Latency, spreadMeasured
	}
	t := max(hopCost(size, f.nodes[p].Link), hopCost(size, f.nodes[q].Link))
	a, inA := f.racks[p]
	b, inB := f.racks[q]
	if (inA || inB) && !(inA && inB && a == b) {
		for _, g := range []struct {
			at int
			in bool
		}{{a, inA}, {b, inB}} {
			if g.in {
				rack := f.problem.Groups[g.at]
				t = max(t, float64(size)/rack.BytesPerSecond+rack.Latency)
			}
		}
	}
	return t, max(f.nodes[p].Link.spread(), f.nodes[q].Link.spread())
}

// hop is the time between two stages.
func (f *field) hop(a, b *engine, size Bytes) (seconds, spread float64) {
	if a.node == b.node && len(a.nodes) == 0 && len(b.nodes) == 0 {
		return float64(size)/min(a.peer, b.peer) + f.nodes[a.node].PeerLatency, max(a.spread, b.spread)
	}
	for _, p := range a.members() {
		for _, q := range b.members() {
			if t, u := f.link(p, q, size); t > seconds {
				seconds, spread = t, u
			}
		}
	}
	return seconds, spread
}

func (e *engine) members() []int {
	if len(e.nodes) > 0 {
		return e.nodes
	}
	return []int{e.node}
}

// edge is the hop between the endpoint and an engine.
func (f *field) edge(e *engine, size Bytes) (seconds, spread float64) {
	for _, i := range e.members() {
		if t := hopCost(size, f.nodes[i].Link); t >= seconds {
			seconds, spread = t, f.nodes[i].Link.spread()
		}
	}
	return seconds, spread
}

func (f *field) label(e *engine) string {
	name := f.nodes[e.node].Label()
	if len(e.nodes) > 0 {
		return fmt.Sprintf("island of %s and %d more", name, len(e.nodes)-1)
	}
	return name
}

// price is what a pipeline takes on the true links; the stage is the first that does not fit, or nil.
func (f *field) price(list []part) (*priced, *Stage) {
	out := &priced{known: true, nodes: nodesOf(list)}
	busiest := func(t, spread float64, where string, what Parts) {
		if t > out.x {
			out.x, out.where, out.bottleneck, out.xLow, out.xHi = t, where, what, t/(1+spread), t*(1+spread)
		}
	}
	add := func(p Parts, spread float64) {
		t := p.Total()
		out.low += t / (1 + spread)
		out.high += t * (1 + spread)
		out.least = out.least.plus(p.scaled(1 / (1 + spread)))
		out.most = out.most.plus(p.scaled(1 + spread))
	}
	at := 0
	for i, p := range list {
		r := roleAt(i, len(list))
		cost, fits := p.engine.price(p.x, p.y, r)
		if f.model.unfolded != nil {
			cost, fits = p.engine.priceRuns(f.model.spread(at, p.x+p.y), r)
		}
		s := f.stage(p, cost, at, r)
		if !fits {
			return nil, &s
		}
		at += s.Blocks
		add(Parts{Compute: cost.compute, Streaming: cost.expansion + cost.stall}, p.engine.spread)
		out.spread = max(out.spread, p.engine.spread)
		if i == 0 {
			t, u := f.edge(p.engine, f.model.Input)
			out.parts.Hops += t
			add(Parts{Hops: t}, u)
		}
		if i == len(list)-1 {
			t, u := f.edge(p.engine, f.model.Output)
			s.Hop = t
			add(Parts{Hops: t}, u)
		} else {
			t, u := f.hop(p.engine, list[i+1].engine, f.model.behind(at-1))
			s.Hop = t
			add(Parts{Hops: t}, u)
			from, to := f.label(p.engine), f.label(list[i+1].engine)
			if from == to {
				from, to = from+"/"+p.engine.devices[0], to+"/"+list[i+1].engine.devices[0]
			}
			busiest(t, u, fmt.Sprintf("link %s to %s", from, to), Parts{Hops: t})
		}
		where := "stage on " + s.Name
		if f.shares(list, i) {
			where += "/" + s.Device
		}
		busiest(cost.total(), p.engine.spread, where, Parts{Compute: cost.compute, Streaming: cost.expansion + cost.stall})
		if s.Load > 0 {
			out.load = max(out.load, s.Load)
		} else {
			out.known = false
		}
		out.parts.Compute += s.Compute
		out.parts.Streaming += s.Expansion + s.Stall
		out.parts.Hops += s.Hop
		if !slices.Contains(out.classes, s.Class) {
			out.classes = append(out.classes, s.Class)
		}
		out.stages = append(out.stages, s)
	}
	out.s = out.parts.Total()
	return out, nil
}

// shares reports whether another stage runs on the same node.
func (f *field) shares(list []part, i int) bool {
	for j, p := range list {
		if j != i && p.engine.node == list[i].engine.node {
			return true
		}
	}
	return false
}

func (f *field) stage(p part, cost stageCost, at int, r role) Stage {
	e := p.engine
	n := &f.nodes[e.node]
	s := Stage{
		Node: n.ID, Name: f.label(e), Device: e.devices[0], Devices: e.devices, Degree: e.degree, First: at, Blocks: p.x + p.y,
		Runs: f.model.spread(at, p.x+p.y), Head: r&first != 0, Tail: r&last != 0, Slots: cost.slots, Ring: cost.ring,
		Tiers: e.tiers(cost, p.x, p.y), Class: e.class, Weights: cost.weights, Peak: cost.peak, Available: e.available,
		Compute: cost.compute, Expansion: cost.expansion, Stream: cost.stream, Stall: cost.stall,
		Spread: e.spread, Published: e.published,
	}
	s.Rest, s.Whole = e.rest(cost, at, p.x, p.y)
	for _, i := range e.nodes {
		s.Island = append(s.Island, f.nodes[i].ID)
	}
	// Weights are counted exactly; scratch is a liveness peak that allocators round up.
	s.PeakBand = [2]Bytes{cost.peak, cost.peak + cost.peak/20}
	total := cost.weights + cost.bytes
	if e.degree > 1 {
		total *= Bytes(e.degree)
	}
	load := math.Inf(1)
	for _, i := range e.members() {
		load = min(load, f.nodes[i].Load)
	}
	if load > 0 {
		s.Load = float64(total) / load
	}
	return s
}

func roleAt(i, n int) role {
	r := role(0)
	if i == 0 {
		r |= first
	}
	if i == n-1 {
		r |= last
	}
	return r
}

// compose makes a plan of pipelines that were priced, with the value that the objective gives them.
func (f *field) compose(pipes []*priced, v worth) *Plan {
	plan := &Plan{
		Label: f.problem.label(), Objective: f.problem.Objective.String(), Weights: f.problem.Model.Weights(),
		StepSeconds: v.seconds, Parts: v.parts, Band: v.band,
	}
	known := true
	for i, p := range pipes {
		plan.Pipelines = append(plan.Pipelines, Pipeline{
			First: len(plan.Stages), Stages: len(p.stages), Forward: p.s, Bottleneck: p.x, Where: p.where,
			Share: v.shares[i], MicroBatch: v.micro[i], StepSeconds: v.steps[i],
		})
		for _, s := range p.stages {
			s.Pipeline = i
			plan.Stages = append(plan.Stages, s)
		}
		known = known && p.known
		plan.LoadSeconds = max(plan.LoadSeconds, p.load)
	}
	if !known {
		plan.LoadSeconds = 0
	}
	plan.Bands = bandsOf(plan, pipes)
	p := pipes[0]
	plan.Pair = Pair{StepSeconds: p.s + p.x, Bottleneck: p.x, Where: p.where, Parts: p.parts}
	plan.Pair.Parts.Waiting = p.x
	plan.Pair.StepSeconds = plan.Pair.Parts.Total()
	return plan
}

// bandsOf gives each part the range that the same part has over all pipelines.
func bandsOf(plan *Plan, pipes []*priced) PartBands {
	var all, least, most Parts
	var x, low, high, spread float64
	for _, p := range pipes {
		all, least, most = all.plus(p.parts), least.plus(p.least), most.plus(p.most)
		x, low, high, spread = x+p.x, low+p.xLow, high+p.xHi, max(spread, p.spread)
	}
	of := func(t, all, least, most float64) Band {
		if all == 0 {
			return Band{t, t}
		}
		return Band{t * least / all, t * most / all}
	}
	return PartBands{
		Compute:   of(plan.Parts.Compute, all.Compute, least.Compute, most.Compute),
		Streaming: of(plan.Parts.Streaming, all.Streaming, least.Streaming, most.Streaming),
		Hops:      of(plan.Parts.Hops, all.Hops, least.Hops, most.Hops),
		Waiting:   of(plan.Parts.Waiting, x, low, high),
		Load:      Band{plan.LoadSeconds / (1 + spread), plan.LoadSeconds * (1 + spread)},
	}
}
