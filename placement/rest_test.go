// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		name     string
		resident int
		counts   []int
		want     []int
	}{
		{"none", 0, nil, []int{}},
		{"all resident", 3, []int{0}, []int{-1, -1, -1}},
		{"all streamed", 0, []int{2, 1}, []int{0, 1, 0}},
		{"half", 3, []int{3}, []int{-1, 0, -1, 0, -1, 0}},
		{"a third", 4, []int{2}, []int{-1, 0, -1, -1, 0, -1}},
		{"two tiers", 2, []int{2, 2}, []int{0, -1, 1, 0, -1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Spread(c.resident, c.counts)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestSpreadIsExactAndEven: every tier has its blocks, every block one place, and what streams lies evenly.
func TestSpreadIsExactAndEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		resident := rapid.IntRange(0, 60).Draw(t, "resident")
		counts := rapid.SliceOfN(rapid.IntRange(0, 30), 0, 5).Draw(t, "counts")
		got := Spread(resident, counts)
		streamed := 0
		for _, c := range counts {
			streamed += c
		}
		n := resident + streamed
		if len(got) != n {
			t.Fatalf("%d places for %d blocks", len(got), n)
		}
		have := map[int]int{}
		so := 0
		for j, i := range got {
			have[i]++
			if i >= 0 {
				so++
			}
			if off := math.Abs(float64(so) - float64(j+1)*float64(streamed)/float64(n)); off >= 1 {
				t.Errorf("of the first %d blocks %d stream, which is %.2f off", j+1, so, off)
			}
		}
		for i, c := range counts {
			if have[i] != c {
				t.Errorf("tier %d has %d blocks for %d", i, have[i], c)
			}
		}
		if have[-1] != resident {
			t.Errorf("%d blocks are resident for %d", have[-1], resident)
		}
	})
}

// TestRestCoversWhatStreams: the ranges of a plan's stages are disjoint, within the stage, as many blocks as stream, and
// no tier holds more than it has.
func TestRestCoversWhatStreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Model{Name: "m", ComputeDType: "bf16", Runs: []Run{
			{Name: "a", Count: rapid.IntRange(1, 12).Draw(t, "a"), Block: Cost{Weights: 50, Linear: 1e9, Scratch: 5}},
			{Name: "b", Count: rapid.IntRange(1, 12).Draw(t, "b"), Block: Cost{Weights: 30, Linear: 1e9, Scratch: 5}},
		}}
		gpu := func(id string, memory int) Device {
			return Device{ID: id, Kind: KindGPU, Model: "x", Allocatable: Bytes(memory), Rates: []Rate{{DType: "bf16", Linear: 1e12, Attention: 1e12}}, Memory: 1e11, HostToDevice: 1e3, Peer: 2e3}
		}
		n := Node{
			ID: "n", HasModel: true, Link: Link{BytesPerSecond: 1e9}, RAM: Bytes(rapid.IntRange(0, 400).Draw(t, "ram")),
			Devices: []Device{gpu("cuda:0", rapid.IntRange(100, 600).Draw(t, "memory")), gpu("cuda:1", rapid.IntRange(0, 200).Draw(t, "donor"))},
		}
		if rapid.Bool().Draw(t, "disk") {
			n.Disk = 1e3
		}
		p, err := Place(Problem{Model: m, Nodes: []Node{n}, Constraints: Constraints{MaxDegree: 1, MaxPipelines: 1}}, Options{SkipLosses: true})
		if err != nil {
			return
		}
		for _, s := range p.Stages {
			if s.Ring == 0 && len(s.Rest) > 0 {
				t.Errorf("nothing streams and %v rest elsewhere", s.Rest)
			}
			if s.Ring == 0 || !s.Whole {
				continue
			}
			at, bytes := s.First, map[TierKind]Bytes{}
			var streamed Bytes
			for _, r := range s.Rest {
				if r.First < at || r.Blocks < 1 || r.First+r.Blocks > s.First+s.Blocks {
					t.Fatalf("ranges %v of blocks %d-%d", s.Rest, s.First, s.First+s.Blocks-1)
				}
				at = r.First + r.Blocks
				for b := r.First; b < at; b++ {
					w := m.Runs[0].Block.Weights
					if b >= m.Runs[0].Count {
						w = m.Runs[1].Block.Weights
					}
					bytes[r.Kind] += w
					streamed += w
				}
			}
			if bytes[TierRAM] > n.RAM || bytes[TierDonor] > n.Devices[1].Allocatable && s.Device == "cuda:0" {
				t.Errorf("tiers hold %v", bytes)
			}
			total := Bytes(0)
			for _, x := range s.Tiers[1:] {
				total += x.Bytes
			}
			if streamed != total {
				t.Errorf("%d bytes rest elsewhere, %d stream", streamed, total)
			}
		}
	})
}
