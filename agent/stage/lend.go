// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/tensor"
)

// ErrNothingToLend is the error of a stage that has no block which could leave
// its device.
var ErrNothingToLend = errors.New("no block can leave the device")

// Lend moves blocks that rest on the device to the node's RAM, the last first,
// until at least n bytes of the device's account are free that were not. A
// forward in progress goes on with the same bits. It gives what was freed, which
// is less than n when no more blocks can move; calls add up until Restore.
func (st *Stage) Lend(ctx context.Context, n tensor.Bytes) (freed tensor.Bytes, err error) {
	st.lending.Lock()
	defer st.lending.Unlock()
	if st.session.Device().Unified {
		return 0, fmt.Errorf("device %s computes in the node's RAM: %w", st.session.Device().ID, ErrNothingToLend)
	}
	was := st.rests()
	chosen, now, freed := st.choose(was, n)
	if freed <= 0 {
		return 0, fmt.Errorf("device %s: %w: bringing blocks back for each use would take as much", st.session.Device().ID, ErrNothingToLend)
	}
	// Copying out leaves the blocks where they are: forwards go on meanwhile.
	copies, err := st.copies(ctx, chosen, st.session.HostBuffer)
	if err != nil {
		return 0, err
	}
	if err := st.pause(func() error { st.swap(chosen, now, copies); return nil }); err != nil {
		return 0, err
	}
	st.lent = append(st.lent, chosen...)
	return freed, nil
}

// Lendable is what Lend can free at most now.
func (st *Stage) Lendable() tensor.Bytes {
	st.lending.Lock()
	defer st.lending.Unlock()
	if st.session.Device().Unified {
		return 0
	}
	_, _, freed := st.choose(st.rests(), math.MaxInt64)
	return max(freed, 0)
}

// Streamed is what comes to the device in each forward.
func (st *Stage) Streamed() (n tensor.Bytes) {
	st.lending.Lock()
	defer st.lending.Unlock()
	rests := st.rests()
	for i := range st.launches {
		if l := &st.launches[i]; rests[i].Kind != offload.Device {
			n += st.atRest(l, rests[i])
		}
	}
	return n
}

// choose finds the blocks whose leaving frees n bytes, or as many as can be.
func (st *Stage) choose(was []offload.Rest, n tensor.Bytes) (chosen []int, now []offload.Rest, freed tensor.Bytes) {
	now = append(now, was...)
	before := st.onDevice(was)
	for i := len(now) - 1; i >= 0 && before-st.onDevice(now) < n; i-- {
		if l := &st.launches[i]; l.Block >= 0 && now[i].Kind == offload.Device && len(l.weights) > 0 {
			now[i] = offload.Rest{Kind: offload.RAM}
			chosen = append(chosen, i)
		}
	}
	return chosen, now, before - st.onDevice(now)
}

// onDevice is what weights and ring take of the device.
func (st *Stage) onDevice(rests []offload.Rest) tensor.Bytes {
	s := st.stagingNeed(rests)
	n := tensor.Bytes(s.depth)*s.slot + s.raw
	for i := range st.launches {
		if rests[i].Kind == offload.Device {
			n += st.atRest(&st.launches[i], rests[i])
		}
	}
	return n
}

// copies copies launches' weights elsewhere; on an error nothing stays allocated.
func (st *Stage) copies(ctx context.Context, chosen []int, take func(tensor.Bytes) (engine.Buffer, error)) (out []engine.Buffer, err error) {
	last := engine.Event(0)
	defer func() {
		// What was put on the queue ends whatever ctx says: its buffers are freed.
		if waitErr := st.session.Wait(context.WithoutCancel(ctx), last); err == nil {
			err = waitErr
		}
		if err != nil {
			for _, b := range out {
				b.Free()
			}
			out = nil
		}
	}()
	for _, i := range chosen {
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		l := &st.launches[i]
		n := st.atRest(l, l.rest)
		b, err := take(n)
		if err != nil {
			return out, fmt.Errorf("memory for %s: %w", l.name(), err)
		}
		out = append(out, b)
		last = st.session.Fetch(b, 0, l.resident, 0, n, last)
	}
	return out, nil
}

// pause does something between two launches of a forward, without a ring, and
// opens one for how blocks rest then.
func (st *Stage) pause(do func() error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.drain(&st.issued)
	st.closeRing()
	err := do()
	if ringErr := st.takeStaging(st.rests()); ringErr != nil {
		return errors.Join(err, fmt.Errorf("%w: %w", errNoRing, ringErr))
	}
	return errors.Join(err, st.openRing(st.next))
}

// swap makes launches rest in their copies and frees where they were.
func (st *Stage) swap(chosen []int, now []offload.Rest, copies []engine.Buffer) {
	for k, i := range chosen {
		l := &st.launches[i]
		l.resident.Free()
		l.resident, l.rest = copies[k], now[i]
	}
}

// Restore brings back what Lend moved. When the device has no memory for all of
// it, the error says so and nothing has changed.
func (st *Stage) Restore(ctx context.Context) error {
	st.lending.Lock()
	defer st.lending.Unlock()
	if len(st.lent) == 0 {
		return nil
	}
	now := st.rests()
	for _, i := range st.lent {
		now[i] = offload.Rest{Kind: offload.Device}
	}
	// The ring's memory is needed for the blocks.
	err := st.pause(func() error {
		copies, err := st.copies(ctx, st.lent, st.session.Buffer)
		if err == nil {
			st.swap(st.lent, now, copies)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("restore blocks to device %s: %w", st.session.Device().ID, err)
	}
	st.lent = nil
	return nil
}
