// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package planes

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
)

// stride has room for a chunk while it is coded: its head and bytes that did not
// become fewer.
const stride = ChunkBytes + 32

// Codec keeps what coding needs from one call to the next. It may be used by
// several goroutines.
type Codec struct {
	workers int

	mu       sync.Mutex
	encoders []*Encoder
	decoders []*Decoder
}

// New makes a Codec that encodes with so many threads.
func New(workers int) *Codec { return &Codec{workers: max(1, workers)} }

// Encode codes src onto dst[:0], as no more bytes than it has, and says where
// each chunk ends in the result, appended to ends[:0].
func (c *Codec) Encode(dst []byte, ends []uint32, src []byte) ([]byte, []uint32, error) {
	if uint64(len(src)) > math.MaxUint32 {
		return nil, nil, fmt.Errorf("encode %d bytes: at most 4 GiB at a time", len(src))
	}
	n := Chunks(len(src))
	if cap(dst) < n*stride {
		dst = make([]byte, 0, n*stride)
	}
	dst, ends = dst[:cap(dst)], ends[:0]
	lengths := make([]int, n)
	// Chunks are coded apart from each other, then moved together.
	c.each(n, func(i int) {
		e := c.encoder()
		at := i * stride
		lengths[i] = len(e.Append(dst[at:at:at+stride], src[i*ChunkBytes:min((i+1)*ChunkBytes, len(src))]))
		c.mu.Lock()
		c.encoders = append(c.encoders, e)
		c.mu.Unlock()
	})
	total := 0
	for i, k := range lengths {
		copy(dst[total:], dst[i*stride:][:k])
		total += k
		ends = append(ends, uint32(total))
	}
	return dst[:total], ends, nil
}

// DecodeInPlace is Decoder.DecodeInPlace, on the caller's thread.
func (c *Codec) DecodeInPlace(buf []byte, ends []uint32) error {
	d := c.decoder()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.decoders = append(c.decoders, d)
	}()
	return d.DecodeInPlace(buf, ends)
}

// each calls f for 0 to n-1, on several threads.
func (c *Codec) each(n int, f func(i int)) {
	workers := min(c.workers, n)
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

func (c *Codec) encoder() *Encoder {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := len(c.encoders); k > 0 {
		e := c.encoders[k-1]
		c.encoders = c.encoders[:k-1]
		return e
	}
	return &Encoder{}
}

func (c *Codec) decoder() *Decoder {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := len(c.decoders); k > 0 {
		d := c.decoders[k-1]
		c.decoders = c.decoders[:k-1]
		return d
	}
	return &Decoder{}
}
