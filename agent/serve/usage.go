// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"maps"
	"sync"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Forward is one that had its device for itself and was as large as the plan's
// workload: its time may be held against the forecast.
type Forward struct {
	Plan     *pb.Plan
	Stage    int
	Elements uint64 // of the largest activation that a block hands on
	Compute  time.Duration
}

// usage says who needs the devices: a count of runs and loads that are open, and
// which computations overlap.
type usage struct {
	mu      sync.Mutex
	open    int
	all     busy // of what uses every device
	devices map[engine.Session]*busy
	changed chan struct{} // closed when open changes; nil while nobody asks
}

// busy counts computations and loads.
type busy struct {
	working int
	begun   uint64
}

// enter counts a run or a load that begins.
func (u *usage) enter() { u.add(1) }

func (u *usage) leave() { u.add(-1) }

func (u *usage) add(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.open += n
	if u.changed != nil {
		close(u.changed)
		u.changed = nil
	}
}

// idle says whether nothing is open, and closes the channel when that may be
// different.
func (u *usage) idle() (bool, <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.changed == nil {
		u.changed = make(chan struct{})
	}
	return u.open == 0, u.changed
}

// work begins a computation on a device, or on all for nil. What it returns
// ends it and says whether it had the device for itself.
func (u *usage) work(on engine.Session) (end func() (alone bool)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	b := &u.all
	if on != nil {
		if u.devices == nil {
			u.devices = map[engine.Session]*busy{}
		}
		if u.devices[on] == nil {
			u.devices[on] = &busy{}
		}
		b = u.devices[on]
	}
	b.working++
	b.begun++
	first, mark, others := b.working == 1, b.begun, u.all
	return func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		b.working--
		if on == nil {
			return first && b.begun == mark
		}
		return first && b.begun == mark && others.working == 0 && u.all.begun == others.begun
	}
}

// Idle says whether no run is open and nothing is loaded, and gives a channel
// that is closed when that may have changed.
func (s *Server) Idle() (bool, <-chan struct{}) { return s.usage.idle() }

// Occupy counts as an open run, and as a computation, until it is released:
// for what uses the device beside the stages.
func (s *Server) Occupy() (release func()) {
	s.usage.enter()
	end := s.usage.work(nil)
	return func() {
		end()
		s.usage.leave()
	}
}

// elements of the largest tensor that a block hands on.
func elements(p *graph.Program) uint64 {
	most := int64(0)
	for _, r := range p.Runs {
		for _, v := range r.State {
			n := int64(1)
			for _, x := range v.Shape {
				n *= x
			}
			most = max(most, n)
		}
	}
	return uint64(most)
}

// report hands on what a forward took, if that says something of the device.
func (h *Hosted) report(j *job, took time.Duration, alone bool) {
	p := j.run.run.Program()
	if len(h.plan.Stages[h.key.stage].Tiers) > 0 {
		return // it may have waited for blocks, which says nothing of the device
	}
	if h.server.cfg.Taught == nil || !alone || !maps.Equal(p.Dims, h.stage.Program().Dims) {
		return
	}
	h.server.cfg.Taught(Forward{Plan: h.plan, Stage: int(h.key.stage), Elements: elements(p), Compute: took})
}
