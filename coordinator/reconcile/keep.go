// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"

	"github.com/distorch/distorch/placement"
)

// keepGain is how much slower a step may be with the stages that are loaded than
// with the best ones: 1 is twice. Agents hand loaded blocks of the same stages
// over, and would read all of them for others.
const keepGain = 1

// kept is the plan whose stages a deployment is to keep if they can run: the one
// of the same deployment before its LoRAs changed. nil: none.
func kept(spec *Spec, now *Plan) *Plan {
	if now == nil || len(now.Stages) == 0 || now.of(spec) || now.DeploymentID != spec.ID || now.Model != spec.Model || spec.manual() {
		return nil
	}
	return now
}

// keep places weights in the form that they have, on the stages that they are
// on, unless others are faster by more than keepGain.
func (w *world) keep(in *inputs) (*placement.Plan, placement.Problem, int, error) {
	form := formPacked
	if in.keep.Stages[0].Stored {
		form = formStored
	}
	problem := w.problem(in, form)
	current := &placement.Plan{}
	for i := range in.keep.Stages {
		s := &in.keep.Stages[i]
		if w.node[s.Node] == nil || w.node[s.Node].Incarnation != s.Incarnation {
			return nil, problem, form, fmt.Errorf("node %s has nothing loaded any more", s.Name)
		}
		st := placement.Stage{
			Node: placement.NodeID(s.Node), Name: s.Name, Device: s.Device, Devices: []string{s.Device}, Degree: 1,
			First: s.First, Blocks: s.Blocks, Head: s.Head, Tail: s.Tail, Slots: s.Slots,
		}
		at := 0
		for _, r := range problem.Model.Runs {
			st.Runs = append(st.Runs, max(0, min(s.First+s.Blocks, at+r.Count)-max(s.First, at)))
			at += r.Count
		}
		current.Stages = append(current.Stages, st)
	}
	d, err := placement.Decide(problem, current, keepGain, placement.Options{})
	return d.Plan, problem, form, err
}
