package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func benchCluster(hosts, mix int, seed uint64, mem float64) []Node {
	r := rand.New(rand.NewPCG(seed, 3))
	var out []Node
	kind := func(i int) int {
		switch mix {
		case 0:
			return r.IntN(4) // 8 gpu
		case 1:
			return 4 + r.IntN(2)
		case 2:
			return 5
		default:
			return r.IntN(6)
		}
	}
	for i := range hosts {
		type k struct {
			g                                int
			tf, vram, pci, nv, nic, ram, lat float64
		}
		ks := []k{{8, 400, 80, 50, 300, 45, 400, 1e-5}, {8, 180, 40, 24, 200, 11, 200, 2e-5}, {8, 120, 48, 22, 18, 2.9, 128, 4e-5}, {8, 60, 24, 11, 10, 1.15, 64, 6e-5}, {2, 130, 24, 22, 18, 1.15, 48, 6e-5}, {1, 70, 12, 12, 10, .118, 24, 1e-4}}
		c := ks[kind(i)]
		jit := func(lo, hi float64) float64 { return lo + (hi-lo)*r.Float64() }
		n := Node{ID: NodeID(fmt.Sprintf("n%02d", i)), HasModel: true, RAM: Bytes(c.ram * 1e9 * jit(.3, 1)), PeerLatency: 1e-5,
			Link: Link{BytesPerSecond: c.nic * 1e9 * jit(.7, 1), Latency: c.lat}}
		rate := c.tf * 1e12 * jit(.8, 1.2) * .6
		for g := range c.g {
			n.Devices = append(n.Devices, Device{ID: fmt.Sprintf("cuda:%d", g), Kind: KindGPU, Model: "g", Allocatable: Bytes(c.vram * 1e9 * mem * jit(.95, .95)),
				Rates: []Rate{{DType: "bf16", Linear: rate, Attention: rate * .6}}, Memory: 1e12, HostToDevice: c.pci * 1e9, Peer: c.nv * 1e9})
		}
		out = append(out, n)
	}
	return out
}

func TestBenchCPU(t *testing.T) {
	wan := Model{Name: "wan", ComputeDType: "bf16", Heads: 40, Runs: []Run{{Name: "block", Count: 40, Boundary: 335e6, Block: Cost{Weights: 700e6, Linear: 23e12, Attention: 20e12, Elementwise: 7e9, Scratch: 3e9, Collective: 670e6}}}, Input: 4e6, Output: 4e6, Head: Cost{Weights: 200e6, Linear: 1e12}, Tail: Cost{Weights: 50e6, Linear: 5e11}}
	flux := fluxModel()
	flux.Heads = 24
	for i := range flux.Runs {
		flux.Runs[i].Block.Collective = 56e6
	}
	_ = wan
	for name, m := range map[string]Model{"flux": flux} {
		for mix := range 2 {
			for _, o := range []ObjectiveKind{ObjectiveLatency, ObjectivePair} {
				var times []float64
				for seed := range uint64(2) {
					p := Problem{Model: m, Nodes: benchCluster(64, mix, seed, []float64{1, .3}[seed%2]), Objective: Objective{Kind: o}, Constraints: Constraints{MaxPipelines: 1}}
					if o == ObjectiveBatch {
						p.Objective.Size = 4
					}
					start := time.Now()
					_, err := Place(p, Options{SkipLosses: true})
					if err != nil {
						t.Log(err.Error()[:100])
					}
					times = append(times, time.Since(start).Seconds()*1e3)
				}
				slices.Sort(times)
				t.Logf("%s mix %d %s: median %.1f worst %.1f ms", name, mix, o, times[0], times[1])
			}
		}
	}
}
