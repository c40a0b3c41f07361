// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	. "github.com/distorch/distorch/placement"
)

// wideCases are what lies outside the exact class; each takes a problem there.
var wideCases = []struct {
	name   string
	change func(*rand.Rand, *Problem)
}{
	{"several pipelines", func(r *rand.Rand, p *Problem) { p.Constraints.MaxPipelines = pick(r, 0, 0, 2, 3) }},
	{"measured links", addLinks},
	{"racks", addRacks},
	{"unequal boundaries", unequalBoundaries},
	{"three runs", threeRuns},
	{"island", func(r *rand.Rand, p *Problem) { addIsland(r, p) }},
	{"all at once", func(r *rand.Rand, p *Problem) {
		p.Constraints.MaxPipelines = 0
		addLinks(r, p)
		addIsland(r, p)
		addRacks(r, p)
		unequalBoundaries(r, p)
		threeRuns(r, p)
	}},
}

func addLinks(r *rand.Rand, p *Problem) {
	for _, a := range p.Nodes {
		for _, b := range p.Nodes {
			if a.ID != b.ID && r.IntN(2) == 0 {
				p.Links = append(p.Links, PeerLink{a.ID, b.ID, pick(r, 10, 100, 117, 1000*r.Float64()+1), pick(r, 0, 0.01, r.Float64())})
			}
		}
	}
}

func addRacks(r *rand.Rand, p *Problem) {
	a := Group{Name: "left", Kind: GroupRack, BytesPerSecond: pick(r, 5.0, 50, 500), Latency: pick(r, 0, 0.5)}
	b := Group{Name: "right", Kind: GroupRack, BytesPerSecond: pick(r, 5.0, 50, 500), Latency: pick(r, 0, 0.5)}
	for _, n := range p.Nodes {
		switch r.IntN(3) {
		case 0:
			a.Nodes = append(a.Nodes, n.ID)
		case 1:
			b.Nodes = append(b.Nodes, n.ID)
		}
	}
	for _, g := range []Group{a, b} {
		if len(g.Nodes) > 0 {
			p.Groups = append(p.Groups, g)
		}
	}
}

func unequalBoundaries(r *rand.Rand, p *Problem) {
	at, boundary := r.IntN(len(p.Model.Runs)), Bytes(r.IntN(400))
	eachModel(p, func(m *Model, size int) {
		m.Runs = slices.Clone(m.Runs)
		m.Runs[at].Boundary = boundary * Bytes(size)
	})
}

// threeRuns cuts a third run off the last one.
func threeRuns(r *rand.Rand, p *Problem) {
	last := p.Model.Runs[len(p.Model.Runs)-1]
	if last.Count < 2 {
		return
	}
	n, weights, work := 1+r.IntN(min(last.Count-1, 3)), Bytes(r.IntN(100)), 0.5+r.Float64()
	eachModel(p, func(m *Model, _ int) {
		m.Runs = slices.Clone(m.Runs)
		third := m.Runs[len(m.Runs)-1]
		third.Name, third.Count = "third", n
		third.Block.Weights += weights
		third.Block.Linear *= work
		m.Runs[len(m.Runs)-1].Count -= n
		m.Runs = append(m.Runs, third)
	})
}

// TestOracleWide checks certificates outside the exact class: bound ≤ optimum ≤ plan.
func TestOracleWide(t *testing.T) {
	failed := map[string]int{}
	for _, c := range wideCases {
		var mix mixture
		optimal, gaps, gap := 0, 0, 0.0
		for seed := range uint64(wideInstances / len(wideCases)) {
			r := rand.New(rand.NewPCG(seed, 13))
			p := randomProblem(r, objectives[seed%uint64(len(objectives))])
			c.change(r, &p)
			want := bruteForceMany(p)
			mix.add(p, want)
			plan, err := judge(p, want, false)
			if err != nil {
				report(t, failed, c.name, seed, p, plan, err)
				continue
			}
			if plan == nil {
				continue
			}
			optimal += boolInt(plan.Certificate.Optimal)
			if over := plan.StepSeconds/want.value - 1; over > 1e-9 {
				gaps++
				gap = math.Max(gap, over)
			}
		}
		t.Attr(strings.ReplaceAll(c.name, " ", "-"), fmt.Sprintf("%d feasible, %d certified optimal, %d over the optimum by up to %.0f %%, %d of several pipelines",
			mix.feasible(), optimal, gaps, 100*gap, mix.counts["several pipelines"]))
		if mix.feasible() < wideInstances/len(wideCases)/3 {
			t.Errorf("%s: %d feasible instances are too few", c.name, mix.feasible())
		}
	}
}

// TestOracleRemote checks plans that may borrow other nodes' memory: no worse than without it, and the bound below both.
func TestOracleRemote(t *testing.T) {
	failed, borrowed := map[string]int{}, 0
	for seed := range uint64(wideInstances / 4) {
		r := rand.New(rand.NewPCG(seed, 17))
		p := randomProblem(r, objectives[seed%uint64(len(objectives))])
		if r.IntN(4) > 0 { // or few need to borrow
			p.Constraints.Fit = FitFallback
			for i := range p.Nodes {
				p.Nodes[i].RAM, p.Nodes[i].Disk = 0, 0
			}
		}
		without := bruteForce(p)
		for i := range p.Nodes {
			p.Nodes[i].Lend = pick(r, Bytes(0), Bytes(r.IntN(300)), p.Model.Weights())
		}
		plan, err := Place(p, Options{SkipLosses: true})
		if Infeasible(err) && math.IsInf(without.value, 1) {
			continue
		}
		if err == nil {
			var again float64
			again, err = newOracle(p).price(plan)
			switch slack := 1e-9 * again; {
			case err != nil:
			case !near(again, plan.StepSeconds):
				err = fmt.Errorf("the plan says %.12g, its stages take %.12g", plan.StepSeconds, again)
			case plan.StepSeconds > without.value+slack:
				err = fmt.Errorf("%.12g is worse than %.12g without donors", plan.StepSeconds, without.value)
			case plan.Certificate.LowerBound > plan.StepSeconds+slack:
				err = fmt.Errorf("bound %.12g over the plan's %.12g", plan.Certificate.LowerBound, plan.StepSeconds)
			}
			for _, s := range plan.Stages {
				borrowed += boolInt(slices.ContainsFunc(s.Tiers, func(t Tier) bool { return t.Kind == TierRemote }))
			}
		}
		if err != nil {
			report(t, failed, "remote", seed, p, plan, err)
		}
	}
	t.Attr("borrowed", fmt.Sprintf("%d stages stream from other nodes", borrowed))
	if borrowed < wideInstances/100 {
		t.Errorf("%d stages that stream from other nodes are too few", borrowed)
	}
}
