// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// perStep shows seconds per step with three digits.
func perStep(s float64) string { return duration(s) + "/it" }

func duration(s float64) string {
	switch {
	case s >= 100:
		return fmt.Sprintf("%.0f s", s)
	case s >= 10:
		return fmt.Sprintf("%.1f s", s)
	case s >= 1:
		return fmt.Sprintf("%.2f s", s)
	case s >= 1e-3:
		return fmt.Sprintf("%.3g ms", s*1e3)
	case s > 0:
		return fmt.Sprintf("%.3g µs", s*1e6)
	default:
		return "0 s"
	}
}

// Explain renders the plan for people: stages, forecast, certificate, alternatives and the reasons.
func (p *Plan) Explain() string {
	var b strings.Builder
	nodes := "nodes"
	if len(p.Stages) == 1 {
		nodes = "node"
	}
	fmt.Fprintf(&b, "%s: %s on %d %s, %s\n", p.Label, perStep(p.StepSeconds), len(p.Stages), nodes, p.certificate())
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { _, _ = w.Write([]byte("  " + strings.Join(cells, "\t") + "\n")) }
	row("STAGE", "NODE", "DEVICE", "BLOCKS", "SLOTS", "PEAK", "OF", "COMPUTE", "EXPANSION", "HOP")
	for i, s := range p.Stages {
		row(fmt.Sprint(i), s.Name, s.Device, s.span(), fmt.Sprint(s.Slots), s.Peak.String(), s.Available.String(), duration(s.Compute), duration(s.Expansion), duration(s.Hop))
	}
	_ = w.Flush()
	fmt.Fprintf(&b, "step: compute %s, expansion %s, hops %s, waiting %s\n", duration(p.Parts.Compute), duration(p.Parts.Streaming), duration(p.Parts.Hops), duration(p.Parts.Waiting))
	fmt.Fprintf(&b, "two forwards in flight: %s, held up by %s (%s)\n", perStep(p.Pair.StepSeconds), p.Pair.Where, duration(p.Pair.Bottleneck))
	if p.LoadSeconds > 0 {
		fmt.Fprintf(&b, "load: %s\n", duration(p.LoadSeconds))
	}
	fmt.Fprintf(&b, "one host: %s\n", p.single())
	for _, l := range p.IfLost {
		fmt.Fprintf(&b, "if %s is lost: %s\n", l.Name, l)
	}
	for _, line := range p.unusedLines() {
		fmt.Fprintf(&b, "not used: %s\n", line)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}

// unusedLines is one line per reason, in the order of its first node.
func (p *Plan) unusedLines() []string {
	var reasons []Reason
	names := make(map[Reason][]string)
	for _, u := range p.Unused {
		if names[u.Reason] == nil {
			reasons = append(reasons, u.Reason)
		}
		names[u.Reason] = append(names[u.Reason], u.Name)
	}
	lines := make([]string, len(reasons))
	for i, r := range reasons {
		who := names[r]
		if len(who) > maxNamed {
			who = append(slices.Clone(who[:maxNamed]), fmt.Sprintf("%d more", len(who)-maxNamed))
		}
		lines[i] = fmt.Sprintf("%s (%s)", strings.Join(who, ", "), r)
	}
	return lines
}

func (s Stage) span() string {
	text := fmt.Sprintf("%d-%d", s.First, s.First+s.Blocks-1)
	if len(s.Runs) > 1 {
		parts := make([]string, len(s.Runs))
		for i, n := range s.Runs {
			parts[i] = fmt.Sprint(n)
		}
		text += " (" + strings.Join(parts, "+") + ")"
	}
	if s.Head {
		text = "head " + text
	}
	if s.Tail {
		text += " tail"
	}
	return text
}

func (p *Plan) certificate() string {
	switch {
	case p.Forced:
		return "forced by pins"
	case p.Certificate.Optimal:
		return "optimal for the cost model"
	default:
		return fmt.Sprintf("at most %.2f%% from optimal (bound %s)", 100*p.Certificate.Gap, perStep(p.Certificate.LowerBound))
	}
}

func (p *Plan) single() string {
	s := p.Single
	switch {
	case !s.Fits:
		return fmt.Sprintf("none can hold the model (%s of weights)", p.Weights)
	case len(p.Stages) == 1 && p.Stages[0].Node == s.Node:
		return "this plan; no split is faster"
	case s.StepSeconds < p.StepSeconds:
		return fmt.Sprintf("%s alone is faster: %s", s.Name, perStep(s.StepSeconds))
	default:
		return fmt.Sprintf("%s alone takes %s, %.2f times as long", s.Name, perStep(s.StepSeconds), s.StepSeconds/p.StepSeconds)
	}
}
