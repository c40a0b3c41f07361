// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/mem"
)

// sourceGrace is how long a source buffer may stay in gRPC's hands after its
// transfer ended before the stream is broken to get it back.
const sourceGrace = 50 * time.Millisecond

// maxIntegrity is how many times a transfer is resumed after a checksum that
// differs.
const maxIntegrity = 3

// transfer is one WriteImm. Its positions are guarded by the link's mutex.
type transfer struct {
	id    uint64
	dst   RemoteKey
	off   uint64
	src   [][]byte
	total uint64
	imm   Immediate

	sent      uint64 // handed to gRPC on the current stream
	begun     bool   // the first frame was handed to gRPC on the current stream
	acked     uint64
	integrity int
	holds     []*hold // one per stream that carried bytes of it

	done chan struct{} // closed with err set
	err  error
}

func newTransfer(dst RemoteKey, off uint64, src [][]byte, imm Immediate) *transfer {
	t := &transfer{dst: dst, off: off, src: src, imm: imm, done: make(chan struct{})}
	for _, s := range src {
		t.total += uint64(len(s))
	}
	return t
}

// next builds the frame of the next chunk and moves sent. It needs the link's
// mutex; the checksum is put by seal, without it.
func (t *transfer) next() chunk {
	n := min(t.total-t.sent, ChunkBytes)
	c := chunk{hold: t.holds[len(t.holds)-1]}
	c.header = header{
		kind:     kindChunk,
		payload:  uint32(n),
		transfer: t.id,
		region:   t.dst.Region,
		key:      t.dst.Key,
		offset:   t.off,
		position: t.sent,
		total:    t.total,
		imm:      t.imm,
	}
	if t.sent == 0 {
		c.header.flags |= flagFirst
	}
	if t.sent+n == t.total {
		c.header.flags |= flagLast
	}
	skip := t.sent
	for _, s := range t.src {
		if n == 0 {
			break
		}
		if skip >= uint64(len(s)) {
			skip -= uint64(len(s))
			continue
		}
		k := min(uint64(len(s))-skip, n)
		c.pieces = append(c.pieces, s[skip:skip+k:skip+k])
		skip, n = 0, n-k
	}
	t.sent += uint64(c.header.payload)
	t.begun = true
	c.hold.add(1)
	return c
}

// chunk is one frame before it becomes buffers. It counts as one reference of
// its hold until seal's buffers have theirs.
type chunk struct {
	header header
	pieces [][]byte
	hold   *hold
}

// seal computes the checksum and makes the message. Pieces that gRPC would not
// report as released are copied behind the header, larger ones are referenced.
func (c *chunk) seal() *rawMessage {
	if len(c.pieces) == 1 {
		c.header.sum = xxh3.Hash(c.pieces[0])
	} else {
		var x xxh3.Hasher
		for _, p := range c.pieces {
			_, _ = x.Write(p) // a hash never fails
		}
		c.header.sum = x.Sum64()
	}
	head := make([]byte, headerBytes, headerBytes+64)
	c.header.put(head)
	out := make(mem.BufferSlice, 0, 1+len(c.pieces))
	for _, p := range c.pieces {
		if mem.IsBelowBufferPoolingThreshold(len(p)) {
			head = append(head, p...)
			continue
		}
		out = append(out, mem.SliceBuffer(head))
		c.hold.add(1)
		out = append(out, mem.NewBuffer(&p, c.hold))
		head = nil
	}
	if len(head) > 0 {
		out = append(out, mem.SliceBuffer(head))
	}
	c.hold.add(-1)
	return &rawMessage{buffers: out}
}

// hold counts the references to a transfer's source that one stream has. It
// is the buffer pool of those buffers: gRPC puts each back when it has been
// written or dropped.
type hold struct {
	mu   sync.Mutex
	n    int
	void bool          // the connection is gone and reads nothing any more
	idle chan struct{} // made by a waiter, closed at zero
}

func (h *hold) add(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n += n
	h.signal()
}

// Put is called by gRPC when a buffer's last reference is gone.
func (h *hold) Put(*[]byte) { h.add(-1) }

// Get is never called; mem.BufferPool wants it.
func (h *hold) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// abandon lets waiters go: a transport that has ended keeps references that it
// will never read.
func (h *hold) abandon() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.void = true
	h.signal()
}

func (h *hold) signal() {
	if (h.n == 0 || h.void) && h.idle != nil {
		close(h.idle)
		h.idle = nil
	}
}

// wait reports whether the count reached zero before the timer fired.
func (h *hold) wait(timeout <-chan time.Time) bool {
	h.mu.Lock()
	if h.n == 0 || h.void {
		h.mu.Unlock()
		return true
	}
	if h.idle == nil {
		h.idle = make(chan struct{})
	}
	idle := h.idle
	h.mu.Unlock()
	select {
	case <-idle:
		return true
	case <-timeout:
		return false
	}
}
