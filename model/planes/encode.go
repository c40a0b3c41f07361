// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package planes

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/klauspost/compress/huff0"
)

const (
	// ChunkBytes is how much is coded at a time.
	ChunkBytes = 128 << 10
	// sampleBytes of a chunk say how wide its words are.
	sampleBytes = 32 << 10
	// margin is by how much a wider word must be better.
	margin = 0.985
	// wantLess: a plane is coded if that saves 1/2^wantLess of it.
	wantLess = 5
)

// A chunk that would not become shorter is kept as it is, which its length tells.
// Another is its form and the planes, low bytes first:
//
//	0 width u8: bytes of a word, 1, 2 or 4
//	1 per plane u32, little-endian: the method in the top 8 bits, the length below
//	  the planes; then the bytes that do not fill a word
//
// Words are turned left by one bit first, so that the exponent of bf16 and f32
// fills the top byte and the sign lies beside the mantissa.
const (
	methodRaw  = 0 // as it is
	methodHuff = 1 // a huff0 block in four streams, its table in front
	methodRun  = 2 // one byte, repeated
)

const methodBits = 24

func headBytes(width int) int { return 1 + 4*width }

// Chunks is how many chunks n bytes have.
func Chunks(n int) int { return (n + ChunkBytes - 1) / ChunkBytes }

// Encoder codes chunks. It is for one goroutine.
type Encoder struct {
	split   [ChunkBytes]byte
	scratch huff0.Scratch
}

// Append codes one chunk, of at most ChunkBytes, onto dst, as no more bytes than
// it has.
func (e *Encoder) Append(dst, chunk []byte) []byte {
	width := widthOf(chunk)
	if width == 0 {
		return append(dst, chunk...)
	}
	begin := len(dst)
	n := len(chunk) / width
	split(e.split[:n*width], chunk[:n*width], width)
	dst = append(dst, byte(width))
	dst = append(dst, make([]byte, 4*width)...)
	for i := range width {
		method, coded := e.plane(e.split[i*n : (i+1)*n])
		binary.LittleEndian.PutUint32(dst[begin+1+4*i:], method<<methodBits|uint32(len(coded)))
		dst = append(dst, coded...)
	}
	dst = append(dst, chunk[n*width:]...)
	if len(dst)-begin >= len(chunk) {
		return append(dst[:begin], chunk...)
	}
	return dst
}

// plane codes a plane, or leaves it. The result is valid until the next call.
func (e *Encoder) plane(p []byte) (method uint32, coded []byte) {
	e.scratch.Reuse, e.scratch.WantLogLess = huff0.ReusePolicyNone, wantLess
	out, _, err := huff0.Compress4X(p, &e.scratch)
	switch {
	case err == nil:
		return methodHuff, out
	case errors.Is(err, huff0.ErrUseRLE):
		return methodRun, p[:1]
	default: // it would not become shorter
		return methodRaw, p
	}
}

// widthOf is the word width at which a sample's planes have the least entropy;
// 0 where none saves anything.
func widthOf(chunk []byte) int {
	from := 0
	if len(chunk) > sampleBytes {
		from = (len(chunk) - sampleBytes) / 2 &^ 3
	}
	sample := chunk[from:min(from+sampleBytes, len(chunk))]
	best, width := margin*8, 0
	for _, w := range [...]int{1, 2, 4} {
		if len(sample) < 4*w {
			continue
		}
		if bits := entropy(sample, w); bits < best {
			best, width = bits*margin, w
		}
	}
	return width
}

// entropy is the mean bits that a byte of the planes takes.
func entropy(p []byte, width int) float64 {
	n := len(p) / width
	total := 0.0
	for i := range width {
		var counts [256]int
		switch width {
		case 1:
			for _, b := range p {
				counts[b]++
			}
		case 2:
			for k := range n {
				v := binary.LittleEndian.Uint16(p[2*k:])
				counts[byte((v<<1|v>>15)>>(8*i))]++
			}
		case 4:
			for k := range n {
				v := binary.LittleEndian.Uint32(p[4*k:])
				counts[byte((v<<1|v>>31)>>(8*i))]++
			}
		}
		bits := 0.0
		for _, c := range counts {
			if c > 0 {
				bits += float64(c) * math.Log2(float64(n)/float64(c))
			}
		}
		total += min(bits/float64(n), 8)
	}
	return total / float64(width)
}
