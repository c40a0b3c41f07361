// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// pinned prices the cut that the pins force, on each node in the way that suits the objective best.
func (s *solver) pinned() (*Plan, error) {
	cuts, err := s.problem.resolvePins(s.nodes)
	if err != nil {
		return nil, err
	}
	for i, c := range cuts {
		if r := s.field.barred[c.node]; r.Kind != "" && r.Kind != ReasonMemory {
			return nil, &PinError{Pins: []string{s.problem.Constraints.Pins[i].String()}, Problem: "the node cannot be used: " + r.String(), Barred: r.Kind}
		}
	}
	return s.forced(func(f *field, m mode) ([]part, *Stage) { return f.cutParts(cuts, m) })
}

// forced is the best of a given pipeline over the objective's modes.
func (s *solver) forced(lay func(*field, mode) ([]part, *Stage)) (*Plan, error) {
	var best *candidate
	var from *field
	var misfit *Stage
	for _, m := range s.modes() {
		f := s.batches[max(m.micro, 1)]
		list, bad := lay(f, m)
		if bad == nil {
			var p *priced
			if p, bad = f.price(list); bad == nil {
				if c := (&candidate{pipes: []*priced{p}, worth: worth1(p, m)}); c.better(best) {
					best, from = c, f
				}
			}
		}
		if bad != nil && misfit == nil {
			misfit = bad
		}
	}
	if best == nil {
		err := &MisfitError{Label: s.problem.label(), Stage: *misfit}
		if s.problem.Constraints.Allocation != nil {
			err.Advice = "let more of its blocks rest elsewhere"
		}
		return nil, err
	}
	plan := from.compose(best.pipes, best.worth)
	plan.Forced = true
	plan.Certificate = Certificate{Optimal: true, LowerBound: plan.StepSeconds}
	return plan, nil
}

// cutParts lays given blocks on given nodes. For every limit on the busiest stage each node takes the way with the least
// seconds; the best limit counts. The stage is the first that does not fit.
func (f *field) cutParts(cuts []cut, m mode) ([]part, *Stage) {
	s := shapeOf(f.model)
	at := 0
	limits := []float64{math.Inf(1)}
	var roles []role
	for i, c := range cuts {
		r := roleAt(i, len(cuts))
		roles = append(roles, r)
		x, y := s.region(c.blocks)
		options := f.table(c.node, f.model.widest()).parts.at(r, x*s.width()+y)
		if len(options) == 0 {
			return nil, f.misfit(c, r, at)
		}
		for _, o := range options {
			limits = append(limits, o.x)
		}
		at += x + y
	}
	slices.Sort(limits)
	var best []part
	value := math.Inf(1)
	for _, limit := range slices.Compact(limits) {
		var list []part
		for i, c := range cuts {
			x, y := s.region(c.blocks)
			options := f.table(c.node, f.model.widest()).parts.at(roles[i], x*s.width()+y)
			k := slices.IndexFunc(options, func(o option) bool { return o.x <= limit })
			if k < 0 {
				list = nil
				break
			}
			for _, st := range f.ways(c.node, f.model.widest())[options[k].way].stages(roles[i], x, y, options[k].x) {
				list = append(list, part{st.engine, st.x, st.y})
			}
		}
		if list == nil {
			continue
		}
		if p, misfit := f.price(list); misfit == nil && m.of(p.s, p.x) < value {
			best, value = list, m.of(p.s, p.x)
		}
	}
	return best, nil
}

// region is x and y of blocks per run.
func (s shape) region(blocks [2]int) (x, y int) {
	if s.n1 == 0 {
		return 0, blocks[0]
	}
	return blocks[0], blocks[1]
}

// misfit is what a cut would need on its node's roomiest device.
func (f *field) misfit(c cut, r role, at int) *Stage {
	x, y := shapeOf(f.model).region(c.blocks)
	var worst *Stage
	for _, w := range f.ways(c.node, f.model.widest()) {
		if len(w.engines) > 1 {
			continue
		}
		p := part{w.engines[0], x, y}
		cost, _ := p.engine.price(x, y, r)
		st := f.stage(p, cost, at, r)
		if worst == nil || st.Peak-st.Available < worst.Peak-worst.Available {
			worst = &st
		}
	}
	return worst
}

// allocated prices one stage on one node with the user's assignment.
func (s *solver) allocated() (*Plan, error) {
	a := s.problem.Constraints.Allocation
	i, err := lookup(s.nodes, "allocation", a.Node)
	if err != nil {
		return nil, err
	}
	if r := s.field.barred[i]; r.Kind != "" && r.Kind != ReasonMemory {
		return nil, &PinError{Pins: []string{a.Node}, Problem: "the node cannot be used: " + r.String(), Barred: r.Kind}
	}
	if err := a.check(s.nodes[i], s.problem.Model); err != nil {
		return nil, err
	}
	if err := s.field.lenders(a); err != nil {
		return nil, err
	}
	if h := s.field.handmade(i, a).hand; h.fault != "" {
		return nil, &ConstraintError{fmt.Sprintf("allocation: nothing can be copied from %s to %s of node %s (no rate is known); say another device, or give its host_to_device or peer rate", h.fault, a.Compute, s.nodes[i].Label())}
	} else if h.full != "" {
		return nil, &ConstraintError{fmt.Sprintf("allocation: %s of node %s would hold %s and has %s; give it fewer blocks", h.full, s.nodes[i].Label(), h.need, h.has)}
	}
	plan, err := s.forced(func(f *field, _ mode) ([]part, *Stage) {
		shape := shapeOf(f.model)
		return []part{{f.handmade(i, a), shape.n1, shape.n2}}, nil
	})
	if err != nil {
		return nil, err
	}
	plan.ByHand = true
	return plan, nil
}

// check says what of an allocation does not belong to its node or model.
func (a *Allocation) check(n Node, m Model) error {
	known := func(id string) bool {
		return slices.ContainsFunc(n.Devices, func(d Device) bool { return d.ID == id })
	}
	var names []string
	for _, d := range n.Devices {
		names = append(names, d.ID)
	}
	next := 0
	if !known(a.Compute) {
		return &ConstraintError{fmt.Sprintf("allocation: node %s has no device %s (it has %s)", n.Label(), a.Compute, strings.Join(names, ", "))}
	}
	for _, s := range a.Spans {
		if _, remote := s.lender(); s.Device != "cpu" && !remote && !known(s.Device) {
			return &ConstraintError{fmt.Sprintf("allocation: node %s has no device %s (it has %s)", n.Label(), s.Device, strings.Join(names, ", "))}
		}
		if s.First != next || s.Blocks < 1 {
			return &ConstraintError{fmt.Sprintf("allocation: blocks from %d are expected, the next span has %d from %d", next, s.Blocks, s.First)}
		}
		next += s.Blocks
	}
	if next != m.Blocks() {
		return &ConstraintError{fmt.Sprintf("allocation: it places %d blocks and model %s has %d", next, m.Name, m.Blocks())}
	}
	return nil
}

// lender is the node whose memory a span rests in, if that is another one.
func (s Span) lender() (node string, ok bool) { return strings.CutSuffix(s.Device, "/cpu") }

// lenders checks the other nodes that an assignment keeps blocks on.
func (f *field) lenders(a *Allocation) error {
	for _, s := range a.Spans {
		name, ok := s.lender()
		if !ok {
			continue
		}
		i, err := lookup(f.nodes, "allocation", name)
		if err != nil {
			return err
		}
		n := &f.nodes[i]
		switch {
		case !f.lender(i):
			return &PinError{Pins: []string{s.Device}, Problem: "the node cannot be used: " + f.barred[i].String(), Barred: f.barred[i].Kind}
		case n.Lend == 0:
			return &ConstraintError{fmt.Sprintf("allocation: node %s gives no memory to others; start its agent with a larger --donate, or say another device", n.Label())}
		}
	}
	return nil
}

// borrowed is another node's memory as a source of weights for a device.
func (f *field) borrowed(n *Node, d *Device, name string) (source, bool) {
	i, ok := find(f.nodes, name)
	if !ok || f.nodes[i].ID == n.ID {
		return source{}, false
	}
	o := &f.nodes[i]
	rate := min(o.Link.BytesPerSecond, n.Link.BytesPerSecond)
	if d.Kind == KindGPU {
		rate = min(rate, d.HostToDevice)
	}
	return source{kind: TierRemote, where: o.Label(), capacity: o.Lend, rate: rate}, rate > 0
}

// handmade is the compute device with the user's assignment instead of the model's choice.
func (f *field) handmade(i int, a *Allocation) *engine {
	n := &f.nodes[i]
	var d *Device
	for k := range n.Devices {
		if n.Devices[k].ID == a.Compute {
			d = &n.Devices[k]
		}
	}
	e := f.alone(i, d)
	h, used := &hand{}, map[string]Bytes{}
	for _, s := range a.Spans {
		blocks := f.model.split(s.First, s.Blocks)
		x, y := shapeOf(f.model).region(blocks)
		if s.Device == a.Compute {
			continue
		}
		h.streamed[0] += x
		h.streamed[1] += y
		bytes := Bytes(x)*e.runs[0].weights + Bytes(y)*e.runs[1].weights
		var src source
		name, ok := s.lender()
		if ok {
			src, ok = f.borrowed(n, d, name)
		} else if at := slices.IndexFunc(e.sources, func(q source) bool { return q.where == s.Device }); at >= 0 {
			src, ok = e.sources[at], true
		}
		if !ok {
			h.fault = s.Device
			continue
		}
		if used[src.where] += bytes; used[src.where] > src.capacity {
			h.full, h.need, h.has = s.Device, used[src.where], src.capacity
		}
		seconds := float64(bytes) / src.rate
		h.stream += seconds
		h.rest = joined(h.rest, Resting{First: s.First, Blocks: s.Blocks, Kind: src.kind, Where: src.where})
		h.tiers = append(h.tiers, Tier{Kind: src.kind, Where: src.where, Blocks: s.Blocks, Bytes: bytes, Seconds: seconds})
	}
	e.hand = h
	return e
}

// hand is an assignment that a person wrote.
type hand struct {
	streamed  [2]int
	stream    float64
	tiers     []Tier
	rest      []Resting
	fault     string // a device that nothing can be streamed from
	full      string // a device that is too small
	need, has Bytes
}

// priceHand is [engine.price] for a written assignment.
func (e *engine) priceHand(c stageCost) (stageCost, bool) {
	h := e.hand
	bytes := Bytes(h.streamed[0])*e.runs[0].weights + Bytes(h.streamed[1])*e.runs[1].weights
	best, ok := c, false
	for ring := 2; ring >= 1; ring-- {
		t := c
		t.ring, t.streamed, t.bytes, t.stream = ring, h.streamed, bytes, h.stream
		if h.streamed == [2]int{} {
			t.ring = 0
		}
		t.weights -= bytes
		t.peak += e.ringBytes(t.ring, h.streamed[0], h.streamed[1]) - bytes
		if t.stall = h.stream; ring == 2 {
			t.stall = max(0, h.stream-(c.compute+c.expansion))
		}
		if t.peak > e.available || h.fault != "" || h.full != "" {
			if ring == 1 && !ok {
				best = t
			}
			continue
		}
		if !ok || t.total() < best.total() {
			best, ok = t, true
		}
	}
	return best, ok
}
