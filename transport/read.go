// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"fmt"
	"time"
)

// Read fills dst with the bytes of src from offset off on. It returns nil when
// every byte is there and its checksum has been compared; a RefusedError when
// the peer refused; ErrPeerUnreachable when no connection could be kept, or the
// peer sent nothing for SilentFor and then for RedialFor; or the context's
// error. dst may not be touched before Read returns, and after an error holds
// anything. Of imm the epoch and the incarnation matter, where the region was
// registered for one. Reads of one Host from one (address, node) are answered
// in order; several may be under way.
func (h *Host) Read(ctx context.Context, addr string, peer NodeID, src RemoteKey, off uint64, dst []byte, imm Immediate) error {
	total := uint64(len(dst))
	if total > MaxTransferBytes || off > src.Bytes || total > src.Bytes-off {
		return fmt.Errorf("read %d bytes at %d from region %d of node %s, which has %d: %w", total, off, src.Region, peer, src.Bytes, ErrOutOfRange)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read from node %s: %w", peer, context.Cause(ctx))
	}
	if total == 0 {
		return nil
	}
	l, err := h.reader(target{addr, peer})
	if err != nil {
		return fmt.Errorf("read from node %s: %w", peer, err)
	}
	r := &reading{src: src, off: off, dst: dst, imm: imm, done: make(chan struct{})}
	if err := l.submit(ctx, r); err != nil {
		return fmt.Errorf("read from node %s: %w", peer, err)
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		l.cancel(r, context.Cause(ctx))
	}
	if r.err != nil {
		return fmt.Errorf("read %d bytes from node %s: %w", total, peer, r.err)
	}
	return nil
}

// reader finds or makes the asking side of a target.
func (h *Host) reader(t target) (*readLink, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	if l := h.readers[t]; l != nil {
		return l, nil
	}
	l := &readLink{host: h, target: t, born: time.Now(), wake: make(chan struct{}, 1), slots: make(chan struct{}, maxOutstanding)}
	h.readers[t] = l
	h.wg.Go(l.run)
	return l, nil
}

// reading is one Read. Its positions and dst are guarded by the link's mutex.
type reading struct {
	id  uint64
	src RemoteKey
	off uint64
	dst []byte
	imm Immediate

	asked     bool   // on the current stream
	got       uint64 // bytes that are placed
	integrity int

	done chan struct{} // closed with err set
	err  error
}

// request asks for what is missing.
func (r *reading) request() header {
	return header{
		kind:     kindRead,
		transfer: r.id,
		region:   r.src.Region,
		key:      r.src.Key,
		offset:   r.off,
		position: r.got,
		total:    uint64(len(r.dst)),
		imm:      r.imm,
	}
}
