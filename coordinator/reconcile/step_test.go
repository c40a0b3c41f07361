// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/model/graph"
)

// TestDecisions runs the golden decision tables; refresh them with -rewrite.
//
//	node NAME memory=GB [incarnation=I] [protocol=A-B] [op-set=N] [linear=RATE] [file=no] [overhead=GB] [unmeasured] [class=C]
//	gone NAME, fail NAME deployment=D message=(words) [epoch=N]
//	deploy NAME model=M [dtype=T] [size=N] [pins=(a:0:20,b:20:37)] [exclude=(a,b)], undeploy NAME
//	step: prints the effects and applies them; again: must be nothing (checked after each step)
func TestDecisions(t *testing.T) {
	datadriven.Walk(t, "testdata/decisions", func(t *testing.T, path string) {
		c := newCluster()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "step":
				return show(c.step(t))
			case "change":
				for line := range strings.SplitSeq(d.Input, "\n") {
					c.change(t, line)
				}
				return ""
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

func (c *cluster) change(t *testing.T, line string) {
	cmd, args, err := datadriven.ParseLine(line)
	if err != nil || len(args) == 0 {
		t.Fatalf("%q: %v", line, err)
	}
	name, options := args[0].Key, args[1:]
	switch cmd {
	case "node":
		c.changeNode(t, name, options)
	case "gone":
		c.drop(name)
	case "undeploy":
		c.undeploy(name)
	case "deploy":
		c.deploy(specOf(t, name, options))
	case "fail":
		c.fail(t, name, options)
	default:
		t.Fatalf("unknown change %q", line)
	}
}

func (c *cluster) changeNode(t *testing.T, name string, options []datadriven.CmdArg) {
	n := c.node(name, 0)
	for _, o := range options {
		value := strings.Join(o.Vals, ",")
		switch o.Key {
		case "memory":
			n.Devices[0].Allocatable = uint64(number(t, value) * 1e9)
		case "overhead":
			n.Devices[0].Overhead = uint64(number(t, value) * 1e9)
		case "linear":
			n.Devices[0].Rates[1].Linear = number(t, value)
		case "class":
			n.Devices[0].Classes = []string{value}
		case "incarnation":
			n.Incarnation = value
		case "op-set":
			n.OpSet = uint32(number(t, value))
		case "protocol":
			if _, err := fmt.Sscanf(value, "%d-%d", &n.Protocol.Min, &n.Protocol.Max); err != nil {
				t.Fatal(err)
			}
		case "unmeasured":
			n.Link = nil
		case "file":
			var kept []Holder
			for _, h := range c.snapshot.Holders {
				if h.Node != n.ID {
					kept = append(kept, h)
				}
			}
			c.snapshot.Holders = kept
		default:
			t.Fatalf("unknown option %s", o.Key)
		}
	}
}

func (c *cluster) fail(t *testing.T, name string, options []datadriven.CmdArg) {
	n := c.find(name)
	o := Observed{Node: n.ID, Incarnation: n.Incarnation, Failed: true}
	for _, opt := range options {
		switch opt.Key {
		case "deployment":
			o.Deployment = opt.Vals[0]
		case "message":
			o.Message = strings.Join(opt.Vals, ", ")
		}
	}
	p := c.plan(o.Deployment)
	o.DeploymentID, o.Epoch = p.DeploymentID, p.Epoch
	c.snapshot.Observed = append(c.snapshot.Observed, o)
}

func specOf(t *testing.T, name string, options []datadriven.CmdArg) Spec {
	s := Spec{Name: name, Workload: Workload{Dims: words(512)}}
	for _, o := range options {
		switch o.Key {
		case "model":
			s.Model = "id-" + o.Vals[0]
		case "dtype":
			s.DType = o.Vals[0]
		case "size":
			s.Workload.Dims = words(int64(number(t, o.Vals[0])))
		case "exclude":
			s.Excludes = o.Vals
		case "pins":
			for _, v := range o.Vals {
				f := strings.Split(v, ":")
				s.Pins = append(s.Pins, Pin{Node: f[0], First: int(number(t, f[1])), Blocks: int(number(t, f[2]))})
			}
		default:
			t.Fatalf("unknown option %s", o.Key)
		}
	}
	return s
}

func words(size int64) map[string]int64 {
	return map[string]int64{"width": size, "height": size, "text_tokens": 512, "batch": 1}
}

func number(t *testing.T, text string) float64 {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestSettles draws histories of a cluster: after every change the effects
// settle it, its plans never hold more than a node offers, and the order of
// records changes nothing.
func TestSettles(t *testing.T) {
	base := newCluster()
	rapid.Check(t, func(t *rapid.T) {
		c := &cluster{snapshot: Snapshot{Protocol: base.snapshot.Protocol, Models: base.snapshot.Models}}
		names := []string{"a", "b", "c"}
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			name := rapid.SampledFrom(names).Draw(t, "name")
			switch rapid.IntRange(0, 6).Draw(t, "change") {
			case 0, 1:
				memory := rapid.Uint64Range(0, 20e6).Draw(t, "memory")
				n := c.node(name, memory)
				n.Incarnation = fmt.Sprint(c.revision)
			case 2:
				c.drop(name)
			case 3, 4:
				m := rapid.SampledFrom([]string{"id-tiny", "id-tiny-fp8", "id-none"}).Draw(t, "model")
				c.deploy(Spec{Name: name, Model: m, Workload: Workload{Dims: map[string]int64{"width": 64, "height": 64, "text_tokens": 16, "batch": 1}}})
			case 5:
				c.undeploy(name)
			case 6:
				if p := c.plan(name); p != nil && len(p.Stages) > 0 {
					s := p.Stages[len(p.Stages)-1]
					c.snapshot.Observed = append(c.snapshot.Observed, Observed{Deployment: name, DeploymentID: p.DeploymentID,
						Node: s.Node, Incarnation: s.Incarnation, Epoch: p.Epoch, Failed: true, Message: "disk full"})
				}
			}
			shuffled := shuffle(c.snapshot)
			if diff := cmp.Diff(Step(c.snapshot), Step(shuffled)); diff != "" {
				t.Fatalf("order matters: %s", diff)
			}
			before := map[string]uint64{}
			for _, p := range c.snapshot.Plans {
				before[p.Deployment] = p.Epoch
			}
			for _, e := range c.step(t) {
				if e.Plan != nil && e.Plan.Epoch != before[e.Deployment]+1 {
					t.Fatalf("%s: epoch %d after %d", e.Deployment, e.Plan.Epoch, before[e.Deployment])
				}
			}
			c.check(t)
		}
	})
}

func shuffle(s Snapshot) Snapshot {
	r := rand.New(rand.NewPCG(1, 2))
	s.Nodes = append([]Node{}, s.Nodes...)
	s.Specs = append([]Spec{}, s.Specs...)
	s.Plans = append([]Plan{}, s.Plans...)
	s.Holders = append([]Holder{}, s.Holders...)
	r.Shuffle(len(s.Nodes), func(i, j int) { s.Nodes[i], s.Nodes[j] = s.Nodes[j], s.Nodes[i] })
	r.Shuffle(len(s.Specs), func(i, j int) { s.Specs[i], s.Specs[j] = s.Specs[j], s.Specs[i] })
	r.Shuffle(len(s.Plans), func(i, j int) { s.Plans[i], s.Plans[j] = s.Plans[j], s.Plans[i] })
	r.Shuffle(len(s.Holders), func(i, j int) { s.Holders[i], s.Holders[j] = s.Holders[j], s.Holders[i] })
	return s
}

// check holds the plans against what must be so in every settled cluster.
func (c *cluster) check(t fataler) {
	used := map[string]uint64{}
	for _, spec := range c.snapshot.Specs {
		p := c.plan(spec.Name)
		if p == nil || p.DeploymentID != spec.ID || p.Generation != spec.Generation {
			t.Fatalf("%s has no plan of its own: %+v", spec.Name, p)
		}
		if (len(p.Stages) == 0) != (p.Infeasible != "") {
			t.Fatalf("%s: %d stages and refusal %q", spec.Name, len(p.Stages), p.Infeasible)
		}
		next := 0
		for i, s := range p.Stages {
			n := c.find(s.Name)
			if n == nil || n.Incarnation != s.Incarnation || s.First != next || s.Head != (i == 0) || s.Tail != (i == len(p.Stages)-1) {
				t.Fatalf("%s: stage %d is wrong: %+v", spec.Name, i, s)
			}
			next += s.Blocks
			used[s.Name] += s.Forecast.PeakBytes
			if used[s.Name] > n.Devices[0].Allocatable {
				t.Fatalf("%s: plans take %d bytes of node %s, which has %d", spec.Name, used[s.Name], s.Name, n.Devices[0].Allocatable)
			}
		}
	}
	if len(c.snapshot.Plans) != len(c.snapshot.Specs) {
		t.Fatalf("%d plans for %d deployments", len(c.snapshot.Plans), len(c.snapshot.Specs))
	}
}

// TestTableCoversFootprint: what placement counts for a stage is never less
// than the stage takes, and not much more.
func TestTableCoversFootprint(t *testing.T) {
	c := newCluster()
	for _, m := range c.snapshot.Models {
		spec := Spec{Name: "d", Model: m.ID, Workload: Workload{Dims: words(512)}}
		tab, err := specialise(&spec, &m, "bf16")
		if err != nil {
			t.Fatal(err)
		}
		for _, stored := range []bool{false, true} {
			pm := tab.packed
			if stored {
				pm = tab.stored
			}
			all := m.Graph.Blocks()
			for _, cut := range [][2]int{{0, all}, {0, 2}, {2, 2}, {all - 2, 2}} {
				s := StageShape{First: cut[0], Blocks: cut[1], Head: cut[0] == 0, Tail: cut[0]+cut[1] == all, Stored: stored, Slots: 1, InFlight: 2}
				f, err := StageFootprint(tab.program, m.Stored, s)
				if err != nil {
					t.Fatal(err)
				}
				counted := int64(0)
				var slot, scratch int64
				for i := range s.Blocks {
					run, _, _ := m.Graph.BlockAt(s.First + i)
					b := pm.Runs[run].Block
					counted += int64(b.Weights)
					slot, scratch = max(slot, int64(b.Staging)), max(scratch, int64(b.Scratch))
				}
				if s.Head {
					counted += int64(pm.Head.Weights)
					slot, scratch = max(slot, int64(pm.Head.Staging)), max(scratch, int64(pm.Head.Scratch))
				}
				if s.Tail {
					counted += int64(pm.Tail.Weights)
					slot, scratch = max(slot, int64(pm.Tail.Staging)), max(scratch, int64(pm.Tail.Scratch))
				}
				counted += slot + scratch
				if peak := int64(f.Peak()); counted < peak || float64(counted) > 1.6*float64(peak) {
					t.Errorf("%s stored=%v %v: placement counts %d, the stage takes %d", m.Name, stored, cut, counted, peak)
				}
			}
		}
	}
}

// TestStageFootprintRefuses: a stage that cannot be and a weight that is not
// there.
func TestStageFootprintRefuses(t *testing.T) {
	m := newCluster().snapshot.Models[2]
	spec := Spec{Workload: Workload{Dims: words(64)}}
	tab, err := specialise(&spec, &m, "f32")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StageFootprint(tab.program, m.Stored, StageShape{First: 7, Blocks: 2}); err == nil {
		t.Error("a stage beyond the last block was counted")
	}
	name := graph.Resolve(m.Graph.Runs[1].Block.Weights[0].Name, 2)
	delete(m.Stored, name)
	if _, err := StageFootprint(tab.program, m.Stored, StageShape{Blocks: 8, Head: true, Tail: true}); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("missing weight %s: %v", name, err)
	}
}
