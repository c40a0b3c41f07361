// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"slices"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

// Snapshot is everything that a decision depends on. The order of its slices
// does not matter; names and ids are unique.
type Snapshot struct {
	Protocol Versions // what this cluster speaks
	Nodes    []Node
	Models   []Model
	Holders  []Holder
	Specs    []Spec
	Plans    []Plan
	Observed []Observed
}

// Versions is a range of protocol versions, both ends included.
type Versions struct{ Min, Max uint32 }

// Rates are a device's measured speeds for one compute dtype at one size of
// activations, per second.
type Rates struct {
	DType       string  // bf16
	Elements    float64 // of an activation: tokens times hidden size
	Tokens      float64 // of it; 0: not known
	Linear      float64
	Attention   float64
	Expand      float64 // packed bytes
	Elementwise float64 // bytes
	Uncertainty Uncertainty
}

// Uncertainty is the relative one of each rate: half of the distance from the
// tenth to the ninetieth percentile of its repetitions, over the median.
type Uncertainty struct{ Linear, Attention, Expand, Elementwise float64 }

// Feedback is how much longer than by its rates a device took for forwards of
// one dtype and size of activations.
type Feedback struct {
	DType    string
	Elements float64
	Ratio    float64
}

// Device of a node.
type Device struct {
	Name        string
	Kind        string // cpu, cuda, rocm, xpu, mps, sim; empty: cpu
	Unified     bool   // it computes in the node's RAM, of which its memory is a part
	Simulated   bool
	Model       string // what the vendor calls it
	Allocatable uint64 // bytes that distorch may use
	Overhead    uint64 // bytes of them that the agent takes beside any stage
	Classes     []string
	Rates       []Rates    // as measured
	Calibration string     // names them
	Feedback    []Feedback // what they are corrected by
	Copy        float64    // bytes per second read and written by copies in its memory; 0: not measured
	// Bytes per second from and to the node's RAM; 0 where it computes in it.
	HostToDevice, DeviceToHost float64
	Peer                       float64 // bytes per second from the slowest other device of the node; 0: none
	Overlaps                   bool    // it expands weights beside computing
}

// own says whether the device has memory of its own.
func (d *Device) own() bool { return d.Kind != "" && d.Kind != cpu && !d.Unified }

// Lost is a device that a node had.
type Lost struct{ Name, Reason string }

// Link is what a node measured of its network.
type Link struct {
	BytesPerSecond float64
	Latency        float64 // seconds, one way
}

// Node is a registered agent.
type Node struct {
	ID          string
	Name        string
	Incarnation string
	Address     string
	Revision    int64 // of its record
	Protocol    Versions
	OpSet       uint32
	Load        float64 // bytes per second from disk
	Devices     []Device
	Lost        []Lost
	HostMemory  uint64  // bytes of RAM for stages, tiers and donations together; 0: the cpu's
	Donate      uint64  // bytes of them, at most, for blocks of other nodes' stages
	Disk        float64 // bytes per second that a stage may read while it runs; 0: none
	Decode      float64 // bytes per second of compressed blocks, by one thread; 0: not measured
	HostBus     float64 // bytes per second from RAM to all devices together; 0: not measured
	Link        *Link   // nil: not measured
}

// Model is a checkpoint that an agent announced.
type Model struct {
	ID           string
	Name         string
	Graph        *graph.Model
	Stored       map[string]tensor.DType // by resolved weight name
	DefaultDType string
	Problem      string // why it cannot be used; Graph is nil then
	Arch         string
	Params       map[string]string // hyper-parameters, JSON by name
	LoRA         *lora.File        // of a LoRA file; nil otherwise
}

// Holder says that a node has a model's file.
type Holder struct{ Model, Node string }

// Workload is the largest request.
type Workload struct {
	Dims     map[string]int64 // in the user's words
	InFlight int              // 0: 2
}

// Pin forces blocks onto a node.
type Pin struct {
	Node   string // id or name
	First  int
	Blocks int
}

// Spec is what an operator wants.
type Spec struct {
	Name       string
	ID         string // another one for each deploy
	Generation uint64
	Model      string // id
	Workload   Workload
	DType      string // empty: the model's default
	Pins       []Pin
	Excludes   []string
	LoRAs      []LoRA

	Allocation  string // as written by hand; empty: none
	Compat      string // by whose rules: empty, distorch2
	VirtualVRAM uint64 // bytes of blocks to rest off the device that computes; 0: as fits
	Fit         string // fallback, strict; empty: fallback
	Reserve     uint64 // bytes kept free on every device
	Storage     string // fp8, or empty: as the file has it
}

// manual says whether a person wrote where blocks rest.
func (s *Spec) manual() bool { return s.Allocation != "" || s.VirtualVRAM > 0 }

// Observed is what a node says of a deployment's stage.
type Observed struct {
	Deployment   string
	DeploymentID string
	Node         string // id
	Incarnation  string
	Epoch        uint64
	Failed       bool
	Message      string
	Device       string // of the node, that is at fault
	Donor        string // id of another node that is
}

const defaultInFlight = 2

func (w Workload) inFlight() int {
	if w.InFlight == 0 {
		return defaultInFlight
	}
	return w.InFlight
}

// world is a snapshot in order, with what this step has decided so far.
type world struct {
	protocol Versions
	nodes    []Node // by id
	specs    []Spec // by name
	node     map[string]*Node
	model    map[string]*Model
	holds    map[Holder]bool
	observed map[[2]string]*Observed // deployment, node
	stored   map[string]*Plan
	next     map[string]*Plan
	why      map[string]string
}

func newWorld(s Snapshot) *world {
	w := &world{
		protocol: s.Protocol,
		nodes:    slices.SortedFunc(slices.Values(s.Nodes), func(a, b Node) int { return cmp.Compare(a.ID, b.ID) }),
		specs:    slices.SortedFunc(slices.Values(s.Specs), func(a, b Spec) int { return cmp.Compare(a.Name, b.Name) }),
		node:     map[string]*Node{}, model: map[string]*Model{}, holds: map[Holder]bool{},
		observed: map[[2]string]*Observed{}, stored: map[string]*Plan{}, next: map[string]*Plan{}, why: map[string]string{},
	}
	for i := range w.nodes {
		w.node[w.nodes[i].ID] = &w.nodes[i]
	}
	for i := range s.Models {
		w.model[s.Models[i].ID] = &s.Models[i]
	}
	for _, h := range s.Holders {
		w.holds[h] = true
	}
	for i := range s.Observed {
		o := &s.Observed[i]
		w.observed[[2]string{o.Deployment, o.Node}] = o
	}
	for i := range s.Plans {
		w.stored[s.Plans[i].Deployment] = &s.Plans[i]
	}
	return w
}

// plan is a deployment's plan after what was decided so far, or nil.
func (w *world) plan(deployment string) *Plan {
	if p := w.next[deployment]; p != nil {
		return p
	}
	return w.stored[deployment]
}
