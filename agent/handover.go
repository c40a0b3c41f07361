// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/distorch/distorch/agent/stage"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// releaser is a hosted stage that can be given up without being freed.
type releaser interface {
	hosted
	Release() *stage.Stage
}

// handed are stages of an earlier plan, by the stage of the new one that takes
// them over.
type handed map[int]*stage.Stage

// handOver ends what this node serves of the earlier plan. Stages of the same
// blocks on the same device are kept for those of the new plan, by their indices;
// all others are freed.
func (h *held) handOver(indices []int) handed {
	out := handed{}
	if h.before == nil {
		return out
	}
	was := h.before.indices
	for k, s := range h.before.stages {
		to := -1
		r, ok := s.(releaser)
		for _, i := range indices {
			if ok && out[i] == nil && k < len(was) && alike(h.before.plan.Stages[was[k]], h.plan.Stages[i]) {
				to = i
			}
		}
		if to < 0 {
			s.Close()
			continue
		}
		out[to] = r.Release()
	}
	h.before.stages = nil
	return out
}

// alike says whether two stages hold the same blocks on the same device.
func alike(a, b *pb.Stage) bool {
	return a.Device == b.Device && a.FirstBlock == b.FirstBlock && a.Blocks == b.Blocks && a.Head == b.Head && a.Tail == b.Tail &&
		a.Stored == b.Stored && a.Storage == b.Storage
}

// take gives a stage to whoever closes it; nil for none.
func (h handed) take(index int) *stage.Stage {
	st := h[index]
	delete(h, index)
	return st
}

// close frees what nobody took.
func (h handed) close() {
	for _, st := range h {
		st.Close()
	}
}
