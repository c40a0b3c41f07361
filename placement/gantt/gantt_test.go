// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gantt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/distorch/distorch/bench/clusters"
	"github.com/distorch/distorch/placement"
)

// made is a plan as placement makes it, with stages of any times, and the problem that it answers.
func made(kind placement.ObjectiveKind, size int, pipelines ...[]placement.Stage) (*placement.Plan, placement.Problem) {
	problem := placement.Problem{Model: placement.Model{Input: 100}, Objective: placement.Objective{Kind: kind, Size: size}}
	plan := &placement.Plan{Label: "model wan", Objective: string(kind), Certificate: placement.Certificate{Optimal: true}}
	for r, stages := range pipelines {
		s, x := 0.0, 0.0
		first := len(plan.Stages)
		for i := range stages {
			st := &stages[i]
			st.Node, st.Pipeline = placement.NodeID(st.Name), r
			problem.Nodes = append(problem.Nodes, placement.Node{ID: st.Node, Link: placement.Link{BytesPerSecond: 1e4, Latency: 0.01}})
			t := busy(*st)
			s += t + st.Hop
			x = math.Max(x, t)
			if i+1 < len(stages) {
				x = math.Max(x, st.Hop)
			}
		}
		s += 0.02 // the input: 100 bytes at 1e4 bytes/s, and the latency
		p := placement.Pipeline{First: first, Stages: len(stages), Forward: s, Bottleneck: x, Share: 1, MicroBatch: 1, StepSeconds: s}
		plan.Pipelines = append(plan.Pipelines, p)
		plan.Stages = append(plan.Stages, stages...)
		plan.StepSeconds = math.Max(plan.StepSeconds, s)
	}
	if len(pipelines) == 1 {
		p := plan.Pipelines[0]
		switch kind {
		case placement.ObjectivePair:
			plan.StepSeconds = p.Forward + p.Bottleneck
		case placement.ObjectiveBatch:
			plan.StepSeconds = p.Forward + float64(size-1)*p.Bottleneck
		case placement.ObjectiveThroughput:
			plan.StepSeconds = p.Bottleneck
		}
	}
	return plan, problem
}

func stages(t *rapid.T, prefix string) []placement.Stage {
	var out []placement.Stage
	for i := range rapid.IntRange(1, 6).Draw(t, "stages") {
		f := func(name string) float64 { return rapid.Float64Range(0, 3).Draw(t, name) }
		s := placement.Stage{Name: fmt.Sprint(prefix, i), Device: "cuda:0", Blocks: 1, Compute: f("compute"), Expansion: f("expansion"), Stall: f("stall"), Hop: f("hop")}
		if rapid.Bool().Draw(t, "streams") {
			s.Ring = rapid.IntRange(1, 2).Draw(t, "ring")
			s.Stream = s.Stall * rapid.Float64Range(0, 1).Draw(t, "stream")
			s.Tiers = []placement.Tier{{Kind: placement.TierRAM, Blocks: rapid.IntRange(0, 20).Draw(t, "blocks")}}
		}
		out = append(out, s)
	}
	return out
}

// TestEndIsForecast: the simulation of latency, pairs and batches ends when the plan says, in any pipeline, and spans of
// one row do not overlap.
func TestEndIsForecast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]placement.ObjectiveKind{placement.ObjectiveLatency, placement.ObjectivePair, placement.ObjectiveBatch}).Draw(t, "objective")
		all := [][]placement.Stage{stages(t, "a")}
		if kind == placement.ObjectivePair && rapid.Bool().Draw(t, "disjoint") {
			all = append(all, stages(t, "b"))
		}
		plan, problem := made(kind, rapid.IntRange(1, 9).Draw(t, "size"), all...)
		l := New(plan, problem)
		if math.Abs(l.End-plan.StepSeconds) > 1e-9*math.Max(1, plan.StepSeconds) {
			t.Fatalf("the simulation ends at %.12g, the plan says %.12g", l.End, plan.StepSeconds)
		}
		checkRows(t, l)
	})
}

// TestSteady: the last two outputs of a queue are X apart.
func TestSteady(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plan, problem := made(placement.ObjectiveThroughput, 0, stages(t, "a"))
		l := New(plan, problem)
		var outs []float64
		for _, s := range l.Spans {
			if s.Label == "out" {
				outs = append(outs, s.End)
			}
		}
		if n := len(outs); n > 1 && math.Abs(outs[n-1]-outs[n-2]-plan.StepSeconds) > 1e-9*math.Max(1, l.End) {
			t.Fatalf("outputs at %v, want one every %g", outs, plan.StepSeconds)
		}
		checkRows(t, l)
	})
}

// TestPlacedPlans: the same of plans that placement found, on drawn clusters.
func TestPlacedPlans(t *testing.T) {
	models, err := clusters.Models()
	if err != nil {
		t.Fatal(err)
	}
	m := models[0]
	for seed := range uint64(8) {
		nodes := clusters.New(clusters.Options{Mix: clusters.Mixes()[seed%4], Hosts: 5, Model: m.Model, NoSingle: seed%2 == 0, Seed: seed})
		for _, o := range []placement.Objective{{}, {Kind: placement.ObjectivePair}, {Kind: placement.ObjectiveBatch, Size: 4}} {
			p := placement.Problem{Model: m.Model, Batches: m.Batches, Nodes: nodes, Objective: o}
			plan, err := placement.Place(p, placement.Options{SkipLosses: true})
			if placement.Infeasible(err) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if l := New(plan, p); math.Abs(l.End-plan.StepSeconds) > 1e-9*plan.StepSeconds {
				t.Errorf("seed %d, %s: the simulation ends at %.12g, the plan says %.12g\n%s", seed, o.Kind, l.End, plan.StepSeconds, plan.Explain())
			}
		}
	}
}

func checkRows(t *rapid.T, l *Timeline) {
	last := make([]float64, len(l.Rows))
	for _, s := range l.Spans {
		if s.Start < -1e-12 || s.End > l.End+1e-9 {
			t.Fatalf("span %+v is outside 0 to %g", s, l.End)
		}
		if l.Rows[s.Row].Kind == RowEndpoint {
			continue
		}
		if s.Start < last[s.Row]-1e-9 {
			t.Fatalf("span %+v begins before %g, when the one before it ends", s, last[s.Row])
		}
		last[s.Row] = s.End
	}
}

// pictures are plans of one, three and twelve stages.
func pictures() map[string]*Timeline {
	one, p1 := made(placement.ObjectiveLatency, 0, []placement.Stage{
		{Name: "tower", Device: "cuda:0", Blocks: 57, Head: true, Tail: true, Compute: 1.29, Stall: 0.31, Stream: 1.6, Ring: 2, Hop: 0.005},
	})
	three, p3 := made(placement.ObjectivePair, 0, []placement.Stage{
		{Name: "tower", Devices: []string{"cuda:0", "cuda:1"}, Degree: 2, Blocks: 19, Head: true, Compute: 0.8, Hop: 0.24},
		{Name: "laptop", Device: "cuda:0", First: 19, Blocks: 8, Compute: 0.6, Stall: 0.2, Stream: 0.2, Ring: 1, Hop: 0.24, Tiers: []placement.Tier{{Kind: placement.TierRAM, Blocks: 4}}},
		{Name: "attic", Device: "cpu", First: 27, Blocks: 30, Tail: true, Compute: 1.1, Expansion: 0.15, Hop: 0.01, Slots: 1},
	})
	var many []placement.Stage
	for i := range 12 {
		many = append(many, placement.Stage{Name: fmt.Sprintf("node-%02d", i), Device: "cuda:0", First: 5 * i, Blocks: 5, Head: i == 0, Tail: i == 11, Compute: 0.2 + 0.03*float64(i%4), Hop: 0.02 + 0.01*float64(i%3)})
		if i%3 == 1 {
			many[i].Stream, many[i].Ring = 0.21, 2
		}
	}
	twelve, p12 := made(placement.ObjectiveBatch, 4, many)
	pair, pp := made(placement.ObjectivePair, 0,
		[]placement.Stage{{Name: "a", Device: "cuda:0", Blocks: 40, Head: true, Tail: true, Compute: 4, Hop: 0.1}},
		[]placement.Stage{{Name: "b", Device: "cuda:0", Blocks: 30, Head: true, Compute: 2.4, Hop: 0.3}, {Name: "c", Device: "cuda:0", First: 30, Blocks: 10, Tail: true, Compute: 1.1, Hop: 0.1}})
	queue, pq := made(placement.ObjectiveThroughput, 0, []placement.Stage{{Name: "a", Device: "cuda:0", Blocks: 20, Head: true, Compute: 1, Hop: 0.2}, {Name: "b", Device: "cuda:0", First: 20, Blocks: 20, Tail: true, Compute: 1.2, Hop: 0.02}})
	return map[string]*Timeline{"one": New(one, p1), "three": New(three, p3), "twelve": New(twelve, p12), "disjoint": New(pair, pp), "queue": New(queue, pq)}
}

func TestDrawIsWellFormed(t *testing.T) {
	for name, l := range pictures() {
		out := Draw(l)
		d := xml.NewDecoder(bytes.NewReader(out))
		rects := 0
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
				rects++
			}
		}
		if rects < len(l.Spans)+len(l.Rows) {
			t.Errorf("%s: %d rectangles for %d spans", name, rects, len(l.Spans))
		}
		if !bytes.Equal(out, Draw(pictures()[name])) {
			t.Errorf("%s: two drawings differ", name)
		}
		if dir := os.Getenv("GANTT_OUT"); dir != "" {
			if err := os.WriteFile(filepath.Join(dir, name+".svg"), out, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestEmpty(t *testing.T) {
	if out := Draw(New(&placement.Plan{}, placement.Problem{})); !bytes.Contains(out, []byte("</svg>")) {
		t.Errorf("%s", out)
	}
}
