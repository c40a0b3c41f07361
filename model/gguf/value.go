// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"unicode/utf8"
)

// Limits on a header. Those of LLMs, with their vocabularies, stay below 20 MB.
const (
	maxHeader     = 100_000_000
	maxNesting    = 4
	maxDimensions = 8

	// plausible is a count that tells of a file cut short, not of a wrong count.
	plausible = 1 << 16
)

// Value types of metadata (enum gguf_metadata_value_type).
const (
	typeUint8 = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// cursor reads a header from its first byte on.
type cursor struct {
	r   *bufio.Reader
	at  int64
	end int64 // of the file, or of what a header may take
	cut bool  // end is the limit's, not the file's
}

func newCursor(src Source) *cursor {
	end := min(src.Size(), maxHeader)
	return &cursor{
		r:   bufio.NewReaderSize(io.NewSectionReader(src, 0, end), 64<<10),
		end: end, cut: end < src.Size(),
	}
}

// short is the refusal of a header that does not fit.
func (c *cursor) short() error {
	if c.cut {
		return refuse(HeaderTooLong, "", "")
	}
	return refuse(HeaderTruncated, "", "at byte %d", c.end)
}

func (c *cursor) left() uint64 { return uint64(c.end - c.at) }

func (c *cursor) fill(dst []byte) error {
	if uint64(len(dst)) > c.left() {
		return c.short()
	}
	n, err := io.ReadFull(c.r, dst)
	c.at += int64(n)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return refuse(ChangedOnDisk, "", "at byte %d of the header", c.at)
	}
	return err
}

func (c *cursor) u32() (uint32, error) {
	var b [4]byte
	err := c.fill(b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

func (c *cursor) u64() (uint64, error) {
	var b [8]byte
	err := c.fill(b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// count reads how many things of at least size bytes follow.
func (c *cursor) count(size uint64, what string) (int, error) {
	n, err := c.u64()
	if err != nil {
		return 0, err
	}
	switch {
	case n <= c.left()/size:
	case n <= plausible:
		return 0, c.short()
	default:
		return 0, c.large(CountTooLarge, what, n)
	}
	return int(n), nil
}

// large refuses a number that the rest of the file, or of the limit, denies.
func (c *cursor) large(r Reason, what string, n uint64) error {
	if c.cut && n < math.MaxInt64 {
		return refuse(HeaderTooLong, "", "%d %s", n, what)
	}
	return refuse(r, "", "%d %s, %d bytes there", n, what, c.left())
}

func (c *cursor) text() (string, error) {
	n, err := c.u64()
	if err != nil {
		return "", err
	}
	if n > c.left() {
		return "", c.large(LengthTooLarge, "bytes of text", n)
	}
	raw := make([]byte, n)
	if err := c.fill(raw); err != nil {
		return "", err
	}
	if !utf8.Valid(raw) {
		return "", refuse(NotUTF8, "", "%d bytes before byte %d", n, c.at)
	}
	return string(raw), nil
}

// value reads a metadata value of a type: bool, uint8 to float64, string, a
// slice of one of these, or []any for arrays of arrays.
func (c *cursor) value(kind uint32) (any, error) {
	switch kind {
	case typeString:
		return c.text()
	case typeArray:
		return c.array(0)
	}
	v, err := c.slice(kind, 1)
	if err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case []uint8:
		return v[0], nil
	case []int8:
		return v[0], nil
	case []uint16:
		return v[0], nil
	case []int16:
		return v[0], nil
	case []uint32:
		return v[0], nil
	case []int32:
		return v[0], nil
	case []float32:
		return v[0], nil
	case []bool:
		return v[0], nil
	case []uint64:
		return v[0], nil
	case []int64:
		return v[0], nil
	default:
		return v.([]float64)[0], nil
	}
}

// array reads what stands behind the type of an array.
func (c *cursor) array(depth int) (any, error) {
	if depth == maxNesting {
		return nil, refuse(ArrayNested, "", "more than %d", maxNesting)
	}
	kind, err := c.u32()
	if err != nil {
		return nil, err
	}
	size, err := c.sizeOf(kind)
	if err != nil {
		return nil, err
	}
	n, err := c.count(size, "elements of an array")
	if err != nil {
		return nil, err
	}
	switch kind {
	case typeString:
		out := make([]string, n)
		for i := range out {
			if out[i], err = c.text(); err != nil {
				return nil, err
			}
		}
		return out, nil
	case typeArray:
		out := make([]any, n)
		for i := range out {
			if out[i], err = c.array(depth + 1); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return c.slice(kind, n)
}

// sizeOf is the least a value of a type takes in the file.
func (c *cursor) sizeOf(kind uint32) (uint64, error) {
	sizes := [...]uint64{
		typeUint8: 1, typeInt8: 1, typeUint16: 2, typeInt16: 2, typeUint32: 4, typeInt32: 4, typeFloat32: 4,
		typeBool: 1, typeString: 8, typeArray: 12, typeUint64: 8, typeInt64: 8, typeFloat64: 8,
	}
	if kind >= uint32(len(sizes)) {
		return 0, refuse(ValueTypeUnknown, "", "%d", kind)
	}
	return sizes[kind], nil
}

// slice reads n numbers or bools, which the rest of the file can hold or n is 1.
func (c *cursor) slice(kind uint32, n int) (any, error) {
	size, err := c.sizeOf(kind)
	if err != nil {
		return nil, err
	}
	if uint64(n)*size > c.left() {
		return nil, c.short()
	}
	raw := make([]byte, uint64(n)*size)
	if err := c.fill(raw); err != nil {
		return nil, err
	}
	switch kind {
	case typeUint8:
		return raw, nil
	case typeInt8:
		return each(raw, 1, func(b []byte) int8 { return int8(b[0]) }), nil
	case typeUint16:
		return each(raw, 2, binary.LittleEndian.Uint16), nil
	case typeInt16:
		return each(raw, 2, func(b []byte) int16 { return int16(binary.LittleEndian.Uint16(b)) }), nil
	case typeUint32:
		return each(raw, 4, binary.LittleEndian.Uint32), nil
	case typeInt32:
		return each(raw, 4, func(b []byte) int32 { return int32(binary.LittleEndian.Uint32(b)) }), nil
	case typeFloat32:
		return each(raw, 4, func(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }), nil
	case typeBool:
		for _, b := range raw {
			if b > 1 {
				return nil, refuse(BoolInvalid, "", "%d", b)
			}
		}
		return each(raw, 1, func(b []byte) bool { return b[0] == 1 }), nil
	case typeUint64:
		return each(raw, 8, binary.LittleEndian.Uint64), nil
	case typeInt64:
		return each(raw, 8, func(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b)) }), nil
	default:
		return each(raw, 8, func(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) }), nil
	}
}

func each[T any](raw []byte, size int, read func([]byte) T) []T {
	out := make([]T, len(raw)/size)
	for i := range out {
		out[i] = read(raw[i*size:])
	}
	return out
}
