// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"maps"
	"slices"

	"github.com/distorch/distorch/placement"
)

// Effect is one write. It is made only if the deployment's spec and plan are
// still those of the snapshot.
type Effect struct {
	Deployment string
	Plan       *Plan // nil: delete the plan, its spec is gone
	Why        string
}

// Step compares what operators want with the plans and returns the writes that
// are missing, in order of deployment.
func Step(s Snapshot) []Effect {
	w := newWorld(s)
	// A plan made here may give room to one that had none, so go round until
	// nothing changes. A plan with stages is not touched again: it ends.
	for range len(w.specs) + 1 {
		changed := false
		for i := range w.specs {
			changed = w.settle(&w.specs[i]) || changed
		}
		if !changed {
			break
		}
	}
	var out []Effect
	for name, p := range w.next {
		out = append(out, Effect{Deployment: name, Plan: p, Why: w.why[name]})
	}
	wanted := map[string]bool{}
	for i := range w.specs {
		wanted[w.specs[i].Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(w.stored)) {
		if !wanted[name] {
			out = append(out, Effect{Deployment: name, Why: "the deployment was removed"})
		}
	}
	slices.SortFunc(out, func(a, b Effect) int {
		return cmp.Or(cmp.Compare(w.rank(a), w.rank(b)), cmp.Compare(a.Deployment, b.Deployment))
	})
	return out
}

// rank orders effects: what ends, what moves, what begins.
func (w *world) rank(e Effect) int {
	old := w.stored[e.Deployment]
	switch {
	case e.Plan == nil, len(e.Plan.Stages) == 0:
		return 0
	case old != nil && len(old.Stages) > 0:
		return 1
	}
	return 2
}

// settle gives a deployment another plan if it needs one.
func (w *world) settle(spec *Spec) bool {
	now := w.plan(spec.Name)
	why := w.stale(spec, now)
	if why == "" {
		return false
	}
	p := w.propose(spec, now)
	if p == nil || now != nil && now.of(spec) && sameRefusal(now, &p.Plan) {
		return false
	}
	p.Plan.Epoch = 1
	if old := w.stored[spec.Name]; old != nil {
		p.Plan.Epoch = old.Epoch + 1
	}
	if w.why[spec.Name] == "" {
		w.why[spec.Name] = why
	}
	w.next[spec.Name] = &p.Plan
	return true
}

// sameRefusal says whether both plans refuse with the same words.
func sameRefusal(a, b *Plan) bool {
	return len(a.Stages) == 0 && len(b.Stages) == 0 && a.Infeasible == b.Infeasible && slices.Equal(a.Barred, b.Barred)
}

// stale says why a deployment needs another plan, or nothing.
func (w *world) stale(spec *Spec, p *Plan) string {
	switch {
	case p == nil:
		return "first plan"
	case !p.of(spec):
		return "the deployment changed"
	case len(p.Stages) == 0:
		return "it had no room"
	}
	for i := range p.Stages {
		s := &p.Stages[i]
		n := w.node[s.Node]
		switch {
		case n == nil:
			return "node " + s.Name + " left the cluster"
		case n.Incarnation != s.Incarnation:
			return "node " + s.Name + " restarted"
		case n.Address != s.Address:
			return "node " + s.Name + " has another address"
		case n.device(s.Device) == nil:
			return "node " + s.Name + " lost device " + s.Device + n.why(s.Device)
		}
		if why := w.staleTier(n, s); why != "" {
			return why
		}
		if o := w.failure(p, s); o != nil {
			return "node " + s.Name + " failed: " + o.Message
		}
	}
	return ""
}

// why says what happened to a device.
func (n *Node) why(device string) string {
	for _, l := range n.Lost {
		if l.Name == device {
			return ": " + l.Reason
		}
	}
	return ""
}

// staleTier says why a stage's blocks cannot rest where the plan has them.
func (w *world) staleTier(n *Node, s *Stage) string {
	for _, t := range s.Tiers {
		switch o := w.node[t.Node]; {
		case t.Kind == placement.TierDonor && n.device(t.Device) == nil:
			return "node " + s.Name + " lost device " + t.Device + n.why(t.Device)
		case t.Kind != placement.TierRemote:
		case o == nil:
			return "node " + t.Name + ", which keeps blocks, left the cluster"
		case o.Incarnation != t.Incarnation:
			return "node " + t.Name + ", which keeps blocks, restarted"
		case o.Address != t.Address:
			return "node " + t.Name + ", which keeps blocks, has another address"
		}
	}
	return ""
}

// failure is what a stage's node says if it could not do what the plan asks.
func (w *world) failure(p *Plan, s *Stage) *Observed {
	o := w.observed[[2]string{p.Deployment, s.Node}]
	if o == nil || !o.Failed || o.DeploymentID != p.DeploymentID || o.Epoch != p.Epoch || o.Incarnation != s.Incarnation {
		return nil
	}
	return o
}

// barred carries over which nodes were given up, and adds those that the plan
// has lost now.
func (w *world) barred(spec *Spec, p *Plan) []Barred {
	if p == nil || !p.of(spec) {
		return nil
	}
	type key struct {
		node, device string
		donor        bool
	}
	out := map[key]Barred{}
	add := func(b Barred) { out[key{b.Node, b.Device, b.Donor}] = b }
	for _, b := range p.Barred {
		n := w.node[b.Node]
		switch {
		case n == nil:
			add(Barred{Node: b.Node, Name: b.Name})
		case b.Failed && n.Revision == b.Revision:
			add(b)
		}
	}
	for i := range p.Stages {
		s := &p.Stages[i]
		for _, t := range s.Tiers {
			if t.Kind == placement.TierRemote && w.node[t.Node] == nil {
				add(Barred{Node: t.Node, Name: t.Name})
			}
		}
		n, o := w.node[s.Node], w.failure(p, s)
		switch {
		case n == nil:
			add(Barred{Node: s.Node, Name: s.Name})
		case o == nil:
		case o.Donor != "":
			if d := w.node[o.Donor]; d != nil {
				add(Barred{Node: d.ID, Name: d.Name, Failed: true, Message: o.Message, Revision: d.Revision, Donor: true})
			}
		default:
			add(Barred{Node: s.Node, Name: s.Name, Failed: true, Message: o.Message, Revision: n.Revision, Device: o.Device})
		}
	}
	return slices.SortedFunc(maps.Values(out), func(a, b Barred) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Device, b.Device))
	})
}
