// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"slices"
)

// Plan is the stages of one deployment and what they will take.
type Plan struct {
	Label       string      `json:"label"` // "deployment flux"
	Objective   string      `json:"objective"`
	Weights     Bytes       `json:"weight_bytes"` // of the whole model as stored
	Stages      []Stage     `json:"stages"`       // of all pipelines, one after the other
	Pipelines   []Pipeline  `json:"pipelines"`
	StepSeconds float64     `json:"step_seconds"` // what the objective makes small; S for the latency of one forward
	Parts       Parts       `json:"parts"`        // sum to StepSeconds
	Band        Band        `json:"band"`         // of StepSeconds
	Pair        Pair        `json:"pair"`         // two forwards in flight, as cond and uncond
	LoadSeconds float64     `json:"load_seconds"` // until the slowest stage has read its bytes; 0 when a rate is unknown
	Certificate Certificate `json:"certificate"`
	Single      Single      `json:"single_host"` // the best that one node alone can do
	Unused      []Unused    `json:"unused,omitempty"`
	IfLost      []Loss      `json:"if_lost,omitempty"`
	Notes       []string    `json:"notes,omitempty"`
	InputDigest string      `json:"input_digest"`     // of the problem that it answers; see [Problem.Digest]
	Forced      bool        `json:"forced,omitempty"` // by pins
}

// Pipeline is a whole copy of the model cut into stages: the only one of a plan, a replica, or one branch of a pair.
type Pipeline struct {
	First       int     `json:"first_stage"` // index into Plan.Stages
	Stages      int     `json:"stages"`
	Forward     float64 `json:"forward_seconds"`    // S
	Bottleneck  float64 `json:"bottleneck_seconds"` // X
	Where       string  `json:"where"`              // what X is
	Share       int     `json:"share,omitempty"`    // requests of a batch
	MicroBatch  int     `json:"micro_batch,omitempty"`
	StepSeconds float64 `json:"step_seconds"` // of its part of the objective
}

// Band is a forecast's range: what its sources' uncertainties allow, all taken the same way.
type Band struct {
	Low  float64 `json:"low_seconds"`
	High float64 `json:"high_seconds"`
}

// TierKind is where blocks rest.
type TierKind string

// The tiers. Everything but the compute device is streamed in every forward.
const (
	TierDevice TierKind = "device" // on the device that computes
	TierDonor  TierKind = "donor"  // another device of the node
	TierRAM    TierKind = "ram"    // the node's host memory
	TierRemote TierKind = "remote" // another node's host memory
	TierDisk   TierKind = "disk"
)

// Tier is how much of a stage's weights rests in one place.
type Tier struct {
	Kind    TierKind `json:"tier"`
	Where   string   `json:"where"`  // device id, node name for remote
	Blocks  int      `json:"blocks"` // whole blocks, counted where most of their bytes are
	Bytes   Bytes    `json:"bytes"`
	Seconds float64  `json:"seconds"` // to stream them once; 0 for the compute device
}

// Stage is a contiguous range of blocks on one node.
type Stage struct {
	Pipeline  int      `json:"pipeline"`
	Devices   []string `json:"devices"`         // one, or a tensor-parallel group; of other nodes as node/device
	Degree    int      `json:"tensor_parallel"` // devices that share every block; 1 without
	Tiers     []Tier   `json:"tiers"`
	Ring      int      `json:"ring,omitempty"` // staging slots for streamed blocks
	Class     string   `json:"class"`
	Stream    float64  `json:"stream_seconds"`  // copies per forward, hidden or not
	PeakBand  [2]Bytes `json:"peak_band_bytes"` // low and high
	Node      NodeID   `json:"node"`
	Name      string   `json:"name"` // the node's label
	Device    string   `json:"device"`
	First     int      `json:"first_block"` // global index
	Blocks    int      `json:"blocks"`
	Runs      []int    `json:"runs"` // blocks of each run; sums to Blocks
	Head      bool     `json:"head,omitempty"`
	Tail      bool     `json:"tail,omitempty"`
	Slots     int      `json:"slots"`             // staging slots
	Weights   Bytes    `json:"weight_bytes"`      // resident, as stored
	Peak      Bytes    `json:"peak_bytes"`        // weights, slots and scratch; without the device's reserve
	Available Bytes    `json:"available_bytes"`   // allocatable less reserve
	Compute   float64  `json:"compute_seconds"`   // per forward
	Expansion float64  `json:"streaming_seconds"` // per forward, not hidden behind compute
	Hop       float64  `json:"hop_seconds"`       // to the next stage; the last stage's is to the endpoint
	Load      float64  `json:"load_seconds"`      // 0 when the node's rate is unknown
}

// Parts splits a time in seconds.
type Parts struct {
	Compute   float64 `json:"compute"`
	Streaming float64 `json:"streaming"` // expansion of stored weights
	Hops      float64 `json:"hops"`      // endpoint hops included
	Waiting   float64 `json:"waiting"`   // for a busy stage or link
}

// Total is the sum of the parts.
func (p Parts) Total() float64 { return p.Compute + p.Streaming + p.Hops + p.Waiting }

// Pair is the forecast for two forwards in flight: the second leaves X after the first, X being the busiest stage or
// link.
type Pair struct {
	StepSeconds float64 `json:"step_seconds"` // S + X
	Bottleneck  float64 `json:"bottleneck_seconds"`
	Where       string  `json:"where"`
	Parts       Parts   `json:"parts"`
}

// Certificate says how good the plan is within the cost model.
type Certificate struct {
	Optimal    bool    `json:"optimal"`
	LowerBound float64 `json:"lower_bound_seconds"`
	Gap        float64 `json:"gap"` // (step - bound) / step
}

// Single is the best plan on one node.
type Single struct {
	Fits        bool    `json:"fits"`
	Node        NodeID  `json:"node,omitempty"`
	Name        string  `json:"name,omitempty"`
	StepSeconds float64 `json:"step_seconds,omitempty"`
	Peak        Bytes   `json:"peak_bytes,omitempty"`
}

// Unused is a node that the plan leaves out.
type Unused struct {
	Node   NodeID `json:"node"`
	Name   string `json:"name"`
	Reason Reason `json:"reason"`
}

// Loss is what happens when one node of the plan dies.
type Loss struct {
	Node        NodeID  `json:"node"`
	Name        string  `json:"name"`
	Continues   bool    `json:"continues"`
	StepSeconds float64 `json:"step_seconds,omitempty"` // of the plan without it
	Short       Bytes   `json:"short_bytes,omitempty"`  // that the other nodes lack
	Why         string  `json:"why,omitempty"`          // when memory is not the cause
}

// String is "continues at 9.8 s/it" or "stops: 5.1 GB short".
func (l Loss) String() string {
	switch {
	case l.Continues:
		return "continues at " + perStep(l.StepSeconds)
	case l.Why != "":
		return "stops: " + l.Why
	default:
		return fmt.Sprintf("stops: %s short", l.Short)
	}
}

// SameCut reports whether both plans put the same blocks on the same nodes in the same order with the same slots, so
// that going from one to the other moves nothing.
func (p *Plan) SameCut(o *Plan) bool {
	if p == nil || o == nil {
		return p == o
	}
	return slices.EqualFunc(p.Stages, o.Stages, func(a, b Stage) bool {
		return a.Node == b.Node && a.Device == b.Device && a.First == b.First && slices.Equal(a.Runs, b.Runs) && a.Slots == b.Slots
	})
}

// forecast prices a pipeline; ok is false when a stage does not fit, and then it names the first that does not.
func (p Problem) forecast(nodes []Node, cuts []cut) (*Plan, *Stage) {
	m := p.Model
	plan := &Plan{Label: p.label(), Objective: "latency", Weights: m.Weights()}
	known, x := true, 0.0
	busiest := func(t float64, where string) {
		if t > x {
			x, plan.Pair.Where = t, where
		}
	}
	at := 0
	for i, c := range cuts {
		n := &nodes[c.node]
		l := load{blocks: c.blocks, role: roleAt(i, len(cuts))}
		cost, fits := newPricer(m, n, p.Constraints).price(l)
		d := n.cpu()
		s := Stage{
			Node: n.ID, Name: n.Label(), Device: d.ID, First: at, Blocks: c.blocks[0] + c.blocks[1],
			Runs: slices.Clone(c.blocks[:len(m.Runs)]), Head: i == 0, Tail: i == len(cuts)-1, Slots: cost.slots,
			Weights: cost.weights, Peak: cost.peak, Available: d.available(), Compute: cost.compute, Expansion: cost.expansion,
		}
		if !fits {
			return nil, &s
		}
		at += s.Blocks
		if i == len(cuts)-1 {
			s.Hop = hopCost(m.Output, n.Link)
		} else {
			b := m.boundary(m.runOf(at - 1))
			s.Hop = max(hopCost(b, n.Link), hopCost(b, nodes[cuts[i+1].node].Link))
			busiest(s.Hop, fmt.Sprintf("link %s to %s", s.Name, nodes[cuts[i+1].node].Label()))
		}
		busiest(cost.total(), "stage on "+s.Name)
		if i == 0 {
			plan.Parts.Hops += hopCost(m.Input, n.Link)
		}
		if n.Load > 0 {
			s.Load = float64(s.Weights) / n.Load
			plan.LoadSeconds = max(plan.LoadSeconds, s.Load)
		}
		known = known && n.Load > 0
		plan.Parts.Compute += s.Compute
		plan.Parts.Streaming += s.Expansion
		plan.Parts.Hops += s.Hop
		plan.Stages = append(plan.Stages, s)
	}
	if !known {
		plan.LoadSeconds = 0
	}
	plan.StepSeconds = plan.Parts.Total()
	plan.Pair.Bottleneck = x
	plan.Pair.Parts = plan.Parts
	plan.Pair.Parts.Waiting = x
	plan.Pair.StepSeconds = plan.Pair.Parts.Total()
	return plan, nil
}

func roleAt(i, n int) role {
	r := role(0)
	if i == 0 {
		r |= first
	}
	if i == n-1 {
		r |= last
	}
	return r
}

// runOf is the run of a global block index.
func (m Model) runOf(block int) int {
	for r := range m.Runs {
		if block < m.Runs[r].Count {
			return r
		}
		block -= m.Runs[r].Count
	}
	return len(m.Runs) - 1
}
