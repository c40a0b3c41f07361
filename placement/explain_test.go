// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// explained is a plan with a tensor-parallel group, streamed weights and two pipelines.
func explained() *Plan {
	return &Plan{
		Label: "model wan", Objective: "pair", Weights: 28e9, StepSeconds: 4.25,
		Parts: Parts{Compute: 4, Streaming: 0.2, Hops: 0.05}, Band: Band{3.8, 4.7},
		Pipelines: []Pipeline{
			{First: 0, Stages: 1, Forward: 4.25, Bottleneck: 4.2, Where: "stage on a", Share: 1, StepSeconds: 4.25},
			{First: 1, Stages: 2, Forward: 4, Bottleneck: 2.1, Where: "stage on c", Share: 1, StepSeconds: 4},
		},
		Stages: []Stage{
			{Node: "a", Name: "a", Devices: []string{"cuda:0", "cuda:1"}, Degree: 2, First: 0, Blocks: 40, Runs: []int{40}, Head: true, Tail: true, Class: "torch/x/4090", Peak: 15e9, Available: 22e9, Compute: 4, Expansion: 0.2, Hop: 0.05},
			{Pipeline: 1, Node: "b", Name: "b", Device: "cuda:0", Devices: []string{"cuda:0"}, Degree: 1, First: 0, Blocks: 1, Runs: []int{1}, Head: true, Class: "torch/x/3090", Peak: 1e9, Available: 22e9, Compute: 0.1, Ring: 2,
				Tiers: []Tier{{Kind: TierDevice, Where: "cuda:0", Bytes: 0}, {Kind: TierRAM, Where: "ram", Blocks: 1, Bytes: 7e8, Seconds: 0.03}}},
			{Pipeline: 1, Node: "c", Name: "c", Device: "cpu", First: 1, Blocks: 39, Runs: []int{39}, Tail: true, Class: "torch/x/4090", Peak: 28e9, Available: 64e9, Compute: 2, Expansion: 0.1, Slots: 2},
		},
		Single: Single{Fits: true, Node: "a", Name: "a", StepSeconds: 8.5},
		Unused: []Unused{{"d", "d", Reason{ReasonSlower, "no plan with it has a faster step"}}, {"e", "e", Reason{ReasonSlower, "no plan with it has a faster step"}}},
		IfLost: []Loss{{Node: "a", Name: "a", Continues: true, StepSeconds: 9.8}, {Node: "c", Name: "c", Short: 5.1e9}},
		Notes:  []string{"published, not measured: a/cuda:0"}, Certificate: Certificate{LowerBound: 4.2, Gap: 0.0118},
	}
}

func TestExplain(t *testing.T) {
	want := `model wan: 4.25 s/it on 3 nodes in 2 pipelines, at most 1.18% from optimal (bound 4.20 s/it)
between 3.80 s/it and 4.70 s/it, by the uncertainty of its sources
  STAGE  NODE  DEVICES               BLOCKS          WEIGHTS            PEAK     OF       COMPUTE  STREAMING  HOP
  A0     a     cuda:0,cuda:1 as one  head 0-39 tail  resident           15.0 GB  22.0 GB  4.00 s   200 ms     50 ms
  B0     b     cuda:0                head 0          1 in ram; ring 2   1.0 GB   22.0 GB  100 ms   0 s        0 s
  B1     c     cpu                   1-39 tail       resident; 2 slots  28.0 GB  64.0 GB  2.00 s   100 ms     0 s
step: compute 4.00 s, expansion and streaming 200 ms, hops 50 ms, waiting 0 s
pipeline A: a forward takes 4.25 s, one more every 4.20 s (stage on a); 1 request of the batch in 4.25 s/it
pipeline B: a forward takes 4.00 s, one more every 2.10 s (stage on c); 1 request of the batch in 4.00 s/it
one host: a alone takes 8.50 s/it, 2.00 times as long
if a is lost: continues at 9.80 s/it
if c is lost: stops: 5.1 GB short
not used: d, e (slower: no plan with it has a faster step)
note: published, not measured: a/cuda:0
`
	if diff := cmp.Diff(want, explained().Explain()); diff != "" {
		t.Error(diff)
	}
}

func TestNumerics(t *testing.T) {
	p := explained()
	want := "stable for this plan (2 classes: torch/x/4090 blocks 0-39 of pipeline A, torch/x/3090 block 0 of pipeline B, torch/x/4090 blocks 1-39 of pipeline B)"
	if got := p.Numerics(); got != want {
		t.Errorf("%q", got)
	}
	for i := range p.Stages {
		p.Stages[i].Class = "native/1/bf16"
	}
	if got := p.Numerics(); got != "equals one device (native/1/bf16)" {
		t.Errorf("%q", got)
	}
	p.Stages[1].Class = ""
	if got := p.Numerics(); got != "" {
		t.Errorf("%q where a class is unknown", got)
	}
}

func TestExplainSingle(t *testing.T) {
	p := explained()
	for want, s := range map[string]Single{
		"none can hold the model (28.0 GB of weights)":     {},
		"a alone is faster: 2.12 s/it, 2.00 times as fast": {Fits: true, Node: "a", Name: "a", StepSeconds: 2.125},
		"a alone takes 4.25 s/it, 1.00 times as long":      {Fits: true, Node: "a", Name: "a", StepSeconds: 4.25},
		"b alone takes 6.38 s/it, 1.50 times as long":      {Fits: true, Node: "b", Name: "b", StepSeconds: 6.375},
	} {
		p.Single = s
		if got := p.SingleText(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	p.Stages, p.Pipelines = p.Stages[:1], p.Pipelines[:1]
	p.Single = Single{Fits: true, Node: "a", Name: "a", StepSeconds: 4.25}
	if got := p.Explain(); !strings.Contains(got, "one host: this plan; no split is faster\n") {
		t.Error(got)
	}
}

// TestExplainManyPipelines: what is alike but for its node is shown once.
func TestExplainManyPipelines(t *testing.T) {
	p := Problem{Model: fluxModel(), Nodes: fluxCluster(1, 1, 64), Objective: Objective{Kind: ObjectiveThroughput}}
	for i := range 11 {
		n := p.Nodes[0]
		n.ID = NodeID(fmt.Sprintf("m%02d", i))
		p.Nodes = append(p.Nodes, n)
	}
	plan, err := Place(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	text := plan.Explain()
	for want, times := range map[string]int{
		"on 12 nodes in 12 pipelines": 1, "head 0-56": 1, "pipeline A: ": 1,
		"  and 11 pipelines like it: B on m01, C on m02, D on m03, E on m04, F on m05, G on m06, H on m07, I on m08, 3 more\n": 1,
		"if one of m00, m01, m02, m03, m04, m05, m06, m07, 4 more is lost: continues at ":                                      1,
	} {
		if got := strings.Count(text, want); got != times {
			t.Errorf("%q %d times, want %d, in\n%s", want, got, times, text)
		}
	}
}
