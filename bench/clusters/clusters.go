// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package clusters draws clusters and models to place, the same for the same seed on every machine.
//
// bench and the tests of placement import it. Figures of devices are round numbers near what such cards reach; they are
// drawn to measure a search, not to forecast anything.
package clusters

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/blocktable"
)

// Mix is a kind of cluster.
type Mix string

// The mixes.
const (
	MixEight   Mix = "8-GPU hosts"              // of several kinds, with 1 to 8 GPUs and unlike networks
	MixWeak    Mix = "weak 1-2 GPU hosts"       // home cards
	MixSingle  Mix = "single-GPU hosts, 1 GbE"  // one card each
	MixClasses Mix = "4 classes of equal hosts" // a quarter of the hosts each
)

// Mixes are all of them.
func Mixes() []Mix { return []Mix{MixEight, MixWeak, MixSingle, MixClasses} }

// card is a GPU: memory in GB, TFLOP/s in products and attention, GB/s of memory, from the host and to peers.
type card struct {
	name                   string
	memory, linear, attend float64
	bandwidth, host, peer  float64
}

func strong() []card {
	return []card{
		{"h100", 80, 500, 350, 2800, 50, 380}, {"a100", 80, 220, 150, 1700, 24, 270}, {"l40s", 48, 180, 120, 730, 24, 20},
		{"4090", 24, 150, 100, 860, 24, 20}, {"a6000", 48, 110, 75, 650, 24, 50}, {"3090", 24, 62, 42, 800, 24, 50},
	}
}

func weak() []card {
	return []card{
		{"4070", 12, 52, 36, 430, 24, 12}, {"4060ti", 16, 40, 28, 245, 12, 8}, {"3080", 10, 55, 38, 650, 24, 12},
		{"3060", 12, 24, 16, 310, 12, 8}, {"a4000", 16, 35, 24, 380, 24, 12}, {"2080ti", 11, 48, 30, 520, 12, 8},
	}
}

const gigabit = 1.18e8 // bytes/s of payload

func (c card) device(i int, free float64) placement.Device {
	return placement.Device{
		ID: fmt.Sprintf("cuda:%d", i), Kind: placement.KindGPU, Model: c.name, Allocatable: placement.Bytes(c.memory * free * 1e9),
		Memory: c.bandwidth * 1e9, Expansion: c.bandwidth * 5e8, Overlap: true, HostToDevice: c.host * 1e9, Peer: c.peer * 1e9,
		Rates: []placement.Rate{{DType: "bf16", Linear: c.linear * 1e12, Attention: c.attend * 1e12}},
	}
}

// Options say what to draw.
type Options struct {
	Mix      Mix
	Hosts    int
	Model    placement.Model
	NoSingle bool // shrink every host until it cannot hold the model, its RAM included
	Seed     uint64
}

// New draws nodes.
func New(o Options) []placement.Node {
	r := rand.New(rand.NewPCG(o.Seed, 0x64697374))
	var classes []placement.Node
	if o.Mix == MixClasses {
		for range 4 {
			classes = append(classes, host(r, MixEight))
		}
	}
	nodes := make([]placement.Node, o.Hosts)
	for i := range nodes {
		if classes != nil {
			nodes[i] = classes[i*len(classes)/o.Hosts]
			nodes[i].Devices = slices.Clone(nodes[i].Devices)
		} else {
			nodes[i] = host(r, o.Mix)
		}
		nodes[i].ID = placement.NodeID(fmt.Sprintf("n%04d", i))
		if o.NoSingle {
			shrink(&nodes[i], o.Model)
		}
	}
	return nodes
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func host(r *rand.Rand, m Mix) placement.Node {
	n := placement.Node{HasModel: true, Load: 1e9, PeerLatency: 2e-5}
	var c card
	count, network := 1, 1.0
	switch m {
	case MixWeak:
		c, count, network = pick(r, weak()...), pick(r, 1, 1, 2), pick(r, 1, 1, 2.5, 10)
		n.RAM = placement.Bytes(pick(r, 16, 32, 64)) * 1e9
	case MixSingle:
		c = pick(r, append(weak(), strong()[3:]...)...)
		n.RAM = placement.Bytes(pick(r, 16, 32, 64)) * 1e9
	default:
		c, count, network = pick(r, strong()...), pick(r, 1, 2, 4, 8, 8, 8), pick(r, 10, 25, 100, 100.0)
		n.RAM = placement.Bytes(pick(r, 128, 256, 512)) * 1e9
	}
	n.Link = placement.Link{BytesPerSecond: network * gigabit, Latency: pick(r, 2e-5, 5e-5, 1e-4)}
	n.HostBus = c.host * 1e9 * float64(max(1, count/2))
	free := pick(r, 0.8, 0.9, 0.95)
	for i := range count {
		n.Devices = append(n.Devices, c.device(i, free))
	}
	return n
}

// most is how much of the model a host that cannot hold it alone may have.
const most = 0.85

// shrink takes memory from a host until GPUs and RAM together hold less than the weights: first the RAM, then memory of
// each GPU as far as two blocks still fit, then GPUs.
func shrink(n *placement.Node, m placement.Model) {
	limit := placement.Bytes(most * float64(m.Weights()))
	least := leastDevice(m)
	total := func() (sum placement.Bytes) {
		for _, d := range n.Devices {
			sum += d.Allocatable
		}
		return sum
	}
	n.RAM = min(n.RAM, limit/8)
	for len(n.Devices) > 1 && placement.Bytes(len(n.Devices))*least > limit-n.RAM {
		n.Devices = n.Devices[:len(n.Devices)/2]
	}
	if sum := total(); sum > limit-n.RAM {
		each := (limit - n.RAM) / placement.Bytes(len(n.Devices))
		for i := range n.Devices {
			n.Devices[i].Allocatable = min(n.Devices[i].Allocatable, each)
		}
	}
}

// leastDevice holds two blocks of any kind, beside head and tail.
func leastDevice(m placement.Model) placement.Bytes {
	weights, scratch := placement.Bytes(0), max(m.Head.Scratch, m.Tail.Scratch)
	for _, r := range m.Runs {
		weights, scratch = max(weights, r.Block.Weights), max(scratch, r.Block.Scratch)
	}
	return 2*weights + max(m.Head.Weights, m.Tail.Weights) + scratch
}

// Distinct gives every node figures of its own, so that no two are of one class.
func Distinct(nodes []placement.Node, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0x756e))
	for i := range nodes {
		nodes[i].Link.BytesPerSecond *= 0.7 + 0.3*r.Float64()
		for j := range nodes[i].Devices {
			d := &nodes[i].Devices[j]
			if j > 0 {
				first := nodes[i].Devices[0]
				first.ID = d.ID
				*d = first
				continue
			}
			factor := 0.85 + 0.15*r.Float64()
			d.Rates = []placement.Rate{{DType: "bf16", Linear: d.Rates[0].Linear * factor, Attention: d.Rates[0].Attention * factor}}
		}
	}
}

// Grow repeats the nodes, with ids of their own, until there are n: as many classes as before.
func Grow(nodes []placement.Node, n int) []placement.Node {
	out := make([]placement.Node, n)
	for i := range out {
		out[i] = nodes[i%len(nodes)]
		out[i].ID = placement.NodeID(fmt.Sprintf("n%04d", i))
	}
	return out
}

// Racks puts the nodes into racks of eight whose uplinks carry a part of what the nodes could send.
func Racks(nodes []placement.Node, seed uint64) []placement.Group {
	r := rand.New(rand.NewPCG(seed, 0x72616b))
	var out []placement.Group
	for i, n := range nodes {
		if i%8 == 0 {
			out = append(out, placement.Group{Name: fmt.Sprintf("rack-%d", i/8), Kind: placement.GroupRack, BytesPerSecond: gigabit * pick(r, 10, 25, 40.0), Latency: 2e-5})
		}
		g := &out[len(out)-1]
		g.Nodes = append(g.Nodes, n.ID)
	}
	return out
}

// Links measures a part of all ordered pairs: each direction between half of the slower network's rate and all of it.
func Links(nodes []placement.Node, share float64, seed uint64) []placement.PeerLink {
	r := rand.New(rand.NewPCG(seed, 0x6c6e6b))
	var out []placement.PeerLink
	for _, a := range nodes {
		for _, b := range nodes {
			if a.ID == b.ID || r.Float64() >= share {
				continue
			}
			rate := min(a.Link.BytesPerSecond, b.Link.BytesPerSecond) * (0.5 + 0.5*r.Float64())
			out = append(out, placement.PeerLink{From: a.ID, To: b.ID, BytesPerSecond: rate, Latency: max(a.Link.Latency, b.Link.Latency) * (1 + r.Float64())})
		}
	}
	return out
}

// Model is a model at a workload, with its tables for batches.
type Model struct {
	Name    string
	Model   placement.Model
	Batches []placement.Batch
}

// Models are the four that figures are stated for.
func Models() ([]Model, error) {
	var out []Model
	for _, m := range []struct {
		title, name string
		workload    blocktable.Workload
	}{
		{"WAN-40", "wan2.1-14b", blocktable.Workload{Width: 832, Height: 480, Frames: 81}},
		{"Qwen-60", "qwen-image", blocktable.Workload{Width: 1328, Height: 1328}},
		{"FLUX 19+38", "flux1-dev", blocktable.Workload{Width: 1024, Height: 1024}},
		{"HunyuanVideo 20+40", "hunyuan-video", blocktable.Workload{Width: 848, Height: 480, Frames: 61}},
	} {
		known, err := blocktable.Lookup(m.name)
		if err != nil {
			return nil, err
		}
		made := Model{Name: m.title}
		for _, size := range []int{1, 2, 4} {
			w := m.workload
			w.Batch = size
			table, err := known.Model(w)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.title, err)
			}
			if size == 1 {
				made.Model = table
			}
			made.Batches = append(made.Batches, placement.Batch{Size: size, Model: table})
		}
		out = append(out, made)
	}
	return out, nil
}
