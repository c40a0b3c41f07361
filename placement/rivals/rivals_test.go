// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package rivals

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/placement"
)

func node(id string, gb, tflops, gbit float64) placement.Node {
	return placement.Node{
		ID: placement.NodeID(id), HasModel: true, Link: placement.Link{BytesPerSecond: gbit * 1.18e8, Latency: 1e-4},
		Devices: []placement.Device{{
			ID: "cpu", Kind: placement.KindCPU, Allocatable: placement.Bytes(gb * 1e9), Memory: 1e11,
			Rates: []placement.Rate{{DType: "bf16", Linear: tflops * 1e12, Attention: tflops * 1e12}},
		}},
	}
}

// wan is 40 blocks of 600 MB and 30 TFLOP.
func wan(nodes ...placement.Node) placement.Problem {
	return placement.Problem{
		Nodes: nodes,
		Model: placement.Model{
			Name: "wan", ComputeDType: "bf16", StoredDType: "bf16", Input: 1e6, Output: 1e6,
			Runs: []placement.Run{{Name: "block", Count: 40, Boundary: 3e8, Block: placement.Cost{Weights: 6e8, Linear: 3e13, Scratch: 1e8}}},
		},
	}
}

func TestCompare(t *testing.T) {
	p := wan(node("a", 30, 20, 10), node("b", 16, 10, 10), node("c", 16, 5, 1))
	plan, err := placement.Place(p, placement.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Compare(p, plan.StepSeconds)
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, o := range got {
		text = append(text, fmt.Sprintf("%s %s [%s]", o.Rule, o, o.Cut))
	}
	want := []string{
		"single-host 60.0 s/it, 1.00 times as long [a=40]",
		"all-hosts 123 s/it, 2.05 times as long [a=20,b=10,c=10]",
		"fewest-hosts 60.0 s/it, 1.00 times as long [a=40]",
	}
	if diff := cmp.Diff(want, text); diff != "" {
		t.Error(diff)
	}
}

func TestOutOfMemory(t *testing.T) {
	p := wan(node("a", 10, 20, 10), node("b", 8, 10, 10))
	p.Nodes[1].Rejected = placement.Reason{Kind: placement.ReasonDraining}
	got, err := Compare(p, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range got {
		if o.Fits || !strings.HasPrefix(o.Why, "out of memory: ") {
			t.Errorf("%+v", o)
		}
	}
	p.Constraints.Exclude = []string{"a"}
	if _, why := Cut(p, RuleAll); why != "no host can be used" {
		t.Errorf("%q", why)
	}
}

// TestProportional: all blocks are given out, and no host is a block or more off its share.
func TestProportional(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var hosts []host
		total := 0.0
		for range rapid.IntRange(1, 20).Draw(t, "hosts") {
			h := host{memory: placement.Bytes(rapid.Int64Range(1, 1e12).Draw(t, "memory"))}
			total += float64(h.memory)
			hosts = append(hosts, h)
		}
		blocks := rapid.IntRange(1, 100).Draw(t, "blocks")
		sum := 0
		for i, n := range proportional(blocks, hosts) {
			sum += n
			if share := float64(blocks) * float64(hosts[i].memory) / total; math.Abs(share-float64(n)) >= 1+1e-9 {
				t.Fatalf("host %d gets %d, its share is %g", i, n, share)
			}
		}
		if sum != blocks {
			t.Fatalf("%d of %d blocks", sum, blocks)
		}
	})
}

// TestNeverBelowOptimum: no rule beats a plan that is optimal.
func TestNeverBelowOptimum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []placement.Node
		for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
			f := func(name string, low, high float64) float64 { return rapid.Float64Range(low, high).Draw(t, name) }
			nodes = append(nodes, node(fmt.Sprint("n", i), f("gb", 2, 40), f("tflops", 1, 100), f("gbit", 1, 100)))
		}
		p := wan(nodes...)
		plan, err := placement.Place(p, placement.Options{SkipLosses: true})
		step := 0.0
		if err == nil {
			step = plan.StepSeconds
		} else if !placement.Infeasible(err) {
			t.Fatal(err)
		}
		got, err := Compare(p, step)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range got {
			if o.Fits && (step == 0 || o.Factor < 1-1e-9) {
				t.Fatalf("%+v beside a plan of %g", o, step)
			}
		}
	})
}
