// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import "github.com/distorch/distorch/placement"

// StageForecast is what one stage will take.
type StageForecast struct {
	Compute, Expand, Hop, Load float64 // seconds; Hop goes to the next stage, the last one's to the endpoint
	PeakBytes                  uint64
	Correction                 float64 // Compute and Expand are the model's times this
	Calibration                string  // the device's rates that they rest on
	HostPeakBytes              uint64  // of RAM, beside a device that does not compute in it
	Stream, Stall              float64 // seconds of a forward's copies, and what compute does not hide of them
}

// Tier is where a range of a stage's blocks rests, if not on the device that
// computes.
type Tier struct {
	First, Blocks int // over all runs
	Kind          placement.TierKind
	Device        string // of a donor device
	// Of the node whose RAM it is.
	Node, Name, Address, Incarnation string
	Compressed                       bool
	Bytes                            uint64 // at rest
}

// Stage is a contiguous range of blocks on one node.
type Stage struct {
	Node, Name, Device, Address, Incarnation string
	First, Blocks                            int // over all runs
	Head, Tail                               bool
	Stored                                   bool // weights rest as in the file and are expanded into staging slots
	Slots                                    int
	Tiers                                    []Tier // in order of their blocks
	Ring                                     int    // staging slots for blocks that rest elsewhere
	Storage                                  string // of weights at rest: "" as the file has it, "fp8" by choice
	Class                                    string
	Forecast                                 StageForecast
}

// Forecast of one step, in seconds.
type Forecast struct {
	Step, Pair, Compute, Expand, Hop, Waiting, Load float64
}

// Unused is a node that the plan leaves out.
type Unused struct{ Node, Reason string }

// Loss is what happens when a node of the plan dies.
type Loss struct{ Node, Consequence string }

// Certificate says how good the plan is within the cost model.
type Certificate struct {
	Optimal         bool
	LowerBound, Gap float64
}

// Barred is a node that an earlier plan of the same deployment used and that
// is not used now: it failed, until its record changes, or it left.
type Barred struct {
	Node, Name string
	Failed     bool
	Message    string
	Revision   int64
	Device     string // failed: the one at fault; the node's others may be used
	Donor      bool   // failed: with blocks of another node's stage; it may run stages
}

// Plan is where a deployment runs. A plan without stages says why in
// Infeasible.
type Plan struct {
	Deployment, DeploymentID string
	Epoch, Generation        uint64
	Model, ModelName         string
	DType                    string
	Workload                 Workload
	Stages                   []Stage
	Forecast                 Forecast
	Unused                   []Unused
	IfLost                   []Loss
	Certificate              Certificate
	Numerics                 string
	InputDigest              string
	Infeasible               string
	Barred                   []Barred
	LoRAs                    []LoRA
	Fit                      string   // strict: agents move no block to a slower tier
	Notes                    []string // for people
}

// of says whether the plan answers this very spec.
func (p *Plan) of(s *Spec) bool {
	return p.DeploymentID == s.ID && p.Generation == s.Generation
}
