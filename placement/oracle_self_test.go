// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"fmt"
	"math"
	"testing"

	. "github.com/distorch/distorch/placement"
)

// The cases below are worked out by hand from docs/cost-model.md, so that the oracle can be trusted before it judges.

// smallModel has four blocks. On a smallDevice a block takes 100/10 + 20/5 + 5/5 = 15 s, the head 4 s, the tail 1 s, the whole model 65 s.
func smallModel() Model {
	return Model{
		Name: "small", ComputeDType: "bf16", Input: 20, Output: 10, Vec: 2, Heads: 4,
		Head: Cost{Weights: 4, Linear: 40}, Tail: Cost{Weights: 2, Linear: 10},
		Runs: []Run{{
			Name: "block", Count: 4, Boundary: 6,
			Block: Cost{Weights: 10, Linear: 100, Attention: 20, Elementwise: 5, Scratch: 3, Collective: 8},
		}},
	}
}

func smallDevice(id string, kind DeviceKind, memory Bytes) Device {
	return Device{
		ID: id, Kind: kind, Class: "c", Allocatable: memory + 1, Reserve: 1, Memory: 5,
		Rates: []Rate{{DType: "bf16", Linear: 10, Attention: 5}},
	}
}

// smallNode's endpoint hops take 20/10 + 0.5 = 2.5 s and 10/10 + 0.5 = 1.5 s, together 4 s.
func smallNode(id string, devices ...Device) Node {
	return Node{ID: NodeID(id), HasModel: true, Link: Link{BytesPerSecond: 10, Latency: 0.5}, Devices: devices}
}

func faster(d Device, by float64) Device {
	d.Rates = []Rate{{DType: "bf16", Linear: 10 * by, Attention: 5 * by}}
	d.Memory *= by
	return d
}

func gpu(id string, memory Bytes, peer float64) Device {
	d := smallDevice(id, KindGPU, memory)
	d.Peer = peer
	return d
}

func TestOracleByHand(t *testing.T) {
	none := math.Inf(1)
	cpu := func(memory Bytes) Device { return smallDevice("cpu", KindCPU, memory) }
	streamer := func(ram Bytes, by float64, copies float64) Node {
		d := faster(smallDevice("g0", KindGPU, 39), by)
		d.HostToDevice = copies
		n := smallNode("a", d)
		n.RAM, n.Disk = ram, 1
		return n
	}
	for _, c := range []struct {
		name string
		p    Problem
		want float64
	}{
		{"resident: weights 4*10+4+2, scratch 3, together 49", Problem{Nodes: []Node{smallNode("a", cpu(49))}}, 65 + 4},
		{"one byte short and no disk", Problem{Nodes: []Node{smallNode("a", cpu(48))}}, none},
		{"where a GPU has a rate the CPU does not count", Problem{Nodes: []Node{smallNode("a", cpu(49), gpu("g0", 48, 0))}}, none},
		{"two forwards in memory: scratch 6", Problem{
			Nodes: []Node{smallNode("a", cpu(51))}, Constraints: Constraints{InFlight: 2},
		}, none},
		{"the constraint's reserve of 3 leaves 50-3", Problem{
			Nodes: []Node{smallNode("a", cpu(49))}, Constraints: Constraints{Reserve: 3},
		}, none},
		// R = 2 streams 3: 1*10+6 + 2*10 + 3 = 39. RAM holds 25 at 2/s, disk the rest at 1/s: 12.5 + 5 < 65.
		{"ring of two", Problem{Nodes: []Node{streamer(25, 1, 2)}}, 65 + 4},
		// Ten times the speed: R = 2 takes max(6.5, 25/1 + 5/1); R = 1 streams 2: 2*10+6 + 10 + 3 = 39 and takes 6.5 + 20.
		{"ring of one", Problem{Nodes: []Node{streamer(25, 10, 1)}}, 26.5 + 4},
		{"strict refuses to stream", Problem{
			Nodes: []Node{streamer(25, 10, 1)}, Constraints: Constraints{Fit: FitStrict},
		}, none},
		{"nothing to copy with", Problem{Nodes: []Node{streamer(25, 10, 0)}}, none},
		// A donor of 11 bytes at min(4, 8)/s comes before RAM at 2/s: R = 2 takes max(6.5, 11/4 + 19/2) = 12.25.
		{"donor first", Problem{Nodes: []Node{func() Node {
			n := streamer(100, 10, 2)
			n.Devices[0].Peer = 4
			d := gpu("g1", 11, 8)
			d.Rates = nil
			n.Devices = append(n.Devices, d)
			return n
		}()}}, 12.25 + 4},
		// HostBus 1 is under HostToDevice 2: R = 2 takes max(6.5, 30), R = 1 6.5 + 20.
		{"host bus", Problem{Nodes: []Node{func() Node { n := streamer(100, 10, 2); n.HostBus = 1; return n }()}}, 26.5 + 4},
		// A CPU streams from its own disk at the disk's rate: R = 2 takes max(65, 30/1).
		{"CPU from disk", Problem{Nodes: []Node{func() Node { n := smallNode("a", cpu(39)); n.Disk = 1; return n }()}}, 65 + 4},
		// Each block 15/2 + 2*(1/2)*8/4 + 2*0.25 = 10 s, head and tail whole. 4*5+6+3 = 29 bytes on each.
		{"tensor parallel on two", Problem{Nodes: []Node{func() Node {
			n := smallNode("a", gpu("g0", 29, 4), gpu("g1", 40, 4))
			n.PeerLatency = 0.25
			return n
		}()}}, 4*10 + 5 + 4},
		// Without heads to split: two stages of 27 and 25 bytes, 34 and 31 s, and (6+2)/4 + 0.25 between them.
		{"pipeline inside the node", Problem{
			Constraints: Constraints{MaxDegree: 1},
			Nodes: []Node{func() Node {
				n := smallNode("a", gpu("g0", 29, 4), gpu("g1", 29, 8))
				n.PeerLatency = 0.25
				return n
			}()},
		}, 34 + 31 + 2.25 + 4},
		// Blocks cannot be told apart, so two on each: the hop takes max(8/10 + 0.5, 8/4 + 0.25). Slow node last: its
		// output takes 10/4 + 0.25; slow node first: its input takes 20/4 + 0.25.
		{"star hop", Problem{Nodes: []Node{
			smallNode("a", cpu(27)), func() Node {
				n := smallNode("b", cpu(27))
				n.Link = Link{BytesPerSecond: 4, Latency: 0.25}
				return n
			}(),
		}}, 65 + 2.25 + min(2.5+2.75, 5.25+1.5)},
		{"at most one node", Problem{
			Nodes: []Node{smallNode("a", cpu(27)), smallNode("b", cpu(27))}, Constraints: Constraints{MaxNodes: 1},
		}, none},
		// S = 69 and X = 65 on one. On two S = 69 + 1.3 and X = 34 (two blocks and the head).
		{"pair on two nodes", Problem{
			Objective: Objective{Kind: ObjectivePair}, Constraints: Constraints{MaxPipelines: 1},
			Nodes: []Node{smallNode("a", cpu(49)), smallNode("b", cpu(49))},
		}, 69 + 1.3 + 34},
		{"pair as two disjoint pipelines", Problem{
			Objective: Objective{Kind: ObjectivePair}, Nodes: []Node{smallNode("a", cpu(49)), smallNode("b", faster(cpu(49), 1.5))},
		}, 69},
		{"throughput of one pipeline", Problem{
			Objective: Objective{Kind: ObjectiveThroughput}, Constraints: Constraints{MaxPipelines: 1},
			Nodes: []Node{smallNode("a", cpu(49)), smallNode("b", cpu(49))},
		}, 34},
		// 1/65 + 1/32.5 is more than 1 over the busiest stage of any one pipeline: 3 blocks and the tail at 23 s.
		{"throughput of replicas", Problem{
			Objective: Objective{Kind: ObjectiveThroughput}, Nodes: []Node{smallNode("a", cpu(49)), smallNode("b", faster(cpu(49), 2))},
		}, 65. / 3},
		// Two on the fast node, one on the slow one: max(69, 36.5 + 32.5). One pipeline: at least 36.5 + 2*23.
		{"batch shared out to replicas", Problem{
			Objective: Objective{Kind: ObjectiveBatch, Size: 3}, Nodes: []Node{smallNode("a", cpu(49)), smallNode("b", faster(cpu(49), 2))},
		}, 69},
		// In ones: 69 + 3*65. In twos, which take 1.6 times as long: 104 + 40/10 + 20/10 + 2*0.5 + 104.
		{"batch in micro-batches of two", Problem{
			Objective: Objective{Kind: ObjectiveBatch, Size: 4}, Nodes: []Node{smallNode("a", cpu(49))},
			Batches: []Batch{{2, dearer(smallModel(), 1.6, 2)}},
		}, 104 + 7 + 104},
		// The rate at 200 of 100 and 400 tokens is the geometric mean, 20: 4*(5+4+1) + 2 + 0.5.
		{"rate between two sizes", Problem{
			Model: func() Model { m := smallModel(); m.Tokens = 200; return m }(),
			Nodes: []Node{func() Node {
				n := smallNode("a", cpu(49))
				n.Devices[0].Rates = []Rate{{"bf16", 40, 5, 400}, {"bf16", 10, 5, 100}}
				return n
			}()},
		}, 40 + 2.5 + 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.p.Model.Name == "" {
				c.p.Model = smallModel()
			}
			got := bruteForceMany(c.p).value
			if got != c.want && math.Abs(got-c.want) > 1e-12*c.want {
				t.Errorf("got %.12g, want %.12g", got, c.want)
			}
		})
	}
}

// dearer multiplies all work and all sizes that travel.
func dearer(m Model, work float64, size Bytes) Model {
	m.Runs = append([]Run(nil), m.Runs...)
	for _, c := range []*Cost{&m.Head, &m.Tail, &m.Runs[0].Block} {
		c.Linear *= work
		c.Attention *= work
		c.Elementwise = Bytes(float64(c.Elementwise) * work)
	}
	m.Input, m.Output = m.Input*size, m.Output*size
	m.Runs[0].Boundary *= size
	m.Tokens *= float64(size)
	return m
}

// TestOracleSlots walks through the staging slots of one resident stage: expansion 10/2 = 5 s a block, 20 s in all.
func TestOracleSlots(t *testing.T) {
	m := smallModel()
	m.Head, m.Tail = Cost{}, Cost{}
	m.Runs[0].Block = Cost{Weights: 10, Staging: 30, Expansion: 10, Linear: 10, Scratch: 1}
	d := smallDevice("cpu", KindCPU, 0)
	d.Expansion = 2
	for _, c := range []struct {
		memory  Bytes
		overlap bool
		limit   int
		seconds float64
		slots   int
	}{
		{70, true, 0, 0, 0},        // 40 + 30 + 1 = 71
		{71, true, 0, 4*6 + 20, 1}, // one slot: reading 30 at 5/s is 6 s a block
		{101, false, 0, 4*6 + 20, 1},
		{101, true, 1, 4*6 + 20, 1},
		{101, true, 2, 4 * 6, 2}, // hidden
	} {
		t.Run(fmt.Sprint(c.memory, c.overlap, c.limit), func(t *testing.T) {
			d.Allocatable, d.Overlap = c.memory+d.Reserve, c.overlap
			o := newOracle(Problem{Model: m, Nodes: []Node{smallNode("a", d)}, Constraints: Constraints{Slots: c.limit}})
			got := o.atlas(m, "").stage(o.places[0].ways[0].seats[0], 0, 4)
			if got.fits != (c.slots > 0) || (got.fits && (got.seconds != c.seconds || got.slots != c.slots)) {
				t.Errorf("got %+v", got)
			}
		})
	}
}
