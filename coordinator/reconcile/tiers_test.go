// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"strings"
	"testing"

	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// gpu adds a device of its own memory to a node.
func (n *Node) gpu(name string, memory uint64) {
	cpu := *n.device(cpu)
	for i := range cpu.Rates {
		cpu.Rates[i].Linear *= 10
	}
	n.Devices = append(n.Devices, Device{
		Name: name, Kind: "cuda", Allocatable: memory, Classes: []string{"torch/2/x/bf16", "torch/2/x/f32"}, Rates: cpu.Rates,
		HostToDevice: 1e10, DeviceToHost: 1e10, Peer: 2e10, Overlaps: true,
	})
}

func flux(more Spec) Spec {
	more.Name, more.ID, more.Model, more.Workload = "d", "1", "id-flux-bf16", Workload{Dims: words(512)}
	return more
}

// covers fails unless tiers lie within the stage, in order, and no block has two.
func covers(t *testing.T, s *Stage) {
	t.Helper()
	at := s.First
	for _, x := range s.Tiers {
		if x.First < at || x.Blocks < 1 || x.First+x.Blocks > s.First+s.Blocks || x.Bytes == 0 {
			t.Errorf("tiers %+v of blocks %d-%d", s.Tiers, s.First, s.First+s.Blocks-1)
		}
		at = x.First + x.Blocks
	}
}

// TestTiers: what a GPU does not hold rests in its node's RAM, on another GPU,
// in another node's RAM, or on disk, within what each of them has.
func TestTiers(t *testing.T) {
	for name, c := range map[string]struct {
		spec  Spec
		set   func(c *cluster)
		wants placement.TierKind
	}{
		"RAM": {Spec{}, func(c *cluster) { c.node("a", 64e9).gpu("cuda:0", 12e9) }, placement.TierRAM},
		"another GPU": {Spec{Allocation: "a/cuda:1,8gb;a/cpu,*#a/cuda:0"}, func(c *cluster) {
			n := c.node("a", 64e9)
			n.gpu("cuda:0", 12e9)
			n.gpu("cuda:1", 12e9)
			c.node("b", 1e9)
		}, placement.TierDonor},
		"another node": {Spec{}, func(c *cluster) {
			c.node("a", 3e9).gpu("cuda:0", 12e9)
			n := c.node("b", 32e9)
			n.Donate = 20e9
			c.snapshot.Holders = c.snapshot.Holders[:len(c.snapshot.Models)] // a's
		}, placement.TierRemote},
		"disk": {Spec{}, func(c *cluster) {
			n := c.node("a", 3e9)
			n.gpu("cuda:0", 12e9)
			n.Disk = 2e9
		}, placement.TierDisk},
		"virtual VRAM": {Spec{VirtualVRAM: 20 << 30}, func(c *cluster) { c.node("a", 64e9).gpu("cuda:0", 24e9) }, placement.TierRAM},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster()
			c.set(cl)
			p := Propose(cl.snapshot, flux(c.spec))
			if p.Err != nil {
				t.Fatal(p.Err)
			}
			w := newWorld(cl.snapshot)
			found := false
			for i := range p.Plan.Stages {
				s := &p.Plan.Stages[i]
				covers(t, s)
				for _, x := range s.Tiers {
					found = found || x.Kind == c.wants
				}
			}
			if !found {
				t.Errorf("no block rests in %s: %+v", c.wants, p.Plan.Stages)
			}
			for i := range w.nodes {
				n := &w.nodes[i]
				use := w.used(n.ID, &p.Plan)
				if use.host > n.hostMemory() || use.lent > n.Donate {
					t.Errorf("node %s: %+v of %d, %d", n.Name, use, n.hostMemory(), n.Donate)
				}
				for k := range n.Devices {
					if d := &n.Devices[k]; use.devices[d.Name] > n.memory(d) {
						t.Errorf("%s/%s: %d of %d", n.Name, d.Name, use.devices[d.Name], n.memory(d))
					}
				}
			}
			if manual := c.spec.manual(); (p.Plan.Fit == "strict") != manual {
				t.Errorf("fit %q", p.Plan.Fit)
			}
		})
	}
}

// TestStrictRefuses: with numbers, and what would help.
func TestStrictRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spec Spec
		says []string
	}{
		"fit strict": {Spec{Fit: "strict"}, []string{"needs 23.8 GB", "a/cuda:0: ", "let weights be streamed"}},
		"a string":   {Spec{Allocation: "cuda:0,*"}, []string{"cuda:0 would hold", "short", "nearest string that fits: cuda:0,*;cpu,*"}},
		"virtual":    {Spec{VirtualVRAM: 1 << 30}, []string{"cuda:0 would hold", "short"}},
		"reserve":    {Spec{Fit: "strict", Reserve: 8e9}, []string{"needs 23.8 GB"}},
		"no GPU":     {Spec{VirtualVRAM: 1 << 30, Excludes: []string{"a"}}, []string{"no usable node has one"}},
	} {
		t.Run(name, func(t *testing.T) {
			cl := newCluster()
			cl.node("a", 64e9).gpu("cuda:0", 12e9)
			p := Propose(cl.snapshot, flux(c.spec))
			if p.Err == nil || !Infeasible(p.Err) {
				t.Fatalf("%v", p.Err)
			}
			for _, text := range c.says {
				if !strings.Contains(p.Err.Error(), text) {
					t.Errorf("%v; want %q", p.Err, text)
				}
			}
		})
	}
}

// TestStorageByChoice: blocks rest in fp8, and the class says so.
func TestStorageByChoice(t *testing.T) {
	cl := newCluster()
	cl.node("a", 64e9).gpu("cuda:0", 16e9)
	p := Propose(cl.snapshot, flux(Spec{Storage: StorageFP8}))
	if p.Err != nil {
		t.Fatal(p.Err)
	}
	s := p.Plan.Stages[0]
	if !s.Stored || s.Storage != StorageFP8 || s.Class != "torch/2/x/bf16+fp8b64" || len(s.Tiers) > 0 || p.Plan.Numerics != "equals one device (torch/2/x+fp8b64)" {
		t.Errorf("%+v, numerics %q", s, p.Plan.Numerics)
	}
	wide := Propose(cl.snapshot, flux(Spec{}))
	if wide.Err != nil || len(wide.Plan.Stages[0].Tiers) == 0 {
		t.Errorf("in bf16 it fits as well: %+v, %v", wide.Plan.Stages, wide.Err)
	}
}

// TestDonorsAndDevicesThatLeave: a plan whose device or donor is gone is made
// again without it; one that reported itself is left alone until its record
// changes, and its node is not.
func TestDonorsAndDevicesThatLeave(t *testing.T) {
	c := newCluster()
	a := c.node("a", 3e9)
	a.gpu("cuda:0", 12e9)
	a.Disk = 1e8
	b := c.node("b", 32e9)
	b.Donate = 20e9
	c.snapshot.Holders = c.snapshot.Holders[:len(c.snapshot.Models)]
	c.deploy(Spec{Name: "d", Model: "id-flux-bf16", Workload: Workload{Dims: words(512)}})
	c.step(t)
	remote := func() bool {
		for _, s := range c.plan("d").Stages {
			for _, x := range s.Tiers {
				if x.Kind == placement.TierRemote {
					return true
				}
			}
		}
		return false
	}
	if !remote() {
		t.Fatalf("no blocks on b: %+v", c.plan("d"))
	}
	full := func() {
		p := c.plan("d")
		c.snapshot.Observed = []Observed{{
			Deployment: "d", DeploymentID: p.DeploymentID, Node: "n-a", Incarnation: "a1", Epoch: p.Epoch, Failed: true,
			Message: "blocks in the RAM of node b: donor memory is full", Donor: "n-b",
		}}
	}
	full()
	effects := c.step(t)
	if len(effects) != 1 || remote() || len(c.plan("d").Stages) == 0 || !strings.Contains(effects[0].Why, "donor memory is full") {
		t.Fatalf("a full donor: %s", show(effects))
	}
	// b's record changes; the deployment is made again and may use it.
	c.touch(c.find("b"))
	c.deploy(Spec{Name: "d", Model: "id-flux-bf16", Workload: Workload{Dims: words(512)}})
	c.step(t)
	if !remote() {
		t.Fatalf("b is not used again: %+v", c.plan("d"))
	}
	c.find("b").Incarnation = "b2"
	if effects = c.step(t); len(effects) != 1 || effects[0].Why != "node b, which keeps blocks, restarted" || !remote() {
		t.Errorf("a donor that restarted: %s", show(effects))
	}
	c.drop("b")
	if effects = c.step(t); len(effects) != 1 || effects[0].Why != "node b, which keeps blocks, left the cluster" || remote() {
		t.Errorf("a donor that left: %s", show(effects))
	}
	n := c.find("a")
	n.Devices, n.Lost = n.Devices[:1], []Lost{{"cuda:0", "the driver stopped answering"}}
	c.touch(n)
	effects = c.step(t)
	if len(effects) != 1 || effects[0].Why != "node a lost device cuda:0: the driver stopped answering" {
		t.Errorf("a device that is lost: %s", show(effects))
	}
}

// TestFootprintOfTiers: what rests elsewhere is not on the device, and bytes are
// neither lost nor counted twice.
func TestFootprintOfTiers(t *testing.T) {
	c := newCluster()
	m := c.snapshot.Models[2] // tiny, f32
	spec := Spec{Workload: Workload{Dims: words(64)}}
	tab, err := specialise(&spec, &m, "f32")
	if err != nil {
		t.Fatal(err)
	}
	whole := StageShape{Blocks: 8, Head: true, Tail: true, InFlight: 2, Slots: 1, Own: true}
	all, err := StageFootprint(tab.program, m.Stored, whole)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []placement.TierKind{placement.TierRAM, placement.TierDonor, placement.TierRemote, placement.TierDisk} {
		s := whole
		s.Ring, s.Tiers = 2, []Tier{{First: 1, Blocks: 2, Kind: kind, Device: "x"}, {First: 5, Blocks: 1, Kind: kind, Device: "x"}}
		f, err := StageFootprint(tab.program, m.Stored, s)
		if err != nil {
			t.Fatal(err)
		}
		var rest tensor.Bytes
		for _, n := range f.Tiers {
			rest += n
		}
		if rest == 0 || f.Weights+rest != all.Weights {
			t.Errorf("%s: %d on the device and %d elsewhere of %d", kind, f.Weights, rest, all.Weights)
		}
		if (f.RAM > 0) != (kind == placement.TierRAM) || (f.Bounce > 0) != (kind == placement.TierRemote || kind == placement.TierDisk) {
			t.Errorf("%s: %+v", kind, f)
		}
		if f.Peak() >= all.Peak() || f.Staging == 0 {
			t.Errorf("%s: the device's peak is %d, resident %d", kind, f.Peak(), all.Peak())
		}
	}
}
