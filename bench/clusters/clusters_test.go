// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package clusters

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/placement"
)

func TestNew(t *testing.T) {
	models, err := Models()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range models {
		for _, mix := range Mixes() {
			for seed := range uint64(4) {
				o := Options{Mix: mix, Hosts: 64, Model: m.Model, NoSingle: seed%2 == 1, Seed: seed}
				nodes := New(o)
				if diff := cmp.Diff(nodes, New(o)); diff != "" {
					t.Fatalf("the same seed gives others:\n%s", diff)
				}
				gpus, all := 0, placement.Bytes(0)
				for _, n := range nodes {
					if err := n.Validate(); err != nil {
						t.Fatal(err)
					}
					gpus += len(n.Devices)
					sum := n.RAM
					for _, d := range n.Devices {
						sum += d.Allocatable
						if d.Allocatable >= leastDevice(m.Model) {
							all += d.Allocatable
						}
					}
					if o.NoSingle && sum >= m.Model.Weights() {
						t.Errorf("%s, %s: a host of %s can hold %s", m.Name, mix, sum, m.Model.Weights())
					}
				}
				if gpus > 512 || all < m.Model.Weights() {
					t.Errorf("%s, %s, seed %d: %d GPUs, those that hold two blocks have %s", m.Name, mix, seed, gpus, all)
				}
			}
		}
	}
}

func TestOutside(t *testing.T) {
	nodes := New(Options{Mix: MixEight, Hosts: 64, Seed: 3})
	Distinct(nodes, 3)
	seen := map[float64]bool{}
	for _, n := range nodes {
		if seen[n.Devices[0].Rates[0].Linear] {
			t.Error("two hosts are equal")
		}
		seen[n.Devices[0].Rates[0].Linear] = true
		for _, d := range n.Devices[1:] {
			if d.Rates[0] != n.Devices[0].Rates[0] {
				t.Errorf("GPUs of %s differ", n.ID)
			}
		}
	}
	if racks := Racks(nodes, 3); len(racks) != 8 || len(racks[7].Nodes) != 8 {
		t.Errorf("%+v", racks)
	}
	links := Links(nodes, 0.25, 3)
	if len(links) < 800 || len(links) > 1200 {
		t.Errorf("%d links of 4032", len(links))
	}
	for _, l := range links {
		if l.From == l.To || l.BytesPerSecond <= 0 {
			t.Errorf("%+v", l)
		}
	}
}
