// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// NodeID identifies a node in the cluster.
type NodeID string

// Node is one machine as placement sees it.
type Node struct {
	ID       NodeID
	Name     string // shown to people and accepted in pins; the id when empty
	Devices  []Device
	Link     Link
	Load     float64 // bytes/s from disk into memory when a stage loads; 0 when it was not measured
	HasModel bool    // whether the checkpoint lies in one of its model directories
	Rejected Reason  // set by the caller when the node cannot be used: draining, old protocol, missing operation

	RAM         Bytes   // host memory that may keep streamed weights; 0 when the node does not stream from it
	Lend        Bytes   // host memory that may keep weights for other nodes
	Disk        float64 // bytes/s that a running stage may stream from its own disk; 0 when it does not
	HostBus     float64 // bytes/s from host memory to all devices together; 0 when only HostToDevice counts
	PeerLatency float64 // seconds of one transfer or collective between devices of this node
}

// Link is a node's side of a star: its network rate and its share of a round trip's one-way delay.
type Link struct {
	BytesPerSecond float64 // +Inf for a link that costs nothing but its latency
	Latency        float64 // seconds
	Source         Source  // where the figures come from
}

// PeerLink is a measured link from one node to another. It replaces the star's estimate for that direction.
type PeerLink struct {
	From, To       NodeID
	BytesPerSecond float64
	Latency        float64 // seconds, one way
}

// GroupKind says what nodes have in common.
type GroupKind string

// A rack's nodes share an uplink; an island's nodes share a fabric that is fast enough for tensor parallelism.
const (
	GroupRack   GroupKind = "rack"
	GroupIsland GroupKind = "island"
)

// Group is a rack or an island of nodes. A node is in at most one of each kind.
type Group struct {
	Name           string
	Kind           GroupKind
	Nodes          []NodeID
	BytesPerSecond float64 // rack: of one transfer that leaves it; island: of one device's transfers on the fabric
	Latency        float64 // seconds, added to a transfer that leaves the rack, or of one on the fabric
}

// DeviceKind says what a device is.
type DeviceKind string

// The kinds. A node's first CPU device computes where none of its GPUs does.
const (
	KindCPU DeviceKind = "cpu" // the processor with the host's memory
	KindGPU DeviceKind = "gpu"
)

// Source says where a figure comes from, and with that how far to trust it.
type Source string

// The sources. The zero value counts as measured.
const (
	SourceMeasured  Source = "measured"
	SourcePublished Source = "published" // by the maker, or in a test of it; not measured here
	SourceGiven     Source = "given"     // written by hand
)

// Device is one compute device and its memory.
type Device struct {
	ID          string // "cpu", "cuda:0"
	Kind        DeviceKind
	Model       string // what the vendor calls it; devices of unlike models are never grouped
	Allocatable Bytes  // what this deployment may use, before the reserve
	Reserve     Bytes  // kept free
	Rates       []Rate
	Expansion   float64 // stored bytes/s expanded into a staging slot
	Memory      float64 // bytes/s of memory bandwidth
	Overlap     bool    // expansion into a second slot runs beside compute

	HostToDevice float64 // bytes/s from host memory; 0 when weights cannot be streamed to it
	Peer         float64 // bytes/s to and from other devices of its node; 0 when it works alone
	Class        string  // numerics class without dtype; [Device.NumericsClass] when empty
	Source       Source  // of Rates, Memory, Expansion
	Spread       float64 // relative uncertainty of the measured rates; 0 takes the source's default
}

// Rate is a speed for one compute dtype at one number of tokens. Several entries of one dtype make a curve: between two
// sizes each rate follows a power of the size, beyond them it stays.
type Rate struct {
	DType     DType
	Linear    float64 // FLOP/s in matrix products with weights
	Attention float64 // FLOP/s in attention
	Tokens    float64 // of the forward that it was measured with; 0 when the rate is for every size
}

// ReasonKind classifies why a node is not used.
type ReasonKind string

// The reasons. The first group is found by placement, the second is told by the caller in [Node.Rejected].
const (
	ReasonNoFile   ReasonKind = "no-file"   // the checkpoint is not on the node
	ReasonExcluded ReasonKind = "excluded"  // by constraint
	ReasonNoDevice ReasonKind = "no-device" // it has no CPU device
	ReasonDType    ReasonKind = "dtype"     // its device has no rate for the compute dtype
	ReasonMemory   ReasonKind = "memory"    // it cannot hold a single block
	ReasonPinned   ReasonKind = "pinned"    // the pins name other nodes
	ReasonMaxNodes ReasonKind = "max-nodes" // the limit was reached without it
	ReasonSlower   ReasonKind = "slower"    // a step is not faster with it
	ReasonNumerics ReasonKind = "numerics"  // its class is not the one that all blocks must have

	ReasonProtocol ReasonKind = "protocol"
	ReasonOps      ReasonKind = "ops"
	ReasonDraining ReasonKind = "draining"
	ReasonOffline  ReasonKind = "offline"
	ReasonRates    ReasonKind = "rates"
)

// Reason says why a node is not used; the zero value means that nothing speaks against it.
type Reason struct {
	Kind   ReasonKind `json:"kind"`
	Detail string     `json:"detail,omitempty"`
}

func (r Reason) String() string {
	if r.Detail == "" {
		return string(r.Kind)
	}
	return string(r.Kind) + ": " + r.Detail
}

// Label is the name shown to people.
func (n Node) Label() string {
	if n.Name != "" {
		return n.Name
	}
	return string(n.ID)
}

// cpu is the device that runs a stage, or nil.
func (n Node) cpu() *Device {
	for i := range n.Devices {
		if n.Devices[i].Kind == KindCPU {
			return &n.Devices[i]
		}
	}
	return nil
}

func (d Device) available() Bytes { return d.Allocatable - d.Reserve }

func (d Device) rate(t DType) (Rate, bool) {
	for _, r := range d.Rates {
		if r.DType == t {
			return r, true
		}
	}
	return Rate{}, false
}

// NodeError says which figure of a node cannot be used.
type NodeError struct {
	Node    NodeID
	Field   string
	Value   float64
	Problem string
}

func (e *NodeError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("node %q: %s", e.Node, e.Problem)
	}
	return fmt.Sprintf("node %q: %s is %g: %s", e.Node, e.Field, e.Value, e.Problem)
}

// Validate checks the node's own figures; the error is a *[NodeError]. A caller that would rather leave a misreporting node out calls it first and sets Rejected to [ReasonRates], which placement then believes.
func (n Node) Validate() error {
	bad := func(field string, v float64, problem string) error {
		return &NodeError{Node: n.ID, Field: field, Value: v, Problem: problem}
	}
	rate := func(field string, v float64) error {
		if !(v >= minRate && v <= maxRate) {
			return bad(field, v, fmt.Sprintf("must be %g to %g; measure the node again", float64(minRate), float64(maxRate)))
		}
		return nil
	}
	if n.ID == "" {
		return &NodeError{Problem: "empty id"}
	}
	if !math.IsInf(n.Link.BytesPerSecond, 1) {
		if err := rate("link bytes/s", n.Link.BytesPerSecond); err != nil {
			return err
		}
	}
	if !(n.Link.Latency >= 0 && n.Link.Latency <= 60) {
		return bad("link latency", n.Link.Latency, "must be 0 to 60 s; measure the node again")
	}
	if n.Load != 0 {
		if err := rate("load bytes/s", n.Load); err != nil {
			return err
		}
	}
	for _, d := range n.Devices {
		if d.Allocatable < 0 || d.Allocatable > maxBytes {
			return bad(d.ID+" allocatable bytes", float64(d.Allocatable), "is out of range")
		}
		if d.Reserve < 0 || d.Reserve > maxBytes {
			return bad(d.ID+" reserved bytes", float64(d.Reserve), "is out of range")
		}
		if err := rate(d.ID+" memory bytes/s", d.Memory); err != nil {
			return err
		}
		if d.Expansion != 0 {
			if err := rate(d.ID+" expansion bytes/s", d.Expansion); err != nil {
				return err
			}
		}
		for _, r := range d.Rates {
			if err := rate(fmt.Sprintf("%s linear FLOP/s in %s", d.ID, r.DType), r.Linear); err != nil {
				return err
			}
			if err := rate(fmt.Sprintf("%s attention FLOP/s in %s", d.ID, r.DType), r.Attention); err != nil {
				return err
			}
		}
	}
	return nil
}

// ErrNoNodes is returned when the cluster is empty.
var ErrNoNodes = errors.New("no nodes: start an agent and join it to the cluster")

func validateNodes(nodes []Node, m Model) error {
	if len(nodes) == 0 {
		return ErrNoNodes
	}
	if len(nodes) > maxNodes {
		return &NodeError{Node: nodes[0].ID, Problem: fmt.Sprintf("one of %d nodes: placement handles at most %d", len(nodes), maxNodes)}
	}
	ids := make([]NodeID, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, n.ID)
		if n.Rejected.Kind != "" {
			continue
		}
		if err := n.Validate(); err != nil {
			return err
		}
		d := n.cpu()
		if d == nil || !m.expands() {
			continue
		}
		if _, ok := d.rate(m.ComputeDType); ok && d.Expansion == 0 {
			return &NodeError{Node: n.ID, Field: d.ID + " expansion bytes/s", Problem: fmt.Sprintf("model %s expands its weights in every pass; measure the node again", m.Name)}
		}
	}
	slices.Sort(ids)
	for i := 1; i < len(ids); i++ {
		if ids[i] == ids[i-1] {
			return &NodeError{Node: ids[i], Problem: "two nodes have this id"}
		}
	}
	return nil
}

// sortedNodes is a copy in id order, so that the caller's order cannot matter.
func sortedNodes(nodes []Node) []Node {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	return out
}
