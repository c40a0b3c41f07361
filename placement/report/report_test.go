// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/distorch/distorch/bench/clusters"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/whatif"
)

func node(id string, gb, tflops, gbit float64) placement.Node {
	return placement.Node{
		ID: placement.NodeID(id), HasModel: true, Link: placement.Link{BytesPerSecond: gbit * 1.18e8, Latency: 1e-4},
		Devices: []placement.Device{{
			ID: "cpu", Kind: placement.KindCPU, Model: "ryzen", Allocatable: placement.Bytes(gb * 1e9), Memory: 1e11,
			Rates: []placement.Rate{{DType: "bf16", Linear: tflops * 1e12, Attention: tflops * 1e12}},
		}},
	}
}

// workshop needs a and b; c is slow, d excluded, e has no file.
func workshop() placement.Problem {
	p := placement.Problem{
		Nodes: []placement.Node{node("a", 20, 20, 10), node("b", 16, 10, 10), node("c", 30, 2, 1), node("d", 30, 50, 10), node("e", 30, 50, 10)},
		Model: placement.Model{
			Name: "wan", ComputeDType: "bf16", StoredDType: "bf16", Input: 1e6, Output: 1e6,
			Runs: []placement.Run{{Name: "block", Count: 40, Boundary: 3e8, Block: placement.Cost{Weights: 6e8, Linear: 3e13, Scratch: 1e8}}},
		},
		Constraints: placement.Constraints{Exclude: []string{"d"}},
	}
	p.Nodes[4].HasModel = false
	p.Nodes[0].Devices[0].Source = placement.SourcePublished
	return p
}

func everything(p placement.Problem) Options {
	half := p
	half.Model.Runs = []placement.Run{p.Model.Runs[0]}
	half.Model.Runs[0].Block.Weights /= 2
	return Options{Queue: true, Alternatives: true, Rivals: true, Sensitivity: true, Variants: []Variant{{"weights stored in eight bits", half}}}
}

func report(t *testing.T, p placement.Problem, opt Options) *Report {
	t.Helper()
	plan, err := placement.Place(p, placement.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(p, plan, opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestExplain(t *testing.T) {
	p := workshop()
	text := report(t, p, everything(p)).Explain()
	for _, want := range []string{
		"model wan: 70.8 s/it on 2 nodes, optimal for the cost model\n",
		"one host: c alone takes 600 s/it",
		"if a is lost: continues at ",
		"not used: c (slower: with block 39 on it 85.3 s/it instead of 70.8 s/it",
		"not used: d (excluded: by constraint)\n",
		"published, not measured: a/cpu (ryzen)\n",
		"other plans:\n",
		"  without b: ",
		"  best single host: 600 s/it",
		"  all hosts, in proportion to memory (llama.cpp's rule): ",
		"what would help most:\n  weights stored in eight bits: 60.0 s/it, 15.2 % less\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if again := report(t, p, everything(p)).Explain(); again != text {
		t.Errorf("another text the second time:\n%s", again)
	}
}

// TestSchema: output with and without the searches, with what-if rows and of several pipelines is as the schema says.
func TestSchema(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "..", "docs", "schema", "plan.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	p := workshop()
	full := report(t, p, everything(p))
	if full.WhatIf, err = whatif.Compare(whatif.Scenario{Problem: p}, []string{"nic a=1gbps", "remove a"}, whatif.Options{}); err != nil {
		t.Fatal(err)
	}
	full.LoRAs = []LoRA{{Name: "style.safetensors", ID: "1f", Mode: "add", Strength: 0.5, Layers: 8, NotApplied: []string{"x: why"}}}
	forced := p
	forced.Constraints.Pins = []placement.Pin{{Node: "b", Count: 10}, {Node: "a", Count: 30}}
	several := *full
	several.Stages[0].Tiers = []placement.Tier{{Kind: placement.TierRAM, Where: "ram", Blocks: 3, Bytes: 1e9, Seconds: 0.1}}
	several.Pipelines = append(several.Pipelines, placement.Pipeline{Share: 2, MicroBatch: 1})
	alone := p
	alone.Model.Runs = []placement.Run{p.Model.Runs[0]}
	alone.Model.Runs[0].Count = 1
	models, err := clusters.Models()
	if err != nil {
		t.Fatal(err)
	}
	gpus := placement.Problem{Model: models[1].Model, Batches: models[1].Batches, Objective: placement.Objective{Kind: placement.ObjectiveBatch, Size: 4},
		Nodes: clusters.New(clusters.Options{Mix: clusters.MixWeak, Hosts: 5, Model: models[1].Model, NoSingle: true, Seed: 5})}
	for name, r := range map[string]*Report{"one block": report(t, alone, everything(alone)), "gpus": report(t, gpus, everything(gpus)), "plain": report(t, p, Options{}), "full": full, "forced": report(t, forced, everything(p)), "several": &several} {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %#v\n%s", name, err, data)
		}
		if bytes.Contains(data, []byte("null")) {
			t.Errorf("%s has a null: %s", name, data)
		}
	}
	for _, bad := range []string{`{}`, `{"schema":"distorch.plan/2"}`} {
		v, _ := jsonschema.UnmarshalJSON(strings.NewReader(bad))
		if schema.Validate(v) == nil {
			t.Errorf("%s passes", bad)
		}
	}
}

func TestParse(t *testing.T) {
	p := workshop()
	r := report(t, p, everything(p))
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.Explain(), back.Explain()); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "[]", `{"schema":"distorch.plan/9"}`} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

// TestAlternatives are sorted, no cheaper than an optimal plan, at most five, and unlike it and each other.
func TestAlternatives(t *testing.T) {
	p := workshop()
	for i := range 6 {
		p.Nodes = append(p.Nodes, node(fmt.Sprint("n", i), 9+float64(i), 15+float64(i), 10))
	}
	r := report(t, p, Options{Alternatives: true})
	if len(r.Alternatives) == 0 || len(r.Alternatives) > maxAlternatives {
		t.Fatalf("%d alternatives", len(r.Alternatives))
	}
	for i, a := range r.Alternatives {
		if a.Factor < 1-1e-9 || i > 0 && a.StepSeconds < r.Alternatives[i-1].StepSeconds {
			t.Errorf("%+v", r.Alternatives)
		}
		for j := range i {
			if r.Alternatives[j].Cut == a.Cut {
				t.Errorf("%s twice", a.Cut)
			}
		}
	}
}
