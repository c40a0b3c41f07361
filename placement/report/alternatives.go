// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
)

// Alternative is another plan for the same problem and what it costs.
type Alternative struct {
	What        string   `json:"what"` // "on one host", "without b"
	StepSeconds float64  `json:"step_seconds"`
	Factor      float64  `json:"factor"` // of the plan's step
	Nodes       []string `json:"nodes"`
	Stages      int      `json:"stages"`
	Pipelines   int      `json:"pipelines"`
	Cut         string   `json:"cut"` // "a 0-20, b 21-39"
}

func (a Alternative) String() string {
	return fmt.Sprintf("%s: %s, %.2f times as long (%s)", a.What, placement.PerStep(a.StepSeconds), a.Factor, a.Cut)
}

const (
	maxAlternatives = 5
	maxWithout      = 8
)

// alternatives are the best plans under one more constraint each, the cheapest first; equal cuts count once, and the
// plan itself not at all.
func (s *searcher) alternatives() []Alternative {
	type found struct {
		plan *placement.Plan
		what string
	}
	var all []found
	try := func(what string, p placement.Problem) {
		plan := s.place(p)
		if plan == nil || samePlan(plan, s.plan) || slices.ContainsFunc(all, func(f found) bool { return samePlan(f.plan, plan) }) {
			return
		}
		all = append(all, found{plan, what})
	}
	with := func(change func(c *placement.Constraints)) placement.Problem {
		p := s.problem
		p.Constraints.Exclude = slices.Clone(p.Constraints.Exclude)
		change(&p.Constraints)
		return p
	}
	if s.plan.Forced {
		try("without pins", with(func(c *placement.Constraints) { c.Pins, c.Allocation = nil, nil }))
	}
	free := func(c *placement.Constraints) { c.Pins, c.Allocation = nil, nil }
	nodes := usedNodes(s.plan)
	if len(nodes) > 1 {
		try("on one host", with(func(c *placement.Constraints) { free(c); c.MaxNodes, c.MaxPipelines = 1, 1 }))
	}
	if len(s.plan.Pipelines) > 1 {
		try("in one pipeline", with(func(c *placement.Constraints) { free(c); c.MaxPipelines = 1 }))
	}
	for i, n := range nodes {
		if i < maxWithout {
			try("without "+n.name, with(func(c *placement.Constraints) { free(c); c.Exclude = append(c.Exclude, string(n.id)) }))
		}
	}
	if n := len(nodes); n > 2 {
		try(fmt.Sprintf("on at most %d nodes", n-1), with(func(c *placement.Constraints) { free(c); c.MaxNodes = n - 1 }))
	}
	if s.problem.Constraints.MaxNodes > 0 {
		try(fmt.Sprintf("on at most %d nodes", s.problem.Constraints.MaxNodes+1), with(func(c *placement.Constraints) { free(c); c.MaxNodes++ }))
	}
	if slices.ContainsFunc(s.plan.Stages, func(g placement.Stage) bool { return g.Degree > 1 }) {
		try("without tensor parallelism", with(func(c *placement.Constraints) { free(c); c.MaxDegree = 1 }))
	}
	if slices.ContainsFunc(s.plan.Stages, streams) {
		try("with all weights resident", with(func(c *placement.Constraints) { free(c); c.Fit = placement.FitStrict }))
	}
	if strings.HasPrefix(s.plan.Numerics(), "stable") {
		try("in one numerics class", with(func(c *placement.Constraints) { free(c); c.Numerics = placement.NumericsOne }))
	}
	for _, o := range s.otherObjectives() {
		p := s.problem
		p.Objective = o
		if other := s.place(p); other != nil {
			if plan, err := placement.Reprice(s.problem, other.Stages); err == nil && plan.Objective == s.plan.Objective && !samePlan(plan, s.plan) && !slices.ContainsFunc(all, func(f found) bool { return samePlan(f.plan, plan) }) {
				all = append(all, found{plan, "the plan for " + string(o.Kind)})
			}
		}
	}
	out := []Alternative{}
	for _, f := range all {
		out = append(out, alternative(f.what, f.plan, s.plan.StepSeconds))
	}
	slices.SortStableFunc(out, func(a, b Alternative) int { return cmp.Compare(a.StepSeconds, b.StepSeconds) })
	return out[:min(len(out), maxAlternatives)]
}

// otherObjectives are those whose plans may be runners-up under this one.
func (s *searcher) otherObjectives() []placement.Objective {
	if s.plan.Forced || len(s.plan.Pipelines) > 1 {
		return nil
	}
	var out []placement.Objective
	for _, k := range []placement.ObjectiveKind{placement.ObjectiveLatency, placement.ObjectivePair} {
		if k != s.problem.Objective.Kind && (k != placement.ObjectiveLatency || s.problem.Objective.Kind != "") {
			out = append(out, placement.Objective{Kind: k})
		}
	}
	return out
}

func streams(g placement.Stage) bool {
	return g.Stream > 0 || slices.ContainsFunc(g.Tiers, func(t placement.Tier) bool { return t.Kind != placement.TierDevice && t.Bytes > 0 })
}

// samePlan reports whether two plans put the same blocks on the same devices.
func samePlan(a, b *placement.Plan) bool {
	return a.SameCut(b) && slices.EqualFunc(a.Stages, b.Stages, func(x, y placement.Stage) bool {
		return slices.Equal(x.Devices, y.Devices) && x.Pipeline == y.Pipeline && x.Degree == y.Degree
	})
}

func alternative(what string, plan *placement.Plan, step float64) Alternative {
	a := Alternative{
		What: what, StepSeconds: plan.StepSeconds, Factor: plan.StepSeconds / step,
		Stages: len(plan.Stages), Pipelines: max(1, len(plan.Pipelines)), Nodes: []string{},
	}
	for _, n := range usedNodes(plan) {
		a.Nodes = append(a.Nodes, n.name)
	}
	var parts []string
	for _, g := range plan.Stages {
		parts = append(parts, fmt.Sprintf("%s %d-%d", g.Name, g.First, g.First+g.Blocks-1))
	}
	a.Cut = listed(parts)
	return a
}

// used is a node of a plan.
type used struct {
	id   placement.NodeID
	name string
}

// usedNodes are a plan's nodes in the order of its stages.
func usedNodes(plan *placement.Plan) []used {
	var out []used
	for _, g := range plan.Stages {
		u := used{g.Node, g.Name}
		if !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

const (
	maxReasons = 12 // kinds of unused nodes that get a number
	maxDonors  = 8  // nodes that may give blocks away
)

// reasons are the plan's unused nodes; those that are only slower get a number: the best of the cuts in which a node
// gives some of its blocks to the node.
func (s *searcher) reasons() []placement.Unused {
	out := slices.Clone(s.plan.Unused)
	parts := nodeParts(s.plan)
	if s.plan.Forced || len(s.plan.Pipelines) > 1 || len(parts) != len(usedNodes(s.plan)) {
		return out
	}
	details := map[string]string{} // of nodes with equal figures
	for i := range out {
		u := &out[i]
		at := slices.IndexFunc(s.problem.Nodes, func(n placement.Node) bool { return n.ID == u.Node })
		if u.Reason.Kind != placement.ReasonSlower || at < 0 {
			continue
		}
		kind := figures(s.problem.Nodes[at])
		if _, known := details[kind]; !known && len(details) < maxReasons {
			details[kind] = ""
			blocks, plan := s.including(parts, u.Node)
			if plan != nil && plan.StepSeconds > s.plan.StepSeconds {
				details[kind] = fmt.Sprintf("with %s on it %s instead of %s", blocks, placement.PerStep(plan.StepSeconds), placement.PerStep(s.plan.StepSeconds))
			}
		}
		if text := details[kind]; text != "" {
			u.Reason.Detail = text
		}
	}
	return out
}

// nodeParts are the contiguous blocks that each node runs, in order; stages inside one node are one part.
func nodeParts(plan *placement.Plan) []placement.Stage {
	var out []placement.Stage
	for _, g := range plan.Stages {
		if n := len(out); n > 0 && out[n-1].Node == g.Node && len(g.Island) == 0 {
			out[n-1].Blocks += g.Blocks
			continue
		}
		out = append(out, g)
	}
	return out
}

// including is the best plan in which one part gives its first or last blocks to a node, one or half of them.
func (s *searcher) including(parts []placement.Stage, node placement.NodeID) (blocks string, best *placement.Plan) {
	p := s.problem
	p.Nodes = slices.DeleteFunc(slices.Clone(p.Nodes), func(n placement.Node) bool {
		return n.ID != node && !slices.ContainsFunc(parts, func(g placement.Stage) bool { return g.Node == n.ID })
	})
	p.Constraints.MaxNodes, p.Constraints.MaxPipelines = 0, 1
	for i, g := range parts {
		if i == maxDonors {
			break
		}
		for _, n := range slices.Compact([]int{1, g.Blocks / 2}) {
			for _, front := range []bool{true, false} {
				if n < 1 || n >= g.Blocks {
					continue
				}
				p.Constraints.Pins = give(parts, i, n, front, node)
				plan := s.place(p)
				if plan != nil && (best == nil || plan.StepSeconds < best.StepSeconds) {
					first := g.First
					if !front {
						first += g.Blocks - n
					}
					blocks, best = span(first, n), plan
				}
			}
		}
	}
	return blocks, best
}

// span names blocks: "block 4", "blocks 4-7".
func span(first, n int) string {
	if n == 1 {
		return fmt.Sprintf("block %d", first)
	}
	return fmt.Sprintf("blocks %d-%d", first, first+n-1)
}

// give is the cut with n blocks of part i on another node, before or behind it.
func give(parts []placement.Stage, i, n int, front bool, node placement.NodeID) []placement.Pin {
	var out []placement.Pin
	for j, g := range parts {
		own := placement.Pin{Node: string(g.Node), Count: g.Blocks}
		if j != i {
			out = append(out, own)
			continue
		}
		own.Count -= n
		gift := placement.Pin{Node: string(node), Count: n}
		if front {
			out = append(out, gift, own)
		} else {
			out = append(out, own, gift)
		}
	}
	return out
}
