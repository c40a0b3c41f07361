// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/allocation"
)

// allocate reads an allocation string as a constraint: one node's compute device runs every block, and the string says
// where each rests.
func (f *planFlags) allocate(p *placement.Problem) error {
	if f.allocation == "" {
		if f.compat != "" {
			return usage(fmt.Errorf("--compat is for --allocation STRING"))
		}
		return nil
	}
	if err := chosen("compat", f.compat); f.compat != "" && err != nil {
		return usage(err)
	}
	mode := allocation.Default
	if f.compat != "" {
		mode = allocation.Mode(f.compat)
	}
	e, err := allocation.Parse(f.allocation, mode)
	if err != nil {
		return allocationError(err)
	}
	named, err := namedNodes(f.allocation, p.Nodes)
	if err != nil {
		return usage(err)
	}
	r, err := allocation.Assign(e, allocatable(p, named), modelBlocks(p.Model))
	if err != nil {
		return allocationError(err)
	}
	layout := r.Layout()
	a := &placement.Allocation{Node: layout.Compute.Node(), Compute: layout.Compute.Local()}
	if a.Node == "" {
		a.Node = p.Nodes[0].Label()
	}
	for _, s := range layout.Spans {
		if n := s.Device.Node(); n != layout.Compute.Node() {
			return usage(fmt.Errorf("--allocation: blocks %d-%d would rest on %s and be computed on %s; a plan by hand keeps to one node", s.First, s.First+s.Blocks-1, s.Device, layout.Compute))
		}
		a.Spans = append(a.Spans, placement.Span{Device: s.Device.Local(), First: s.First, Blocks: s.Blocks})
	}
	p.Constraints.Allocation = a
	return nil
}

// namedNodes are the nodes that an allocation string names; a lone one need not be.
func namedNodes(text string, nodes []placement.Node) ([]placement.Node, error) {
	if len(nodes) == 1 {
		return nodes, nil
	}
	var out []placement.Node
	var names []string
	for _, n := range nodes {
		names = append(names, n.Label())
		if strings.Contains(text, n.Label()+"/") {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("--allocation: say on which of the cluster's nodes (%s), such as %s/cuda:0", strings.Join(names, ", "), names[0])
	}
	return out, nil
}

// allocatable lists the devices of nodes as allocation strings name them; those of a cluster's lone node go by their own
// names.
func allocatable(p *placement.Problem, nodes []placement.Node) []allocation.Device {
	var out []allocation.Device
	for _, n := range nodes {
		prefix := n.Label() + "/"
		if len(p.Nodes) == 1 {
			prefix = ""
		}
		for _, d := range n.Devices {
			free := max(0, d.Allocatable-max(d.Reserve, p.Constraints.Reserve))
			total := max(d.Allocatable, free)
			if d.ID == "cpu" {
				free, total = max(free, n.RAM), max(total, n.RAM)
			}
			out = append(out, allocation.Device{ID: allocation.DeviceID(prefix + d.ID), Free: allocation.Bytes(free), Total: allocation.Bytes(total)})
		}
		if n.RAM > 0 && !slices.ContainsFunc(n.Devices, func(d placement.Device) bool { return d.ID == "cpu" }) {
			out = append(out, allocation.Device{ID: allocation.DeviceID(prefix + "cpu"), Free: allocation.Bytes(n.RAM), Total: allocation.Bytes(n.RAM)})
		}
	}
	slices.SortStableFunc(out, func(a, b allocation.Device) int {
		return strings.Compare(a.ID.Node(), b.ID.Node())
	})
	return out
}

// modelBlocks are a block table's blocks, head to tail; head and tail stay on the compute device.
func modelBlocks(m placement.Model) allocation.Blocks {
	b := allocation.Blocks{Fixed: allocation.Bytes(m.Head.Weights + m.Tail.Weights)}
	for _, r := range m.Runs {
		b.Runs = append(b.Runs, allocation.Run{Count: r.Count, Bytes: allocation.Bytes(r.Block.Weights)})
	}
	return b
}
