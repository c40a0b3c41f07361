// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"testing"

	. "github.com/distorch/distorch/placement"
)

func TestDigestSeesEveryFigure(t *testing.T) {
	base := func() Problem {
		d := gpu("g0", 100, 4)
		return Problem{
			Deployment: "d", Model: smallModel(),
			Nodes:   []Node{smallNode("a", smallDevice("cpu", KindCPU, 50), d), smallNode("b", d)},
			Batches: []Batch{{2, dearer(smallModel(), 1.5, 2)}},
			Links:   []PeerLink{{"a", "b", 10, 1}},
			Groups:  []Group{{"rack", GroupRack, []NodeID{"a"}, 10, 1}},
		}
	}
	seen := map[string]string{base().Digest(): "nothing"}
	for name, change := range map[string]func(*Problem){
		"deployment":     func(p *Problem) { p.Deployment = "e" },
		"count":          func(p *Problem) { p.Model.Runs[0].Count++ },
		"boundary":       func(p *Problem) { p.Model.Runs[0].Boundary++ },
		"dtype":          func(p *Problem) { p.Model.ComputeDType = "f32" },
		"vec":            func(p *Problem) { p.Model.Vec++ },
		"input":          func(p *Problem) { p.Model.Input++ },
		"output":         func(p *Problem) { p.Model.Output++ },
		"tokens":         func(p *Problem) { p.Model.Tokens++ },
		"heads":          func(p *Problem) { p.Model.Heads++ },
		"head":           func(p *Problem) { p.Model.Head.Linear++ },
		"tail":           func(p *Problem) { p.Model.Tail.Linear++ },
		"weights":        func(p *Problem) { p.Model.Runs[0].Block.Weights++ },
		"staging":        func(p *Problem) { p.Model.Runs[0].Block.Staging++ },
		"expansion":      func(p *Problem) { p.Model.Runs[0].Block.Expansion++ },
		"attention":      func(p *Problem) { p.Model.Runs[0].Block.Attention++ },
		"elementwise":    func(p *Problem) { p.Model.Runs[0].Block.Elementwise++ },
		"scratch":        func(p *Problem) { p.Model.Runs[0].Block.Scratch++ },
		"collective":     func(p *Problem) { p.Model.Runs[0].Block.Collective++ },
		"objective":      func(p *Problem) { p.Objective.Kind = ObjectivePair },
		"size":           func(p *Problem) { p.Objective.Size = 3 },
		"batch":          func(p *Problem) { p.Batches[0].Size = 3 },
		"batch model":    func(p *Problem) { p.Batches[0].Model.Vec++ },
		"no batch":       func(p *Problem) { p.Batches = nil },
		"link to":        func(p *Problem) { p.Links[0].From, p.Links[0].To = "b", "a" },
		"link rate":      func(p *Problem) { p.Links[0].BytesPerSecond++ },
		"link latency":   func(p *Problem) { p.Links[0].Latency++ },
		"group kind":     func(p *Problem) { p.Groups[0].Kind = GroupIsland },
		"group nodes":    func(p *Problem) { p.Groups[0].Nodes = []NodeID{"a", "b"} },
		"group rate":     func(p *Problem) { p.Groups[0].BytesPerSecond++ },
		"group latency":  func(p *Problem) { p.Groups[0].Latency++ },
		"pins":           func(p *Problem) { p.Constraints.Pins = []Pin{{Node: "a", Count: 3}} },
		"ranged pin":     func(p *Problem) { p.Constraints.Pins = []Pin{{Node: "a", Ranged: true, Count: 3}} },
		"exclude":        func(p *Problem) { p.Constraints.Exclude = []string{"a"} },
		"max nodes":      func(p *Problem) { p.Constraints.MaxNodes = 3 },
		"slots":          func(p *Problem) { p.Constraints.Slots = 1 },
		"in flight":      func(p *Problem) { p.Constraints.InFlight = 2 },
		"max pipelines":  func(p *Problem) { p.Constraints.MaxPipelines = 1 },
		"kept free":      func(p *Problem) { p.Constraints.Reserve = 7 },
		"numerics":       func(p *Problem) { p.Constraints.Numerics = NumericsOne },
		"fit":            func(p *Problem) { p.Constraints.Fit = FitStrict },
		"degree":         func(p *Problem) { p.Constraints.MaxDegree = 2 },
		"allocation":     func(p *Problem) { p.Constraints.Allocation = &Allocation{Node: "a", Compute: "g0"} },
		"allocatable":    func(p *Problem) { p.Nodes[0].Devices[0].Allocatable++ },
		"reserve":        func(p *Problem) { p.Nodes[0].Devices[0].Reserve++ },
		"rate":           func(p *Problem) { p.Nodes[1].Devices[0].Rates[0].Attention++ },
		"rate's tokens":  func(p *Problem) { p.Nodes[1].Devices[0].Rates[0].Tokens++ },
		"overlap":        func(p *Problem) { p.Nodes[1].Devices[0].Overlap = true },
		"bandwidth":      func(p *Problem) { p.Nodes[1].Devices[0].Memory++ },
		"host to device": func(p *Problem) { p.Nodes[1].Devices[0].HostToDevice++ },
		"peer":           func(p *Problem) { p.Nodes[1].Devices[0].Peer++ },
		"class":          func(p *Problem) { p.Nodes[1].Devices[0].Class = "d" },
		"device model":   func(p *Problem) { p.Nodes[1].Devices[0].Model = "d" },
		"spread":         func(p *Problem) { p.Nodes[1].Devices[0].Spread = 0.1 },
		"source":         func(p *Problem) { p.Nodes[1].Devices[0].Source = SourcePublished },
		"latency":        func(p *Problem) { p.Nodes[1].Link.Latency *= 2 },
		"file":           func(p *Problem) { p.Nodes[1].HasModel = false },
		"rejected":       func(p *Problem) { p.Nodes[1].Rejected.Kind = ReasonOps },
		"RAM":            func(p *Problem) { p.Nodes[1].RAM++ },
		"lend":           func(p *Problem) { p.Nodes[1].Lend++ },
		"disk":           func(p *Problem) { p.Nodes[1].Disk++ },
		"host bus":       func(p *Problem) { p.Nodes[1].HostBus++ },
		"peer latency":   func(p *Problem) { p.Nodes[1].PeerLatency++ },
		"id":             func(p *Problem) { p.Nodes[1].ID = "z" },
		"node":           func(p *Problem) { p.Nodes = p.Nodes[:1] },
	} {
		p := base()
		change(&p)
		if other, ok := seen[p.Digest()]; ok {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[p.Digest()] = name
	}
	p := base()
	p.Constraints.Slots, p.Constraints.InFlight, p.Constraints.Fit, p.Constraints.Numerics = 2, 1, FitFallback, NumericsAny
	p.Objective = Objective{Kind: ObjectiveLatency, Size: 1}
	if !p.Equal(base()) {
		t.Error("a default written out changes the digest")
	}
}
