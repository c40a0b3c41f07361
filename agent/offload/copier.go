// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"context"
	"time"

	"github.com/distorch/distorch/agent/engine"
)

// block is what use n is of. It needs mu.
func (r *Ring) block(n uint64) *Block {
	return &r.blocks[(uint64(r.first)+n-r.base)%uint64(len(r.blocks))]
}

// advance begins all reads and copies that may begin. It needs mu.
func (r *Ring) advance() {
	for !r.closed && (r.beginRead() || r.issueCopy()) {
	}
}

// beginRead reads the next block that has a Reader, if host memory is free for
// it: ahead of the slots by as many blocks as there are bounces.
func (r *Ring) beginRead() bool {
	if r.reading >= r.tail+r.depth+uint64(r.all) {
		return false
	}
	b := r.block(r.reading)
	if b.Reader == nil {
		r.reading++
		return true
	}
	if len(r.bounces) == 0 {
		return false
	}
	it := &item{block: b, bounce: r.bounces[len(r.bounces)-1]}
	r.bounces = r.bounces[:len(r.bounces)-1]
	r.items[r.reading] = it
	r.reading++
	life := r.life
	r.wg.Go(func() { r.read(life, it) })
	return true
}

func (r *Ring) read(ctx context.Context, it *item) {
	err := it.block.Reader.Read(ctx, it.bounce.Host()[:it.block.Bytes])
	r.mu.Lock()
	defer r.mu.Unlock()
	it.read, it.err = true, err
	if err != nil || it.unused {
		r.release(it)
	}
	r.advance()
	r.cond.Broadcast()
}

// release gives the item's host memory back. It needs mu.
func (r *Ring) release(it *item) {
	if it.bounce != nil {
		r.bounces = append(r.bounces, it.bounce)
		it.bounce = nil
	}
}

// issueCopy puts the next copy on the queue, if its slot was handed to a Run
// and its bytes are there.
func (r *Ring) issueCopy() bool {
	if r.head >= r.tail+r.depth {
		return false
	}
	b, it := r.block(r.head), r.items[r.head]
	if b.Reader != nil {
		if it == nil || !it.read || it.err != nil {
			return false // a failed read stays the next one until the forward ends
		}
	} else {
		it = &item{block: b}
		r.items[r.head] = it
	}
	s := &r.slots[r.head%r.depth]
	from := b.Buffer
	if it.bounce != nil {
		from = it.bounce
	}
	it.event, it.issued = r.stage(b, s, from), true
	r.head++
	r.copies = append(r.copies, it)
	r.cond.Broadcast()
	return true
}

// stage brings a block's bytes into a slot.
func (r *Ring) stage(b *Block, s *slot, from engine.Buffer) engine.Event {
	switch {
	case b.Program == nil:
		return r.session.Fetch(s.buffer, 0, from, 0, b.Bytes, s.used)
	case b.Kind == Donor:
		// Only plain bytes come from another session.
		e := r.session.Fetch(r.raw, 0, from, 0, b.Bytes)
		return r.session.Pack(b.Program, s.buffer, 0, r.raw, b.Weights, e, s.used)
	}
	return r.session.Pack(b.Program, s.buffer, 0, from, b.Weights, s.used)
}

// watchCopies notes when copies end, in the order of the queue.
func (r *Ring) watchCopies() {
	for {
		r.mu.Lock()
		for len(r.copies) == 0 && !r.closed {
			r.cond.Wait()
		}
		if len(r.copies) == 0 {
			r.mu.Unlock()
			return
		}
		it := r.copies[0]
		r.copies = r.copies[1:]
		r.mu.Unlock()
		err := r.session.Wait(context.Background(), it.event)
		r.mu.Lock()
		it.passed = time.Now()
		if err == nil {
			r.traffic[it.block.Kind].Streamed += it.block.Bytes
		}
		r.release(it)
		r.advance()
		r.cond.Broadcast()
		r.mu.Unlock()
	}
}

// watchUses measures how long compute waits for blocks.
func (r *Ring) watchUses() {
	for {
		r.mu.Lock()
		for len(r.uses) == 0 && !r.closed {
			r.cond.Wait()
		}
		if len(r.uses) == 0 {
			r.mu.Unlock()
			return
		}
		u := r.uses[0]
		r.uses = r.uses[1:]
		r.mu.Unlock()
		_ = r.session.Wait(context.Background(), u.before) // its error is the forward's
		idle := time.Now()
		r.mu.Lock()
		t := &r.traffic[u.item.block.Kind]
		t.Uses++
		if u.item.passed.IsZero() {
			for u.item.passed.IsZero() {
				r.cond.Wait()
			}
			t.Stall += max(u.item.passed.Sub(idle), 0)
		} else {
			t.Hits++
		}
		r.mu.Unlock()
	}
}
