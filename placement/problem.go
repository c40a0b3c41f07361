// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
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

// Span is a number of consecutive blocks that rest on one device of the node ("cpu" is its host memory), or in the memory
// that another node lends ("NODE/cpu").
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
	if c.MaxPipelines < 0 {
		return &ConstraintError{fmt.Sprintf("max pipelines is %d: must be 0 (as many as help) or more", c.MaxPipelines)}
	}
	if c.MaxDegree < 0 {
		return &ConstraintError{fmt.Sprintf("max degree is %d: must be 0 (no limit) or more", c.MaxDegree)}
	}
	if c.Reserve < 0 || c.Reserve > maxBytes {
		return &ConstraintError{fmt.Sprintf("reserve of %d bytes is out of range", int64(c.Reserve))}
	}
	if n := c.Numerics; n != "" && n != NumericsAny && n != NumericsOne {
		return &ConstraintError{fmt.Sprintf("numerics %q: want any or one", n)}
	}
	if f := c.Fit; f != "" && f != FitFallback && f != FitStrict {
		return &ConstraintError{fmt.Sprintf("fit %q: want fallback or strict", f)}
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
	if err := p.Objective.validate(); err != nil {
		return err
	}
	for _, b := range p.Batches {
		if err := b.Model.Validate(); err != nil {
			return err
		}
		if b.Size < 1 || shapeOf(b.Model) != shapeOf(p.Model) || b.Model.Heads != p.Model.Heads || b.Model.ComputeDType != p.Model.ComputeDType {
			return &ModelError{p.Model.Name, "batches", fmt.Sprintf("the table for micro-batches of %d has other blocks, heads or dtype", b.Size)}
		}
	}
	if err := p.Constraints.validate(); err != nil {
		return err
	}
	if err := validateNodes(p.Nodes, p.Model); err != nil {
		return err
	}
	return p.validateLinks()
}

// LinkError says which link or group cannot be used.
type LinkError struct{ Problem string }

func (e *LinkError) Error() string { return e.Problem }

// validateLinks checks the figures of links and groups. Nodes that they name and the cluster lacks are no error: they may
// have left.
func (p Problem) validateLinks() error {
	check := func(what string, rate, latency float64) error {
		if !(rate >= minRate && (rate <= maxRate || math.IsInf(rate, 1))) {
			return &LinkError{fmt.Sprintf("%s: %g bytes/s: must be %g to %g", what, rate, float64(minRate), float64(maxRate))}
		}
		if !(latency >= 0 && latency <= 60) {
			return &LinkError{fmt.Sprintf("%s: a latency of %g s: must be 0 to 60", what, latency)}
		}
		return nil
	}
	for _, l := range p.Links {
		if err := check(fmt.Sprintf("link %s to %s", l.From, l.To), l.BytesPerSecond, l.Latency); err != nil {
			return err
		}
	}
	in := map[GroupKind]map[NodeID]string{GroupRack: {}, GroupIsland: {}}
	for _, g := range p.Groups {
		if in[g.Kind] == nil {
			return &LinkError{fmt.Sprintf("group %s: kind %q: want rack or island", g.Name, g.Kind)}
		}
		if err := check(fmt.Sprintf("%s %s", g.Kind, g.Name), g.BytesPerSecond, g.Latency); err != nil {
			return err
		}
		for _, id := range g.Nodes {
			if other, ok := in[g.Kind][id]; ok {
				return &LinkError{fmt.Sprintf("node %s is in two %ss, %s and %s", id, g.Kind, other, g.Name)}
			}
			in[g.Kind][id] = g.Name
		}
	}
	return nil
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
func (p Problem) eligible(nodes []Node, m Model) []Reason {
	excluded := make([]bool, len(nodes))
	for _, ref := range p.Constraints.Exclude {
		if i, ok := find(nodes, ref); ok {
			excluded[i] = true
		}
	}
	out := make([]Reason, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		switch {
		case n.Rejected.Kind != "":
			out[i] = n.Rejected
		case excluded[i]:
			out[i] = Reason{ReasonExcluded, "by constraint"}
		case !n.HasModel:
			out[i] = Reason{ReasonNoFile, fmt.Sprintf("no file of model %s in its models.dirs", p.Model.Name)}
		case n.cpu() == nil && len(n.gpus()) == 0:
			out[i] = Reason{ReasonNoDevice, "it has no device that computes"}
		case len(n.computing(m)) == 0:
			var names []string
			for _, d := range n.Devices {
				names = append(names, d.ID)
			}
			out[i] = Reason{ReasonDType, fmt.Sprintf("device %s has no measured rate for %s", strings.Join(names, ", "), m.ComputeDType)}
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
