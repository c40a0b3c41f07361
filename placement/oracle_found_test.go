// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"testing"

	. "github.com/distorch/distorch/placement"
)

// TestPriceByHand holds the pricing of given plans against hand-worked figures, and what it must refuse.
func TestPriceByHand(t *testing.T) {
	p := Problem{
		Model: smallModel(), Objective: Objective{Kind: ObjectivePair},
		Nodes: []Node{smallNode("a", smallDevice("cpu", KindCPU, 49)), smallNode("b", smallDevice("cpu", KindCPU, 49))},
	}
	// Two blocks and the head take 34 s and 27 bytes, two and the tail 31 s and 25; the hop 1.3 s, the endpoint 4 s.
	good := func() *Plan {
		return &Plan{
			Stages: []Stage{
				{Node: "a", Devices: []string{"cpu"}, Degree: 1, First: 0, Blocks: 2, Head: true, Peak: 27, Available: 49, Compute: 34},
				{Node: "b", Devices: []string{"cpu"}, Degree: 1, First: 2, Blocks: 2, Tail: true, Peak: 25, Available: 49, Compute: 31},
			},
			Pipelines: []Pipeline{{Stages: 2, Forward: 70.3, Bottleneck: 34}},
		}
	}
	if got, err := newOracle(p).price(good()); err != nil || !near(got, 70.3+34) {
		t.Errorf("got %g, %v", got, err)
	}
	for name, spoil := range map[string]func(*Plan, *Problem){
		"a block left out":   func(q *Plan, _ *Problem) { q.Stages[1].Blocks = 1 },
		"a block twice":      func(q *Plan, _ *Problem) { q.Stages[1].First = 1 },
		"a block too many":   func(q *Plan, _ *Problem) { q.Stages[1].Blocks = 3 },
		"one node twice":     func(q *Plan, _ *Problem) { q.Stages = append(q.Stages, q.Stages[0]); q.Pipelines[0].Stages = 3 },
		"no such device":     func(q *Plan, _ *Problem) { q.Stages[0].Devices = []string{"cuda:0"} },
		"no such node":       func(q *Plan, _ *Problem) { q.Stages[0].Node = "c" },
		"wrong peak":         func(q *Plan, _ *Problem) { q.Stages[0].Peak-- },
		"wrong slots":        func(q *Plan, _ *Problem) { q.Stages[0].Slots = 1 },
		"wrong compute":      func(q *Plan, _ *Problem) { q.Stages[0].Compute++ },
		"wrong forward":      func(q *Plan, _ *Problem) { q.Pipelines[0].Forward++ },
		"wrong bottleneck":   func(q *Plan, _ *Problem) { q.Pipelines[0].Bottleneck++ },
		"a stage left over":  func(q *Plan, _ *Problem) { q.Pipelines[0].Stages = 1 },
		"more than it lends": func(q *Plan, _ *Problem) { q.Stages[0].Tiers = []Tier{{Kind: TierRemote, Where: "b", Bytes: 1}} },
		"no memory":          func(_ *Plan, p *Problem) { p.Constraints.Reserve = 30 },
		"too many nodes":     func(_ *Plan, p *Problem) { p.Constraints.MaxNodes = 1 },
		"an excluded node":   func(_ *Plan, p *Problem) { p.Constraints.Exclude = []string{"b"} },
		"two classes": func(_ *Plan, p *Problem) {
			p.Constraints.Numerics = NumericsOne
			p.Nodes[0].Devices[0].Class = "other"
		},
	} {
		q, spoilt := good(), p
		spoilt.Nodes = []Node{smallNode("a", smallDevice("cpu", KindCPU, 49)), smallNode("b", smallDevice("cpu", KindCPU, 49))}
		spoil(q, &spoilt)
		if got, err := newOracle(spoilt).price(q); err == nil {
			t.Errorf("%s: priced at %g", name, got)
		}
	}
}

// TestFound keeps small forms of what random instances found.
func TestFound(t *testing.T) {
	for name, p := range map[string]Problem{
		"an island whose nodes hold no block alone": {
			Groups: []Group{{"i", GroupIsland, []NodeID{"a", "b"}, 4, 0}},
			Nodes:  []Node{smallNode("a", gpu("g0", 12, 4)), smallNode("b", gpu("g0", 12, 4)), smallNode("c", gpu("g0", 35, 4))},
		},
		"a pipeline over GPUs that differ in memory": {
			Model:       Model{Name: "two", ComputeDType: "bf16", Runs: []Run{{Count: 2, Block: Cost{Weights: 90, Linear: 100}}}},
			Objective:   Objective{Kind: ObjectiveThroughput},
			Constraints: Constraints{MaxPipelines: 1},
			Nodes:       []Node{smallNode("a", gpu("g0", 1475, 1000), gpu("g1", 1500, 1000))},
		},
		"one block, throughput": {
			Model:     func() Model { m := smallModel(); m.Runs[0].Count = 1; return m }(),
			Objective: Objective{Kind: ObjectiveThroughput}, Constraints: Constraints{MaxPipelines: 1},
			Nodes: []Node{smallNode("a", gpu("g0", 29, 4))},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if p.Model.Name == "" {
				p.Model = smallModel()
			}
			want := bruteForce(p)
			if plan, err := judge(p, want, true); err != nil || plan == nil {
				t.Errorf("%v: %s", err, want.how)
			}
		})
	}
}

// TestSingleIsOneNode checks that neither an island nor a node's devices of unlike classes are passed off as one host.
func TestSingleIsOneNode(t *testing.T) {
	other := gpu("g1", 27, 4)
	other.Class = "d"
	for name, p := range map[string]Problem{
		"island": {
			Groups: []Group{{"i", GroupIsland, []NodeID{"a", "b"}, 4, 0}},
			Nodes:  []Node{smallNode("a", gpu("g0", 30, 4)), smallNode("b", gpu("g0", 30, 4))},
		},
		"one class": {
			Constraints: Constraints{Numerics: NumericsOne},
			Nodes:       []Node{smallNode("a", gpu("g0", 27, 4), other), smallNode("b", gpu("g0", 27, 4))},
		},
	} {
		p.Model = smallModel()
		if plan, err := Place(p, Options{}); err != nil || plan.Single.Fits {
			t.Errorf("%s: error %v, plan %+v", name, err, plan)
		}
	}
}
