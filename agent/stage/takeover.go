// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// strip gives back all of a stage but the weights that rest in buffers: another
// stage may take those over. No forward may be begun any more.
func (st *Stage) strip() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.release()
}

// release gives back all but the weights that rest in buffers. The lock is held.
func (st *Stage) release() {
	st.drain(&st.issued)
	st.closeRing()
	for i := range st.launches {
		if l := &st.launches[i]; l.reader != nil {
			_ = l.reader.Close() // it was only read
			l.reader = nil
		}
	}
	for _, b := range st.all {
		b.Free()
	}
	for _, c := range st.claims {
		c.Close()
	}
	if st.file != nil {
		_ = st.file.Close() // it was only read
	}
	st.all, st.claims, st.file = nil, nil, nil
}

// place names a launch within a model.
type place struct {
	segment    string
	run, index int
}

func (l *launch) place() place { return place{l.Segment.Name, l.Run, l.Index} }

// earlier is what the configuration's previous stage has, by launch.
func (st *Stage) earlier() map[place]*launch {
	prev := st.cfg.Previous
	if prev == nil || prev.session != st.session || prev.cfg.Stored != st.cfg.Stored || prev.cfg.Storage != st.cfg.Storage {
		return nil
	}
	out := map[place]*launch{}
	for i := range prev.launches {
		if l := &prev.launches[i]; l.resident != nil {
			out[l.place()] = l
		}
	}
	return out
}

// held adds what the previous stage has to the room that there is.
func (st *Stage) held(r *offload.Room) {
	for _, l := range st.earlier() {
		n := l.resident.Bytes()
		switch {
		case l.rest.Kind == offload.Donor:
			if free, ok := r.Donors[l.rest.Donor]; ok && free >= 0 {
				r.Donors[l.rest.Donor] = free + n
			}
		case l.rest.Kind == offload.Device || st.session.Device().Unified:
			if r.Device >= 0 {
				r.Device += n
			}
		case r.Host >= 0:
			r.Host += n
		}
	}
}

// move is bytes of the previous stage's launch that this one's has too.
type move struct {
	from, to, n tensor.Bytes
}

// takeOver makes a launch of what the previous stage has of it, and reads the
// rest; false where there is nothing to take or no room for both.
func (f *filler) takeOver(ctx context.Context, l *launch) (bool, error) {
	old := f.previous[l.place()]
	if old == nil {
		return false, nil
	}
	defer func() {
		if old.resident != nil {
			old.resident.Free()
			old.resident = nil
		}
		for i := range l.weights {
			l.weights[i].Kept = false // whoever packs them later packs all
		}
	}()
	if l.rest.Kind == offload.Remote || l.rest.Kind == offload.Disk {
		return false, nil
	}
	moves, kept := f.common(l, old)
	if len(moves) == 0 {
		return false, nil
	}
	size := f.atRest(l, l.rest)
	if kept == len(l.weights) && len(l.weights) == len(old.weights) && size == old.resident.Bytes() && l.rest == old.rest && still(moves) {
		l.resident, old.resident = old.resident, nil
		return true, nil
	}
	b, err := f.take(l, size)
	if errors.Is(err, engine.ErrNoMemory) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	l.resident = b
	return true, f.merge(ctx, l, old, moves)
}

// still says whether nothing changes its place.
func still(moves []move) bool {
	for _, m := range moves {
		if m.from != m.to {
			return false
		}
	}
	return true
}

// common marks the weights that both launches have, and says where they lie.
func (f *filler) common(l, old *launch) (moves []move, kept int) {
	if l.quantised() != old.quantised() || l.Segment.Compute != old.Segment.Compute {
		return nil, 0
	}
	at, ok := f.lies(l)
	was, ok2 := f.cfg.Previous.lies(old)
	if !ok || !ok2 {
		return nil, 0
	}
	index := make(map[string]int, len(old.weights))
	for i := range old.weights {
		index[old.weights[i].Name] = i
	}
	for i := range l.weights {
		w := &l.weights[i]
		k, ok := index[w.Name]
		if !ok || !f.same(l, old, i, k) {
			continue
		}
		from, n := was(k)
		to, m := at(i)
		if n != m {
			continue
		}
		w.Kept = true
		kept++
		moves = append(moves, move{from, to, n})
	}
	return joined(moves), kept
}

// joined moves neighbours together: what is between two of them is less than one
// alignment, and thus no weight.
func joined(all []move) (out []move) {
	slices.SortFunc(all, func(a, b move) int { return cmp.Compare(a.from, b.from) })
	for _, m := range all {
		if k := len(out) - 1; k >= 0 && m.to-out[k].to == m.from-out[k].from && m.from-out[k].from-out[k].n < graph.Align {
			out[k].n = m.from + m.n - out[k].from
			continue
		}
		out = append(out, m)
	}
	return out
}

// same says whether weight i of a launch is weight k of the one before.
func (f *filler) same(l, old *launch, i, k int) bool {
	w, o := &l.weights[i], &old.weights[k]
	if w.DType != o.DType || !w.Shape.Equal(o.Shape) || w.Scale != o.Scale {
		return false
	}
	return !f.cfg.Checkpoint.made(w.Name) && !f.cfg.Previous.cfg.Checkpoint.made(w.Name)
}

// lies says where a launch's weights lie at rest.
func (st *Stage) lies(l *launch) (func(i int) (offset, n tensor.Bytes), bool) {
	if st.cfg.Stored {
		return func(i int) (tensor.Bytes, tensor.Bytes) {
			n, _ := l.weights[i].Shape.Bytes(l.weights[i].DType) // findWeights has counted it
			return l.weights[i].Offset, n
		}, true
	}
	p, ok := st.programs[l.Segment].(engine.Placer)
	if !ok {
		return nil, false
	}
	return p.Placed, true
}

// merge brings the common bytes and reads what the previous launch has not.
func (f *filler) merge(ctx context.Context, l, old *launch, moves []move) error {
	s := f.session
	to := l.resident
	if !f.cfg.Stored && l.rest.Kind != offload.Device {
		to = f.staging.slots[0] // Pack lays out on the device
	}
	var last engine.Event
	for _, m := range moves {
		last = s.Fetch(to, m.to, old.resident, m.from, m.n, last)
	}
	src, err := f.others(ctx, l)
	if err != nil {
		_ = s.Wait(context.WithoutCancel(ctx), last) // the buffers are freed
		return err
	}
	switch {
	case src == nil:
	case f.cfg.Stored:
		for i := range l.weights {
			if w := &l.weights[i]; !w.Kept && src != l.resident {
				n, _ := w.Shape.Bytes(w.DType)
				last = s.Fetch(to, w.Offset, src, w.Offset, n, last)
			}
		}
	default:
		last = s.Pack(f.programs[l.Segment], to, 0, src, l.weights, last)
	}
	if to != l.resident {
		last = s.Fetch(l.resident, 0, to, 0, l.packed, last)
	}
	if err := s.Wait(context.WithoutCancel(ctx), last); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// others reads the weights that are not kept, and gives the buffer in which they
// lie as Offset says; nil for none.
func (f *filler) others(ctx context.Context, l *launch) (engine.Buffer, error) {
	var spans []checkpoint.Span
	for i := range l.weights {
		if !l.weights[i].Kept {
			at := l.file.of[i]
			spans = append(spans, l.file.spans[at[0]:at[1]]...)
		}
	}
	if len(spans) == 0 {
		return nil, nil
	}
	raw := f.raw
	if f.inPlace(l, l.rest) {
		raw = l.resident
	}
	if err := checkpoint.ReadArena(ctx, f.cfg.Checkpoint.File, raw.Host()[:l.file.bytes], spans, f.cfg.ReadWorkers); err != nil {
		return nil, err
	}
	if !l.quantised() {
		return raw, nil
	}
	return f.second, l.quantise(f.second.Host(), raw.Host())
}

// made says whether a weight is this checkpoint's alone.
func (c *Checkpoint) made(name string) bool { return c.Made != nil && c.Made(name) }
