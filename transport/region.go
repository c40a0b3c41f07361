// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"sync"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/mem"
)

// Peer is who the other end of a connection is, by its certificate.
type Peer struct {
	Node NodeID
	Role string
}

// RemoteKey lets a peer write one region, or read it if that may be read. It travels in control messages.
type RemoteKey struct {
	Region uint64
	Key    [16]byte
	Bytes  uint64
}

// RegionInfo describes a region to an Accept function.
type RegionInfo struct {
	ID    uint64
	Bytes uint64
	Peer  NodeID // the only peer that may write or read; empty: any that has the key
	Epoch uint64 // the only epoch that may, if Scoped
	// Scoped is true for a region registered with AtEpoch.
	Scoped bool
	// Incarnation is the only process that may; zero: any.
	Incarnation [16]byte
	// Readable is true for a region registered with Readable.
	Readable bool
	Tag      any // what WithTag gave
}

// AcceptFunc is asked before the first byte of a transfer is placed: whether
// this peer may write total bytes with this immediate now. Its error goes back
// to the sender; return one of this package's sentinels, wrapped, so that the
// sender can tell them apart. It runs on the connection's reader and must not
// block. A transfer that resumes after a broken connection is not asked again.
type AcceptFunc func(peer Peer, region RegionInfo, imm Immediate, total uint64) error

// Region is registered memory. The bytes belong to the peers from Register
// until Deregister returns.
type Region struct {
	host   *Host
	info   RegionInfo
	key    [16]byte
	accept AcceptFunc
	queue  *Queue // nil: nobody asks for completions

	// fence is held shared while a receive copies into buf or a read out of it.
	fence  sync.RWMutex
	buf    []byte
	closed bool
}

// RegionOption refines Register.
type RegionOption func(*Region)

// ForPeer makes the key valid for one peer only.
func ForPeer(id NodeID) RegionOption { return func(r *Region) { r.info.Peer = id } }

// AtEpoch makes the key valid for immediates of one epoch only.
func AtEpoch(epoch uint64) RegionOption {
	return func(r *Region) { r.info.Epoch, r.info.Scoped = epoch, true }
}

// ForIncarnation makes the key valid for one process only: for immediates with
// this SenderIncarnation.
func ForIncarnation(id [16]byte) RegionOption {
	return func(r *Region) { r.info.Incarnation = id }
}

// Readable lets a peer with the key READ the region too.
func Readable() RegionOption { return func(r *Region) { r.info.Readable = true } }

// NoCompletions makes writes of the region complete for their senders alone.
func NoCompletions() RegionOption { return func(r *Region) { r.queue = nil } }

// OnQueue sends the region's completions to q instead of the Host's queue.
func OnQueue(q *Queue) RegionOption { return func(r *Region) { r.queue = q } }

// WithAccept asks f instead of Config.Accept.
func WithAccept(f AcceptFunc) RegionOption { return func(r *Region) { r.accept = f } }

// WithTag puts a value of the caller's into RegionInfo.
func WithTag(tag any) RegionOption { return func(r *Region) { r.info.Tag = tag } }

// Register makes buf writable, and with Readable readable, for peers that are given the region's key.
func (h *Host) Register(buf []byte, opts ...RegionOption) (*Region, error) {
	if len(buf) > MaxTransferBytes {
		return nil, fmt.Errorf("register a region of %d bytes: %w", len(buf), ErrOutOfRange)
	}
	r := &Region{host: h, buf: buf, accept: h.cfg.Accept, queue: h.queue}
	r.info.Bytes = uint64(len(buf))
	for _, o := range opts {
		o(r)
	}
	if _, err := rand.Read(r.key[:]); err != nil {
		return nil, fmt.Errorf("make a remote key: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("register a region: %w", ErrClosed)
	}
	h.lastRegion++
	r.info.ID = h.lastRegion
	h.regions[r.info.ID] = r
	return r, nil
}

// Key is what a peer needs to write or read the region.
func (r *Region) Key() RemoteKey {
	return RemoteKey{Region: r.info.ID, Key: r.key, Bytes: r.info.Bytes}
}

// Info describes the region.
func (r *Region) Info() RegionInfo { return r.info }

// Completions is the channel of the region's queue; nil after NoCompletions.
func (r *Region) Completions() <-chan Completion {
	if r.queue == nil {
		return nil
	}
	return r.queue.out
}

// Deregister ends the peers' right to the memory. It is a fence: when it
// returns no receive is copying into the buffer and no read out of it, none
// will, and no further completion will be queued; transfers still under way are
// answered with ErrUnknownRegion. It may be called more than once, and by Accept never.
func (r *Region) Deregister() {
	r.host.mu.Lock()
	delete(r.host.regions, r.info.ID)
	r.host.mu.Unlock()
	r.fence.Lock()
	r.closed = true
	r.buf = nil
	r.fence.Unlock()
}

// admit checks a transfer's first frame against the region and the policy.
func (r *Region) admit(p Peer, h *header) error {
	if err := r.check(p, h); err != nil {
		return err
	}
	if r.accept == nil {
		return nil
	}
	return r.accept(p, r.info, h.imm, h.total)
}

// check compares a frame with what the region is registered for.
func (r *Region) check(p Peer, h *header) error {
	if subtle.ConstantTimeCompare(r.key[:], h.key[:]) != 1 {
		return fmt.Errorf("region %d: %w", r.info.ID, ErrWrongKey)
	}
	if r.info.Peer != "" && r.info.Peer != p.Node {
		return fmt.Errorf("region %d is not for node %s: %w", r.info.ID, p.Node, ErrWrongKey)
	}
	if r.info.Scoped && r.info.Epoch != h.imm.Epoch {
		return fmt.Errorf("region %d belongs to epoch %d, the frame to %d: %w", r.info.ID, r.info.Epoch, h.imm.Epoch, ErrStaleEpoch)
	}
	if r.info.Incarnation != [16]byte{} && r.info.Incarnation != h.imm.SenderIncarnation {
		return fmt.Errorf("region %d belongs to another process of node %s: %w", r.info.ID, p.Node, ErrStaleIncarnation)
	}
	if h.offset > r.info.Bytes || h.total > r.info.Bytes-h.offset {
		return fmt.Errorf("%d bytes at %d of region %d, which has %d: %w", h.total, h.offset, r.info.ID, r.info.Bytes, ErrOutOfRange)
	}
	return nil
}

// place copies a chunk's payload into the region and compares the checksum of
// what was placed. It returns ErrUnknownRegion after Deregister.
func (r *Region) place(h *header, frame mem.BufferSlice) error {
	r.fence.RLock()
	defer r.fence.RUnlock()
	if r.closed {
		return fmt.Errorf("region %d was deregistered: %w", r.info.ID, ErrUnknownRegion)
	}
	at := h.offset + h.position
	dst := r.buf[at : at+uint64(h.payload)]
	if n := scatter(dst, frame, headerBytes); n != len(dst) {
		return fmt.Errorf("chunk holds %d of %d bytes: %w", n, len(dst), ErrMalformed)
	}
	if xxh3.Hash(dst) != h.sum {
		return fmt.Errorf("bytes %d to %d of transfer %d: %w", h.position, h.position+uint64(h.payload), h.transfer, ErrChecksum)
	}
	return nil
}

// complete queues the completion unless the region is gone.
func (r *Region) complete(p Peer, h *header) error {
	r.fence.RLock()
	defer r.fence.RUnlock()
	if r.closed {
		return fmt.Errorf("region %d was deregistered: %w", r.info.ID, ErrUnknownRegion)
	}
	if r.queue == nil {
		return nil
	}
	r.queue.push(Completion{Region: r, Peer: p, Imm: h.imm, Offset: h.offset, Length: h.total})
	return nil
}

// fetch copies the bytes from at on out of the region. It returns
// ErrUnknownRegion after Deregister.
func (r *Region) fetch(dst []byte, at uint64) error {
	r.fence.RLock()
	defer r.fence.RUnlock()
	if r.closed {
		return fmt.Errorf("region %d was deregistered: %w", r.info.ID, ErrUnknownRegion)
	}
	copy(dst, r.buf[at:at+uint64(len(dst))])
	return nil
}
