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
	scratch *huff0.Scratch
}

// Decode fills dst with one chunk, whose length the caller knows: at most
// ChunkBytes. src is all of its coded bytes.
func (d *Decoder) Decode(dst, src []byte) error {
	if len(dst) > ChunkBytes || len(src) == 0 {
		return fmt.Errorf("%w: %d bytes for a chunk of %d", ErrMalformed, len(src), len(dst))
	}
	width := int(src[0])
	switch width {
	case 0:
		if len(src)-1 != len(dst) {
			return fmt.Errorf("%w: %d bytes stored for a chunk of %d", ErrMalformed, len(src)-1, len(dst))
		}
		copy(dst, src[1:])
		return nil
	case 1, 2, 4:
	default:
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
