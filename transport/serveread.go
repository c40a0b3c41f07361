// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// serveRead answers the requests of one stream in order. One that is refused is
// answered and the stream goes on. gRPC lets SendMsg wait while a message of
// the stream is not on its way, so a stream keeps two chunks at most.
func (h *Host) serveRead(s grpc.ServerStream) error {
	p, err := h.peerOf(s)
	if err != nil {
		return err
	}
	chunks := &chunkPool{}
	for {
		var m rawMessage
		if err := s.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		hd, err := parseFrame(m.buffers)
		m.free()
		if err == nil && hd.kind != kindRead {
			err = fmt.Errorf("frame of kind %d: %w", hd.kind, ErrUnexpectedFrame)
		}
		var region *Region
		if err == nil {
			region, err = h.readable(p, &hd)
		}
		for err == nil && hd.position < hd.total {
			var c *rawMessage
			if c, err = region.read(&hd, chunks); err != nil {
				break
			}
			if err := s.SendMsg(c); err != nil {
				return err
			}
		}
		if err == nil {
			continue
		}
		r := refusal(hd.transfer, hd.position, err)
		if err := s.SendMsg(&rawMessage{mem.BufferSlice{mem.SliceBuffer(r.encode())}}); err != nil {
			return err
		}
	}
}

// readable finds the region of a request and checks the request against it.
func (h *Host) readable(p Peer, hd *header) (*Region, error) {
	h.mu.Lock()
	region := h.regions[hd.region]
	h.mu.Unlock()
	if region == nil {
		return nil, fmt.Errorf("region %d: %w", hd.region, ErrUnknownRegion)
	}
	if err := region.check(p, hd); err != nil {
		return nil, err
	}
	if !region.info.Readable {
		return nil, fmt.Errorf("region %d: %w", hd.region, ErrNotReadable)
	}
	return region, nil
}

// read makes the chunk at the request's position and moves that on.
func (r *Region) read(hd *header, chunks *chunkPool) (*rawMessage, error) {
	n := min(hd.total-hd.position, ChunkBytes)
	c := header{
		kind: kindChunk, payload: uint32(n), transfer: hd.transfer, region: hd.region,
		offset: hd.offset, position: hd.position, total: hd.total,
	}
	if c.position == 0 {
		c.flags |= flagFirst
	}
	if c.position+n == c.total {
		c.flags |= flagLast
	}
	frame := chunks.Get(headerBytes + int(n))
	payload := (*frame)[headerBytes:]
	if err := r.fetch(payload, hd.offset+hd.position); err != nil {
		return nil, err
	}
	c.sum = xxh3.Hash(payload) // of the copy: the region may be written meanwhile
	c.put(*frame)
	hd.position += n
	return &rawMessage{mem.BufferSlice{mem.NewBuffer(frame, chunks)}}, nil
}

// chunkPool keeps the frames of one stream for the next chunk. gRPC puts each
// back when it has been written; those of a broken stream are left to the
// garbage collector.
type chunkPool struct {
	mu   sync.Mutex
	free []*[]byte
}

// chunksKept is one more than a stream has under way.
const chunksKept = 3

// Get gives n bytes that hold anything.
func (p *chunkPool) Get(n int) *[]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := len(p.free); k > 0 {
		b := p.free[k-1]
		p.free = p.free[:k-1]
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, headerBytes+ChunkBytes)
	return &b
}

// Put takes a frame back.
func (p *chunkPool) Put(b *[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cap(*b) == headerBytes+ChunkBytes && len(p.free) < chunksKept {
		p.free = append(p.free, b)
	}
}
