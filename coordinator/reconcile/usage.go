// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import "github.com/distorch/distorch/placement"

// usage is memory of a node that plans take, in bytes.
type usage struct {
	devices map[string]uint64 // of devices with memory of their own, or by stages in RAM
	host    uint64            // of RAM, by stages, their tiers and other nodes' blocks
	lent    uint64            // of that, by other nodes' blocks
	ram     uint64            // of that, by tiers of the node's stages
}

// taken is what other deployments' plans use of a node.
func (w *world) taken(node, deployment string) usage {
	var plans []*Plan
	for i := range w.specs {
		if name := w.specs[i].Name; name != deployment {
			if p := w.plan(name); p != nil {
				plans = append(plans, p)
			}
		}
	}
	return w.used(node, plans...)
}

// used is what plans use of a node.
func (w *world) used(node string, plans ...*Plan) usage {
	u := usage{devices: map[string]uint64{}}
	n := w.node[node]
	for _, p := range plans {
		for i := range p.Stages {
			s := &p.Stages[i]
			if s.Node == node {
				u.devices[s.Device] += s.Forecast.PeakBytes
				if d := n.device(s.Device); d == nil || !d.own() {
					u.host += s.Forecast.PeakBytes
				}
				u.host += s.Forecast.HostPeakBytes
			}
			for _, t := range s.Tiers {
				switch {
				case t.Kind == placement.TierDonor && s.Node == node:
					u.devices[t.Device] += t.Bytes
				case t.Kind == placement.TierRAM && s.Node == node:
					u.ram += t.Bytes
				case t.Kind == placement.TierRemote && t.Node == node:
					u.host += t.Bytes
					u.lent += t.Bytes
				}
			}
		}
	}
	return u
}

// hostMemory is the RAM of a node that stages may take together.
func (n *Node) hostMemory() uint64 {
	if n.HostMemory > 0 {
		return n.HostMemory
	}
	if d := n.device(cpu); d != nil {
		return less(d.Allocatable, d.Overhead)
	}
	return 0
}

// memory is what plans may take of a device; of one with memory of its own, what
// its engine takes is a part of each stage's peak.
func (n *Node) memory(d *Device) uint64 {
	if d.own() {
		return d.Allocatable
	}
	return min(less(d.Allocatable, d.Overhead), n.hostMemory())
}
