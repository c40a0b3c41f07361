// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
)

// bare is what placement knows of a node whatever the model.
func (n *Node) bare() placement.Node {
	out := placement.Node{ID: placement.NodeID(n.ID), Name: n.Name, Load: n.Load}
	if n.Link != nil {
		out.Link = placement.Link{BytesPerSecond: n.Link.BytesPerSecond, Latency: n.Link.Latency, Source: placement.SourceMeasured}
	}
	return out
}

// bare is a device without its rates and memory; dtype "" is for any.
func (d *Device) bare(dtype string) placement.Device {
	c := placement.Device{ID: d.Name, Kind: placement.KindCPU, Source: placement.SourceMeasured}
	if dtype != "" {
		c.Class = classWithout(d.class(dtype), dtype)
	}
	if d.Kind != "" && d.Kind != cpu {
		c.Kind, c.Model, c.Overlap = placement.KindGPU, d.Model, d.Overlaps
		c.HostToDevice, c.Peer = d.HostToDevice, d.Peer
	}
	return c
}

// mostSpread is the largest uncertainty that a cluster file may state.
const mostSpread = 0.9

// Inventory is a node with all that was measured of it, for any model: rates of
// every dtype as curves, corrected by what forwards taught, and the memory that
// it has when nothing is deployed. A
// node that a plan cannot use comes without devices and with the reason.
func (n *Node) Inventory() placement.Node {
	out := n.bare()
	out.HasModel = true
	if len(n.Devices) == 0 {
		out.Rejected = placement.Reason{Kind: placement.ReasonNoDevice, Detail: "it has no device"}
		return out
	}
	out.RAM, out.Lend, out.Disk, out.HostBus = bytesIn(n.hostMemory()), bytesIn(min(n.Donate, n.hostMemory())), n.Disk, n.HostBus
	own := false
	for i := range n.Devices {
		d := &n.Devices[i]
		own = own || d.own()
		out.Devices = append(out.Devices, d.inventory(bytesIn(n.memory(d))))
	}
	if !own {
		out.RAM = 0 // all of it is the cpu's
	}
	if n.Link == nil {
		out.Rejected = placement.Reason{Kind: placement.ReasonRates, Detail: "its network has not been measured yet"}
	} else if err := out.Validate(); err != nil {
		out.Rejected = placement.Reason{Kind: placement.ReasonRates, Detail: err.Error()}
	}
	if out.Rejected.Kind != "" {
		out.Devices, out.Link = nil, placement.Link{}
	}
	return out
}

// inventory is a device with its curves.
func (d *Device) inventory(memory placement.Bytes) placement.Device {
	c := d.bare("")
	c.Allocatable = memory
	largest := Rates{Elements: -1}
	for _, r := range d.Rates {
		tokens := r.Tokens
		if tokens == 0 { // an agent that does not tell measures as many tokens as hidden values
			tokens = math.Sqrt(r.Elements)
		}
		k := d.correction(r.DType, r.Elements)
		c.Rates = append(c.Rates, placement.Rate{
			DType: placement.DType(r.DType), Linear: r.Linear / k, Attention: r.Attention / k, Tokens: tokens,
		})
		c.Spread = max(c.Spread, min(max(r.Uncertainty.Linear, r.Uncertainty.Attention), mostSpread))
		if r.Elements > largest.Elements {
			largest = r
		}
		if c.Class == "" {
			c.Class = classWithout(d.class(r.DType), r.DType)
		}
	}
	slices.SortStableFunc(c.Rates, func(a, b placement.Rate) int {
		return cmp.Or(cmp.Compare(a.DType, b.DType), cmp.Compare(a.Tokens, b.Tokens))
	})
	k := d.correction(largest.DType, largest.Elements)
	c.Memory, c.Expansion = largest.Elementwise/k, largest.Expand/k
	return c
}

// classWithout is a numerics class without the part that names the dtype.
func classWithout(class, dtype string) string {
	parts := slices.DeleteFunc(strings.Split(class, "/"), func(p string) bool { return p == dtype })
	return strings.Join(parts, "/")
}
