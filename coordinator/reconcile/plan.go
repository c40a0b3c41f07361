// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

// StageForecast is what one stage will take.
type StageForecast struct {
	Compute, Expand, Hop, Load float64 // seconds; Hop goes to the next stage, the last one's to the endpoint
	PeakBytes                  uint64
	Correction                 float64 // Compute and Expand are the model's times this
	Calibration                string  // the device's rates that they rest on
}

// Stage is a contiguous range of blocks on one node.
type Stage struct {
	Node, Name, Device, Address, Incarnation string
	First, Blocks                            int // over all runs
	Head, Tail                               bool
	Stored                                   bool // weights rest as in the file and are expanded into staging slots
	Slots                                    int
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
}

// of says whether the plan answers this very spec.
func (p *Plan) of(s *Spec) bool {
	return p.DeploymentID == s.ID && p.Generation == s.Generation
}
