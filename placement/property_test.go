// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func drawProblem(t *rapid.T) (Problem, *rand.Rand) {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 5))
	return randomProblem(r), r
}

// step is the plan's step, or +Inf when nothing fits.
func stepOf(t *rapid.T, p Problem) float64 {
	plan, err := Place(p, Options{SkipLosses: true})
	if _, ok := errors.AsType[*InfeasibleError](err); ok {
		return math.Inf(1)
	}
	if err != nil {
		t.Fatalf("place: %v", err)
	}
	return plan.StepSeconds
}

func near(a, b float64) bool { return a == b || math.Abs(a-b) <= 1e-9*math.Abs(b) }

func editNodes(p Problem, edit func(*Node)) Problem {
	p.Nodes = slices.Clone(p.Nodes)
	for i := range p.Nodes {
		n := &p.Nodes[i]
		n.Devices = slices.Clone(n.Devices)
		for j := range n.Devices {
			n.Devices[j].Rates = slices.Clone(n.Devices[j].Rates)
		}
		edit(n)
	}
	return p
}

func TestOrderOfNodesChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, r := drawProblem(t)
		q := editNodes(p, func(*Node) {})
		r.Shuffle(len(q.Nodes), func(i, j int) { q.Nodes[i], q.Nodes[j] = q.Nodes[j], q.Nodes[i] })
		a, errA := Place(p, Options{})
		b, errB := Place(q, Options{})
		if fmt.Sprint(errA) != fmt.Sprint(errB) {
			t.Fatalf("errors %v and %v", errA, errB)
		}
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		if string(x) != string(y) || !p.Equal(q) {
			t.Fatalf("plans differ:\n%s\n%s", x, y)
		}
		at := len(p.Nodes)
		q = editNodes(p, func(n *Node) { at--; n.ID = NodeID(fmt.Sprintf("other%d", at)) })
		if errA == nil && !near(stepOf(t, q), a.StepSeconds) {
			t.Fatalf("other ids: %g, was %g", stepOf(t, q), a.StepSeconds)
		}
	})
}

func TestMoreIsNeverWorse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, r := drawProblem(t)
		base := stepOf(t, p)
		better := map[string]Problem{
			"memory":  editNodes(p, func(n *Node) { n.Devices[0].Allocatable += Bytes(r.IntN(300)) }),
			"reserve": editNodes(p, func(n *Node) { n.Devices[0].Reserve /= 2 }),
			"link":    editNodes(p, func(n *Node) { n.Link.BytesPerSecond *= 1 + r.Float64() }),
			"latency": editNodes(p, func(n *Node) { n.Link.Latency *= r.Float64() }),
			"rate":    editNodes(p, func(n *Node) { n.Devices[0].Rates[0].Linear *= 1 + r.Float64() }),
			"overlap": editNodes(p, func(n *Node) { n.Devices[0].Overlap = true }),
			"files":   editNodes(p, func(n *Node) { n.HasModel = true }),
		}
		more := p
		more.Nodes = append(slices.Clone(p.Nodes), randomNode(r, 99, p.Model, 1))
		better["node"] = more
		free := p
		free.Constraints.MaxNodes = 0
		better["no limit"] = free
		for name, q := range better {
			if got := stepOf(t, q); got > base*(1+1e-9) {
				t.Fatalf("%s: %g, was %g", name, got, base)
			}
		}
	})
}

func TestTimesScale(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawProblem(t)
		k := float64(rapid.IntRange(2, 9).Draw(t, "k"))
		q := editNodes(p, func(n *Node) {
			d := &n.Devices[0]
			n.Link.BytesPerSecond *= k
			n.Link.Latency /= k
			d.Rates[0].Linear *= k
			d.Rates[0].Attention *= k
			d.Expansion *= k
			d.Memory *= k
		})
		if a, b := stepOf(t, p), stepOf(t, q); !near(b*k, a) {
			t.Fatalf("%g, scaled by %g %g", a, k, b)
		}
	})
}

func TestPlanHoldsTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawProblem(t)
		plan, err := Place(p, Options{})
		if err != nil {
			return
		}
		at, runs := 0, make([]int, len(p.Model.Runs))
		for i, s := range plan.Stages {
			if s.First != at || s.Peak > s.Available || s.Head != (i == 0) || s.Tail != (i == len(plan.Stages)-1) {
				t.Fatalf("stage %d: %+v", i, s)
			}
			at += s.Blocks
			for r, n := range s.Runs {
				runs[r] += n
			}
		}
		for r, n := range runs {
			if n != p.Model.Runs[r].Count {
				t.Fatalf("run %d has %d blocks", r, n)
			}
		}
		if !near(plan.Parts.Total(), plan.StepSeconds) || !near(plan.Pair.StepSeconds, plan.StepSeconds+plan.Pair.Bottleneck) || plan.Parts.Waiting != 0 {
			t.Fatalf("parts %+v pair %+v step %g", plan.Parts, plan.Pair, plan.StepSeconds)
		}
		again, err := Reprice(p, plan.Stages)
		if err != nil || again.StepSeconds != plan.StepSeconds || !again.SameCut(plan) {
			t.Fatalf("repriced %v, %v; was %g", again, err, plan.StepSeconds)
		}
		if plan.Single.Fits && plan.Single.StepSeconds < plan.StepSeconds*(1-1e-9) {
			t.Fatalf("one host at %g beats the plan at %g", plan.Single.StepSeconds, plan.StepSeconds)
		}
		if len(plan.Stages)+len(plan.Unused) != len(p.Nodes) {
			t.Fatalf("%d stages and %d unused of %d nodes", len(plan.Stages), len(plan.Unused), len(p.Nodes))
		}
		checkPinned(t, p, plan)
		checkLosses(t, p, plan)
	})
}

// checkPinned forces the same cut by pins, as ranges and as counts.
func checkPinned(t *rapid.T, p Problem, plan *Plan) {
	for _, ranged := range []bool{true, false} {
		q := p
		q.Constraints.Pins = nil
		text := ""
		for _, s := range plan.Stages {
			text += Pin{string(s.Node), ranged, s.First * boolInt(ranged), s.Blocks}.String() + ", "
		}
		var err error
		if q.Constraints.Pins, err = ParsePins(text[:len(text)-2]); err != nil {
			t.Fatal(err)
		}
		pinned, err := Place(q, Options{SkipLosses: true})
		if err != nil || !pinned.SameCut(plan) || pinned.StepSeconds != plan.StepSeconds {
			t.Fatalf("pins %q: %v %v", text, pinned, err)
		}
	}
}

func checkLosses(t *rapid.T, p Problem, plan *Plan) {
	for i, l := range plan.IfLost {
		q := p
		q.Nodes = slices.DeleteFunc(slices.Clone(p.Nodes), func(n Node) bool { return n.ID == plan.Stages[i].Node })
		if len(q.Nodes) == 0 {
			continue
		}
		want := stepOf(t, q)
		if l.Continues != !math.IsInf(want, 1) || (l.Continues && !near(l.StepSeconds, want)) {
			t.Fatalf("loss of %s: %v, placing without it gives %g", l.Node, l, want)
		}
		if !l.Continues && l.Short <= 0 && l.Why == "" {
			t.Fatalf("loss of %s stops without a reason", l.Node)
		}
	}
}

// TestShortage checks that the refusal's amount is enough, and that memory alone decides feasibility.
func TestShortage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawProblem(t)
		var available []Bytes
		for _, n := range p.Nodes {
			if n.HasModel {
				available = append(available, n.Devices[0].available())
			}
		}
		_, err := Place(p, Options{SkipLosses: true})
		var e *InfeasibleError
		if fits := p.Model.fits(available, p.Constraints.inFlight(), p.Constraints.MaxNodes); fits != (err == nil) {
			t.Fatalf("fits %v, place says %v", fits, err)
		}
		if !errors.As(err, &e) || e.ShortNode == "" {
			return
		}
		give := func(extra Bytes) Problem {
			return editNodes(p, func(n *Node) {
				if n.Label() == e.ShortNode {
					n.Devices[0].Allocatable += extra
				}
			})
		}
		if math.IsInf(stepOf(t, give(e.Short)), 1) {
			t.Fatalf("%v more on %s is not enough: %v", int64(e.Short), e.ShortNode, err)
		}
		if less := e.Short - e.Short/100 - 1; less > 0 && !math.IsInf(stepOf(t, give(less)), 1) && e.Short > 300 {
			t.Fatalf("%d of %d more on %s is enough already", int64(less), int64(e.Short), e.ShortNode)
		}
	})
}

func TestDigestSeesEveryFigure(t *testing.T) {
	base := func() Problem {
		return Problem{Deployment: "d", Model: fluxModel(), Nodes: fluxCluster(2, 1, 64)}
	}
	seen := map[string]string{base().Digest(): "nothing"}
	for name, change := range map[string]func(*Problem){
		"deployment": func(p *Problem) { p.Deployment = "e" },
		"count":      func(p *Problem) { p.Model.Runs[0].Count++ },
		"boundary":   func(p *Problem) { p.Model.Runs[1].Boundary++ },
		"dtype":      func(p *Problem) { p.Model.ComputeDType = "f32" },
		"vec":        func(p *Problem) { p.Model.Vec++ },
		"head":       func(p *Problem) { p.Model.Head.Linear++ },
		"tail":       func(p *Problem) { p.Model.Tail.Linear++ },
		"scratch":    func(p *Problem) { p.Model.Runs[0].Block.Scratch++ },
		"pins":       func(p *Problem) { p.Constraints.Pins = []Pin{{Node: "a", Count: 3}} },
		"ranged pin": func(p *Problem) { p.Constraints.Pins = []Pin{{Node: "a", Ranged: true, Count: 3}} },
		"exclude":    func(p *Problem) { p.Constraints.Exclude = []string{"a"} },
		"max nodes":  func(p *Problem) { p.Constraints.MaxNodes = 3 },
		"slots":      func(p *Problem) { p.Constraints.Slots = 1 },
		"in flight":  func(p *Problem) { p.Constraints.InFlight = 2 },
		"memory":     func(p *Problem) { p.Nodes[0].Devices[0].Allocatable++ },
		"reserve":    func(p *Problem) { p.Nodes[0].Devices[0].Reserve++ },
		"rate":       func(p *Problem) { p.Nodes[1].Devices[0].Rates[0].Attention++ },
		"overlap":    func(p *Problem) { p.Nodes[1].Devices[0].Overlap = true },
		"latency":    func(p *Problem) { p.Nodes[1].Link.Latency *= 2 },
		"file":       func(p *Problem) { p.Nodes[1].HasModel = false },
		"rejected":   func(p *Problem) { p.Nodes[1].Rejected.Kind = ReasonOps },
		"id":         func(p *Problem) { p.Nodes[1].ID = "z" },
		"node":       func(p *Problem) { p.Nodes = p.Nodes[:1] },
	} {
		p := base()
		change(&p)
		if other, ok := seen[p.Digest()]; ok {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[p.Digest()] = name
	}
	p := base()
	p.Constraints.Slots, p.Constraints.InFlight = 2, 1
	if !p.Equal(base()) {
		t.Error("a default written out changes the digest")
	}
}
