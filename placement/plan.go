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
	Bands       PartBands   `json:"bands"`        // of Parts and LoadSeconds
	Pair        Pair        `json:"pair"`         // two forwards in flight, as cond and uncond
	LoadSeconds float64     `json:"load_seconds"` // until the slowest stage has read its bytes; 0 when a rate is unknown
	Certificate Certificate `json:"certificate"`
	Single      Single      `json:"single_host"` // the best that one node alone can do
	Unused      []Unused    `json:"unused,omitempty"`
	IfLost      []Loss      `json:"if_lost,omitempty"`
	Notes       []string    `json:"notes,omitempty"`
	InputDigest string      `json:"input_digest"`      // of the problem that it answers; see [Problem.Digest]
	Forced      bool        `json:"forced,omitempty"`  // by pins or an allocation
	ByHand      bool        `json:"by_hand,omitempty"` // forced by an allocation
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

// PartBands are the ranges of a forecast's parts.
type PartBands struct {
	Compute   Band `json:"compute"`
	Streaming Band `json:"streaming"`
	Hops      Band `json:"hops"`
	Waiting   Band `json:"waiting"`
	Load      Band `json:"load"`
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
	Where   string   `json:"where"`   // device id, node name for remote
	Blocks  int      `json:"blocks"`  // whole blocks, counted where most of their bytes are
	Bytes   Bytes    `json:"bytes"`   // of each device of a group
	Seconds float64  `json:"seconds"` // to stream them once; 0 for the compute device
}

// Stage is a contiguous range of blocks on one node.
type Stage struct {
	Pipeline int      `json:"pipeline"`
	Node     NodeID   `json:"node"`
	Name     string   `json:"name"` // the node's label
	Device   string   `json:"device"`
	Devices  []string `json:"devices"`          // one, or a tensor-parallel group; of an island as node/device
	Island   []NodeID `json:"island,omitempty"` // nodes of a group that spans several
	Degree   int      `json:"tensor_parallel"`  // devices that share every block; 1 without
	Class    string   `json:"class"`            // numerics class
	First    int      `json:"first_block"`      // global index
	Blocks   int      `json:"blocks"`
	Runs     []int    `json:"runs"` // blocks of each run; sums to Blocks
	Head     bool     `json:"head,omitempty"`
	Tail     bool     `json:"tail,omitempty"`
	Slots    int      `json:"slots"` // staging slots for expansion
	Ring     int      `json:"ring"`  // staging slots for streamed blocks
	Tiers    []Tier   `json:"tiers"`
	// Rest are the blocks that rest elsewhere than on the device that computes; Whole is false where the tiers hold their
	// bytes and not their whole blocks.
	Rest      []Resting `json:"-"`
	Whole     bool      `json:"-"`
	Weights   Bytes     `json:"weight_bytes"`         // resident on each device, as stored
	Peak      Bytes     `json:"peak_bytes"`           // weights, slots and scratch of each device; without its reserve
	PeakBand  [2]Bytes  `json:"peak_band_bytes"`      // low and high
	Available Bytes     `json:"available_bytes"`      // allocatable less reserve
	Compute   float64   `json:"compute_seconds"`      // per forward
	Expansion float64   `json:"streaming_seconds"`    // expansion per forward, not hidden behind compute
	Stream    float64   `json:"stream_seconds"`       // copies per forward, hidden or not
	Stall     float64   `json:"stall_seconds"`        // the part of Stream that compute does not hide
	Hop       float64   `json:"hop_seconds"`          // to the next stage; the last stage's is to the endpoint
	Load      float64   `json:"load_seconds"`         // 0 when the node's rate is unknown
	Spread    float64   `json:"relative_uncertainty"` // of the compute time
	Published bool      `json:"published,omitempty"`  // rests on figures that were not measured here
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
