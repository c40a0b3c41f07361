// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	. "github.com/distorch/distorch/placement"
)

// drawProblem is a problem of the exact class, without islands.
func drawProblem(t *rapid.T) (Problem, *rand.Rand) {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 5))
	p := randomProblem(r, rapid.SampledFrom(objectives).Draw(t, "objective"))
	p.Groups = nil
	return p, r
}

// drawAny is a problem of any class.
func drawAny(t *rapid.T) (Problem, *rand.Rand) {
	p, r := drawProblem(t)
	if i := rapid.IntRange(0, len(wideCases)).Draw(t, "class"); i < len(wideCases) {
		wideCases[i].change(r, &p)
	}
	return p, r
}

// stepOf is the plan's step, or +Inf when nothing fits.
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

// edit changes a copy of the problem, each node and each of its devices.
func edit(p Problem, node func(*Node), device func(*Device)) Problem {
	p.Nodes = slices.Clone(p.Nodes)
	for i := range p.Nodes {
		n := &p.Nodes[i]
		n.Devices = slices.Clone(n.Devices)
		for j := range n.Devices {
			n.Devices[j].Rates = slices.Clone(n.Devices[j].Rates)
			if device != nil {
				device(&n.Devices[j])
			}
		}
		if node != nil {
			node(n)
		}
	}
	return p
}

func TestOrderOfNodesChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, r := drawAny(t)
		q := edit(p, nil, nil)
		r.Shuffle(len(q.Nodes), func(i, j int) { q.Nodes[i], q.Nodes[j] = q.Nodes[j], q.Nodes[i] })
		q.Links, q.Batches = slices.Clone(p.Links), slices.Clone(p.Batches)
		slices.Reverse(q.Links)
		slices.Reverse(q.Batches)
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
		again, _ := Place(p, Options{})
		if z, _ := json.Marshal(again); string(z) != string(x) {
			t.Fatalf("the same problem gives another plan:\n%s\n%s", x, z)
		}
	})
}

func TestNamesChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawProblem(t)
		p.Constraints.Exclude = nil
		at := len(p.Nodes)
		q := edit(p, func(n *Node) {
			at--
			n.ID = NodeID(fmt.Sprintf("other%d", at))
			for i := range n.Devices {
				n.Devices[i].ID = fmt.Sprintf("dev%d", 9-i)
			}
		}, nil)
		if a, b := stepOf(t, p), stepOf(t, q); !near(a, b) {
			t.Fatalf("other ids: %g, was %g", b, a)
		}
	})
}

func TestMoreIsNeverWorse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, r := drawProblem(t)
		base := stepOf(t, p)
		by := 1 + r.Float64()
		free := p
		free.Constraints = Constraints{MaxPipelines: 1}
		more := p
		more.Nodes = append(slices.Clone(p.Nodes), randomNode(r, 99, p.Model, 1, r.IntN(2) == 0))
		for name, q := range map[string]Problem{
			"memory":         edit(p, nil, func(d *Device) { d.Allocatable += Bytes(r.IntN(300)) }),
			"reserve":        edit(p, nil, func(d *Device) { d.Reserve /= 2 }),
			"link":           edit(p, func(n *Node) { n.Link.BytesPerSecond *= 1 + r.Float64() }, nil),
			"latency":        edit(p, func(n *Node) { n.Link.Latency *= r.Float64() }, nil),
			"RAM":            edit(p, func(n *Node) { n.RAM += Bytes(r.IntN(300)) }, nil),
			"disk":           edit(p, func(n *Node) { n.Disk = 2*n.Disk + 1 }, nil),
			"host bus":       edit(p, func(n *Node) { n.HostBus *= by }, nil),
			"no host bus":    edit(p, func(n *Node) { n.HostBus = 0 }, nil),
			"peer latency":   edit(p, func(n *Node) { n.PeerLatency *= r.Float64() }, nil),
			"rate":           edit(p, nil, func(d *Device) { eachRate(d, func(r *Rate) { r.Linear *= by }) }),
			"attention":      edit(p, nil, func(d *Device) { eachRate(d, func(r *Rate) { r.Attention *= by }) }),
			"bandwidth":      edit(p, nil, func(d *Device) { d.Memory *= by }),
			"expansion":      edit(p, nil, func(d *Device) { d.Expansion *= by }),
			"host to device": edit(p, nil, func(d *Device) { d.HostToDevice *= by }),
			"peer":           edit(p, nil, func(d *Device) { d.Peer *= by }),
			"overlap":        edit(p, nil, func(d *Device) { d.Overlap = true }),
			"files":          edit(p, func(n *Node) { n.HasModel = true }, nil),
			"node":           more,
			"no limits":      free,
		} {
			if got := stepOf(t, q); got > base*(1+1e-9) {
				t.Fatalf("%s: %g, was %g", name, got, base)
			}
		}
	})
}

func eachRate(d *Device, change func(*Rate)) {
	for i := range d.Rates {
		change(&d.Rates[i])
	}
}

func TestTimesScale(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawProblem(t)
		k := float64(rapid.IntRange(2, 9).Draw(t, "k"))
		q := edit(p, func(n *Node) {
			n.Link.BytesPerSecond *= k
			n.Link.Latency /= k
			n.PeerLatency /= k
			n.Disk *= k
			n.HostBus *= k
		}, func(d *Device) {
			eachRate(d, func(r *Rate) { r.Linear, r.Attention = r.Linear*k, r.Attention*k })
			d.Expansion *= k
			d.Memory *= k
			d.HostToDevice *= k
			d.Peer *= k
		})
		if a, b := stepOf(t, p), stepOf(t, q); !near(b*k, a) {
			t.Fatalf("%g, scaled by %g %g", a, k, b)
		}
	})
}

// TestObjectivesAgree checks that no plan has a smaller X than the one for throughput, nor a smaller S than the one for
// latency.
func TestObjectivesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawProblem(t)
		p.Batches = nil
		best := map[ObjectiveKind]float64{}
		for _, k := range []ObjectiveKind{ObjectiveLatency, ObjectiveThroughput} {
			p.Objective = Objective{Kind: k}
			best[k] = stepOf(t, p)
		}
		for _, k := range objectives {
			p.Objective = Objective{Kind: k}
			if k == ObjectiveBatch {
				p.Objective.Size = 3
			}
			plan, err := Place(p, Options{SkipLosses: true})
			if err != nil {
				if !math.IsInf(best[ObjectiveLatency], 1) {
					t.Fatalf("%s: %v", k, err)
				}
				return
			}
			pipe := plan.Pipelines[0]
			if pipe.Bottleneck < best[ObjectiveThroughput]*(1-1e-9) || pipe.Forward < best[ObjectiveLatency]*(1-1e-9) {
				t.Fatalf("%s: S %g X %g, alone they can be %v", k, pipe.Forward, pipe.Bottleneck, best)
			}
		}
	})
}

func TestOneHost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, r := drawProblem(t)
		p.Constraints.Exclude = nil
		alone := p
		alone.Nodes = []Node{pick(r, p.Nodes...)}
		if got, want := stepOf(t, alone), bruteForce(alone).value; !near(got, want) {
			t.Fatalf("%g, the optimum inside the node is %g", got, want)
		}
		plan, err := Place(p, Options{})
		if err != nil {
			return
		}
		best := math.Inf(1)
		for _, n := range p.Nodes {
			alone.Nodes = []Node{n}
			best = math.Min(best, bruteForce(alone).value)
		}
		if plan.Single.Fits == math.IsInf(best, 1) || (plan.Single.Fits && !near(plan.Single.StepSeconds, best)) {
			t.Fatalf("single %+v, the best node alone takes %g", plan.Single, best)
		}
	})
}

func TestPlanHoldsTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawAny(t)
		plan, err := Place(p, Options{})
		if err != nil {
			return
		}
		if again, err := newOracle(p).price(plan); err != nil || !near(again, plan.StepSeconds) {
			t.Fatalf("priced at %g, %v; was %g", again, err, plan.StepSeconds)
		}
		c := plan.Certificate
		if !near(plan.Parts.Total(), plan.StepSeconds) || plan.Band.Low > plan.StepSeconds || plan.Band.High < plan.StepSeconds {
			t.Fatalf("parts %+v band %+v step %g", plan.Parts, plan.Band, plan.StepSeconds)
		}
		if c.LowerBound > plan.StepSeconds*(1+1e-9) || c.Gap < 0 || (c.Optimal && c.Gap != 0) {
			t.Fatalf("certificate %+v of %g", c, plan.StepSeconds)
		}
		again, err := Reprice(p, plan.Stages)
		if err != nil || !near(again.StepSeconds, plan.StepSeconds) || !again.SameCut(plan) {
			t.Fatalf("repriced %+v, %v; was %g", again, err, plan.StepSeconds)
		}
		if plan.Single.Fits && plan.Single.StepSeconds < plan.StepSeconds*(1-1e-9) {
			t.Fatalf("one host at %g beats the plan at %g", plan.Single.StepSeconds, plan.StepSeconds)
		}
		checkUse(t, p, plan)
		checkLosses(t, p, plan)
	})
}

// checkUse accounts for each node: it runs a stage or there is a reason why not.
func checkUse(t *rapid.T, p Problem, plan *Plan) {
	seen := map[NodeID]int{}
	o := newOracle(p)
	for from := 0; from < len(plan.Stages); {
		to := from + 1
		for to < len(plan.Stages) && plan.Stages[to].Node == plan.Stages[from].Node && plan.Stages[to].Pipeline == plan.Stages[from].Pipeline {
			to++
		}
		at, _ := o.match(plan.Stages[from:to])
		for i, n := range o.p.Nodes {
			if at.mask&(1<<i) != 0 {
				seen[n.ID]++
			}
		}
		from = to
	}
	for _, u := range plan.Unused {
		seen[u.Node]++
		if u.Reason.Kind == "" {
			t.Fatalf("node %s is not used for no reason", u.Node)
		}
	}
	for _, n := range p.Nodes {
		if seen[n.ID] != 1 {
			t.Fatalf("node %s is accounted for %d times: %v", n.ID, seen[n.ID], seen)
		}
	}
}

func checkLosses(t *rapid.T, p Problem, plan *Plan) {
	for _, l := range plan.IfLost {
		q := p
		q.Nodes = slices.DeleteFunc(slices.Clone(p.Nodes), func(n Node) bool { return n.ID == l.Node })
		if len(q.Nodes) == 0 || len(p.Links) > 0 || len(p.Groups) > 0 {
			continue
		}
		if want := stepOf(t, q); l.Continues == math.IsInf(want, 1) || (l.Continues && !near(l.StepSeconds, want)) {
			t.Fatalf("loss of %s: %v, placing without it gives %g", l.Node, l, want)
		}
		if !l.Continues && l.Short <= 0 && l.Why == "" {
			t.Fatalf("loss of %s stops without a reason", l.Node)
		}
	}
}

// TestShortage checks that memory of the amount that a refusal names makes the model fit.
func TestShortage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, _ := drawProblem(t)
		_, err := Place(p, Options{SkipLosses: true})
		e, ok := errors.AsType[*InfeasibleError](err)
		if !ok || e.ShortNode == "" {
			return
		}
		if e.Short <= 0 {
			t.Fatalf("%d bytes more on %s: %v", int64(e.Short), e.ShortNode, err)
		}
		q := edit(p, func(n *Node) {
			for i := range n.Devices {
				if n.Label() == e.ShortNode {
					n.Devices[i].Allocatable += e.Short
				}
			}
		}, nil)
		if math.IsInf(stepOf(t, q), 1) {
			t.Fatalf("%d bytes more on %s are not enough: %v", int64(e.Short), e.ShortNode, err)
		}
	})
}
