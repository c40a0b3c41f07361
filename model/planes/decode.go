// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package planes

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/huff0"
)

// ErrMalformed says that coded bytes are not what an Encoder makes.
var ErrMalformed = errors.New("compressed bytes are malformed")

// Decoder decodes chunks. It is for one goroutine.
type Decoder struct {
	planes  [ChunkBytes]byte
	coded   [ChunkBytes]byte // of the chunk that is decoded in place
	scratch *huff0.Scratch
}

// Decode fills dst with one chunk, whose length the caller knows: at most
// ChunkBytes. src is all of its coded bytes; the two must not overlap.
func (d *Decoder) Decode(dst, src []byte) error {
	if len(dst) > ChunkBytes || len(src) > len(dst) {
		return fmt.Errorf("%w: %d bytes for a chunk of %d", ErrMalformed, len(src), len(dst))
	}
	if len(src) == len(dst) {
		copy(dst, src)
		return nil
	}
	if len(src) == 0 {
		return fmt.Errorf("%w: nothing for a chunk of %d bytes", ErrMalformed, len(dst))
	}
	width := int(src[0])
	if width != 1 && width != 2 && width != 4 {
		return fmt.Errorf("%w: words of %d bytes", ErrMalformed, width)
	}
	n := len(dst) / width
	if len(src) < headBytes(width) {
		return fmt.Errorf("%w: %d bytes hold no head", ErrMalformed, len(src))
	}
	var planes [4][]byte
	rest := src[headBytes(width):]
	for i := range width {
		form := binary.LittleEndian.Uint32(src[1+4*i:])
		length := int(form & (1<<methodBits - 1))
		if length > len(rest) {
			return fmt.Errorf("%w: plane %d of %d bytes, %d are left", ErrMalformed, i, length, len(rest))
		}
		var err error
		if planes[i], err = d.plane(d.planes[i*n:(i+1)*n:(i+1)*n], rest[:length], form>>methodBits); err != nil {
			return fmt.Errorf("%w: plane %d: %w", ErrMalformed, i, err)
		}
		rest = rest[length:]
	}
	if len(rest) != len(dst)-n*width {
		return fmt.Errorf("%w: %d bytes follow the planes", ErrMalformed, len(rest))
	}
	copy(dst[n*width:], rest)
	join(dst[:n*width], &planes, width)
	return nil
}

// DecodeInPlace fills buf with chunks whose coded bytes lie at its end: they end
// at ends, counted from the first of them. No chunk is longer coded than not, so
// what is written never reaches what is still to be read.
func (d *Decoder) DecodeInPlace(buf []byte, ends []uint32) error {
	if len(ends) != Chunks(len(buf)) {
		return fmt.Errorf("%w: %d chunks for %d bytes", ErrMalformed, len(ends), len(buf))
	}
	begin := uint32(0)
	for i, end := range ends {
		if raw := min(ChunkBytes, len(buf)-i*ChunkBytes); end < begin || int64(end-begin) > int64(raw) {
			return fmt.Errorf("%w: chunk %d from %d to %d", ErrMalformed, i, begin, end)
		}
		begin = end
	}
	coded := buf[len(buf)-int(begin):]
	begin = 0
	for i, end := range ends {
		dst, src := buf[i*ChunkBytes:min((i+1)*ChunkBytes, len(buf))], coded[begin:end]
		begin = end
		if len(src) == len(dst) {
			copy(dst, src) // they may overlap
			continue
		}
		if err := d.Decode(dst, d.coded[:copy(d.coded[:], src)]); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
	}
	return nil
}

// plane gives a plane's bytes: coded itself, or decoded into room.
func (d *Decoder) plane(room, coded []byte, method uint32) ([]byte, error) {
	switch method {
	case methodRaw:
		if len(coded) != len(room) {
			return nil, fmt.Errorf("%d bytes for %d", len(coded), len(room))
		}
		return coded, nil
	case methodRun:
		if len(coded) != 1 {
			return nil, fmt.Errorf("a run of %d values", len(coded))
		}
		for i := range room {
			room[i] = coded[0]
		}
		return room, nil
	case methodHuff:
		var err error
		if d.scratch, coded, err = huff0.ReadTable(coded, d.scratch); err != nil {
			return nil, err
		}
		out, err := d.scratch.Decoder().Decompress4X(room[:0:len(room)], coded)
		if err != nil {
			return nil, err
		}
		if len(out) != len(room) {
			return nil, fmt.Errorf("%d bytes for %d", len(out), len(room))
		}
		return out, nil
	}
	return nil, fmt.Errorf("method %d", method)
}
