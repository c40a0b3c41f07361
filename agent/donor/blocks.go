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
	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/model/planes"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/transport"
)

// readsAhead of the groups that are decoded keep the link full.
const readsAhead = 2

// group is what of a block is read, compared and decoded at a time.
type group struct {
	at    uint64   // in the region
	coded int      // bytes there
	raw   int      // bytes of the block
	sum   uint64   // of the bytes there
	ends  []uint32 // of its chunks; nil: it is kept as it is
}

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
	groups := make([]group, 0, (len(src)+planes.GroupBytes-1)/planes.GroupBytes)
	at := c.offsets[i]
	var coded []byte
	for p := src; len(p) > 0; p = p[min(len(p), planes.GroupBytes):] {
		raw := p[:min(len(p), planes.GroupBytes)]
		g, bytes := group{at: at, raw: len(raw)}, raw
		if c.want.Compressed {
			var err error
			if coded, g.ends, err = c.owner.codec.Encode(coded, nil, raw); err != nil {
				return c.fail(err)
			}
			if len(coded) < len(raw) {
				bytes = coded
			} else {
				g.ends = nil
			}
			if err := c.write(ctx, at, bytes); err != nil {
				return err
			}
		}
		g.coded, g.sum = len(bytes), xxh3.HashSeed(bytes, c.seed)
		at += uint64(g.coded)
		groups = append(groups, g)
	}
	if !c.want.Compressed {
		if err := c.write(ctx, c.offsets[i], src); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocks[i] = groups
	return nil
}

func (c *Claim) write(ctx context.Context, at uint64, src []byte) error {
	if err := c.owner.cfg.Transport.WriteImm(ctx, c.want.Address, c.want.Node, c.key, at, [][]byte{src}, c.imm); err != nil {
		return c.trouble(err)
	}
	return nil
}

// AtRest is how many bytes the stored blocks take on the other node, which is
// also what a forward reads.
func (c *Claim) AtRest() tensor.Bytes {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, b := range c.blocks {
		for _, g := range b {
			n += g.coded
		}
	}
	return tensor.Bytes(n)
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
// it returned other bytes, or why it cannot be reached. dst is let go when Read
// returns.
func (r *Reader) Read(ctx context.Context, dst []byte) error {
	c := r.claim
	c.mu.Lock()
	groups, err := c.blocks[r.block], c.err
	c.mu.Unlock()
	switch {
	case err != nil:
		return err
	case groups == nil:
		return c.fail(fmt.Errorf("block %d was not stored", r.block))
	case tensor.Bytes(len(dst)) < r.Bytes():
		return c.fail(fmt.Errorf("block %d of %v is read into %d bytes", r.block, r.Bytes(), len(dst)))
	}
	// The link is kept busy while a group is compared and decoded.
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsAhead + c.owner.cfg.Threads)
	at := 0
	for i := range groups {
		from := at
		at += groups[i].raw
		g.Go(func() error {
			err := c.fetch(ctx, dst[from:from+groups[i].raw:from+groups[i].raw], &groups[i])
			if errors.Is(err, ErrAltered) {
				err = c.fail(fmt.Errorf("%w: bytes %d to %d of block %d are not what was stored", ErrAltered, from, from+groups[i].raw, r.block))
			}
			return err
		})
	}
	return g.Wait()
}

// fetch reads one group to where it belongs; compressed bytes to its end, from
// where they are decoded in place.
func (c *Claim) fetch(ctx context.Context, dst []byte, g *group) error {
	to := dst
	if g.ends != nil {
		to = dst[len(dst)-g.coded:]
	}
	if err := c.owner.cfg.Transport.Read(ctx, c.want.Address, c.want.Node, c.key, g.at, to, c.imm); err != nil {
		return c.trouble(err)
	}
	if xxh3.HashSeed(to, c.seed) != g.sum {
		return ErrAltered
	}
	if g.ends == nil {
		return nil
	}
	if err := c.owner.codec.DecodeInPlace(dst, g.ends); err != nil {
		return c.fail(err)
	}
	return nil
}

// Close lets the reader go; the memory is the claim's.
func (r *Reader) Close() error { return nil }

// trouble names the node and says where its memory is gone.
func (c *Claim) trouble(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("blocks in the RAM of node %s: %w", c.want.NodeName, err) // not that node's fault
	}
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
