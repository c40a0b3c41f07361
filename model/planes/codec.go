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

// Codec codes many chunks at a time. It may be used by several goroutines.
type Codec struct {
	workers int

	mu       sync.Mutex
	encoders []*Encoder
	decoders []*Decoder
}

// New makes a Codec that uses so many threads for one call.
func New(workers int) *Codec { return &Codec{workers: max(1, workers)} }

// Workers is how many threads one call uses.
func (c *Codec) Workers() int { return c.workers }

// Encode codes src onto dst[:0] and says where each chunk ends in the result,
// appended to ends[:0].
func (c *Codec) Encode(dst []byte, ends []uint32, src []byte) ([]byte, []uint32, error) {
	if uint64(Bound(len(src))) > math.MaxUint32 {
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

// Decode fills dst with what Encode was given: src are the coded bytes and ends
// say where each chunk ends in them.
func (c *Codec) Decode(dst, src []byte, ends []uint32) error {
	n := Chunks(len(dst))
	if n != len(ends) {
		return fmt.Errorf("%w: %d chunks for %d bytes", ErrMalformed, len(ends), len(dst))
	}
	begin := uint32(0)
	for _, end := range ends {
		if end < begin || uint64(end) > uint64(len(src)) {
			return fmt.Errorf("%w: a chunk from %d to %d of %d bytes", ErrMalformed, begin, end, len(src))
		}
		begin = end
	}
	errs := make([]error, n)
	c.each(n, func(i int) {
		d := c.decoder()
		begin := uint32(0)
		if i > 0 {
			begin = ends[i-1]
		}
		errs[i] = d.Decode(dst[i*ChunkBytes:min((i+1)*ChunkBytes, len(dst))], src[begin:ends[i]])
		c.mu.Lock()
		c.decoders = append(c.decoders, d)
		c.mu.Unlock()
	})
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
	}
	return nil
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
