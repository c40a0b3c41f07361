// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// oracle enumerates every ordered subset of nodes and every cut. Its cost function is written from the documentation
// alone and shares nothing with the solver: it adds up block by block and hop by hop.
type oracle struct {
	p    Problem
	best float64
	used []bool
	n    int // nodes in the best pipeline
}

func bruteForce(p Problem) (float64, int) {
	o := &oracle{p: p, best: math.Inf(1), used: make([]bool, len(p.Nodes))}
	o.extend(0, -1, 0, 0)
	return o.best, o.n
}

func (o *oracle) blocks() int {
	n := 0
	for _, r := range o.p.Model.Runs {
		n += r.Count
	}
	return n
}

func (o *oracle) runAt(b int) Run {
	if b < o.p.Model.Runs[0].Count {
		return o.p.Model.Runs[0]
	}
	return o.p.Model.Runs[1]
}

func (o *oracle) extend(at, previous, depth int, spent float64) {
	total := o.blocks()
	if at == total {
		end := o.p.Nodes[previous].Link
		if t := spent + float64(o.p.Model.Output)/end.BytesPerSecond + end.Latency; t < o.best {
			o.best, o.n = t, depth
		}
		return
	}
	if limit := o.p.Constraints.MaxNodes; limit > 0 && depth == limit {
		return
	}
	for i, n := range o.p.Nodes {
		if o.used[i] || !n.HasModel || n.Rejected.Kind != "" {
			continue
		}
		hop := 0.0
		if previous < 0 {
			hop = float64(o.p.Model.Input)/n.Link.BytesPerSecond + n.Link.Latency
		} else {
			size := float64(o.runAt(at-1).Boundary + o.p.Model.Vec)
			q := o.p.Nodes[previous].Link
			hop = math.Max(size/n.Link.BytesPerSecond+n.Link.Latency, size/q.BytesPerSecond+q.Latency)
		}
		o.used[i] = true
		for end := at + 1; end <= total; end++ {
			if t, ok := o.stage(n, at, end); ok {
				o.extend(end, i, depth+1, spent+hop+t)
			}
		}
		o.used[i] = false
	}
}

func (o *oracle) stage(n Node, from, to int) (float64, bool) {
	var parts []Cost
	if from == 0 {
		parts = append(parts, o.p.Model.Head)
	}
	for b := from; b < to; b++ {
		parts = append(parts, o.runAt(b).Block)
	}
	if to == o.blocks() {
		parts = append(parts, o.p.Model.Tail)
	}
	d := n.Devices[0]
	inFlight := int64(o.p.Constraints.InFlight)
	if inFlight == 0 {
		inFlight = 1
	}
	var held, slot, scratch int64
	compute, expand := 0.0, 0.0
	for _, c := range parts {
		held += int64(c.Weights)
		if int64(c.Staging) > slot {
			slot = int64(c.Staging)
		}
		if int64(c.Scratch) > scratch {
			scratch = int64(c.Scratch)
		}
		touched := float64(c.Weights)
		if c.Staging != 0 {
			touched = float64(c.Staging)
		}
		compute += math.Max(c.Linear/d.Rates[0].Linear, touched/d.Memory)
		compute += c.Attention / d.Rates[0].Attention
		compute += float64(c.Elementwise) / d.Memory
		if c.Expansion > 0 {
			expand += float64(c.Expansion) / d.Expansion
		}
	}
	free := int64(d.Allocatable - d.Reserve)
	if held+slot+scratch*inFlight > free {
		return 0, false
	}
	if d.Overlap && o.p.Constraints.Slots != 1 && slot > 0 && held+2*slot+scratch*inFlight <= free {
		return math.Max(compute, expand), true
	}
	return compute + expand, true
}

func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func randomCost(r *rand.Rand, scale int64) Cost {
	c := Cost{
		Weights: Bytes(scale * int64(1+r.IntN(9))), Linear: float64(1+r.IntN(40)) * 1e3,
		Attention: float64(r.IntN(10)) * 1e3, Elementwise: Bytes(r.IntN(50)), Scratch: Bytes(r.IntN(60)),
	}
	if r.IntN(2) == 0 {
		c.Expansion, c.Staging = c.Weights, 2*c.Weights
	}
	return c
}

// randomProblem mixes ties, memory-bound and infeasible clusters, free links, nodes without the file, heavy heads.
func randomProblem(r *rand.Rand) Problem {
	layers := 4 + r.IntN(7)
	m := Model{
		Name: "m", ComputeDType: "bf16", StoredDType: "bf16", Vec: Bytes(r.IntN(20)), Input: Bytes(r.IntN(200)), Output: Bytes(r.IntN(200)),
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
	p := Problem{Model: m, Constraints: Constraints{InFlight: r.IntN(3), Slots: r.IntN(3)}}
	if r.IntN(4) == 0 {
		p.Constraints.MaxNodes = 2 + r.IntN(3)
	}
	hosts := pick(r, 2, 3, 3, 4, 4, 5, 5)
	tight := pick(r, 0.25, 0.4, 0.6, 1, 3)
	ties := r.IntN(4) == 0
	for i := range hosts {
		n := randomNode(r, i, m, tight)
		if ties && i > 0 && r.IntN(2) == 0 {
			id := n.ID
			n = p.Nodes[0]
			n.ID = id
		}
		p.Nodes = append(p.Nodes, n)
	}
	return p
}

func randomNode(r *rand.Rand, i int, m Model, tight float64) Node {
	memory := Bytes(float64(m.Weights())*tight*(0.3+r.Float64())) + pick(r, Bytes(0), 150, 400)
	rate := float64(1+r.IntN(20)) * 1e3
	return Node{
		ID: NodeID(fmt.Sprintf("n%d", i)), HasModel: r.IntN(20) > 0,
		Link: Link{BytesPerSecond: pick(r, math.Inf(1), 10, 100, 117, 500, 1000*r.Float64()+1), Latency: pick(r, 0, 0, 0.01, 1, r.Float64())},
		Devices: []Device{{
			ID: "cpu", Kind: KindCPU, Allocatable: memory, Reserve: Bytes(r.IntN(30)), Overlap: r.IntN(2) == 0,
			Rates: []Rate{{"bf16", rate, rate * (0.2 + r.Float64()), 0}}, Expansion: float64(10 + r.IntN(500)), Memory: float64(50 + r.IntN(1000)),
		}},
	}
}

// TestOracle compares the search with the enumeration of every pipeline.
func TestOracle(t *testing.T) {
	const instances = 4000
	feasible, infeasible, stages, twoRuns, limited := 0, 0, [6]int{}, 0, 0
	for seed := range uint64(instances) {
		p := randomProblem(rand.New(rand.NewPCG(seed, 7)))
		want, n := bruteForce(p)
		plan, err := Place(p, Options{SkipLosses: true})
		if math.IsInf(want, 1) {
			if _, ok := errors.AsType[*InfeasibleError](err); !ok {
				t.Fatalf("seed %d: got plan %v, error %v; no pipeline exists", seed, plan, err)
			}
			infeasible++
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v; the oracle found %g", seed, err, want)
		}
		if math.Abs(plan.StepSeconds-want) > 1e-9*want {
			t.Fatalf("seed %d: got %.12g want %.12g\n%s", seed, plan.StepSeconds, want, plan.Explain())
		}
		if !plan.Certificate.Optimal {
			t.Fatalf("seed %d: certificate %+v of an optimal plan", seed, plan.Certificate)
		}
		feasible++
		stages[n]++
		twoRuns += boolInt(len(p.Model.Runs) == 2)
		limited += boolInt(p.Constraints.MaxNodes > 0)
	}
	t.Logf("%d equal (by stages 1-5: %v, two runs %d, with max nodes %d), %d infeasible", feasible, stages[1:], twoRuns, limited, infeasible)
	if feasible < 2000 || infeasible < 100 || stages[3]+stages[4]+stages[5] < feasible/8 {
		t.Errorf("the mix of instances is poor")
	}
}

// TestOracleUnequalBoundaries checks the certificate outside the exact class: bound ≤ optimum ≤ plan.
func TestOracleUnequalBoundaries(t *testing.T) {
	exact, loose := 0, 0
	for seed := range uint64(600) {
		r := rand.New(rand.NewPCG(seed, 11))
		p := randomProblem(r)
		if len(p.Model.Runs) < 2 {
			continue
		}
		p.Model.Runs[1].Boundary = p.Model.Runs[0].Boundary/2 + Bytes(r.IntN(200))
		want, _ := bruteForce(p)
		plan, err := Place(p, Options{SkipLosses: true})
		if math.IsInf(want, 1) != (err != nil) {
			t.Fatalf("seed %d: error %v, optimum %g", seed, err, want)
		}
		if err != nil {
			continue
		}
		c := plan.Certificate
		if plan.StepSeconds < want*(1-1e-9) || c.LowerBound > want*(1+1e-9) {
			t.Fatalf("seed %d: plan %g, bound %g, optimum %g", seed, plan.StepSeconds, c.LowerBound, want)
		}
		if c.Optimal && plan.StepSeconds > want*(1+1e-9) {
			t.Fatalf("seed %d: claims optimal at %g, optimum %g", seed, plan.StepSeconds, want)
		}
		exact += boolInt(c.Optimal)
		loose += boolInt(!c.Optimal)
	}
	t.Logf("%d certified optimal, %d with a gap", exact, loose)
	if exact == 0 || loose == 0 {
		t.Error("one kind of certificate was never seen")
	}
}

func TestAutomatonSize(t *testing.T) {
	if n := len(newAutomaton(true).sets); n != 18 {
		t.Errorf("two runs: %d sets with the finished one, want 18", n)
	}
	if n := len(newAutomaton(false).sets); n != 6 {
		t.Errorf("one run: %d sets with the finished one, want 6", n)
	}
}
