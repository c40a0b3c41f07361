// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package byhand_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/byhand"
)

// problem is a model of ten blocks of 1 GB on nodes with a GPU of 24 GB and RAM.
func problem(nodes ...string) *placement.Problem {
	p := &placement.Problem{Model: placement.Model{
		ComputeDType: "bf16", Runs: []placement.Run{{Name: "blocks", Count: 10, Block: placement.Cost{Weights: 1e9}}},
	}}
	rates := []placement.Rate{{DType: "bf16"}}
	for _, n := range nodes {
		p.Nodes = append(p.Nodes, placement.Node{
			ID: placement.NodeID("n-" + n), Name: n, HasModel: true, RAM: 32e9, Lend: 16e9,
			Devices: []placement.Device{{ID: "cuda:0", Kind: placement.KindGPU, Allocatable: 24e9, Rates: rates}, {ID: "cpu", Allocatable: 32e9, Rates: rates}},
		})
	}
	return p
}

// A lone node's devices may be named with the node or without.
func TestNamesOfALoneNode(t *testing.T) {
	want, _, err := byhand.Read("cuda:0,4gb;cpu,*", "", problem("a"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a/cuda:0,4gb;a/cpu,*", "cuda:0,4gb;a/cpu,*", "a/cuda:0,4gb;cpu,*"} {
		got, _, err := byhand.Read(text, "", problem("a"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-bare names +got):\n%s", text, diff)
		}
	}
	if _, _, err := byhand.Read("b/cuda:0,4gb;cpu,*", "", problem("a")); err == nil || !strings.Contains(err.Error(), "b/cuda:0") {
		t.Errorf("a node that is not there: %v", err)
	}
}

// Another node's memory keeps blocks, its GPU does not.
func TestBlocksOnAnotherNode(t *testing.T) {
	got, _, err := byhand.Read("a/cuda:0,4gb;b/cpu,*", "", problem("a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Node != "a" || got.Compute != "cuda:0" || len(got.Spans) != 2 || got.Spans[1].Device != "b/cpu" {
		t.Errorf("%+v", got)
	}
	for text, says := range map[string]string{
		"a/cuda:0,4gb;b/cuda:0,*": "b/cpu",    // its GPU would not compute
		"cuda:0,4gb;cpu,*":        "a/cuda:0", // of which node?
		"a/cuda:0,1gb;c/cpu,*":    "c/cpu",    // no such node
	} {
		if _, _, err := byhand.Read(text, "", problem("a", "b")); says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v does not say %q", text, err, says)
		}
	}
}

// Virtual VRAM takes blocks off each GPU that could hold the rest.
func TestVirtual(t *testing.T) {
	all, err := byhand.Virtual(3e9, problem("a", "b"))
	if err != nil || len(all) != 2 {
		t.Fatalf("%d assignments, %v", len(all), err)
	}
	for _, a := range all {
		off := 0
		for _, s := range a.Spans {
			if s.Device == "cpu" {
				off += s.Blocks
			}
		}
		if off != 3 {
			t.Errorf("node %s: %d blocks of 1 GB off the GPU, want 3", a.Node, off)
		}
	}
	p := problem("a")
	p.Nodes[0].Devices = p.Nodes[0].Devices[1:]
	if _, err := byhand.Virtual(3e9, p); err == nil || !strings.Contains(err.Error(), "GPU") {
		t.Errorf("without a GPU: %v", err)
	}
}
