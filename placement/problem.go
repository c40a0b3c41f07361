// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"strings"
)

// Problem is everything that a placement depends on.
type Problem struct {
	Deployment  string  // for messages; the model's name when empty
	Model       Model   // one forward of one branch
	Batches     []Batch // the same model with larger micro-batches, for [ObjectiveBatch]
	Nodes       []Node
	Links       []PeerLink // measured pairs; outside the exact class
	Groups      []Group
	Objective   Objective
	Constraints Constraints
}

// Batch is the block table of a forward over several requests at once.
type Batch struct {
	Size  int
	Model Model
}

// ObjectiveKind says what a plan is to make small.
type ObjectiveKind string

// The objectives. S is the time of one forward through all stages, X that of the busiest stage or link.
const (
	ObjectiveLatency    ObjectiveKind = "latency"    // one forward: S
	ObjectivePair       ObjectiveKind = "pair"       // cond and uncond: S+X in one pipeline, max(S1,S2) in two
	ObjectiveBatch      ObjectiveKind = "batch"      // Size requests: S+(M-1)X in M micro-batches, or shared out to replicas
	ObjectiveThroughput ObjectiveKind = "throughput" // a queue: X, or 1/(1/X1+1/X2+...) with replicas
)

// Objective is what a plan is to make small; the zero value is the latency of one forward.
type Objective struct {
	Kind ObjectiveKind
	Size int // requests of a batch; 0 means 1
}

// Numerics says whether blocks may have unlike numerics classes.
type Numerics string

// NumericsAny lets classes differ; NumericsOne keeps all blocks in one class, so that the plan equals one device.
const (
	NumericsAny Numerics = "any"
	NumericsOne Numerics = "one"
)

// Fit says what happens to weights that do not fit where they are to be used.
type Fit string

// FitFallback streams them from the next slower tier; FitStrict refuses.
const (
	FitFallback Fit = "fallback"
	FitStrict   Fit = "strict"
)

// Constraints narrow what a plan may do.
type Constraints struct {
	Pins     []Pin    // force the whole cut; see [ParsePins]
	Exclude  []string // ids or names of nodes that must not be used
	MaxNodes int      // 0 means no limit
	Slots    int      // staging slots that a stage may have, 1 or 2; 0 means 2
	InFlight int      // forwards held in memory at once; 0 means 1

	MaxPipelines int      // pipelines of a plan; 0 means as many as help, 1 forbids replicas and disjoint pairs
	Reserve      Bytes    // kept free on every device, where its own reserve is smaller
	Numerics     Numerics // any when empty
	Fit          Fit      // fallback when empty
	MaxDegree    int      // of tensor parallelism; 0 means no limit, 1 forbids it
	Allocation   *Allocation
}

// Allocation is a user's hand-written assignment for one node: where each block rests, and which device computes.
type Allocation struct {
	Node    string // id or name
	Compute string // device that runs every block
	Spans   []Span // from head to tail; they cover all blocks
}

// Span is a number of consecutive blocks that rest on one device of the node ("cpu" is its host memory).
type Span struct {
	Device string
	First  int // global block index
	Blocks int
}

// ConstraintError says which constraint is out of range or contradicts another.
type ConstraintError struct {
	Problem string
}

func (e *ConstraintError) Error() string { return e.Problem }

func (c Constraints) validate() error {
	if c.MaxNodes < 0 {
		return &ConstraintError{fmt.Sprintf("max nodes is %d: must be 0 (no limit) or more", c.MaxNodes)}
	}
	if c.Slots < 0 || c.Slots > 2 {
		return &ConstraintError{fmt.Sprintf("slots is %d: must be 1 or 2", c.Slots)}
	}
	if c.InFlight < 0 || c.InFlight > 64 {
		return &ConstraintError{fmt.Sprintf("in flight is %d: must be 1 to 64", c.InFlight)}
	}
	if len(c.Exclude) > maxNodes {
		return &ConstraintError{fmt.Sprintf("%d excludes: at most %d", len(c.Exclude), maxNodes)}
	}
	return nil
}

func (c Constraints) slots() int {
	if c.Slots == 0 {
		return 2
	}
	return c.Slots
}

func (c Constraints) inFlight() int { return max(c.InFlight, 1) }

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p Problem) label() string {
	if p.Deployment != "" {
		return "deployment " + p.Deployment
	}
	return "model " + p.Model.Name
}

func (p Problem) validate() error {
	if err := p.Model.Validate(); err != nil {
		return err
	}
	if err := p.Constraints.validate(); err != nil {
		return err
	}
	return validateNodes(p.Nodes, p.Model)
}

// UnknownNodeError is a reference to a node that the cluster does not have.
type UnknownNodeError struct {
	Where, Node string
	Known       []string
}

func (e *UnknownNodeError) Error() string {
	return fmt.Sprintf("%s names node %q, which is not in the cluster (it has %s)", e.Where, e.Node, strings.Join(e.Known, ", "))
}

// find returns the index of the node with this id, or else with this name.
func find(nodes []Node, ref string) (int, bool) {
	for i, n := range nodes {
		if string(n.ID) == ref {
			return i, true
		}
	}
	at := -1
	for i, n := range nodes {
		if n.Name != ref || ref == "" {
			continue
		}
		if at >= 0 {
			return -1, false
		}
		at = i
	}
	return at, at >= 0
}

// lookup is find with an error that lists what there is.
func lookup(nodes []Node, where, ref string) (int, error) {
	if i, ok := find(nodes, ref); ok {
		return i, nil
	}
	known := make([]string, 0, len(nodes))
	for i, n := range nodes {
		if i == 8 {
			known = append(known, fmt.Sprintf("%d more", len(nodes)-i))
			break
		}
		known = append(known, n.Label())
	}
	return -1, &UnknownNodeError{Where: where, Node: ref, Known: known}
}

// eligible gives for each node the reason that bars it before any cost is considered.
func (p Problem) eligible(nodes []Node) []Reason {
	excluded := make([]bool, len(nodes))
	for _, ref := range p.Constraints.Exclude {
		if i, ok := find(nodes, ref); ok {
			excluded[i] = true
		}
	}
	out := make([]Reason, len(nodes))
	for i, n := range nodes {
		d := n.cpu()
		switch {
		case n.Rejected.Kind != "":
			out[i] = n.Rejected
		case excluded[i]:
			out[i] = Reason{ReasonExcluded, "by constraint"}
		case !n.HasModel:
			out[i] = Reason{ReasonNoFile, fmt.Sprintf("no file of model %s in its models.dirs", p.Model.Name)}
		case d == nil:
			out[i] = Reason{ReasonNoDevice, "it has no CPU device"}
		default:
			if _, ok := d.rate(p.Model.ComputeDType); !ok {
				out[i] = Reason{ReasonDType, fmt.Sprintf("device %s has no measured rate for %s", d.ID, p.Model.ComputeDType)}
			}
		}
	}
	return out
}

// strayExcludes lists excludes that match no node: harmless when the node left, worth a look when misspelt.
func (p Problem) strayExcludes(nodes []Node) []string {
	var out []string
	for _, ref := range p.Constraints.Exclude {
		if _, ok := find(nodes, ref); !ok {
			out = append(out, fmt.Sprintf("exclude %q matches no node", ref))
		}
	}
	return out
}
