// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package byhand

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/allocation"
)

const gib = placement.Bytes(1) << 30

// problem is a model of ten blocks of 1 GiB on two nodes: one with two GPUs, one
// that lends RAM.
func problem() *placement.Problem {
	gpu := func(id string, memory placement.Bytes) placement.Device {
		return placement.Device{
			ID: id, Kind: placement.KindGPU, Allocatable: memory, Memory: 1e11, HostToDevice: 1e10, Peer: 1e10,
			Rates: []placement.Rate{{DType: "bf16", Linear: 1e12, Attention: 1e12}},
		}
	}
	return &placement.Problem{
		Model: placement.Model{Name: "m", ComputeDType: "bf16", Runs: []placement.Run{{Name: "b", Count: 10, Block: placement.Cost{Weights: gib, Linear: 1e9}}}},
		Nodes: []placement.Node{
			{
				ID: "n-a", Name: "a", HasModel: true, RAM: 32 * gib, Link: placement.Link{BytesPerSecond: 1e9},
				Devices: []placement.Device{gpu("cuda:0", 8*gib), gpu("cuda:1", 4*gib), {ID: "cpu", Kind: placement.KindCPU, Allocatable: 32 * gib, Memory: 1e10}},
			},
			{ID: "n-b", Name: "b", Lend: 5 * gib, RAM: 64 * gib, Link: placement.Link{BytesPerSecond: 1e9}},
		},
	}
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       *placement.Allocation
	}{
		{"own RAM", "a/cuda:0,4gb;a/cpu,*", &placement.Allocation{Node: "a", Compute: "cuda:0", Spans: []placement.Span{{Device: "cuda:0", Blocks: 4}, {Device: "cpu", First: 4, Blocks: 6}}}},
		{"donor", "a/cuda:1,3gb;a/cpu,*#a/cuda:0", &placement.Allocation{Node: "a", Compute: "cuda:0", Spans: []placement.Span{{Device: "cuda:1", Blocks: 3}, {Device: "cpu", First: 3, Blocks: 7}}}},
		{"another node", "a/cuda:0,6gb;b/cpu,*", &placement.Allocation{Node: "a", Compute: "cuda:0", Spans: []placement.Span{{Device: "cuda:0", Blocks: 6}, {Device: "b/cpu", First: 6, Blocks: 4}}}},
		{"virtual", "#a/cuda:0;7gb;a/cpu", &placement.Allocation{Node: "a", Compute: "cuda:0", Spans: []placement.Span{{Device: "cuda:0", Blocks: 3}, {Device: "cpu", First: 3, Blocks: 7}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, err := Read(c.text, "", problem())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, mode, says string }{
		"more than is lent":   {"a/cuda:0,2gb;b/cpu,*#a/cuda:0", "", "b/cpu would hold 8 GiB (8 blocks) and has 5 GiB free, 3 GiB short; nearest string that fits: "},
		"another node's GPU":  {"a/cuda:0,8gb;a/cuda:1,2gb#b/cpu", "", "of another node only the memory of its cpu keeps blocks"},
		"no node":             {"cuda:0,*", "", `allocation "cuda:0,*" names no node that is here; say on which of the cluster's nodes (a, b)`},
		"bad unit":            {"a/cuda:0,2xb", "", `"xb" is no unit`},
		"unknown rules":       {"a/cuda:0,*", "other", "want distorch2"},
		"a device of no node": {"a/cuda:7,*", "", "cuda:7"},
	} {
		if _, _, err := Read(c.text, c.mode, problem()); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestVirtual(t *testing.T) {
	all, err := Virtual(7*gib, problem())
	if err != nil || len(all) != 2 || all[0].Compute != "cuda:0" || all[1].Compute != "cuda:1" {
		t.Fatalf("%v, %v", all, err)
	}
	if diff := cmp.Diff([]placement.Span{{Device: "cuda:0", Blocks: 3}, {Device: "cpu", First: 3, Blocks: 7}}, all[0].Spans); diff != "" {
		t.Error(diff)
	}
	var short *allocation.FitError
	if _, err := Virtual(gib, problem()); !errors.As(err, &short) || short.Device != "a/cuda:0" {
		t.Errorf("all but 1 GiB on a device of 8: %v", err)
	}
	p := problem()
	p.Constraints.Exclude = []string{"a"}
	if _, err := Virtual(7*gib, p); !errors.Is(err, ErrNoGPU) {
		t.Errorf("without a: %v", err)
	}
}
