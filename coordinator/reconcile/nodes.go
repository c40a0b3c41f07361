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
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// ReasonFailed is the reason of a node that reported a failure.
const ReasonFailed placement.ReasonKind = "failed"

// ReasonLoRA is the reason of a node that lacks the file of a LoRA.
const ReasonLoRA placement.ReasonKind = "lora"

// cpu is the name of the device that runs a stage.
const cpu = "cpu"

func (n *Node) cpu() *Device {
	for i := range n.Devices {
		if n.Devices[i].Name == cpu {
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

// offer is every node as placement sees it for a deployment, those that left
// included.
func (w *world) offer(spec *Spec, m *Model, dtype string, barred []Barred) []placement.Node {
	lost := map[string]Barred{}
	out := make([]placement.Node, 0, len(w.nodes)+len(barred))
	for _, b := range barred {
		lost[b.Node] = b
		if w.node[b.Node] == nil {
			out = append(out, placement.Node{
				ID: placement.NodeID(b.Node), Name: b.Name,
				Rejected: placement.Reason{Kind: placement.ReasonOffline, Detail: "it left the cluster; start its agent again"},
			})
		}
	}
	for i := range w.nodes {
		n := w.convert(&w.nodes[i], spec, m, dtype)
		n.Rejected = w.reject(&w.nodes[i], n, m.Graph, dtype)
		if name := w.lacks(w.nodes[i].ID, spec); name != "" && n.Rejected.Kind == "" {
			n.Rejected = placement.Reason{Kind: ReasonLoRA, Detail: "it has no file " + name + " in models.dirs; copy it there and start its agent again"}
		}
		if b, ok := lost[w.nodes[i].ID]; ok {
			n.Rejected = placement.Reason{Kind: ReasonFailed, Detail: b.Message}
		}
		out = append(out, n)
	}
	return out
}

func (w *world) convert(n *Node, spec *Spec, m *Model, dtype string) placement.Node {
	out := n.bare()
	out.HasModel = w.holds[Holder{Model: m.ID, Node: n.ID}]
	d := n.cpu()
	if d == nil {
		return out
	}
	c := d.bare()
	c.Allocatable -= min(c.Allocatable, bytesOf(tensor.Bytes(min(w.taken(n.ID, spec.Name), math.MaxInt64))))
	size := activation(m.Graph, spec.Workload)
	if r, ok := d.rates(dtype, size); ok {
		k := d.correction(dtype, size)
		c.Rates = []placement.Rate{{DType: placement.DType(dtype), Linear: r.Linear / k, Attention: r.Attention / k}}
		c.Expansion, c.Memory = r.Expand/k, r.Elementwise/k
	} else {
		c.Memory = 1 // placement names the missing dtype
	}
	out.Devices = []placement.Device{c}
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
	if d := n.cpu(); d != nil {
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
