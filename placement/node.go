// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/distorch/distorch/model/numeric"
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

// computing are the devices that may run the model: the GPUs with a rate for its compute dtype in the order of their ids,
// or else the CPU.
func (n Node) computing(m Model) []*Device {
	var out []*Device
	for i := range n.Devices {
		d := &n.Devices[i]
		if _, ok := d.rate(m.ComputeDType, m.Tokens); ok && d.Kind == KindGPU {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *Device) int { return compareIDs(a.ID, b.ID) })
	if d := n.cpu(); len(out) == 0 && d != nil {
		if _, ok := d.rate(m.ComputeDType, m.Tokens); ok {
			out = append(out, d)
		}
	}
	return out
}

// compareIDs orders cuda:2 before cuda:10.
func compareIDs(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

func (d Device) available(c Constraints) Bytes { return d.Allocatable - max(d.Reserve, c.Reserve) }

// rate is the speed for a compute dtype at a number of tokens; false when the device has none for it. Between two sizes
// each rate follows a power of the size.
func (d Device) rate(t DType, tokens float64) (Rate, bool) {
	if tokens <= 0 {
		tokens = math.Inf(1)
	}
	var below, above *Rate
	for i := range d.Rates {
		r := &d.Rates[i]
		switch {
		case r.DType != t:
		case r.Tokens == 0:
			return *r, true
		case r.Tokens <= tokens && (below == nil || r.Tokens > below.Tokens):
			below = r
		case r.Tokens > tokens && (above == nil || r.Tokens < above.Tokens):
			above = r
		}
	}
	switch {
	case below == nil && above == nil:
		return Rate{}, false
	case below == nil:
		return *above, true
	case above == nil || below.Tokens == tokens:
		return *below, true
	}
	part := numeric.Log(tokens/below.Tokens) / numeric.Log(above.Tokens/below.Tokens)
	mix := func(a, b float64) float64 { return a * numeric.Pow(b/a, part) }
	return Rate{DType: t, Linear: mix(below.Linear, above.Linear), Attention: mix(below.Attention, above.Attention), Tokens: tokens}, true
}

// NumericsClass is the class of results that the device gives in a compute dtype, alone or in a group of degree devices.
func (d Device) NumericsClass(t DType, degree int) string {
	class := d.Class
	if class == "" {
		switch {
		case d.Kind == KindCPU:
			class = "native/1"
		case d.Model != "":
			class = "torch/" + d.Model
		default:
			class = "torch/" + d.ID
		}
	}
	class += "/" + string(t)
	if degree > 1 {
		class += fmt.Sprintf("/tp%d", degree)
	}
	return class
}

// The relative uncertainty of a rate where nothing better is known.
const (
	spreadMeasured  = 0.10
	spreadPublished = 0.25
)

func (s Source) spread() float64 {
	if s == SourcePublished {
		return spreadPublished
	}
	return spreadMeasured
}

func (d Device) spread() float64 {
	if d.Spread > 0 {
		return d.Spread
	}
	return d.Source.spread()
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
	if n.RAM < 0 || n.RAM > maxBytes {
		return bad("RAM bytes", float64(n.RAM), "is out of range")
	}
	if n.Lend < 0 || n.Lend > maxBytes {
		return bad("lent RAM bytes", float64(n.Lend), "is out of range")
	}
	for _, f := range []struct {
		name string
		rate float64
	}{{"disk bytes/s", n.Disk}, {"host bus bytes/s", n.HostBus}} {
		if f.rate != 0 {
			if err := rate(f.name, f.rate); err != nil {
				return err
			}
		}
	}
	if !(n.PeerLatency >= 0 && n.PeerLatency <= 60) {
		return bad("peer latency", n.PeerLatency, "must be 0 to 60 s")
	}
	seen := make(map[string]bool, len(n.Devices))
	for _, d := range n.Devices {
		if seen[d.ID] {
			return &NodeError{Node: n.ID, Problem: fmt.Sprintf("two devices have the id %s", d.ID)}
		}
		seen[d.ID] = true
		if err := d.validate(bad, rate); err != nil {
			return err
		}
	}
	return nil
}

func (d Device) validate(bad func(string, float64, string) error, rate func(string, float64) error) error {
	if d.Allocatable < 0 || d.Allocatable > maxBytes {
		return bad(d.ID+" allocatable bytes", float64(d.Allocatable), "is out of range")
	}
	if d.Reserve < 0 || d.Reserve > maxBytes {
		return bad(d.ID+" reserved bytes", float64(d.Reserve), "is out of range")
	}
	if !(d.Spread >= 0 && d.Spread <= 1) {
		return bad(d.ID+" spread", d.Spread, "must be 0 to 1")
	}
	if err := rate(d.ID+" memory bytes/s", d.Memory); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		rate float64
	}{{"expansion bytes/s", d.Expansion}, {"host to device bytes/s", d.HostToDevice}, {"peer bytes/s", d.Peer}} {
		if f.rate != 0 {
			if err := rate(d.ID+" "+f.name, f.rate); err != nil {
				return err
			}
		}
	}
	for _, r := range d.Rates {
		if !(r.Tokens >= 0 && r.Tokens <= maxFLOPs) {
			return bad(fmt.Sprintf("%s tokens of the %s rate", d.ID, r.DType), r.Tokens, "must be 0 or more")
		}
		if err := rate(fmt.Sprintf("%s linear FLOP/s in %s", d.ID, r.DType), r.Linear); err != nil {
			return err
		}
		if err := rate(fmt.Sprintf("%s attention FLOP/s in %s", d.ID, r.DType), r.Attention); err != nil {
			return err
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
		if !m.expands() {
			continue
		}
		for _, d := range n.computing(m) {
			if d.Expansion == 0 {
				return &NodeError{Node: n.ID, Field: d.ID + " expansion bytes/s", Problem: fmt.Sprintf("model %s expands its weights in every pass; measure the node again", m.Name)}
			}
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
