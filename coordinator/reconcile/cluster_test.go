// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// dev is FLUX.1-dev's own size, tiny a model of a few megabytes.
var (
	dev  = arch.Flux{Channels: 16, Hidden: 3072, Heads: 24, MLP: 12288, Context: 4096, Vector: 768, Double: 19, Single: 38, Axes: []int64{16, 56, 56}, Guidance: true}
	tiny = arch.Flux{Channels: 4, Hidden: 128, Heads: 4, MLP: 512, Context: 64, Vector: 32, Double: 3, Single: 5, Axes: []int64{8, 12, 12}, Guidance: true}
)

func testModel(name string, f arch.Flux, stored tensor.DType) Model {
	g := f.Build(arch.Options{})
	m := Model{ID: "id-" + name, Name: name, Graph: g, Stored: map[string]tensor.DType{}, DefaultDType: "BF16"}
	add := func(gr *graph.Graph, count int64) {
		for i := range count {
			for _, w := range gr.Weights {
				m.Stored[graph.Resolve(w.Name, int(i))] = stored
			}
		}
	}
	add(&g.Head, 1)
	add(&g.Tail, 1)
	for i := range g.Runs {
		r := &g.Runs[i]
		add(&r.Block, r.Count)
		if r.Entry != nil {
			add(r.Entry, 1)
		}
	}
	return m
}

// cluster is the state that the tests change between steps.
type cluster struct {
	snapshot Snapshot
	revision int64
}

func newCluster() *cluster {
	c := &cluster{}
	c.snapshot.Protocol = Versions{1, 2}
	c.snapshot.Models = []Model{
		testModel("flux-bf16", dev, tensor.BF16), testModel("flux-fp8", dev, tensor.F8E4M3),
		testModel("tiny", tiny, tensor.F32), testModel("tiny-fp8", tiny, tensor.F8E4M3),
	}
	return c
}

// node returns a node that has every model; mutate it before the next step.
func (c *cluster) node(name string, memory uint64) *Node {
	n := Node{
		ID: "n-" + name, Name: name, Incarnation: name + "1", Address: name + ":7800",
		Protocol: Versions{1, 1}, OpSet: graph.OpSet, Load: 1e9, Link: &Link{BytesPerSecond: 1.18e9, Latency: 1e-4},
		Devices: []Device{{
			Name: "cpu", Allocatable: memory, Classes: []string{"native/1/f32", "native/1/bf16"},
			Rates: []Rates{
				{DType: "f32", Elements: 1, Linear: 1e11, Attention: 5e10, Expand: 5e9, Elementwise: 1e10},
				{DType: "bf16", Elements: 1, Linear: 2e11, Attention: 1e11, Expand: 5e9, Elementwise: 1e10},
			},
		}},
	}
	c.touch(&n)
	c.drop(name)
	c.snapshot.Nodes = append(c.snapshot.Nodes, n)
	for _, m := range c.snapshot.Models {
		if h := (Holder{m.ID, n.ID}); !slices.Contains(c.snapshot.Holders, h) {
			c.snapshot.Holders = append(c.snapshot.Holders, h)
		}
	}
	return &c.snapshot.Nodes[len(c.snapshot.Nodes)-1]
}

func (c *cluster) touch(n *Node) {
	c.revision++
	n.Revision = c.revision
}

func (c *cluster) drop(name string) {
	c.snapshot.Nodes = slices.DeleteFunc(c.snapshot.Nodes, func(n Node) bool { return n.Name == name })
}

func (c *cluster) find(name string) *Node {
	for i := range c.snapshot.Nodes {
		if c.snapshot.Nodes[i].Name == name {
			return &c.snapshot.Nodes[i]
		}
	}
	return nil
}

func (c *cluster) plan(name string) *Plan {
	for i := range c.snapshot.Plans {
		if c.snapshot.Plans[i].Deployment == name {
			return &c.snapshot.Plans[i]
		}
	}
	return nil
}

func (c *cluster) deploy(s Spec) {
	c.revision++
	s.ID = fmt.Sprintf("d%d", c.revision)
	for i := range c.snapshot.Specs {
		if old := &c.snapshot.Specs[i]; old.Name == s.Name {
			s.Generation = old.Generation + 1
			*old = s
			return
		}
	}
	s.Generation = 1
	c.snapshot.Specs = append(c.snapshot.Specs, s)
}

func (c *cluster) undeploy(name string) {
	c.snapshot.Specs = slices.DeleteFunc(c.snapshot.Specs, func(s Spec) bool { return s.Name == name })
}

// apply makes the effects' writes.
func (c *cluster) apply(effects []Effect) {
	for _, e := range effects {
		c.snapshot.Plans = slices.DeleteFunc(c.snapshot.Plans, func(p Plan) bool { return p.Deployment == e.Deployment })
		if e.Plan != nil {
			c.snapshot.Plans = append(c.snapshot.Plans, *e.Plan)
		}
	}
}

// step applies what Step returns and fails if it does not settle at once.
func (c *cluster) step(t fataler) []Effect {
	effects := Step(c.snapshot)
	c.apply(effects)
	if again := Step(c.snapshot); len(again) > 0 {
		t.Fatalf("Step is not idempotent: after %s it returns %s", show(effects), show(again))
	}
	return effects
}

type fataler interface{ Fatalf(string, ...any) }

var _ fataler = (*testing.T)(nil)

func show(effects []Effect) string {
	var b strings.Builder
	for _, e := range effects {
		if e.Plan == nil {
			fmt.Fprintf(&b, "%s: delete (%s)\n", e.Deployment, e.Why)
			continue
		}
		p := e.Plan
		fmt.Fprintf(&b, "%s: epoch %d generation %d (%s)\n", e.Deployment, p.Epoch, p.Generation, e.Why)
		for _, s := range p.Stages {
			how := "packed"
			if s.Stored {
				how = fmt.Sprintf("stored, %d slots", s.Slots)
			}
			ends := ""
			if s.Head {
				ends += " head"
			}
			if s.Tail {
				ends += " tail"
			}
			fmt.Fprintf(&b, "  %s@%s blocks %d-%d%s %s %s\n", s.Name, s.Incarnation, s.First, s.First+s.Blocks-1, ends, how, s.Class)
		}
		if p.Infeasible != "" {
			fmt.Fprintf(&b, "  infeasible: %s\n", p.Infeasible)
		} else {
			fmt.Fprintf(&b, "  numerics: %s\n", p.Numerics)
		}
		for _, u := range p.Unused {
			fmt.Fprintf(&b, "  unused %s: %s\n", u.Node, u.Reason)
		}
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}
