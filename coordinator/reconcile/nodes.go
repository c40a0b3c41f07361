// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/numeric"
	"github.com/distorch/distorch/placement"
)

// ReasonFailed is the reason of a node that reported a failure.
const ReasonFailed placement.ReasonKind = "failed"

// ReasonLoRA is the reason of a node that lacks the file of a LoRA.
const ReasonLoRA placement.ReasonKind = "lora"

// cpu is the name of the processor with the node's RAM.
const cpu = "cpu"

// device is the one of that name, or nil.
func (n *Node) device(name string) *Device {
	for i := range n.Devices {
		if n.Devices[i].Name == name {
			return &n.Devices[i]
		}
	}
	return nil
}

// rates are those for activations of the given size: between two measured
// sizes each rate follows a power of the size, beyond them it stays.
func (d *Device) rates(dtype string, elements float64) (Rates, bool) {
	var below, above *Rates
	for i := range d.Rates {
		r := &d.Rates[i]
		if r.DType != dtype {
			continue
		}
		if r.Elements <= elements && (below == nil || r.Elements > below.Elements) {
			below = r
		}
		if r.Elements >= elements && (above == nil || r.Elements < above.Elements) {
			above = r
		}
	}
	switch {
	case below == nil && above == nil:
		return Rates{}, false
	case below == nil:
		return *above, true
	case above == nil || above.Elements == below.Elements:
		return *below, true
	}
	part := numeric.Log(elements/below.Elements) / numeric.Log(above.Elements/below.Elements)
	mix := func(a, b float64) float64 {
		if !(a > 0 && b > 0) {
			return b // placement refuses what is not a rate
		}
		return a * numeric.Pow(b/a, part)
	}
	return Rates{
		DType: dtype, Elements: elements, Linear: mix(below.Linear, above.Linear), Attention: mix(below.Attention, above.Attention),
		Expand: mix(below.Expand, above.Expand), Elementwise: mix(below.Elementwise, above.Elementwise),
		Tokens: mix(below.Tokens, above.Tokens), Uncertainty: below.Uncertainty.or(above.Uncertainty),
	}, true
}

// or is the larger of each.
func (u Uncertainty) or(v Uncertainty) Uncertainty {
	return Uncertainty{max(u.Linear, v.Linear), max(u.Attention, v.Attention), max(u.Expand, v.Expand), max(u.Elementwise, v.Elementwise)}
}

// alike is how many times larger or smaller activations may be for their
// feedback to count; furthest is what a ratio may be, beyond which no agent
// publishes it.
const alike, furthest = 4, 4.0

// correction is what forecasts for activations of the given size are
// multiplied by: the feedback of the nearest size, 1 where none is near.
func (d *Device) correction(dtype string, elements float64) float64 {
	best, factor := math.Inf(1), 1.0
	for _, f := range d.Feedback {
		far := max(f.Elements/elements, elements/f.Elements)
		if f.DType == dtype && f.Ratio >= 1/furthest && f.Ratio <= furthest && far <= alike && (far < best || far == best && f.Ratio > factor) {
			best, factor = far, f.Ratio
		}
	}
	return factor
}

// activation is the number of elements of the largest tensor that a block
// hands on, for one request of the workload.
func activation(m *graph.Model, w Workload) float64 {
	free, err := m.Request(w.Dims)
	if err != nil {
		return 0
	}
	dims, err := m.Resolve(free)
	if err != nil {
		return 0
	}
	most := 0.0
	for _, r := range m.Runs {
		for _, v := range r.State {
			n := 1.0
			for _, e := range v.Shape {
				x, err := e.Eval(dims)
				if err != nil {
					return 0
				}
				n *= float64(x)
			}
			most = max(most, n)
		}
	}
	return most
}

// class is the numerics class of a dtype: the one that names it as a part.
func (d *Device) class(dtype string) string {
	for _, c := range d.Classes {
		if slices.Contains(strings.Split(c, "/"), dtype) {
			return c
		}
	}
	return ""
}

// cuts is memory that a plan is to do without, since an earlier one took more
// than was counted: by node and device, and of a node's RAM by what it is for.
type cuts struct {
	devices   map[[2]string]uint64
	ram, lend map[string]uint64
}

func newCuts() *cuts {
	return &cuts{devices: map[[2]string]uint64{}, ram: map[string]uint64{}, lend: map[string]uint64{}}
}

// inputs are what nodes are converted for.
type inputs struct {
	spec   *Spec
	model  *Model
	dtype  string
	table  *table
	barred []Barred
	suffix string // of the numerics class, by what LoRAs do to weights
	cuts   *cuts
	keep   *Plan // whose stages to keep; nil: place freely

	counted []placement.Bytes // for each stage by placement, of its device
}

// offer is every node as placement sees it for a deployment, those that left
// included. slack is what placement counts too much on devices with memory of
// their own.
func (w *world) offer(in *inputs, slack placement.Bytes) []placement.Node {
	out := make([]placement.Node, 0, len(w.nodes)+len(in.barred))
	for _, b := range in.barred {
		if w.node[b.Node] == nil {
			out = append(out, placement.Node{
				ID: placement.NodeID(b.Node), Name: b.Name,
				Rejected: placement.Reason{Kind: placement.ReasonOffline, Detail: "it left the cluster; start its agent again"},
			})
		}
	}
	for i := range w.nodes {
		n := w.convert(&w.nodes[i], in, slack)
		n.Rejected = w.reject(&w.nodes[i], n, in.model.Graph, in.dtype)
		if name := w.lacks(w.nodes[i].ID, in.spec); name != "" && n.Rejected.Kind == "" {
			n.Rejected = placement.Reason{Kind: ReasonLoRA, Detail: "it has no file " + name + " in models.dirs; copy it there and start its agent again"}
		}
		for _, b := range in.barred {
			switch {
			case b.Node != w.nodes[i].ID:
			case b.Donor:
				n.Lend = 0
			case b.Device == "" || len(n.Devices) == 0:
				n.Rejected = placement.Reason{Kind: ReasonFailed, Detail: b.Message}
			}
		}
		out = append(out, n)
	}
	return out
}

// less is a size without another, not below 0.
func less(a uint64, b ...uint64) uint64 {
	for _, x := range b {
		a -= min(a, x)
	}
	return a
}

func bytesIn(n uint64) placement.Bytes { return placement.Bytes(min(n, math.MaxInt64)) }

func (w *world) convert(n *Node, in *inputs, slack placement.Bytes) placement.Node {
	out := n.bare()
	out.HasModel = w.holds[Holder{Model: in.model.ID, Node: n.ID}]
	use := w.taken(n.ID, in.spec.Name)
	free := less(n.hostMemory(), use.host)
	out.RAM = bytesIn(less(free, uint64(in.table.host), in.cuts.ram[n.ID]))
	out.Lend = bytesIn(less(min(n.Donate, free), use.lent, in.cuts.lend[n.ID]))
	out.Disk, out.HostBus = n.Disk, n.HostBus
	size := activation(in.model.Graph, in.spec.Workload)
	gpus := false
	for i := range n.Devices {
		d := &n.Devices[i]
		if slices.ContainsFunc(in.barred, func(b Barred) bool { return b.Node == n.ID && b.Device == d.Name }) {
			continue
		}
		c := d.bare(in.dtype)
		left := less(n.memory(d), use.devices[d.Name], in.cuts.devices[[2]string{n.ID, d.Name}])
		if d.own() {
			gpus = true
			left = less(left, d.Overhead) + uint64(slack)
		} else {
			left = min(left, less(free, in.cuts.devices[[2]string{n.ID, d.Name}]))
		}
		c.Allocatable = bytesIn(left)
		if r, ok := d.rates(in.dtype, size); ok {
			k := d.correction(in.dtype, size)
			c.Rates = []placement.Rate{{DType: placement.DType(in.dtype), Linear: r.Linear / k, Attention: r.Attention / k}}
			c.Expansion, c.Memory = r.Expand/k, r.Elementwise/k
		} else {
			c.Memory = 1 // placement names the missing dtype
		}
		out.Devices = append(out.Devices, c)
	}
	if gpus && n.Link != nil {
		out.PeerLatency = n.Link.Latency // stages of a node hand on through its own port
	}
	return out
}

// reject says why a node cannot be used for a model whatever the plan.
func (w *world) reject(n *Node, as placement.Node, g *graph.Model, dtype string) placement.Reason {
	if n.Protocol.Max < w.protocol.Min || n.Protocol.Min > w.protocol.Max {
		return placement.Reason{Kind: placement.ReasonProtocol, Detail: fmt.Sprintf("it speaks protocol %s, the cluster %s; install the same distorch on both", n.Protocol, w.protocol)}
	}
	if n.OpSet < g.OpSet {
		return placement.Reason{Kind: placement.ReasonOps, Detail: fmt.Sprintf("it has operation set %d, the model takes %d; install a newer distorch on it", n.OpSet, g.OpSet)}
	}
	if n.Link == nil {
		return placement.Reason{Kind: placement.ReasonRates, Detail: "its network has not been measured yet"}
	}
	if err := as.Validate(); err != nil {
		return placement.Reason{Kind: placement.ReasonRates, Detail: err.Error()}
	}
	for i := range n.Devices {
		d := &n.Devices[i]
		r, ok := d.rates(dtype, 0)
		switch {
		case ok && d.class(dtype) == "":
			return placement.Reason{Kind: placement.ReasonRates, Detail: "it names no numerics class for " + dtype}
		case ok && r.Expand == 0:
			return placement.Reason{Kind: placement.ReasonRates, Detail: "it measured no rate for expanding weights; start its agent again"}
		}
	}
	return placement.Reason{}
}

// String is "1-2".
func (v Versions) String() string {
	if v.Min == v.Max {
		return fmt.Sprint(v.Min)
	}
	return fmt.Sprintf("%d-%d", v.Min, v.Max)
}
