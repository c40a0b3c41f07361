// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// fluxModel is FLUX.1-dev at 1024x1024 (4608 tokens, width 3072) stored and computed in bf16: 11.9 G parameters.
func fluxModel() Model {
	const tokens, width = 4608, 3072
	attention := 4.0 * tokens * tokens * width
	boundary := Bytes(tokens * width * 2)
	block := func(params float64) Cost {
		return Cost{Weights: Bytes(2 * params), Linear: 2 * params * tokens, Attention: attention, Elementwise: 20 * boundary, Scratch: 12 * boundary}
	}
	return Model{
		Name: "flux1-dev", ComputeDType: "bf16", StoredDType: "bf16", Vec: width * 2, Input: 524288, Output: 524288,
		Runs: []Run{
			{Name: "double", Count: 19, Block: block(340e6), Boundary: boundary},
			{Name: "single", Count: 38, Block: block(141.6e6), Boundary: boundary},
		},
		Head: Cost{Weights: 100e6, Linear: 0.1e12, Scratch: 2 * boundary},
		Tail: Cost{Weights: 40e6, Linear: 2e9, Scratch: boundary},
	}
}

func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

// fluxCluster is a seeded cluster of unlike hosts on 1 to 25 GbE.
func fluxCluster(hosts int, seed uint64, largest float64) []Node {
	r := rand.New(rand.NewPCG(seed, 3))
	nodes := make([]Node, hosts)
	for i := range nodes {
		rate := 1e12 * (0.3 + 4*r.Float64())
		nodes[i] = Node{
			ID: NodeID(fmt.Sprintf("n%02d", i)), HasModel: true, Load: 1e9,
			Link: Link{BytesPerSecond: pick(r, 0.118e9, 0.118e9, 0.29e9, 1.18e9, 2.9e9) * (0.8 + 0.2*r.Float64()), Latency: 1e-4 * r.Float64()},
			Devices: []Device{{
				ID: "cpu", Kind: KindCPU, Allocatable: Bytes(1e9 * (2 + (largest-2)*r.Float64())), Reserve: 5e8,
				Rates: []Rate{{"bf16", rate, 0.6 * rate, 0}, {"f32", rate / 2, rate / 3, 0}}, Expansion: 3e9, Memory: 3e10,
			}},
		}
	}
	return nodes
}

// BenchmarkPlaceFlux64 is 19+38 blocks over 64 distinct hosts, most of which fit many cuts.
func BenchmarkPlaceFlux64(b *testing.B) {
	for _, largest := range []float64{6, 16, 48} {
		p := Problem{Model: fluxModel(), Nodes: fluxCluster(64, 1, largest)}
		for _, skip := range []bool{true, false} {
			b.Run(fmt.Sprintf("upto%.0fGB/skiplosses=%v", largest, skip), func(b *testing.B) {
				for b.Loop() {
					plan, err := Place(p, Options{SkipLosses: skip})
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(len(plan.Stages)), "stages")
				}
			})
		}
	}
}
