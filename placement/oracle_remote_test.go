// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"fmt"
	"math"
	"slices"

	. "github.com/distorch/distorch/placement"
)

// debts are how many nodes stream from each node's memory, and how much.
type debts struct {
	users   map[string]int
	bytes   map[string]Bytes
	devices map[NodeID]int // that compute on each node, and share its NIC
}

// owed adds up what a plan borrows and refuses more than a node lends.
func (o *oracle) owed(plan *Plan) error {
	o.debts = debts{map[string]int{}, map[string]Bytes{}, map[NodeID]int{}}
	borrowers := map[string][]NodeID{}
	for _, s := range plan.Stages {
		o.debts.devices[s.Node] += max(s.Degree, 1)
		for _, t := range s.Tiers {
			if t.Kind == TierRemote {
				if !slices.Contains(borrowers[t.Where], s.Node) {
					borrowers[t.Where] = append(borrowers[t.Where], s.Node)
				}
				o.debts.users[t.Where] = len(borrowers[t.Where])
				o.debts.bytes[t.Where] += t.Bytes * Bytes(max(s.Degree, 1))
			}
		}
	}
	for where, bytes := range o.debts.bytes {
		n := o.lender(where)
		if n == nil || n.Lend < bytes {
			return fmt.Errorf("%d bytes rest on node %s, which lends less", int64(bytes), where)
		}
	}
	return nil
}

func (o *oracle) lender(where string) *Node {
	i := slices.IndexFunc(o.p.Nodes, func(n Node) bool { return where == n.Label() })
	if i < 0 {
		return nil
	}
	return &o.p.Nodes[i]
}

// borrows counts the copies of a stage as the plan shares them out over its tiers, some of which are other nodes.
func (o *oracle) borrows(s *seat, stage Stage, x *work) bool {
	left := x.moved
	x.stream = 0
	for _, t := range stage.Tiers {
		rate := 0.0
		switch t.Kind {
		case TierDevice:
			continue
		case TierRemote:
			n := o.lender(t.Where)
			rate = math.Min(n.Link.BytesPerSecond/float64(o.debts.users[t.Where]), o.p.Nodes[s.node].Link.BytesPerSecond) / float64(o.debts.devices[stage.Node])
			if s.figures.Kind != KindCPU {
				rate = math.Min(rate, s.figures.HostToDevice)
			}
		default:
			i := slices.IndexFunc(s.shelves[0], func(h shelf) bool { return h.kind == t.Kind && (h.kind != TierDonor || h.name == t.Where) })
			if i < 0 || s.shelves[0][i].room < int64(t.Bytes) {
				return false
			}
			rate = s.shelves[0][i].rate
		}
		left -= int64(t.Bytes)
		x.stream += float64(t.Bytes) / rate
	}
	return left == 0
}
