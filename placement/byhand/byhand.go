// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package byhand turns what a person wants of a model's memory into an assignment for placement: an allocation string of
// ComfyUI-MultiGPU's grammar, or an amount of virtual VRAM.
//
// Imported by the planner and by the plan command. It must not import the wire, the store, a clock or a logger: the same
// input gives the same bytes.
package byhand

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/allocation"
)

const cpu = "cpu"

// Read assigns the blocks of a problem's model by an allocation string, in the mode "" (distorch's own) or "distorch2".
// Errors: *allocation.SyntaxError about the string; *allocation.FitError, with numbers and the nearest string that fits;
// others name the node that is missing or cannot do what is asked.
func Read(text, mode string, p *placement.Problem) (*placement.Allocation, []string, error) {
	m := allocation.Default
	switch mode {
	case "", string(allocation.Default):
	case string(allocation.Distorch2):
		m = allocation.Distorch2
	default:
		return nil, nil, fmt.Errorf("compat %q: want distorch2, or nothing", mode)
	}
	e, err := allocation.Parse(text, m)
	if err != nil {
		return nil, nil, err
	}
	named, err := namedNodes(text, p.Nodes)
	if err != nil {
		return nil, nil, err
	}
	blocks := modelBlocks(p.Model)
	bare := len(p.Nodes) == 1 && !strings.Contains(text, p.Nodes[0].Label()+"/")
	r, err := allocation.Assign(e, devices(p, named, bare, ""), blocks)
	if err != nil {
		return nil, nil, err
	}
	if len(named) > 1 { // what other nodes give is known with the node that computes
		if r, err = allocation.Assign(e, devices(p, named, bare, r.Compute.Node()), blocks); err != nil {
			return nil, nil, err
		}
	}
	a, err := assignment(r.Layout(), p)
	return a, r.Warnings, err
}

// assignment is a layout for placement.
func assignment(l allocation.Layout, p *placement.Problem) (*placement.Allocation, error) {
	a := &placement.Allocation{Node: l.Compute.Node(), Compute: l.Compute.Local()}
	if a.Node == "" {
		a.Node = p.Nodes[0].Label()
	}
	for _, s := range l.Spans {
		where := s.Device.Local()
		if n := s.Device.Node(); n != l.Compute.Node() {
			if where != cpu {
				return nil, fmt.Errorf("blocks %d-%d would rest on %s and be computed on %s: of another node only the memory of its cpu keeps blocks; say %s/cpu, or leave the string out and let the model be placed over both nodes",
					s.First, s.First+s.Blocks-1, s.Device, l.Compute, n)
			}
			where = n + "/" + cpu
		}
		a.Spans = append(a.Spans, placement.Span{Device: where, First: s.First, Blocks: s.Blocks})
	}
	return a, nil
}

// ErrNoGPU is the error of virtual VRAM in a cluster without a device to take blocks off.
var ErrNoGPU = errors.New("virtual VRAM takes blocks off a GPU, and no usable node has one; leave it out, or say with an allocation string which device computes")

// Virtual lists the assignments that keep all but so many bytes of the model's blocks on a GPU and the rest in its node's
// RAM: one for each GPU that computes in the model's dtype and could hold them, in the order of the nodes. The error says why there is none.
func Virtual(off placement.Bytes, p *placement.Problem) ([]*placement.Allocation, error) {
	var out []*placement.Allocation
	first := ErrNoGPU
	for _, n := range p.Nodes {
		if n.Rejected.Kind != "" || !n.HasModel || slices.Contains(p.Constraints.Exclude, n.Label()) || slices.Contains(p.Constraints.Exclude, string(n.ID)) {
			continue
		}
		for _, d := range n.Devices {
			if d.Kind != placement.KindGPU {
				continue
			}
			if !slices.ContainsFunc(d.Rates, func(r placement.Rate) bool { return r.DType == p.Model.ComputeDType }) {
				continue
			}
			prefix := ""
			if len(p.Nodes) > 1 {
				prefix = n.Label() + "/"
			}
			a, _, err := Read(fmt.Sprintf("#%s%s;%db;%scpu", prefix, d.ID, int64(off), prefix), "", p)
			switch {
			case err == nil:
				out = append(out, a)
			case errors.Is(first, ErrNoGPU):
				first = err
			}
		}
	}
	if len(out) == 0 {
		return nil, first
	}
	return out, nil
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
		if len(names) == 0 {
			return nil, placement.ErrNoNodes
		}
		return nil, fmt.Errorf("allocation %.80q names no node that is here; say on which of the cluster's nodes (%s), such as %s/cuda:0", text, strings.Join(names, ", "), names[0])
	}
	return out, nil
}

// devices lists those of nodes as allocation strings name them: bare by their own names alone. Of
// nodes other than the one that computes, the cpu is the memory that they lend; "" where that is not known yet.
func devices(p *placement.Problem, nodes []placement.Node, bare bool, computes string) []allocation.Device {
	var out []allocation.Device
	for _, n := range nodes {
		prefix := n.Label() + "/"
		if bare {
			prefix = ""
		}
		lends := computes != "" && n.Label() != computes
		add := func(id string, free, total placement.Bytes) {
			out = append(out, allocation.Device{ID: allocation.DeviceID(prefix + id), Free: allocation.Bytes(free), Total: allocation.Bytes(max(total, free))})
		}
		seen := false
		for _, d := range n.Devices {
			free := max(0, d.Allocatable-max(d.Reserve, p.Constraints.Reserve))
			total := max(d.Allocatable, free)
			if d.ID == cpu {
				seen = true
				if free, total = max(free, n.RAM), max(total, n.RAM); lends {
					free = n.Lend
				}
			}
			add(d.ID, free, total)
		}
		if ram := max(n.RAM, n.Lend); ram > 0 && !seen {
			if lends {
				ram = n.Lend
			}
			add(cpu, ram, ram)
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
