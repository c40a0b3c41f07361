// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package whatif

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/placement"
)

// device is a catalogue of two.
func device(name string) (placement.Device, error) {
	d := placement.Device{Source: placement.SourcePublished, Memory: 1e12, Rates: []placement.Rate{{DType: "bf16", Linear: 1e14, Attention: 1e14}}}
	switch name {
	case "rtx4090":
		d.Kind, d.Model, d.Allocatable = placement.KindGPU, name, 24e9
	case "fastcpu":
		d.Kind, d.Model = placement.KindCPU, name
	default:
		return d, fmt.Errorf("no device %q, did you mean %q?", name, "rtx4090")
	}
	return d, nil
}

func model(t Tables) (placement.Model, []placement.Batch, error) {
	m := placement.Model{Name: "wan", ComputeDType: t.DType, StoredDType: t.Stored, Input: 1e6, Output: 1e6,
		Runs: []placement.Run{{Name: "block", Count: 10, Boundary: 1e7, Block: placement.Cost{Weights: 1e9, Linear: 1e12, Scratch: 1e8}}}}
	if t.Stored == "f8_e4m3" {
		m.Runs[0].Block.Weights = 5e8
	}
	if t.Workload == "bad" {
		return m, nil, errors.New(`workload "bad": want WxH`)
	}
	return m, nil, nil
}

func options() Options {
	return Options{Device: device, Table: model, Objective: func(text string) (placement.Objective, error) {
		return placement.Objective{Kind: placement.ObjectiveKind(text)}, nil
	}}
}

// home are two nodes of 8 and 4 GB, one with a dash in its name.
func home() Scenario {
	node := func(id string, gb float64) placement.Node {
		return placement.Node{ID: placement.NodeID("n-" + id), Name: id, HasModel: true, Link: placement.Link{BytesPerSecond: 1e8, Latency: 1e-3},
			Devices: []placement.Device{{ID: "cpu", Kind: placement.KindCPU, Allocatable: placement.Bytes(gb * 1e9), Memory: 1e11, Rates: []placement.Rate{{DType: "bf16", Linear: 1e12, Attention: 1e12}}}}}
	}
	s := Scenario{Tables: Tables{Workload: "1024x1024", DType: "bf16", Stored: "bf16"}}
	s.Problem.Model, _, _ = model(s.Tables)
	s.Problem.Nodes = []placement.Node{node("a", 8), node("living-room", 4)}
	return s
}

func TestApply(t *testing.T) {
	for _, c := range []struct {
		edit string
		show func(p placement.Problem) any
		want any
	}{
		{"add living-room/cuda:0=rtx4090", func(p placement.Problem) any { return p.Nodes[1].Devices[1].ID + " " + p.Nodes[1].Devices[1].Model }, "cuda:0 rtx4090"},
		{"add node c: 2xrtx4090, fastcpu, nic=10gbps, ram=32GB, disk=2GB/s", func(p placement.Problem) any {
			n := p.Nodes[2]
			return fmt.Sprintf("%s %v %s %s %s %g %d %g", n.ID, n.HasModel, n.Devices[0].ID, n.Devices[1].ID, n.Devices[2].ID, n.Link.BytesPerSecond, n.Devices[2].Allocatable, n.Disk)
		}, "c true cuda:0 cuda:1 cpu 1.175e+09 32000000000 2e+09"},
		{"remove living-room", func(p placement.Problem) any { return len(p.Nodes) }, 1},
		{"remove a/cpu", func(p placement.Problem) any { return len(p.Nodes[0].Devices) }, 0},
		{"link a-living-room=2GB/s", func(p placement.Problem) any { return p.Links }, []placement.PeerLink{{From: "n-a", To: "n-living-room", BytesPerSecond: 2e9, Latency: 1e-3}, {From: "n-living-room", To: "n-a", BytesPerSecond: 2e9, Latency: 1e-3}}},
		{"nic n-a=1gbps", func(p placement.Problem) any { return p.Nodes[0].Link.BytesPerSecond }, 1.175e8},
		{"ram a=64GiB", func(p placement.Problem) any { return p.Nodes[0].RAM }, placement.Bytes(64 << 30)},
		{"memory a/cpu=24GB", func(p placement.Problem) any { return p.Nodes[0].Devices[0].Allocatable }, placement.Bytes(24e9)},
		{"dtype=fp8", func(p placement.Problem) any { return p.Model.StoredDType }, placement.DType("f8_e4m3")},
		{"dtype=f32", func(p placement.Problem) any { return p.Model.ComputeDType }, placement.DType("f32")},
		{"stored=f32", func(p placement.Problem) any { return p.Model.StoredDType }, placement.DType("f32")},
		{"max-nodes=1;exclude a", func(p placement.Problem) any { return fmt.Sprint(p.Constraints.MaxNodes, p.Constraints.Exclude) }, "1 [n-a]"},
		{"objective=pair", func(p placement.Problem) any { return p.Objective.Kind }, placement.ObjectivePair},
		{"reserve=1GB; fit=strict; numerics=one; max-degree=1; max-pipelines=2", func(p placement.Problem) any { return p.Constraints }, placement.Constraints{Reserve: 1e9, Fit: "strict", Numerics: "one", MaxDegree: 1, MaxPipelines: 2}},
	} {
		base := home()
		s, err := Apply(base, c.edit, options())
		if err != nil {
			t.Errorf("%s: %v", c.edit, err)
			continue
		}
		if diff := cmp.Diff(c.want, c.show(s.Problem)); diff != "" {
			t.Errorf("%s:\n%s", c.edit, diff)
		}
		if diff := cmp.Diff(home(), base); diff != "" {
			t.Errorf("%s changed the base:\n%s", c.edit, diff)
		}
	}
}

func TestErrors(t *testing.T) {
	for edit, want := range map[string]string{
		"":                            `character 1: want an edit such as "nic a=10gbps"`,
		"lnk a-b=1gbps":               `character 1: want one of add, disk, exclude, link, memory, nic, ram, remove, or a setting dtype, fit, max-degree, max-nodes, max-pipelines, numerics, objective, reserve, stored, workload, did you mean "link"?`,
		"max-node=1":                  `did you mean "max-nodes"?`,
		"nic":                         `character 4: want a node behind "nic"`,
		"nic  living-rom=1gbps":       `character 6: want a node of the cluster (a, living-room), did you mean "living-room"?`,
		"nic a=1 furlong":             `character 7: want a rate such as 10gbps or 1.2GB/s`,
		"nic a=NaNgbps":               `character 7: want a rate`,
		"nic a=-1gbps":                `character 7: want a rate`,
		"nic a=1e300gbps":             `character 7: want a rate`,
		"nic a=0gbps":                 `character 7: want a rate`,
		"memory a/gpu=1GB":            `character 10: want a device of node a (cpu)`,
		"memory a=1GB":                `character 9: want "/" and a device`,
		"link a-b=1gbps":              `character 8: want a node of the cluster`,
		"link a-a=1gbps":              `character 6: want two nodes as A-B`,
		"link a=1gbps":                `want two nodes as A-B`,
		"add b=rtx4090":               `character 5: want NODE/DEVICE=KIND`,
		"add a/cpu=rtx4090":           `character 7: want a device that node a does not have yet`,
		"add a/cuda:0=rtx409":         `character 14: no device "rtx409", did you mean "rtx4090"?`,
		"add node c rtx4090":          `want ":" and what the node has`,
		"add node a: rtx4090":         `character 10: want a name that no node has yet`,
		"add node c: rtx4090,nick=1":  `character 21: want a device, or one of disk, latency, nic, ram, did you mean "nic"?`,
		"add node c: 99xrtx4090":      `character 13: want 1 to 64 devices`,
		"add node c: fastcpu,fastcpu": `want one CPU`,
		"dtype=fp9":                   `character 7: want one of bf16`,
		"workload=bad":                `character 10: workload "bad": want WxH`,
		"fit=strikt":                  `did you mean "strict"?`,
		"max-nodes=x":                 `character 11: want a number from 0 to 4096`,
		"nic a=1gbps;;":               `character 13: want an edit`,
		strings.Repeat("x", 5000):     `want at most 4096 characters`,
	} {
		_, err := Apply(home(), edit, options())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %v\nwant %s", edit, err, want)
		}
	}
	for _, edit := range []string{"add a/cuda:0=rtx4090", "stored=f32", "objective=pair"} {
		if _, err := Apply(home(), edit, Options{}); err == nil {
			t.Errorf("%s without options passes", edit)
		}
	}
}

func TestCompare(t *testing.T) {
	rows, err := Compare(home(), []string{"nic a=10gbps;nic living-room=10gbps", "memory a/cpu=24GB", "remove living-room", "exclude a; dtype=fp8"}, options())
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, r := range rows {
		got += strings.Join(r.Cells(), " | ") + "\n"
	}
	want := `as it is | 10.1 s/it |  | 2 | a, living-room | 7.1 GB | optimal
nic a=10gbps;nic living-room=10gbps | 10.0 s/it | -1.1 % | 2 | a, living-room | 7.1 GB | optimal
memory a/cpu=24GB | 10.0 s/it | -1.0 % | 1 | a | 10.1 GB | optimal
remove living-room | does not fit |  |  |  |  | 2.1 GB short
exclude a; dtype=fp8 | does not fit |  |  |  |  | 1.1 GB short
nic a=10gbps;nic living-room=10gbps; memory a/cpu=24GB; remove living-room; exclude a; dtype=fp8 | does not fit |  |  |  |  | no node can be used
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestWhatWouldFit: the base does not fit, and a change that makes it fit shows its plan.
func TestWhatWouldFit(t *testing.T) {
	s := home()
	s.Problem.Nodes = s.Problem.Nodes[:1]
	rows, err := Compare(s, []string{"dtype=fp8", "memory a/cpu=9GB"}, options())
	if err != nil {
		t.Fatal(err)
	}
	if rows[0].Fits || rows[0].Short < 2e9 || !rows[1].Fits || rows[1].Delta != 0 || rows[2].Fits {
		t.Errorf("%+v", rows)
	}
}

func FuzzApply(f *testing.F) {
	for _, s := range []string{"add living-room/cuda:0=rtx4090", "add node c: 2xrtx4090, fastcpu, nic=10gbps, ram=32GB", "remove a;link a-living-room=2GB/s", "dtype=fp8", "memory a/cpu=24GB", "max-nodes=1;exclude a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Apply(home(), text, options())
		if err != nil {
			var e *Error
			if errors.As(err, &e) && (e.Offset < 0 || e.Offset > len(e.Text)) {
				t.Fatalf("offset %d of %q", e.Offset, e.Text)
			}
			return
		}
		for _, n := range s.Problem.Nodes {
			if err := n.Validate(); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
}
