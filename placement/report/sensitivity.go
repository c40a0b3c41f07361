// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/cluster"
)

// Gain is what a change of the hardware or of the model's table would bring.
type Gain struct {
	Change      string  `json:"change"` // "8 GB more on a/cuda:0"
	StepSeconds float64 `json:"step_seconds"`
	Saved       float64 `json:"saved"` // of the step: 0.1 is a tenth less time
}

func (g Gain) String() string {
	return fmt.Sprintf("%s: %s, %.1f %% less", g.Change, placement.PerStep(g.StepSeconds), 100*g.Saved)
}

const (
	moreMemory  = placement.Bytes(8e9)
	gigabit     = 1e9 / 8 * cluster.LineShare // bytes/s of payload
	maxGains    = 3
	maxTries    = 24
	leastSaved  = 0.001
	unusedToTry = 4
)

// sensitivity tries more memory on each device, more RAM and twice the network of each node (at most 10 Gbit/s more),
// and the model's other tables. Of nodes with equal figures the first is tried.
func (s *searcher) sensitivity(variants []Variant) []Gain {
	var gains []Gain
	tries := 0
	try := func(change string, p placement.Problem) {
		if tries == maxTries {
			return
		}
		tries++
		plan := s.place(p)
		if plan == nil {
			return
		}
		if saved := 1 - plan.StepSeconds/s.plan.StepSeconds; saved >= leastSaved {
			gains = append(gains, Gain{change, plan.StepSeconds, saved})
		}
	}
	for _, v := range variants {
		try(v.Name, v.Problem)
	}
	for _, i := range s.interesting() {
		n := s.problem.Nodes[i]
		changed := func(change func(n *placement.Node)) placement.Problem {
			p := s.problem
			p.Nodes = slices.Clone(p.Nodes)
			m := &p.Nodes[i]
			m.Devices = slices.Clone(m.Devices)
			change(m)
			return p
		}
		if b := n.Link.BytesPerSecond; !math.IsInf(b, 1) && len(s.problem.Nodes) > 1 {
			faster := b + math.Min(b, 10*gigabit)
			try(fmt.Sprintf("%s instead of %s on %s's network", gigabits(faster), gigabits(b), n.Label()), changed(func(n *placement.Node) { n.Link.BytesPerSecond = faster }))
		}
		seen := map[string]bool{}
		for d, device := range n.Devices {
			kind := fmt.Sprint(device.Kind, device.Model, device.Allocatable, device.Reserve)
			if seen[kind] {
				continue
			}
			seen[kind] = true
			try(fmt.Sprintf("%s more on %s/%s", moreMemory, n.Label(), device.ID), changed(func(n *placement.Node) { n.Devices[d].Allocatable += moreMemory }))
		}
		if n.RAM > 0 && slices.ContainsFunc(n.Devices, func(d placement.Device) bool { return d.Kind == placement.KindGPU }) {
			try(fmt.Sprintf("%s more RAM on %s", moreMemory, n.Label()), changed(func(n *placement.Node) { n.RAM += moreMemory }))
		}
	}
	slices.SortStableFunc(gains, func(a, b Gain) int { return cmp.Compare(a.StepSeconds, b.StepSeconds) })
	return gains[:min(len(gains), maxGains)]
}

// interesting are indices of nodes whose figures may matter: the plan's, then a few of the others, each kind once.
func (s *searcher) interesting() []int {
	var out []int
	seen := map[string]bool{}
	add := func(i int) bool {
		n := s.problem.Nodes[i]
		key := figures(n)
		if seen[key] || n.Rejected.Kind != "" || !n.HasModel || slices.Contains(s.problem.Constraints.Exclude, string(n.ID)) || slices.Contains(s.problem.Constraints.Exclude, n.Name) {
			return false
		}
		seen[key] = true
		out = append(out, i)
		return true
	}
	for _, u := range usedNodes(s.plan) {
		if i := slices.IndexFunc(s.problem.Nodes, func(n placement.Node) bool { return n.ID == u.id }); i >= 0 {
			add(i)
		}
	}
	order := make([]int, len(s.problem.Nodes))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(s.problem.Nodes[a].ID, s.problem.Nodes[b].ID) })
	more := 0
	for _, i := range order {
		if more < unusedToTry && add(i) {
			more++
		}
	}
	return out
}

// figures is equal for nodes that differ in their names alone.
func figures(n placement.Node) string {
	n.ID, n.Name = "", ""
	return fmt.Sprint(n)
}

// gigabits shows payload bytes per second as the link's bits.
func gigabits(b float64) string {
	return fmt.Sprintf("%.3g Gbit/s", b/gigabit)
}
