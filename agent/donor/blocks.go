// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donor

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/transport"
)

// piece is how much is compared at a time with what was stored.
const piece = transport.ChunkBytes

// newSeed makes sums that the node which keeps the blocks cannot foresee.
func newSeed() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, fmt.Errorf("make a seed: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// Store writes block i, whose length Want says. A block is stored before it is
// read; different blocks may be stored at the same time.
func (c *Claim) Store(ctx context.Context, i int, src []byte) error {
	if i < 0 || i >= len(c.want.Blocks) || tensor.Bytes(len(src)) != c.want.Blocks[i] {
		return c.fail(fmt.Errorf("block %d of %d bytes is not one of the %d that were claimed", i, len(src), len(c.want.Blocks)))
	}
	if err := c.owner.cfg.Transport.WriteImm(ctx, c.want.Address, c.want.Node, c.key, c.offsets[i], [][]byte{src}, c.imm); err != nil {
		return c.trouble(err)
	}
	sums := make([]uint64, 0, (len(src)+piece-1)/piece)
	for p := src; len(p) > 0; p = p[min(len(p), piece):] {
		sums = append(sums, xxh3.HashSeed(p[:min(len(p), piece)], c.seed))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sums[i] = sums
	return nil
}

// Reader reads block i. Readers of one Claim may be used at the same time; they
// end with it.
func (c *Claim) Reader(i int) *Reader { return &Reader{claim: c, block: i} }

// Reader gives one block's bytes out of another node's RAM.
type Reader struct {
	claim *Claim
	block int
}

// Bytes is the block's size.
func (r *Reader) Bytes() tensor.Bytes { return r.claim.want.Blocks[r.block] }

// Read fills dst[:Bytes()] with what was stored. Its errors are of type Error:
// ErrLost when the node was restarted or took the memory back, ErrAltered when
// it returned other bytes, or why it cannot be reached.
func (r *Reader) Read(ctx context.Context, dst []byte) error {
	c := r.claim
	c.mu.Lock()
	sums, err := c.sums[r.block], c.err
	c.mu.Unlock()
	switch {
	case err != nil:
		return err
	case sums == nil && r.Bytes() > 0:
		return c.fail(fmt.Errorf("block %d was not stored", r.block))
	case tensor.Bytes(len(dst)) < r.Bytes():
		return c.fail(fmt.Errorf("block %d of %v is read into %d bytes", r.block, r.Bytes(), len(dst)))
	}
	dst = dst[:r.Bytes()]
	if err := c.owner.cfg.Transport.Read(ctx, c.want.Address, c.want.Node, c.key, c.offsets[r.block], dst, c.imm); err != nil {
		return c.trouble(err)
	}
	for i, sum := range sums {
		p := dst[i*piece : min((i+1)*piece, len(dst))]
		if xxh3.HashSeed(p, c.seed) != sum {
			return c.fail(fmt.Errorf("%w: bytes %d to %d of block %d are not what was stored", ErrAltered, i*piece, i*piece+len(p), r.block))
		}
	}
	return nil
}

// Close lets the reader go; the memory is the claim's.
func (r *Reader) Close() error { return nil }

// trouble names the node and says where its memory is gone.
func (c *Claim) trouble(err error) error {
	if lost := c.Err(); lost != nil {
		return lost
	}
	for _, gone := range []error{transport.ErrUnknownRegion, transport.ErrWrongKey, transport.ErrStaleEpoch, transport.ErrStaleIncarnation} {
		if errors.Is(err, gone) {
			return c.fail(fmt.Errorf("%w: the node was restarted or took it back: %w", ErrLost, err))
		}
	}
	return c.fail(err)
}
