// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package rivals places a model by the rules of other programs and prices the result in distorch's own cost model.
//
// placement/report and bench import it. It is pure: it must not import os, net, context, sync, a logger or a clock.
//
// The rules decide how many blocks each host runs and in which order. What a host does inside is left to the solver,
// which takes its best way; nothing is streamed, as these programs hold all weights in the memory that they count. The
// figures are therefore kind to the rules, and simulated: they compare cuts, not programs.
package rivals

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/distorch/distorch/placement"
)

// Rule is how a program divides a model.
type Rule string

// The rules.
const (
	RuleSingle Rule = "single-host"  // all blocks on the host that is fastest with them
	RuleAll    Rule = "all-hosts"    // llama.cpp: every host, blocks in proportion to its memory
	RuleFewest Rule = "fewest-hosts" // exo: hosts by memory until the model fits, blocks in proportion to their memory
)

// Rules are all rules in the order that people read them.
func Rules() []Rule { return []Rule{RuleSingle, RuleAll, RuleFewest} }

// Title says what a rule does.
func (r Rule) Title() string {
	switch r {
	case RuleAll:
		return "all hosts, in proportion to memory (llama.cpp's rule)"
	case RuleFewest:
		return "fewest hosts, in proportion to memory (exo's rule)"
	default:
		return "best single host"
	}
}

// Outcome is what a rule's cut takes.
type Outcome struct {
	Rule        Rule    `json:"rule"`
	Title       string  `json:"title"`
	Fits        bool    `json:"fits"`
	StepSeconds float64 `json:"step_seconds,omitempty"`
	Factor      float64 `json:"factor,omitempty"` // of the plan's step
	Nodes       int     `json:"nodes,omitempty"`
	Cut         string  `json:"cut,omitempty"` // "a=30,b=10", as pins are written
	Why         string  `json:"why,omitempty"` // when it does not fit
}

// String is "2.10 s/it, 1.24 times as long" or "out of memory: ...".
func (o Outcome) String() string {
	if !o.Fits {
		return o.Why
	}
	return fmt.Sprintf("%s, %.2f times as long", placement.PerStep(o.StepSeconds), o.Factor)
}

// Compare prices every rule for the problem's objective beside a plan that takes step seconds. Errors are those of
// [placement.Place], but for a cut that does not fit, which is an outcome.
func Compare(p placement.Problem, step float64) ([]Outcome, error) {
	var out []Outcome
	for _, r := range Rules() {
		o, err := price(p, r)
		if err != nil {
			return nil, fmt.Errorf("price %s: %w", r, err)
		}
		if o.Fits && step > 0 {
			o.Factor = o.StepSeconds / step
		}
		out = append(out, o)
	}
	return out, nil
}

func price(p placement.Problem, r Rule) (Outcome, error) {
	o := Outcome{Rule: r, Title: r.Title()}
	c := placement.Constraints{
		Exclude: p.Constraints.Exclude, Slots: p.Constraints.Slots, InFlight: p.Constraints.InFlight, Reserve: p.Constraints.Reserve,
		Fit: p.Constraints.Fit, MaxDegree: p.Constraints.MaxDegree, MaxPipelines: 1, MaxNodes: 1,
	}
	if r != RuleSingle {
		c.Pins, o.Why = Cut(p, r)
		if o.Why != "" {
			return o, nil
		}
		c.MaxNodes, c.Fit = 0, placement.FitStrict
	}
	p.Constraints = c
	plan, err := placement.Place(p, placement.Options{SkipLosses: true})
	switch {
	case err == nil:
	case placement.Infeasible(err):
		o.Why = "out of memory: " + short(err)
		return o, nil
	default:
		return o, err
	}
	o.Fits, o.StepSeconds, o.Nodes, o.Cut = true, plan.StepSeconds, nodes(plan), Text(pins(plan))
	return o, nil
}

func short(err error) string {
	var misfit *placement.MisfitError
	var nowhere *placement.InfeasibleError
	switch {
	case errors.As(err, &misfit):
		s := misfit.Stage
		return fmt.Sprintf("%d blocks need %s on %s, which offers %s", s.Blocks, s.Peak, s.Name, max(0, s.Available))
	case errors.As(err, &nowhere):
		return "no host can hold the model"
	default:
		return err.Error()
	}
}

func nodes(plan *placement.Plan) int {
	var ids []placement.NodeID
	for _, s := range plan.Stages {
		ids = append(ids, s.Node)
	}
	slices.Sort(ids)
	return len(slices.Compact(ids))
}

// pins are the blocks of each node in pipeline order.
func pins(plan *placement.Plan) []placement.Pin {
	var out []placement.Pin
	for _, s := range plan.Stages {
		if n := len(out); n > 0 && out[n-1].Node == s.Name {
			out[n-1].Count += s.Blocks
			continue
		}
		out = append(out, placement.Pin{Node: s.Name, Count: s.Blocks})
	}
	return out
}

// Text writes a cut as pins are written, the first eight of them.
func Text(pins []placement.Pin) string {
	const named = 8
	text := ""
	for i, p := range pins {
		if i == named {
			return text + fmt.Sprintf(", %d more", len(pins)-i)
		}
		if i > 0 {
			text += ","
		}
		text += p.String()
	}
	return text
}

// host is a node that a rule may use.
type host struct {
	id     placement.NodeID
	memory placement.Bytes
}

// Cut gives the blocks of each host by [RuleAll] or [RuleFewest], or says why there is no cut.
func Cut(p placement.Problem, r Rule) (pins []placement.Pin, why string) {
	hosts := usable(p)
	if len(hosts) == 0 {
		return nil, "no host can be used"
	}
	if r == RuleFewest {
		slices.SortStableFunc(hosts, func(a, b host) int { return cmp.Compare(b.memory, a.memory) })
		n, sum := 0, placement.Bytes(0)
		for n < len(hosts) && sum < p.Model.Weights() {
			sum += hosts[n].memory
			n++
		}
		if sum < p.Model.Weights() {
			return nil, fmt.Sprintf("out of memory: all hosts have %s, the weights are %s", sum, p.Model.Weights())
		}
		hosts = hosts[:n]
	}
	for i, blocks := range proportional(p.Model.Blocks(), hosts) {
		if blocks > 0 {
			pins = append(pins, placement.Pin{Node: string(hosts[i].id), Count: blocks})
		}
	}
	return pins, ""
}

// usable are the hosts that could run a block, in the order of their ids, with the memory that these rules count.
func usable(p placement.Problem) []host {
	var out []host
	for _, n := range p.Nodes {
		if n.Rejected.Kind != "" || !n.HasModel || slices.Contains(p.Constraints.Exclude, string(n.ID)) || slices.Contains(p.Constraints.Exclude, n.Name) {
			continue
		}
		if m := memory(n, p); m > 0 {
			out = append(out, host{n.ID, m})
		}
	}
	slices.SortFunc(out, func(a, b host) int { return cmp.Compare(a.id, b.id) })
	return out
}

// memory is what a host's computing devices may keep of weights: its GPUs', or its CPU's where no GPU computes in the
// dtype. The scratch of a forward is taken off, which the programs themselves leave to the user.
func memory(n placement.Node, p placement.Problem) placement.Bytes {
	var gpu, cpu, scratch placement.Bytes
	for _, r := range p.Model.Runs {
		scratch = max(scratch, r.Block.Scratch*placement.Bytes(max(p.Constraints.InFlight, 1)))
	}
	for _, d := range n.Devices {
		if !slices.ContainsFunc(d.Rates, func(r placement.Rate) bool { return r.DType == p.Model.ComputeDType }) {
			continue
		}
		available := max(0, d.Allocatable-max(d.Reserve, p.Constraints.Reserve)-scratch)
		switch {
		case d.Kind == placement.KindGPU:
			gpu += available
		case cpu == 0:
			cpu = available
		}
	}
	if gpu > 0 {
		return gpu
	}
	return cpu
}

// proportional divides a number of blocks by memory: whole shares first, then one more to the largest remainders, the
// first hosts on a tie.
func proportional(blocks int, hosts []host) []int {
	total := 0.0
	for _, h := range hosts {
		total += float64(h.memory)
	}
	out, order, rest := make([]int, len(hosts)), make([]int, len(hosts)), make([]float64, len(hosts))
	left := blocks
	for i, h := range hosts {
		share := float64(blocks) * float64(h.memory) / total
		out[i] = int(share)
		order[i], rest[i] = i, share-float64(out[i])
		left -= out[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rest[b], rest[a]) })
	for i := range left {
		out[order[i%len(order)]]++
	}
	return out
}
