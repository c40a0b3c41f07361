// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// history is what the numerics sentence says of a run.
type history struct {
	begun   bool
	classes []string // by block, of the plan that the run began on
	plan    *pb.Plan
	changed string
}

// numerics is the sentence about the run, of which a forward of the step was
// answered on a plan.
func (sess *session) numerics(step uint32, p *pb.Plan) string {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	h := &sess.history
	now := classes(p)
	switch {
	case !h.begun:
		*h = history{begun: true, classes: now, plan: p}
	case h.plan.GetEpoch() != p.GetEpoch() || h.plan.GetDeploymentId() != p.GetDeploymentId():
		if c := difference(step, h, now, p); c != "" {
			h.changed = c
		}
		h.classes, h.plan = now, p
	}
	return cmp.Or(h.changed, p.GetNumerics())
}

func classes(p *pb.Plan) []string {
	var out []string
	for _, s := range p.GetStages() {
		for range s.GetBlocks() {
			out = append(out, s.GetNumericsClass())
		}
	}
	return out
}

// difference says which blocks have another class than before, and which nodes
// the plan has lost.
func difference(step uint32, h *history, now []string, p *pb.Plan) string {
	first, last := -1, -1
	for i := range min(len(now), len(h.classes)) {
		if now[i] != h.classes[i] {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first < 0 {
		return ""
	}
	var text strings.Builder
	fmt.Fprintf(&text, "changed at step %d (%s → %s, blocks %d-%d", step, h.classes[first], now[first], first, last)
	for _, s := range h.plan.GetStages() {
		if !slices.ContainsFunc(p.GetStages(), func(t *pb.Stage) bool { return t.GetNode() == s.GetNode() }) {
			fmt.Fprintf(&text, ", node %s lost", s.GetNodeName())
		}
	}
	text.WriteString(")")
	return text.String()
}
