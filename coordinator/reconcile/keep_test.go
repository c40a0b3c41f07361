// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"slices"
	"strings"
	"testing"
)

// again changes a deployment's LoRAs: the same id, the next generation.
func (c *cluster) again(name string) {
	for i := range c.snapshot.Specs {
		if s := &c.snapshot.Specs[i]; s.Name == name {
			s.Generation++
		}
	}
}

func cutOf(p *Plan) string {
	var parts []string
	for _, s := range p.Stages {
		parts = append(parts, s.Name)
	}
	return strings.Join(parts, " ")
}

// A change of LoRAs keeps the stages that are loaded; another deploy, a node
// that restarted and a plan of half the speed do not.
func TestLoRAsKeepStages(t *testing.T) {
	for name, change := range map[string]struct {
		do   func(c *cluster)
		want string
	}{
		"LoRAs":                      {func(c *cluster) { c.again("d") }, "slow"},
		"a deploy":                   {func(c *cluster) { c.deploy(c.snapshot.Specs[0]) }, "fast"},
		"LoRAs, a much faster node":  {func(c *cluster) { speed(c.find("fast"), 10); c.again("d") }, "fast"},
		"LoRAs, the node restarted":  {func(c *cluster) { c.find("slow").Incarnation = "slow2"; c.again("d") }, "fast"},
		"LoRAs, the node is gone":    {func(c *cluster) { c.drop("slow"); c.again("d") }, "fast"},
		"LoRAs that need more room":  {func(c *cluster) { c.find("slow").Devices[0].Allocatable = 1 << 20; c.again("d") }, "fast"},
		"LoRAs, and again the LoRAs": {func(c *cluster) { c.again("d"); c.apply(Step(c.snapshot)); c.again("d") }, "slow"},
	} {
		c := newCluster()
		c.node("slow", 1<<30)
		c.deploy(Spec{Name: "d", Model: "id-tiny", DType: "f32", Workload: Workload{Dims: map[string]int64{"width": 512, "height": 512, "text_tokens": 64, "batch": 1}}})
		c.step(t)
		speed(c.node("fast", 1<<30), 1.5)
		if effects := c.step(t); len(effects) > 0 {
			t.Fatalf("%s: a node that came moved the deployment", name)
		}
		before := *c.plan("d")
		change.do(c)
		c.step(t)
		p := c.plan("d")
		if got := cutOf(p); got != change.want {
			t.Errorf("%s: on %q, want %q: %s", name, got, change.want, p.Infeasible)
		}
		if change.want == "slow" && (!slices.EqualFunc(p.Stages, before.Stages, func(a, b Stage) bool {
			return a.Device == b.Device && a.First == b.First && a.Blocks == b.Blocks && a.Stored == b.Stored && a.Slots == b.Slots && a.Ring == b.Ring
		}) || p.Epoch == before.Epoch || p.Forecast.Step <= 0 || len(p.Unused) == 0 || len(p.IfLost) == 0) {
			t.Errorf("%s: from %+v to %+v", name, before, *p)
		}
	}
}

func speed(n *Node, by float64) {
	for i := range n.Devices[0].Rates {
		r := &n.Devices[0].Rates[i]
		r.Linear, r.Attention, r.Elementwise = r.Linear*by, r.Attention*by, r.Elementwise*by
	}
}
