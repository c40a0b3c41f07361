// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"slices"

	"github.com/distorch/distorch/placement"
)

// tries bounds how often a plan is made again that takes more memory than was
// counted for it.
const tries = 8

// settleMemory places a deployment and fills the plan. placement counts stages by
// their parts; where what agents will take is more than there is, the plan is
// made again with less.
func (w *world) settleMemory(out *Plan, in *inputs) (*placement.Plan, placement.Problem, error) {
	var over *shortage
	for range tries {
		best, problem, form, err := w.choose(in)
		if err != nil {
			return nil, problem, err
		}
		if err := w.fill(out, in, best, form == formStored); err != nil {
			return nil, problem, fmt.Errorf("%s: %w", label(in.spec), err)
		}
		if over = w.cut(out, in, best); over == nil {
			return best, problem, nil
		}
		if in.spec.manual() {
			break
		}
	}
	out.Stages = nil
	return nil, placement.Problem{}, &placement.MisfitError{Label: label(in.spec), Stage: over.stage}
}

// shortage is a stage that takes more memory than there is.
type shortage struct{ stage placement.Stage }

// cut compares a plan with the memory that there is, and takes what is missing
// off the next try; nil where nothing is.
func (w *world) cut(p *Plan, in *inputs, best *placement.Plan) (short *shortage) {
	for i := range p.Stages {
		s, of := &p.Stages[i], best.Stages[i]
		n := w.node[s.Node]
		if of.Ring > 0 && !of.Whole {
			in.cuts.ram[n.ID] += uint64(largestBlock(in.table))
			short = &shortage{of}
		}
		for k := range n.Devices {
			d := &n.Devices[k]
			need := w.used(n.ID, p).devices[d.Name]
			has := less(n.memory(d), w.taken(n.ID, in.spec.Name).devices[d.Name], in.spec.Reserve)
			if need <= has || need == 0 {
				continue
			}
			over := need - has
			if d.Name == s.Device { // what is counted for the stage has to shrink by so much
				over += less(uint64(best.Stages[i].Available), uint64(in.counted[i]))
			}
			in.cuts.devices[[2]string{n.ID, d.Name}] += over
			of.Device, of.Peak, of.Available = d.Name, bytesIn(need), bytesIn(has)
			short = &shortage{of}
		}
	}
	for _, id := range p.nodes() {
		if s := w.cutHost(p, in, best, id); s != nil {
			short = s
		}
	}
	return short
}

// cutHost is cut for a node's RAM.
func (w *world) cutHost(p *Plan, in *inputs, best *placement.Plan, id string) *shortage {
	n := w.node[id]
	use := w.used(id, p)
	taken := w.taken(id, in.spec.Name)
	has := less(n.hostMemory(), taken.host)
	if use.host <= has {
		return nil
	}
	over := use.host - has
	of := best.Stages[0]
	for i := range p.Stages {
		if p.Stages[i].Node == id {
			of = best.Stages[i]
		}
	}
	of.Node, of.Name, of.Device = placement.NodeID(id), n.Name, "RAM"
	of.Peak, of.Available = bytesIn(use.host), bytesIn(has)
	switch {
	case use.lent > 0:
		in.cuts.lend[id] += less(less(min(n.Donate, has), taken.lent, in.cuts.lend[id]), less(use.lent, over))
	case use.ram > 0:
		in.cuts.ram[id] += less(less(has, uint64(in.table.host), in.cuts.ram[id]), less(use.ram, over))
	default:
		in.cuts.devices[[2]string{id, cpu}] += over
	}
	return &shortage{of}
}

// nodes are those of a plan's stages and tiers.
func (p *Plan) nodes() []string {
	var out []string
	add := func(id string) {
		if id != "" && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	for i := range p.Stages {
		add(p.Stages[i].Node)
		for _, t := range p.Stages[i].Tiers {
			add(t.Node)
		}
	}
	return out
}

func largestBlock(t *table) placement.Bytes {
	var most placement.Bytes
	for _, r := range t.packed.Runs {
		most = max(most, r.Block.Weights)
	}
	return most
}

// fill turns a placement into the plan that agents execute.
func (w *world) fill(out *Plan, in *inputs, best *placement.Plan, rested bool) error {
	out.Stages, out.Unused, out.IfLost, out.Notes = nil, nil, nil, nil
	in.counted = nil
	sooner := 0.0
	for i := range best.Stages {
		s, err := w.fillStage(out, in, &best.Stages[i], rested)
		if err != nil {
			return err
		}
		sooner += s
	}
	out.Forecast = Forecast{
		Step: best.StepSeconds, Pair: best.Pair.StepSeconds, Compute: best.Parts.Compute, Expand: best.Parts.Streaming,
		Hop: best.Parts.Hops, Waiting: best.Parts.Waiting, Load: best.LoadSeconds,
	}
	for _, u := range best.Unused {
		if w.lends(out, string(u.Node)) {
			continue
		}
		out.Unused = append(out.Unused, Unused{Node: u.Name, Reason: u.Reason.String()})
	}
	for _, l := range best.IfLost {
		out.IfLost = append(out.IfLost, Loss{Node: l.Name, Consequence: l.String()})
	}
	out.Certificate = Certificate{Optimal: best.Certificate.Optimal, LowerBound: best.Certificate.LowerBound, Gap: best.Certificate.Gap}
	out.hasten(sooner)
	out.Numerics = numerics(out)
	out.Notes = w.notes(out)
	return nil
}

// lends says whether a node keeps blocks of a plan.
func (w *world) lends(p *Plan, node string) bool {
	for i := range p.Stages {
		if slices.ContainsFunc(p.Stages[i].Tiers, func(t Tier) bool { return t.Node == node }) {
			return true
		}
	}
	return false
}

// notes say what people might miss in a plan.
func (w *world) notes(p *Plan) (notes []string) {
	var gpus, simulated int
	for i := range w.nodes {
		for k := range w.nodes[i].Devices {
			if w.nodes[i].Devices[k].own() {
				gpus++
			}
		}
	}
	for i := range p.Stages {
		if d := w.node[p.Stages[i].Node].device(p.Stages[i].Device); d != nil && d.Simulated {
			simulated++
		}
	}
	if simulated > 0 {
		notes = append(notes, fmt.Sprintf("%d of %d stages run on simulated devices, whose memory and speeds are made up", simulated, len(p.Stages)))
	}
	if gpus > 1 {
		notes = append(notes, "agents run one pipeline and every block on one device; `distorch plan --explain` says what replicas and tensor parallelism would bring")
	}
	for i := range p.Stages {
		for _, t := range p.Stages[i].Tiers {
			if t.Compressed {
				notes = append(notes, fmt.Sprintf("blocks %d-%d come compressed from node %s, without loss", t.First, t.First+t.Blocks-1, t.Name))
			}
		}
	}
	return notes
}

// fillStage adds a stage, and says how much sooner than placement thinks a
// forward ends, in seconds.
func (w *world) fillStage(out *Plan, in *inputs, s *placement.Stage, rested bool) (sooner float64, err error) {
	n := w.node[string(s.Node)]
	d := n.device(s.Device)
	stage := Stage{
		Node: n.ID, Name: s.Name, Device: s.Device, Address: n.Address, Incarnation: n.Incarnation,
		First: s.First, Blocks: s.Blocks, Head: s.Head, Tail: s.Tail, Stored: rested, Slots: s.Slots, Ring: s.Ring,
		Storage: in.spec.Storage, Class: d.class(out.DType),
	}
	if in.spec.Storage != "" {
		stage.Class += ClassFP8
	}
	stage.Class += in.suffix
	for _, r := range s.Rest {
		t := Tier{First: r.First, Blocks: r.Blocks, Kind: r.Kind}
		switch r.Kind {
		case placement.TierDonor:
			t.Device = r.Where
		case placement.TierRemote:
			o := w.named(r.Where)
			if o == nil {
				return 0, fmt.Errorf("blocks %d-%d would rest on node %s, which is gone", r.First, r.First+r.Blocks-1, r.Where)
			}
			t.Node, t.Name, t.Address, t.Incarnation = o.ID, o.Name, o.Address, o.Incarnation
		}
		stage.Tiers = append(stage.Tiers, t)
	}
	f, err := StageFootprint(in.table.program, in.model.Stored, StageShape{
		First: s.First, Blocks: s.Blocks, Head: s.Head, Tail: s.Tail, Stored: rested, Slots: s.Slots, InFlight: out.Workload.InFlight,
		Tiers: stage.Tiers, Ring: s.Ring, Storage: in.spec.Storage, Own: d.own(),
	})
	if err != nil {
		return 0, err
	}
	for i := range stage.Tiers {
		stage.Tiers[i].Bytes = uint64(f.Tiers[i])
	}
	peak := uint64(f.Peak())
	in.counted = append(in.counted, s.Peak)
	// placement counts the largest regions everywhere; this is the stage's own.
	s.Peak = min(s.Peak, placement.Bytes(f.Peak()))
	if d.own() {
		peak += d.Overhead // in the device's account
	}
	stage.Forecast = StageForecast{
		Compute: s.Compute, Expand: s.Expansion, Hop: s.Hop, Load: s.Load, PeakBytes: peak, HostPeakBytes: uint64(f.HostPeak()),
		Stream: s.Stream, Stall: s.Stall,
		Correction: d.correction(out.DType, activation(in.model.Graph, out.Workload)), Calibration: d.Calibration,
	}
	sooner = w.compress(&stage, atRest(&stage, in, out.DType))
	out.Stages = append(out.Stages, stage)
	return sooner, nil
}

// named is the node of a label: its name, or the id where it has none.
func (w *world) named(label string) *Node {
	for i := range w.nodes {
		if n := &w.nodes[i]; n.Name == label || n.Name == "" && n.ID == label {
			return n
		}
	}
	return nil
}
