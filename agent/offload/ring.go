// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/distorch/distorch/agent/engine"
)

// errClosed is the error of a ring that was closed.
var errClosed = errors.New("the ring of staging slots is closed")

// Config of a Ring.
type Config struct {
	Session engine.Session
	Blocks  []Block
	Slots   []engine.Buffer // of the device, each as large as any block packed; at least one
	// Raw holds the stored bytes of one block of another session, before they are
	// packed; nil where no block needs it.
	Raw engine.Buffer
	// Bounces are host memory into which Readers read; at least one where a block
	// has a Reader.
	Bounces []engine.Buffer
	// First is the block that is wanted first.
	First int
}

// Ring brings blocks to the device, ahead of their use by its number of slots.
type Ring struct {
	session engine.Session
	device  engine.DeviceID
	blocks  []Block
	raw     engine.Buffer
	depth   uint64 // slots

	mu      sync.Mutex
	cond    *sync.Cond
	slots   []slot
	bounces []engine.Buffer // those that are free
	all     int             // bounces

	// Uses are numbered. head is the next to be copied, tail the next to be used,
	// reading the next to be read; the first use since base is of block first.
	head, tail, reading uint64
	base                uint64
	first               int
	items               map[uint64]*item
	life                context.Context
	end                 context.CancelFunc
	copies              []*item // issued and not passed
	uses                []use
	traffic             Traffics
	closed              bool
	wg                  sync.WaitGroup
}

// slot is a buffer and the Run that last used it.
type slot struct {
	buffer engine.Buffer
	used   engine.Event
}

// item is one coming use of a block. Its fields are guarded by Ring.mu.
type item struct {
	block  *Block
	bounce engine.Buffer
	read   bool // its bytes are in bounce, or err says why not
	issued bool
	event  engine.Event
	err    error
	passed time.Time // when the copy had ended; zero before
	unused bool      // nobody waits for it any more
}

// use is a use whose waiting is measured: compute was idle from when before had
// passed.
type use struct {
	item   *item
	before engine.Event
}

// Open begins to fill the slots.
func Open(cfg Config) (*Ring, error) {
	if len(cfg.Blocks) == 0 || len(cfg.Slots) == 0 {
		return nil, fmt.Errorf("a ring of %d slots for %d blocks: both must be 1 or more", len(cfg.Slots), len(cfg.Blocks))
	}
	for i := range cfg.Blocks {
		if cfg.Blocks[i].Reader != nil && len(cfg.Bounces) == 0 {
			return nil, fmt.Errorf("block %s is read from %v, and there is no host memory to read it into", cfg.Blocks[i].Name, cfg.Blocks[i].Kind)
		}
	}
	r := &Ring{
		session: cfg.Session, device: cfg.Session.Device().ID, blocks: cfg.Blocks, raw: cfg.Raw, depth: uint64(len(cfg.Slots)),
		bounces: append([]engine.Buffer(nil), cfg.Bounces...), all: len(cfg.Bounces), first: cfg.First, items: map[uint64]*item{},
	}
	r.cond = sync.NewCond(&r.mu)
	for _, b := range cfg.Slots {
		r.slots = append(r.slots, slot{buffer: b})
	}
	r.life, r.end = context.WithCancel(context.Background())
	r.wg.Go(r.watchCopies)
	r.wg.Go(r.watchUses)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	return r, nil
}

// Staged is a block that is in its slot when Ready has passed.
type Staged struct {
	Block  *Block
	Buffer engine.Buffer
	Ready  engine.Event
}

// Next gives the block that is to be used next, once its copy is on the queue.
// Its error names the block, where it rests and the device.
func (r *Ring) Next(ctx context.Context) (Staged, error) {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cond.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		it := r.items[r.tail]
		switch {
		case r.closed:
			return Staged{}, errClosed
		case it != nil && it.read && it.err != nil:
			return Staged{}, it.block.Fail(r.device, it.err)
		case it != nil && it.issued:
			return Staged{Block: it.block, Buffer: r.slots[r.tail%r.depth].buffer, Ready: it.event}, nil
		case ctx.Err() != nil:
			return Staged{}, context.Cause(ctx)
		}
		r.cond.Wait()
	}
}

// Used says which Run uses the block that Next gave, and after which event it
// could begin: the slot is free when the Run has passed.
func (r *Ring) Used(run, before engine.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	it := r.items[r.tail]
	delete(r.items, r.tail)
	r.slots[r.tail%r.depth].used = run
	r.tail++
	r.uses = append(r.uses, use{it, before})
	r.advance()
	r.cond.Broadcast()
}

// Rewind makes the first block the next one, as before every forward: one that
// ended early leaves others in the slots. What is on its way is dropped, and
// what could not be read is tried again.
func (r *Ring) Rewind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || (uint64(r.first)+r.tail-r.base)%uint64(len(r.blocks)) == 0 && !r.failed() {
		return
	}
	r.drop()
	r.base, r.tail, r.reading, r.first = r.head, r.head, r.head, 0
	r.life, r.end = context.WithCancel(context.Background())
	r.advance()
	r.cond.Broadcast()
}

// failed says whether something could not be read. It needs mu.
func (r *Ring) failed() bool {
	for _, it := range r.items {
		if it.err != nil {
			return true
		}
	}
	return false
}

// drop forgets the items; what is being read or copied gives its memory back
// when it has ended. It needs mu.
func (r *Ring) drop() {
	r.end()
	for n, it := range r.items {
		it.unused = true
		if it.read && !it.issued {
			r.release(it)
		}
		delete(r.items, n)
	}
}

// Traffic is what came from each tier so far.
func (r *Ring) Traffic() Traffics {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.traffic
}

// Close ends reads and waits for copies that are on the queue, so that their
// buffers may be freed.
func (r *Ring) Close() {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		r.drop()
	}
	r.cond.Broadcast()
	r.mu.Unlock()
	r.wg.Wait()
}
