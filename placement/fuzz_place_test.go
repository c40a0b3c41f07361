// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	. "github.com/distorch/distorch/placement"
)

// reader makes figures of bytes; when they are used up all is zero.
type reader struct{ data []byte }

func (b *reader) next(n int) int {
	if len(b.data) == 0 {
		return 0
	}
	v := int(b.data[0])
	b.data = b.data[1:]
	return v % n
}

// rate is mostly 1 to 240; the rest are what a broken measurement gives.
func (b *reader) rate() float64 {
	v := b.next(256)
	if v < 240 {
		return float64(v + 1)
	}
	return []float64{0, math.NaN(), math.Inf(1), math.Inf(-1), -1, 1e300, 1e-300, 1e18, 1e9, 1e6, 1e12, 0, 1, 0.5, 3e3, 1e18}[v-240]
}

func (b *reader) option() float64 {
	if b.next(2) == 0 {
		return 0
	}
	return b.rate()
}

// size is mostly 0 to 239.
func (b *reader) size() Bytes {
	v := b.next(256)
	if v < 240 {
		return Bytes(v)
	}
	return []Bytes{-1, 1 << 50, math.MaxInt64, math.MinInt64, 1e12, 4000, 1e5, 1e9}[v%8]
}

func (b *reader) cost() Cost {
	return Cost{
		Weights: b.size(), Staging: b.size() * Bytes(b.next(2)), Expansion: b.size() * Bytes(b.next(2)), Linear: b.option() * 10,
		Attention: b.option(), Elementwise: b.size(), Scratch: b.size(), Collective: b.size(),
	}
}

// decodeProblem makes one to three nodes of one to three devices, and a model of at most nine blocks.
func decodeProblem(data []byte) Problem {
	b := &reader{data}
	p := Problem{
		Objective:   Objective{Kind: objectives[b.next(4)]},
		Constraints: Constraints{InFlight: b.next(3), Slots: b.next(3), MaxNodes: b.next(4), MaxPipelines: b.next(4), MaxDegree: b.next(4)},
	}
	if p.Objective.Kind == ObjectiveBatch {
		p.Objective.Size = b.next(6)
	}
	p.Constraints.Fit = []Fit{"", FitFallback, FitStrict}[b.next(3)]
	p.Constraints.Numerics = []Numerics{"", NumericsAny, NumericsOne}[b.next(3)]
	switch b.next(64) {
	case 60:
		p.Objective.Kind = "fastest"
	case 61:
		p.Constraints.Fit, p.Constraints.Numerics = "never", "all"
	case 62:
		p.Objective.Size = -1
	case 63:
		p.Constraints = Constraints{InFlight: -1, Slots: 3, MaxNodes: -1, MaxPipelines: -1, MaxDegree: -1}
	}
	p.Constraints.Reserve = b.size() * Bytes(b.next(2))
	p.Model = Model{Name: "m", ComputeDType: "bf16", Head: b.cost(), Tail: b.cost(), Vec: b.size(), Input: b.size(), Output: b.size(), Heads: b.next(5), Tokens: b.option()}
	for i := range 1 + b.next(3) {
		p.Model.Runs = append(p.Model.Runs, Run{Name: fmt.Sprint(i), Count: 1 + b.next(3), Block: b.cost(), Boundary: b.size()})
	}
	if b.next(3) == 0 {
		p.Batches = []Batch{{b.next(5), larger(p.Model, 2, 0.5)}}
	}
	for i := range 1 + b.next(3) {
		n := Node{
			ID: NodeID(fmt.Sprint(i * min(b.next(64), 1))), HasModel: b.next(8) > 0, Link: Link{BytesPerSecond: b.rate(), Latency: b.option() / 100},
			RAM: b.size(), Lend: b.size() * Bytes(b.next(8)/7), Disk: b.option(), HostBus: b.option(), PeerLatency: b.option() / 100,
		}
		for k := range 1 + b.next(3) {
			d := Device{
				ID: fmt.Sprint(k), Kind: []DeviceKind{KindGPU, KindGPU, KindCPU}[b.next(3)], Class: []string{"x", "y"}[b.next(2)],
				Allocatable: b.size() * 8, Reserve: b.size() * Bytes(b.next(2)), Expansion: b.rate(), Memory: b.rate(), Overlap: b.next(2) > 0,
				HostToDevice: b.option(), Peer: b.option(),
			}
			for j := range b.next(3) + 1 {
				d.Rates = append(d.Rates, Rate{"bf16", b.rate(), b.rate(), b.option() * float64(j+1)})
			}
			if b.next(3) == 0 && k > 0 {
				like := n.Devices[k-1]
				like.ID = d.ID
				d = like
			}
			n.Devices = append(n.Devices, d)
		}
		p.Nodes = append(p.Nodes, n)
	}
	if len(p.Nodes) > 1 && b.next(4) == 0 {
		p.Groups = []Group{{"g", []GroupKind{GroupRack, GroupIsland}[b.next(2)], []NodeID{p.Nodes[0].ID, p.Nodes[1].ID}, b.rate(), b.option() / 100}}
	}
	if len(p.Nodes) > 1 && b.next(4) == 0 {
		p.Links = []PeerLink{{p.Nodes[0].ID, p.Nodes[1].ID, b.rate(), b.option() / 100}}
	}
	return p
}

// typed reports whether an error of Place says what is at fault in a form that programs can read.
func typed(err error) bool {
	_, model := errors.AsType[*ModelError](err)
	_, node := errors.AsType[*NodeError](err)
	_, link := errors.AsType[*LinkError](err)
	_, constraint := errors.AsType[*ConstraintError](err)
	_, infeasible := errors.AsType[*InfeasibleError](err)
	_, unknown := errors.AsType[*UnknownNodeError](err)
	_, large := errors.AsType[*TooLargeError](err)
	return model || node || link || constraint || infeasible || unknown || large || errors.Is(err, ErrNoNodes)
}

// checkPlace places a problem of any kind and holds the answer against the oracle.
func checkPlace(t *testing.T, p Problem) {
	plan, err := Place(p, Options{})
	if err != nil {
		if !typed(err) {
			t.Fatalf("%T: %v", err, err)
		}
		if Infeasible(err) && !math.IsInf(bruteForceMany(p).value, 1) {
			t.Fatalf("%v; the oracle found %+v\n%s", err, bruteForceMany(p), describeProblem(p))
		}
		return
	}
	again, err := newOracle(p).price(plan)
	if err != nil || !near(again, plan.StepSeconds) {
		t.Fatalf("the plan says %.12g, its stages take %.12g: %v\n%s\n%s", plan.StepSeconds, again, err, plan.Explain(), describeProblem(p))
	}
	for _, n := range p.Nodes {
		if n.Lend > 0 {
			return
		}
	}
	want, bound := bruteForceMany(p).value, plan.Certificate.LowerBound
	if plan.StepSeconds < want*(1-1e-9) || bound > want*(1+1e-9) || (plan.Certificate.Optimal && !near(want, plan.StepSeconds)) {
		t.Fatalf("%.12g, %+v, the optimum is %.12g\n%s", plan.StepSeconds, plan.Certificate, want, describeProblem(p))
	}
}

// FuzzPlace makes small problems of any bytes, sane and not.
func FuzzPlace(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) { checkPlace(t, decodeProblem(data[:min(len(data), 400)])) })
}

// TestPlaceRefusesBrokenRates puts what no measurement gives into each figure of a node.
func TestPlaceRefusesBrokenRates(t *testing.T) {
	for name, set := range map[string]func(*Problem, float64){
		"linear":      func(p *Problem, v float64) { p.Nodes[0].Devices[0].Rates[0].Linear = v },
		"attention":   func(p *Problem, v float64) { p.Nodes[0].Devices[0].Rates[0].Attention = v },
		"memory":      func(p *Problem, v float64) { p.Nodes[0].Devices[0].Memory = v },
		"link":        func(p *Problem, v float64) { p.Nodes[0].Link.BytesPerSecond = v },
		"rack":        func(p *Problem, v float64) { p.Groups[0].BytesPerSecond = v },
		"measured":    func(p *Problem, v float64) { p.Links[0].BytesPerSecond = v },
		"latency":     func(p *Problem, v float64) { p.Nodes[0].Link.Latency = math.Copysign(v, -1) - 1 },
		"peer":        func(p *Problem, v float64) { p.Nodes[0].Devices[0].Peer = -1 - v },
		"disk":        func(p *Problem, v float64) { p.Nodes[0].Disk = -1 - v },
		"host bus":    func(p *Problem, v float64) { p.Nodes[0].HostBus = -1 - v },
		"host copies": func(p *Problem, v float64) { p.Nodes[0].Devices[0].HostToDevice = -1 - v },
	} {
		for _, v := range []float64{0, math.NaN(), 1e300, -1} {
			if v == -1 && (name == "latency" || name[0] == 'p' || name[0] == 'd' || name[0] == 'h') {
				continue // -1 - -1 is a rate of zero, which is allowed
			}
			t.Run(fmt.Sprint(name, v), func(t *testing.T) {
				p := Problem{
					Model:  smallModel(),
					Nodes:  []Node{smallNode("a", gpu("g0", 100, 4)), smallNode("b", gpu("g0", 100, 4))},
					Links:  []PeerLink{{"a", "b", 10, 1}},
					Groups: []Group{{"rack", GroupRack, []NodeID{"a"}, 10, 1}},
				}
				set(&p, v)
				if plan, err := Place(p, Options{}); err == nil || !typed(err) || Infeasible(err) {
					t.Errorf("plan %v, error %v", plan, err)
				}
			})
		}
	}
}
