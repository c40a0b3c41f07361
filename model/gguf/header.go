// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// Tensor is one entry of the header.
type Tensor struct {
	Name   string
	DType  tensor.DType
	Shape  tensor.Shape // outermost first; comfy.gguf.orig_shape applied
	Offset int64        // of the first byte, from the start of the file
	Size   tensor.Bytes // of the data
}

// Keys that mean something to this reader.
const (
	keyArchitecture = "general.architecture"
	keyAlignment    = "general.alignment"
	keyOrigShape    = "comfy.gguf.orig_shape."
	keySplitNo      = "split.no"
	keySplitCount   = "split.count"
)

const (
	defaultAlignment = 32
	maxAlignment     = 1 << 20
	maxParts         = 1 << 16

	// The least that an entry takes: a key, a type and a byte; a name, the
	// number of dimensions, a type and an offset.
	minPair   = 8 + 4 + 1
	minTensor = 8 + 4 + 4 + 8
)

// header is a parsed and validated header; tensors are sorted by offset.
type header struct {
	version   uint32
	values    map[string]any
	tensors   []Tensor
	alignment int64
	data      int64 // where offsets count from
	end       int64 // of the list of tensors
}

func readHeader(src Source) (*header, error) {
	c := newCursor(src)
	if src.Size() == 0 {
		return nil, refuse(EmptyFile, "", "no bytes at all")
	}
	var magic [4]byte
	if err := c.fill(magic[:min(4, src.Size())]); err != nil {
		return nil, err
	}
	if string(magic[:]) != "GGUF" {
		return nil, refuse(NotGGUF, "", "but with %q", string(magic[:]))
	}
	h := &header{alignment: defaultAlignment}
	var err error
	if h.version, err = c.u32(); err != nil {
		return nil, err
	}
	switch {
	case h.version == bits.ReverseBytes32(2) || h.version == bits.ReverseBytes32(3):
		return nil, refuse(BigEndian, "", "version %d", bits.ReverseBytes32(h.version))
	case h.version != 2 && h.version != 3:
		return nil, refuse(VersionUnknown, "", "%d", h.version)
	}
	tensors, err := c.count(minTensor, "tensors")
	if err != nil {
		return nil, err
	}
	pairs, err := c.count(minPair, "metadata entries")
	if err != nil {
		return nil, err
	}
	if err := h.metadata(c, pairs); err != nil {
		return nil, err
	}
	if err := h.list(c, tensors); err != nil {
		return nil, err
	}
	h.end = c.at
	h.data = (c.at + h.alignment - 1) &^ (h.alignment - 1)
	return h, h.place(src.Size())
}

func (h *header) metadata(c *cursor, pairs int) error {
	h.values = make(map[string]any, min(pairs, 1024))
	for range pairs {
		key, err := c.text()
		if err != nil {
			return named(err, "a metadata key")
		}
		kind, err := c.u32()
		if err != nil {
			return err
		}
		if _, twice := h.values[key]; twice {
			return refuse(KeyDuplicate, key, "")
		}
		if h.values[key], err = c.value(kind); err != nil {
			return named(err, key)
		}
	}
	if v, ok := h.values[keyArchitecture]; ok {
		if _, text := v.(string); !text {
			return refuse(ArchitectureInvalid, "", "it is a %T", v)
		}
	}
	if v, ok := h.values[keyAlignment]; ok {
		n, whole := integer(v)
		if !whole || n < 1 || n > maxAlignment || n&(n-1) != 0 {
			return refuse(AlignmentInvalid, "", "%s", brief(v))
		}
		h.alignment = n
	}
	return h.checkSplit()
}

// checkSplit checks that split.no and split.count, if there, fit together.
func (h *header) checkSplit() error {
	v, ok := h.values[keySplitCount]
	if !ok {
		return nil
	}
	count, whole := integer(v)
	no, numbered := integer(h.values[keySplitNo])
	if !whole || !numbered || count < 0 || count > maxParts || no < 0 || count > 0 && no >= count {
		return refuse(SplitInvalid, "", "%s %s, %s %s", keySplitNo, brief(h.values[keySplitNo]), keySplitCount, brief(v))
	}
	return nil
}

// brief is a metadata value that is short enough to print, or its type.
func brief(v any) string {
	if n, whole := integer(v); whole {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("a %T", v)
}

// integer is a metadata value that is a whole number of at most 63 bits.
func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case uint8:
		return int64(v), true
	case int8:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int32:
		return int64(v), true
	case int64:
		return v, true
	case uint64:
		return int64(v), v <= math.MaxInt64
	}
	return 0, false
}

// named gives a refusal the name of what is at fault, where it has none.
func named(err error, name string) error {
	if f, ok := errors.AsType[*FormatError](err); ok && f.Name == "" {
		f.Name = name
	}
	return err
}

func (h *header) list(c *cursor, n int) error {
	h.tensors = make([]Tensor, 0, min(n, 4096))
	seen := make(map[string]bool, min(n, 4096))
	for range n {
		name, err := c.text()
		if err != nil {
			return named(err, "a tensor's name")
		}
		if seen[name] {
			return refuse(NameDuplicate, name, "")
		}
		seen[name] = true
		t, err := h.entry(c, name)
		if err != nil {
			return named(err, name)
		}
		h.tensors = append(h.tensors, t)
	}
	return nil
}

// entry reads what stands behind a tensor's name; Offset is still relative to
// the data.
func (h *header) entry(c *cursor, name string) (Tensor, error) {
	t := Tensor{Name: name}
	rank, err := c.u32()
	if err != nil {
		return t, err
	}
	if rank > maxDimensions {
		return t, refuse(DimensionsTooMany, name, "%d", rank)
	}
	t.Shape = make(tensor.Shape, rank)
	for i := range slices.Backward(t.Shape) { // stored innermost first
		n, err := c.u64()
		if err != nil {
			return t, err
		}
		if n > math.MaxInt64 {
			return t, refuse(SizeOverflow, name, "dimension %d", n)
		}
		t.Shape[i] = int64(n)
	}
	kind, err := c.u32()
	if err != nil {
		return t, err
	}
	at, err := c.u64()
	if err != nil {
		return t, err
	}
	if t.DType, err = dtypeOf(kind, name); err != nil {
		return t, err
	}
	if at > math.MaxInt64 {
		return t, refuse(OffsetOutside, name, "offset %d", at)
	}
	t.Offset = int64(at)
	if err := t.measure(); err != nil {
		return t, err
	}
	return t, h.reshape(&t)
}

// measure fills in Size from the stored shape.
func (t *Tensor) measure() error {
	if _, err := t.Shape.Elements(); err != nil {
		return refuse(SizeOverflow, t.Name, "%v", err)
	}
	elements, _ := t.DType.Block()
	if last := len(t.Shape) - 1; elements > 1 && (last < 0 || t.Shape[last]%int64(elements) != 0) {
		return refuse(RowNotBlocks, t.Name, "%v of %v, blocks of %d elements", t.Shape, t.DType, elements)
	}
	var err error
	if t.Size, err = t.Shape.Bytes(t.DType); err != nil {
		return refuse(SizeOverflow, t.Name, "%v", err)
	}
	return nil
}

// reshape gives a tensor the shape that comfy.gguf.orig_shape.NAME says. The
// elements stay where they are.
func (h *header) reshape(t *Tensor) error {
	v, ok := h.values[keyOrigShape+t.Name]
	if !ok {
		return nil
	}
	dims, ok := v.([]int32)
	if !ok || len(dims) > maxDimensions {
		return refuse(OrigShapeInvalid, t.Name, "%s", brief(v))
	}
	shape := make(tensor.Shape, len(dims))
	for i, d := range dims {
		shape[i] = int64(d)
	}
	want, err := t.Shape.Elements()
	if err != nil {
		return err
	}
	if n, err := shape.Elements(); err != nil || n != want {
		return refuse(OrigShapeInvalid, t.Name, "%v, stored as %v", shape, t.Shape)
	}
	t.Shape = shape
	return nil
}

// place sorts the tensors by offset, checks them against a file of the given
// size and makes their offsets absolute. Bytes between tensors are allowed.
func (h *header) place(size int64) error {
	slices.SortFunc(h.tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size), strings.Compare(a.Name, b.Name))
	})
	room := max(size-h.data, 0)
	end := int64(0)
	for i := range h.tensors {
		t := &h.tensors[i]
		switch {
		case t.Offset%h.alignment != 0:
			return refuse(OffsetMisaligned, t.Name, "offset %d, alignment %d", t.Offset, h.alignment)
		case t.Offset > room || int64(t.Size) > room-t.Offset:
			return refuse(OffsetOutside, t.Name, "%d bytes at %d of the data, the file has %d", int64(t.Size), t.Offset, room)
		case t.Offset < end:
			return refuse(OffsetsOverlap, t.Name, "it begins at %d, %q ends at %d", t.Offset, shorten(h.tensors[i-1].Name), end)
		}
		end = t.Offset + int64(t.Size)
		t.Offset += h.data
	}
	return nil
}
