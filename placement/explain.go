// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// PerStep shows seconds per step with three digits: "1.24 s/it".
func PerStep(s float64) string { return perStep(s) }

// Seconds shows a time with three digits: "1.24 s", "38.1 ms".
func Seconds(s float64) string { return duration(s) }

// perStep shows seconds per step with three digits.
func perStep(s float64) string { return duration(s) + "/it" }

func duration(s float64) string {
	switch {
	case s >= 99.95:
		return fmt.Sprintf("%.0f s", s)
	case s >= 9.995:
		return fmt.Sprintf("%.1f s", s)
	case s >= 0.9995:
		return fmt.Sprintf("%.2f s", s)
	case s >= 0.9995e-3:
		return fmt.Sprintf("%.3g ms", s*1e3)
	case s > 0:
		return fmt.Sprintf("%.3g µs", s*1e6)
	default:
		return "0 s"
	}
}

// Explain renders the plan for people: stages, forecast, certificate, losses and the reasons.
func (p *Plan) Explain() string {
	var b strings.Builder
	b.WriteString(p.Summary())
	for _, line := range p.lossLines() {
		fmt.Fprintf(&b, "if %s\n", line)
	}
	for _, line := range p.unusedLines() {
		fmt.Fprintf(&b, "not used: %s\n", line)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return b.String()
}

// Summary renders the plan without reasons: stages, forecast, certificate, and the best that one host can do.
func (p *Plan) Summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s on %s, %s\n", p.Label, perStep(p.StepSeconds), p.extent(), p.certificate())
	if p.Band.High > p.Band.Low && p.Band.Low > 0 {
		fmt.Fprintf(&b, "between %s and %s, by the uncertainty of its sources\n", perStep(p.Band.Low), perStep(p.Band.High))
	}
	p.stageTable(&b)
	fmt.Fprintf(&b, "step: compute %s, expansion and streaming %s, hops %s, waiting %s\n", duration(p.Parts.Compute), duration(p.Parts.Streaming), duration(p.Parts.Hops), duration(p.Parts.Waiting))
	if len(p.Pipelines) > 1 {
		for i, alike := range p.alike() {
			if len(alike) > 0 {
				fmt.Fprintf(&b, "pipeline %s: %s\n", PipelineName(i), p.Pipelines[i].describe())
			}
			if len(alike) > 1 {
				fmt.Fprintf(&b, "  and %s like it: %s\n", plural(len(alike)-1, "pipeline"), p.named(alike[1:]))
			}
		}
	} else if p.Pair.StepSeconds > 0 && (p.Objective == "" || p.Objective == string(ObjectiveLatency)) {
		fmt.Fprintf(&b, "two forwards in flight: %s, held up by %s (%s)\n", perStep(p.Pair.StepSeconds), p.Pair.Where, duration(p.Pair.Bottleneck))
	}
	if p.LoadSeconds > 0 {
		fmt.Fprintf(&b, "load: %s (%s to %s)\n", duration(p.LoadSeconds), duration(p.Bands.Load.Low), duration(p.Bands.Load.High))
	}
	fmt.Fprintf(&b, "one host: %s\n", p.single())
	return b.String()
}

// extent is "2 nodes", or "6 nodes in 3 pipelines".
func (p *Plan) extent() string {
	seen := make(map[NodeID]bool, len(p.Stages))
	for _, s := range p.Stages {
		seen[s.Node] = true
	}
	text := plural(len(seen), "node")
	if len(p.Pipelines) > 1 {
		text += fmt.Sprintf(" in %d pipelines", len(p.Pipelines))
	}
	return text
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// PipelineName is how texts call the i-th pipeline: A, B, ... Z, then 27, 28, ...
func PipelineName(i int) string {
	if i < 26 {
		return string(rune('A' + i))
	}
	return fmt.Sprint(i + 1)
}

func (r Pipeline) describe() string {
	text := fmt.Sprintf("a forward takes %s, one more every %s", duration(r.Forward), duration(r.Bottleneck))
	if r.Where != "" {
		text += " (" + r.Where + ")"
	}
	if r.Share > 0 {
		text += fmt.Sprintf("; %s of the batch in %s", plural(r.Share, "request"), perStep(r.StepSeconds))
	}
	return text
}

func (p *Plan) stageTable(b *strings.Builder) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { _, _ = w.Write([]byte("  " + strings.Join(cells, "\t") + "\n")) }
	row("STAGE", "NODE", "DEVICES", "BLOCKS", "WEIGHTS", "PEAK", "OF", "COMPUTE", "STREAMING", "HOP")
	alike := p.alike()
	for i, s := range p.Stages {
		name := fmt.Sprint(i)
		if len(p.Pipelines) > 1 {
			r := max(0, min(s.Pipeline, len(p.Pipelines)-1))
			if len(alike[r]) == 0 {
				continue
			}
			name = fmt.Sprintf("%s%d", PipelineName(r), i-p.Pipelines[r].First)
			if r >= 26 {
				name = fmt.Sprintf("%s.%d", PipelineName(r), i-p.Pipelines[r].First)
			}
		}
		row(name, s.Name, s.devices(), s.span(), s.weights(), s.Peak.String(), s.Available.String(), duration(s.Compute), duration(s.Expansion+s.Stall), duration(s.Hop))
	}
	_ = w.Flush()
}

// manyPipelines is from how many on those that differ only in their nodes are shown once.
const manyPipelines = 5

// alike lists for each pipeline itself and the later ones that are like it but for their nodes; nothing for those that
// are like an earlier one.
func (p *Plan) alike() [][]int {
	out := make([][]int, len(p.Pipelines))
	first := map[string]int{}
	for i, r := range p.Pipelines {
		key := fmt.Sprint(i)
		if len(p.Pipelines) >= manyPipelines {
			key = p.shapeOf(r)
		}
		at, ok := first[key]
		if !ok {
			at = i
			first[key] = i
		}
		out[at] = append(out[at], i)
	}
	return out
}

// shapeOf is everything that is shown of a pipeline but its nodes.
func (p *Plan) shapeOf(r Pipeline) string {
	var b strings.Builder
	fmt.Fprint(&b, duration(r.Forward), duration(r.Bottleneck), r.Share, perStep(r.StepSeconds))
	for _, s := range p.Stages[r.First : r.First+r.Stages] {
		fmt.Fprint(&b, "|", s.devices(), s.span(), s.weights(), s.Peak, s.Available, duration(s.Compute), duration(s.Expansion+s.Stall), duration(s.Hop))
	}
	return b.String()
}

// named is "H on lab-08, I on lab-09 and lab-10, 3 more".
func (p *Plan) named(pipelines []int) string {
	var out []string
	for k, i := range pipelines {
		if k == maxNamed {
			out = append(out, fmt.Sprintf("%d more", len(pipelines)-k))
			break
		}
		var nodes []string
		r := p.Pipelines[i]
		for _, s := range p.Stages[r.First : r.First+r.Stages] {
			if !slices.Contains(nodes, s.Name) {
				nodes = append(nodes, s.Name)
			}
		}
		out = append(out, fmt.Sprintf("%s on %s", PipelineName(i), strings.Join(nodes, " and ")))
	}
	return strings.Join(out, ", ")
}

// lossLines is one line per node, or where there are many one per consequence.
func (p *Plan) lossLines() []string {
	var lines, texts []string
	names := map[string][]string{}
	for _, l := range p.IfLost {
		text := l.String()
		if names[text] == nil {
			texts = append(texts, text)
		}
		names[text] = append(names[text], l.Name)
		lines = append(lines, fmt.Sprintf("%s is lost: %s", l.Name, text))
	}
	if len(lines) <= maxNamed {
		return lines
	}
	lines = lines[:0]
	for _, text := range texts {
		who := names[text]
		if len(who) == 1 {
			lines = append(lines, fmt.Sprintf("%s is lost: %s", who[0], text))
			continue
		}
		if len(who) > maxNamed {
			who = append(slices.Clone(who[:maxNamed]), fmt.Sprintf("%d more", len(who)-maxNamed))
		}
		lines = append(lines, fmt.Sprintf("one of %s is lost: %s", strings.Join(who, ", "), text))
	}
	return lines
}

// devices is "cuda:0" or "cuda:0,cuda:1 as one".
func (s Stage) devices() string {
	switch {
	case len(s.Devices) == 0:
		return s.Device
	case s.Degree > 1 && len(s.Devices) > 4:
		return fmt.Sprintf("%s...%s, %d as one", s.Devices[0], s.Devices[len(s.Devices)-1], len(s.Devices))
	case s.Degree > 1:
		return strings.Join(s.Devices, ",") + " as one"
	default:
		return strings.Join(s.Devices, ",")
	}
}

// weights is where the stage's blocks rest: "resident", "14 resident, 5 in ram; ring 2".
func (s Stage) weights() string {
	var parts []string
	streamed := false
	for _, t := range s.Tiers {
		if t.Bytes == 0 && t.Blocks == 0 {
			continue
		}
		streamed = streamed || t.Kind != TierDevice
		parts = append(parts, fmt.Sprintf("%d %s", t.Blocks, t.place()))
	}
	text := "resident"
	if streamed {
		text = strings.Join(parts, ", ")
	}
	if s.Ring > 0 && streamed {
		text += fmt.Sprintf("; ring %d", s.Ring)
	}
	if s.Slots > 0 {
		text += "; " + plural(s.Slots, "slot")
	}
	return text
}

func (t Tier) place() string {
	switch t.Kind {
	case TierDevice:
		return "resident"
	case TierRAM:
		return "in ram"
	case TierDisk:
		return "on disk"
	case TierRemote:
		return "in ram of " + t.Where
	default:
		return "on " + t.Where
	}
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
	if s.Blocks == 1 {
		text = fmt.Sprint(s.First)
	}
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

// Span is what of the model the stage runs: "head 0-18 (19+0)".
func (s Stage) Span() string { return s.span() }

// CertificateText says how good the plan is: "optimal for the cost model", or how far from it at most.
func (p *Plan) CertificateText() string { return p.certificate() }

func (p *Plan) certificate() string {
	switch {
	case p.ByHand:
		return "as allocated by hand"
	case p.Forced:
		return "forced by pins"
	case p.Certificate.Optimal:
		return "optimal for the cost model"
	default:
		return fmt.Sprintf("at most %.2f%% from optimal (bound %s)", 100*p.Certificate.Gap, perStep(p.Certificate.LowerBound))
	}
}

// oneHost reports whether all stages are on this node.
func (p *Plan) oneHost(id NodeID) bool {
	return !slices.ContainsFunc(p.Stages, func(s Stage) bool { return s.Node != id })
}

// SingleText compares the plan with the best that one host can do.
func (p *Plan) SingleText() string { return p.single() }

func (p *Plan) single() string {
	s := p.Single
	switch {
	case !s.Fits:
		return fmt.Sprintf("none can hold the model (%s of weights)", p.Weights)
	case p.oneHost(s.Node) && s.StepSeconds >= p.StepSeconds*(1-1e-9):
		return "this plan; no split is faster"
	case s.StepSeconds < p.StepSeconds:
		return fmt.Sprintf("%s alone is faster: %s, %.2f times as fast", s.Name, perStep(s.StepSeconds), p.StepSeconds/s.StepSeconds)
	default:
		return fmt.Sprintf("%s alone takes %s, %.2f times as long", s.Name, perStep(s.StepSeconds), s.StepSeconds/p.StepSeconds)
	}
}
