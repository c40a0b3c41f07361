// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	. "github.com/distorch/distorch/placement"
)

func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

var objectives = []ObjectiveKind{ObjectiveLatency, ObjectivePair, ObjectiveBatch, ObjectiveThroughput}

// randomProblem is an instance of the exact class for one pipeline; every part of it may be degenerate.
func randomProblem(r *rand.Rand, objective ObjectiveKind) Problem {
	m := randomModel(r)
	p := Problem{
		Model: m, Objective: Objective{Kind: objective},
		Constraints: Constraints{
			InFlight: r.IntN(3), Slots: r.IntN(3), MaxPipelines: 1, Reserve: pick(r, Bytes(0), 0, 10, 40),
			MaxDegree: pick(r, 0, 0, 0, 0, 1, 2), Fit: pick(r, "", "", "", FitFallback, FitStrict),
		},
	}
	if r.IntN(5) == 0 {
		p.Constraints.Numerics = NumericsOne
	}
	if r.IntN(4) == 0 {
		p.Constraints.MaxNodes = 2 + r.IntN(3)
	}
	if objective == ObjectiveBatch {
		p.Objective.Size = r.IntN(9)
		for _, size := range []int{2, 3, 4, 8} {
			if r.IntN(2) == 0 {
				p.Batches = append(p.Batches, Batch{size, larger(m, size, pick(r, 0.6, 0.85, 1))})
			}
		}
	}
	p.Nodes = randomNodes(r, m)
	if r.IntN(12) == 0 {
		p.Constraints.Exclude = []string{string(pick(r, p.Nodes...).ID)}
	}
	if r.IntN(10) == 0 {
		addIsland(r, &p)
	}
	return p
}

func randomCost(r *rand.Rand, scale int64) Cost {
	c := Cost{
		Weights: Bytes(scale * int64(1+r.IntN(9))), Linear: float64(1+r.IntN(40)) * 1e3,
		Attention: float64(r.IntN(10)) * 1e3, Elementwise: Bytes(r.IntN(50)), Scratch: Bytes(r.IntN(60)),
		Collective: Bytes(r.IntN(400)),
	}
	if r.IntN(5) < 2 {
		c.Expansion, c.Staging = c.Weights, 2*c.Weights
	}
	return c
}

func randomModel(r *rand.Rand) Model {
	layers := 4 + r.IntN(7)
	switch r.IntN(40) {
	case 0:
		layers = 1
	case 1, 2:
		layers = 2 + r.IntN(2)
	}
	m := Model{
		Name: "m", ComputeDType: "bf16", StoredDType: "bf16", Vec: Bytes(r.IntN(20)), Input: Bytes(r.IntN(200)), Output: Bytes(r.IntN(200)),
		Heads: pick(r, 0, 2, 3, 4, 6, 12, 24), Tokens: pick(r, 0.0, 0, 40, 128, 300, 5000),
	}
	boundary := Bytes(pick(r, 0, 10, 100, 1000))
	n1 := r.IntN(layers)
	if n1 > 0 {
		m.Runs = append(m.Runs, Run{Name: "double", Count: n1, Block: randomCost(r, 20), Boundary: boundary})
	}
	m.Runs = append(m.Runs, Run{Name: "single", Count: layers - n1, Block: randomCost(r, 10), Boundary: boundary})
	if r.IntN(3) > 0 {
		heavy := pick(r, int64(1), 20, 60)
		m.Head, m.Tail = randomCost(r, heavy), randomCost(r, heavy)
		m.Head.Linear *= float64(heavy)
		m.Tail.Linear *= float64(pick(r, int64(1), heavy))
	}
	return m
}

// larger is the model over several requests at once: as much weight, more of all else.
func larger(m Model, size int, work float64) Model {
	m.Runs = slices.Clone(m.Runs)
	grow := func(c *Cost) {
		by := float64(size) * work
		c.Linear, c.Attention, c.Elementwise = c.Linear*by, c.Attention*by, Bytes(float64(c.Elementwise)*by)
		c.Scratch, c.Collective = c.Scratch*Bytes(size), c.Collective*Bytes(size)
	}
	grow(&m.Head)
	grow(&m.Tail)
	for i := range m.Runs {
		grow(&m.Runs[i].Block)
		m.Runs[i].Boundary *= Bytes(size)
	}
	m.Vec, m.Input, m.Output, m.Tokens = m.Vec*Bytes(size), m.Input*Bytes(size), m.Output*Bytes(size), m.Tokens*float64(size)
	return m
}

// randomNodes mixes hosts with a CPU alone and with one to three, seldom more, GPUs like and unlike.
func randomNodes(r *rand.Rand, m Model) []Node {
	hosts := pick(r, 2, 3, 3, 4, 4, 4, 5, 5, 5)
	tight := pick(r, 0.2, 0.25, 0.3, 0.4, 0.6, 1, 3)
	gpus := pick(r, 0, 1, 2, 2, 3) // in three
	ties := r.IntN(4) == 0
	var nodes []Node
	for i := range hosts {
		n := randomNode(r, i, m, tight, r.IntN(3) < gpus)
		if ties && i > 0 && r.IntN(2) == 0 {
			id := n.ID
			n = nodes[0]
			n.ID = id
		}
		nodes = append(nodes, n)
	}
	return nodes
}

func randomRates(r *rand.Rand) []Rate {
	rate := float64(1+r.IntN(20)) * 1e3
	out := []Rate{{DType: "f32", Linear: 1e5, Attention: 1e5}, {DType: "bf16", Linear: rate, Attention: rate * (0.2 + r.Float64())}}
	if r.IntN(3) > 0 {
		return out
	}
	out[1].Tokens = 64
	for range 1 + r.IntN(2) {
		last := out[len(out)-1]
		out = append(out, Rate{"bf16", last.Linear * (0.8 + r.Float64()), last.Attention * (0.8 + r.Float64()), last.Tokens * (2 + float64(r.IntN(4)))})
	}
	if r.IntN(2) == 0 {
		slices.Reverse(out)
	}
	return out
}

func randomNode(r *rand.Rand, i int, m Model, tight float64, gpus bool) Node {
	memory := func() Bytes { return Bytes(float64(m.Weights())*tight*(0.3+r.Float64())) + pick(r, Bytes(0), 150, 400) }
	n := Node{
		ID: NodeID(fmt.Sprintf("n%d", i)), HasModel: r.IntN(20) > 0,
		Link:        Link{BytesPerSecond: pick(r, math.Inf(1), 10, 100, 117, 500, 1000*r.Float64()+1), Latency: pick(r, 0, 0, 0.01, 1, r.Float64())},
		RAM:         pick(r, Bytes(0), Bytes(r.IntN(400)), m.Weights()/2, m.Weights()),
		Disk:        pick(r, 0, 0, 5+float64(r.IntN(200))),
		HostBus:     pick(r, 0, 0, 20+float64(r.IntN(400))),
		PeerLatency: pick(r, 0, 0.01, r.Float64()/4),
	}
	device := func(kind DeviceKind, id string) Device {
		return Device{
			ID: id, Kind: kind, Class: pick(r, "x", "x", "x", "y"), Allocatable: memory(), Reserve: Bytes(r.IntN(30)), Overlap: r.IntN(2) == 0,
			Rates: randomRates(r), Expansion: float64(10 + r.IntN(500)), Memory: float64(50 + r.IntN(1000)),
		}
	}
	cpu := device(KindCPU, "cpu")
	n.Devices = append(n.Devices, cpu)
	if !gpus {
		n.Disk *= float64(r.IntN(2))
		return n
	}
	if r.IntN(4) == 0 {
		n.Devices = nil
	}
	count := pick(r, 1, 1, 2, 2, 2, 3, 3)
	if r.IntN(25) == 0 {
		count = 4 + r.IntN(2)
	}
	for k := range count {
		d := device(KindGPU, fmt.Sprintf("cuda:%d", k))
		d.HostToDevice = pick(r, 0, 50+float64(r.IntN(400)), 50+float64(r.IntN(400)))
		d.Peer = pick(r, 0, 50+float64(r.IntN(1000)), 50+float64(r.IntN(1000)), 1e4)
		if k > 0 && r.IntN(3) > 0 {
			like := n.Devices[len(n.Devices)-1]
			if r.IntN(2) == 0 {
				like.Allocatable, like.Reserve = d.Allocatable, d.Reserve
			}
			like.ID = d.ID
			d = like
		}
		if r.IntN(25) == 0 {
			d.Rates = nil
		}
		n.Devices = append(n.Devices, d)
	}
	return n
}

// addIsland makes copies of a node with GPUs and puts them on a fabric.
func addIsland(r *rand.Rand, p *Problem) {
	i := slices.IndexFunc(p.Nodes, func(n Node) bool { return n.Devices[len(n.Devices)-1].Kind == KindGPU })
	if i < 0 || len(p.Nodes) < 3 {
		return
	}
	g := Group{Name: "island", Kind: GroupIsland, BytesPerSecond: pick(r, 100, 1000, 1e4), Latency: pick(r, 0, 0.01, 0.2)}
	for k := range 2 {
		at := (i + k) % len(p.Nodes)
		id := p.Nodes[at].ID
		devices := slices.Clone(p.Nodes[at].Devices)
		p.Nodes[at] = p.Nodes[i]
		p.Nodes[at].ID = id
		p.Nodes[at].Devices = slices.Clone(p.Nodes[i].Devices)
		if r.IntN(2) == 0 {
			p.Nodes[at].Devices[0].Allocatable = devices[0].Allocatable
		}
		g.Nodes = append(g.Nodes, id)
	}
	p.Groups = []Group{g}
	heads := pick(r, 0, 4, 12, 24)
	eachModel(p, func(m *Model, _ int) { m.Heads = heads })
}

// eachModel changes the model and its micro-batches alike.
func eachModel(p *Problem, change func(m *Model, size int)) {
	change(&p.Model, 1)
	p.Batches = slices.Clone(p.Batches)
	for i := range p.Batches {
		change(&p.Batches[i].Model, p.Batches[i].Size)
	}
}
