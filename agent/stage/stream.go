// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/tensor"
)

// errNoRing is the error of a stage that had no memory for its ring when blocks
// had changed their place.
var errNoRing = errors.New("no memory to bring blocks to the device; deploy again")

// takeStaging takes the ring's memory for launches that rest so.
func (st *Stage) takeStaging(rests []offload.Rest) (err error) {
	n, s := st.stagingNeed(rests), &st.staging
	defer func() {
		if err != nil {
			s.free()
		}
	}()
	take := func(to *[]engine.Buffer, count int, from func(tensor.Bytes) (engine.Buffer, error), size tensor.Bytes) {
		for range count {
			b, takeErr := from(size)
			if takeErr != nil {
				err = errors.Join(err, takeErr)
				return
			}
			*to = append(*to, b)
		}
	}
	take(&s.slots, n.depth, st.session.Buffer, n.slot)
	take(&s.bounces, n.bounces, st.session.HostBuffer, n.bounce)
	if n.raw > 0 && err == nil {
		s.raw, err = st.session.Buffer(n.raw)
	}
	return err
}

// free gives the ring's memory back.
func (s *staging) free() {
	for _, b := range append(s.slots, s.bounces...) {
		b.Free()
	}
	if s.raw != nil {
		s.raw.Free()
	}
	*s = staging{}
}

// openRing begins to bring blocks to the device, the first one that is used by
// launch next or a later one before the others.
func (st *Stage) openRing(next int) (err error) {
	s := &st.staging
	cfg := offload.Config{Session: st.session, Slots: s.slots, Raw: s.raw, Bounces: s.bounces}
	for i := range st.launches {
		if l := &st.launches[i]; st.streamed(l, l.rest) {
			if i < next {
				cfg.First++
			}
			cfg.Blocks = append(cfg.Blocks, st.block(l))
		}
	}
	if len(cfg.Blocks) == 0 {
		return nil
	}
	cfg.First %= len(cfg.Blocks)
	s.ring, err = offload.Open(cfg)
	return err
}

// block is a launch as the ring brings it.
func (st *Stage) block(l *launch) offload.Block {
	b := offload.Block{
		Name: l.name(), Kind: l.rest.Kind, Bytes: st.atRest(l, l.rest), Reader: l.reader,
	}
	switch l.rest.Kind {
	case offload.Donor:
		b.Where = string(l.rest.Donor)
	case offload.Remote:
		b.Where = l.rest.Node
	case offload.Disk:
		b.Where = st.cfg.Checkpoint.File.Path()
	}
	if l.reader == nil {
		b.Buffer = l.resident
	}
	if st.cfg.Stored || l.rest.Kind == offload.Disk {
		b.Program, b.Weights = st.programs[l.Segment], l.weights
	}
	return b
}

// closeRing ends the copies and gives their memory back. The Runs that used it
// must have passed.
func (st *Stage) closeRing() {
	if r := st.staging.ring; r != nil {
		r.Close()
		st.before.Add(r.Traffic())
	}
	st.staging.free()
}

// weightsOf is where launch i finds its weights, and when.
func (st *Stage) weightsOf(ctx context.Context, i int) (engine.Buffer, *offload.Staged, error) {
	l := &st.launches[i]
	if !st.streamed(l, l.rest) {
		return l.resident, nil, nil
	}
	if st.staging.ring == nil {
		return nil, nil, errNoRing
	}
	s, err := st.staging.ring.Next(ctx)
	if err != nil {
		return nil, nil, err
	}
	return s.Buffer, &s, nil
}

// rewind makes the ring begin with the first block: a forward begins, or ended
// early.
func (st *Stage) rewind() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.next = 0
	if r := st.staging.ring; r != nil {
		r.Rewind()
	}
}

// Traffic is what came to the device from each tier since Load.
func (st *Stage) Traffic() offload.Traffics {
	st.mu.Lock()
	defer st.mu.Unlock()
	t := st.before
	if r := st.staging.ring; r != nil {
		t.Add(r.Traffic())
	}
	return t
}

// Resting is how many blocks rest in each tier and what they take there.
type Resting struct {
	Blocks int
	Bytes  tensor.Bytes
}

// Resting says where the stage's weights rest now, head and tail included.
func (st *Stage) Resting() map[offload.Kind]Resting {
	st.mu.Lock()
	defer st.mu.Unlock()
	out := map[offload.Kind]Resting{}
	for i := range st.launches {
		l := &st.launches[i]
		if len(l.weights) == 0 {
			continue
		}
		r := out[l.rest.Kind]
		if l.Block >= 0 {
			r.Blocks++
		}
		r.Bytes += st.atRest(l, l.rest)
		out[l.rest.Kind] = r
	}
	return out
}
