// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/tensor"
)

// inPlace says whether the file's bytes are read where they will rest.
func (st *Stage) inPlace(l *launch, r offload.Rest) bool {
	visible := r.Kind == offload.RAM || r.Kind == offload.Device && st.session.Device().Unified
	return st.cfg.Stored && visible && !l.quantised()
}

// readBuffers is the host memory to load with: for one launch as in the file, and
// for what is made of it on its way to memory that the host does not see.
func (st *Stage) readBuffers(rests []offload.Rest) (raw, second tensor.Bytes) {
	for i := range st.launches {
		l, r := &st.launches[i], rests[i]
		if len(l.weights) == 0 || r.Kind == offload.Disk || st.inPlace(l, r) {
			continue
		}
		raw = max(raw, l.file.bytes)
		if l.quantised() {
			second = max(second, l.stored)
		}
		if r.Kind == offload.Remote && !st.cfg.Stored {
			second = max(second, l.packed)
		}
	}
	return raw, second
}

// filler loads launches one after another.
type filler struct {
	*Stage
	raw, second engine.Buffer
	donors      map[engine.DeviceID]engine.Session
	claims      []kept            // by launch
	previous    map[place]*launch // that are not taken over yet
}

// kept is a launch's place in another node's RAM.
type kept struct {
	claim offload.Claim
	index int
}

// fill brings every launch's weights where they rest.
func (st *Stage) fill(ctx context.Context) (err error) {
	rests := st.rests()
	if err := st.takeStaging(rests); err != nil {
		return fmt.Errorf("memory to bring blocks to the device: %w", err)
	}
	f := &filler{Stage: st, donors: map[engine.DeviceID]engine.Session{}, claims: make([]kept, len(st.launches)), previous: st.earlier()}
	for _, t := range st.cfg.Tiers {
		if t.Kind == offload.Donor {
			f.donors[t.Donor.Device().ID] = t.Donor
		}
	}
	raw, second := st.readBuffers(rests)
	for _, b := range []struct {
		n  tensor.Bytes
		to *engine.Buffer
	}{{raw, &f.raw}, {second, &f.second}} {
		if b.n == 0 {
			continue
		}
		if *b.to, err = st.session.HostBuffer(b.n); err != nil {
			return fmt.Errorf("memory to read one block: %w", err)
		}
		defer (*b.to).Free()
	}
	if err := f.claim(ctx); err != nil {
		return err
	}
	var done, total tensor.Bytes
	for i := range st.launches {
		total += st.launches[i].file.bytes
	}
	for i := range st.launches {
		l := &st.launches[i]
		if len(l.weights) == 0 {
			continue
		}
		if err := f.one(ctx, i, l); err != nil {
			return fmt.Errorf("load %s: %w", l.name(), err)
		}
		if done += l.file.bytes; st.cfg.Progress != nil {
			st.cfg.Progress(done, total)
		}
	}
	return nil
}

func (st *Stage) rests() []offload.Rest {
	out := make([]offload.Rest, len(st.launches))
	for i := range out {
		out[i] = st.launches[i].rest
	}
	return out
}

// claim makes room in the RAM of other nodes.
func (f *filler) claim(ctx context.Context) error {
	_, tiers, err := f.planned()
	if err != nil {
		return err
	}
	for k := range f.cfg.Tiers {
		t := &f.cfg.Tiers[k]
		var sizes []tensor.Bytes
		var of []int
		for i := range f.launches {
			if l := &f.launches[i]; tiers[i] == t && l.rest.Kind == offload.Remote {
				sizes, of = append(sizes, f.atRest(l, l.rest)), append(of, i)
			}
		}
		if len(sizes) == 0 {
			continue
		}
		c, err := t.Place.Claim(ctx, sizes)
		if err != nil {
			return err
		}
		f.Stage.claims = append(f.Stage.claims, c)
		for n, i := range of {
			f.claims[i] = kept{c, n}
		}
	}
	return nil
}

// one brings a launch's weights where they rest.
func (f *filler) one(ctx context.Context, i int, l *launch) (err error) {
	if taken, err := f.takeOver(ctx, l); taken || err != nil {
		return err
	}
	if l.rest.Kind == offload.Disk {
		return f.onDisk(l)
	}
	if l.resident, err = f.take(l, f.atRest(l, l.rest)); err != nil {
		return err
	}
	raw := f.raw
	if f.inPlace(l, l.rest) {
		raw = l.resident
	}
	if err := checkpoint.ReadArena(ctx, f.cfg.Checkpoint.File, raw.Host()[:l.file.bytes], l.file.spans, f.cfg.ReadWorkers); err != nil {
		return err
	}
	if l.quantised() {
		if err := l.quantise(f.second.Host(), raw.Host()); err != nil {
			return err
		}
		raw = f.second
	}
	if raw == l.resident {
		return nil
	}
	return f.put(ctx, i, l, raw)
}

// put moves stored bytes from host memory where they rest, packed unless they
// rest stored. The host's buffers are used again, so copies have to end whatever
// ctx says.
func (f *filler) put(ctx context.Context, i int, l *launch, raw engine.Buffer) error {
	s, wait := f.session, func(e engine.Event) error { return f.session.Wait(context.WithoutCancel(ctx), e) }
	p := f.programs[l.Segment]
	if f.cfg.Stored {
		if l.rest.Kind == offload.Remote {
			return f.store(ctx, i, l, raw.Host()[:l.stored])
		}
		return wait(s.Fetch(l.resident, 0, raw, 0, l.stored))
	}
	if l.rest.Kind == offload.Device {
		return wait(s.Pack(p, l.resident, 0, raw, l.weights))
	}
	slot, to := f.staging.slots[0], l.resident
	if l.rest.Kind == offload.Remote {
		to = f.second
	}
	e := s.Pack(p, slot, 0, raw, l.weights)
	if err := wait(s.Fetch(to, 0, slot, 0, l.packed, e)); err != nil || l.rest.Kind != offload.Remote {
		return err
	}
	return f.store(ctx, i, l, to.Host()[:l.packed])
}

func (f *filler) store(ctx context.Context, i int, l *launch, from []byte) error {
	k := f.claims[i]
	if err := k.claim.Store(ctx, k.index, from); err != nil {
		return err
	}
	l.reader = k.claim.Reader(k.index)
	return nil
}

// take takes memory where a launch rests; nil for another node's.
func (f *filler) take(l *launch, n tensor.Bytes) (engine.Buffer, error) {
	switch l.rest.Kind {
	case offload.Device:
		return f.session.Buffer(n)
	case offload.RAM:
		return f.session.HostBuffer(n)
	case offload.Donor:
		return f.donors[l.rest.Donor].Buffer(n)
	}
	return nil, nil
}

// onDisk leaves a launch's weights in the file.
func (f *filler) onDisk(l *launch) (err error) {
	st := f.Stage
	if st.file == nil {
		open := st.cfg.Checkpoint.Open
		if open == nil {
			open = func() (checkpoint.File, error) { return checkpoint.Open(st.cfg.Checkpoint.File.Path()) }
		}
		if st.file, err = open(); err != nil {
			return err
		}
	}
	l.reader = offload.NewFile(st.file, l.file.spans, l.file.bytes, st.cfg.ReadWorkers)
	if !l.quantised() {
		return nil
	}
	if st.quantise == nil {
		n := tensor.Bytes(0)
		for i := range st.launches {
			if x := &st.launches[i]; x.rest.Kind == offload.Disk && x.quantised() {
				n = max(n, x.file.bytes)
			}
		}
		if st.quantise, err = st.hostBuffer(n); err != nil {
			return err
		}
	}
	l.reader = &quantising{Reader: l.reader, launch: l, through: st.quantise, mu: &st.quantiseMu}
	return nil
}
