// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/distorch/distorch/model/tensor"
	"github.com/go-json-experiment/json/jsontext"
)

// Tensor is one entry of the header.
type Tensor struct {
	Name   string
	DType  tensor.DType
	Shape  tensor.Shape
	Offset int64        // of the first byte, from the start of the file
	Size   tensor.Bytes // of the data
}

// minEntry is the length of {"dtype":"I8","shape":[],"data_offsets":[0,1]}.
const minEntry = 49

// header is a parsed and validated header; tensors are sorted by offset.
type header struct {
	tensors  []Tensor
	metadata map[string]string
	data     int64 // where the tensors' bytes begin
}

func readHeader(src Source) (*header, error) {
	size := src.Size()
	if size == 0 {
		return nil, refuse(EmptyFile, "", "no bytes at all")
	}
	if size < headerLengthSize {
		return nil, refuse(TooShort, "", "%d bytes", size)
	}
	var prefix [headerLengthSize]byte
	if err := readFull(src, prefix[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	switch {
	case n == 0:
		return nil, refuse(HeaderEmpty, "", "")
	case n > maxHeader:
		return nil, refuse(HeaderTooLong, "", "%d bytes announced", n)
	case int64(n) > size-headerLengthSize:
		return nil, refuse(HeaderTruncated, "", "%d bytes announced, %d there", n, size-headerLengthSize)
	}
	raw := make([]byte, n)
	if err := readFull(src, raw, headerLengthSize); err != nil {
		return nil, err
	}
	h, err := parseHeader(raw)
	if err != nil {
		return nil, err
	}
	h.data = headerLengthSize + int64(n)
	return h, h.place(size)
}

func parseHeader(raw []byte) (*header, error) {
	if !utf8.Valid(raw) {
		return nil, refuse(HeaderNotUTF8, "", "")
	}
	p := headerParser{dec: jsontext.NewDecoder(bytes.NewBuffer(raw))}
	h := &header{tensors: make([]Tensor, 0, len(raw)/minEntry+1)}
	if kind := p.dec.PeekKind(); kind != '{' {
		if kind == 0 {
			_, err := p.dec.ReadToken()
			return nil, jsonError("", err)
		}
		return nil, refuse(HeaderNotObject, "", "it is a JSON %s", kind)
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return nil, jsonError("", err)
	}
	for p.dec.PeekKind() != '}' {
		name, err := p.text()
		if err != nil {
			return nil, jsonError("", err)
		}
		if name == metadataKey {
			h.metadata, err = p.metadata()
		} else {
			var t Tensor
			t, err = p.entry(name)
			h.tensors = append(h.tensors, t)
		}
		if err != nil {
			return nil, err
		}
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return nil, jsonError("", err)
	}
	if _, err := p.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, refuse(HeaderTrailing, "", "at byte %d", p.dec.InputOffset())
	}
	return h, nil
}

type headerParser struct {
	dec *jsontext.Decoder
}

// text reads one string token.
func (p *headerParser) text() (string, error) {
	tok, err := p.dec.ReadToken()
	if err != nil {
		return "", err
	}
	return tok.String(), nil
}

func (p *headerParser) metadata() (map[string]string, error) {
	if kind := p.dec.PeekKind(); kind != '{' && kind != 0 {
		return nil, refuse(MetadataInvalid, "", "it is a JSON %s", kind)
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return nil, jsonError("", err)
	}
	m := map[string]string{}
	for p.dec.PeekKind() != '}' {
		key, err := p.text()
		if err != nil {
			return nil, jsonError("", err)
		}
		if kind := p.dec.PeekKind(); kind != '"' && kind != 0 {
			return nil, refuse(MetadataInvalid, "", "the value of %q is a JSON %s", shorten(key), kind)
		}
		if m[key], err = p.text(); err != nil {
			return nil, jsonError("", err)
		}
	}
	_, err := p.dec.ReadToken()
	return m, jsonError("", err)
}

// entry reads {"dtype":…,"shape":…,"data_offsets":…}; Offset is still relative
// to the data and Size is what the offsets say.
func (p *headerParser) entry(name string) (Tensor, error) {
	t := Tensor{Name: name}
	if kind := p.dec.PeekKind(); kind != '{' && kind != 0 {
		return t, refuse(EntryNotObject, name, "it is a JSON %s", kind)
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return t, jsonError(name, err)
	}
	const dtype, shape, offsets = 1, 2, 4
	seen := 0
	for p.dec.PeekKind() != '}' {
		field, err := p.text()
		if err != nil {
			return t, jsonError(name, err)
		}
		switch field {
		case "dtype":
			seen |= dtype
			err = p.dtype(&t)
		case "shape":
			seen |= shape
			err = p.shape(&t)
		case "data_offsets":
			seen |= offsets
			err = p.offsets(&t)
		default:
			err = jsonError(name, p.dec.SkipValue())
		}
		if err != nil {
			return t, err
		}
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return t, jsonError(name, err)
	}
	for i, field := range []string{"dtype", "shape", "data_offsets"} {
		if seen&(1<<i) == 0 {
			return t, refuse(FieldMissing, name, "%s", field)
		}
	}
	return t, t.check()
}

func (p *headerParser) dtype(t *Tensor) error {
	if kind := p.dec.PeekKind(); kind != '"' && kind != 0 {
		return refuse(FieldInvalid, t.Name, "dtype is a JSON %s", kind)
	}
	tok, err := p.dec.ReadToken()
	if err != nil {
		return jsonError(t.Name, err)
	}
	s := tok.String()
	if t.DType, err = tensor.ParseDType(s); err != nil || t.DType.Blocked() {
		return refuse(DTypeUnknown, t.Name, "%q", shorten(s))
	}
	return nil
}

func (p *headerParser) shape(t *Tensor) error {
	t.Shape = make(tensor.Shape, 0, 4)
	return p.integers(t.Name, "shape", func(raw jsontext.Value) error {
		if len(t.Shape) == maxRank {
			return refuse(ShapeTooLong, t.Name, "")
		}
		d, err := strconv.ParseInt(string(raw), 10, 64)
		switch {
		case raw[0] == '-':
			return refuse(ShapeNegative, t.Name, "%s", shorten(string(raw)))
		case errors.Is(err, strconv.ErrRange):
			return refuse(SizeOverflow, t.Name, "dimension %s", shorten(string(raw)))
		case err != nil:
			return refuse(ShapeFraction, t.Name, "%s", shorten(string(raw)))
		}
		t.Shape = append(t.Shape, d)
		return nil
	})
}

func (p *headerParser) offsets(t *Tensor) error {
	var at [2]int64
	n := 0
	err := p.integers(t.Name, "data_offsets", func(raw jsontext.Value) error {
		if raw[0] == '-' {
			return refuse(OffsetsNegative, t.Name, "%s", shorten(string(raw)))
		}
		v, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || n == 2 {
			return refuse(OffsetsInvalid, t.Name, "at %s", shorten(string(raw)))
		}
		at[n] = v
		n++
		return nil
	})
	switch {
	case err != nil:
		return err
	case n != 2:
		return refuse(OffsetsInvalid, t.Name, "%d there", n)
	case at[1] < at[0]:
		return refuse(OffsetsReversed, t.Name, "[%d,%d]", at[0], at[1])
	}
	t.Offset, t.Size = at[0], tensor.Bytes(at[1]-at[0])
	return nil
}

// integers reads a JSON array and hands each element, a number, to each.
func (p *headerParser) integers(name, field string, each func(jsontext.Value) error) error {
	if kind := p.dec.PeekKind(); kind != '[' && kind != 0 {
		return refuse(FieldInvalid, name, "%s is a JSON %s", field, kind)
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return jsonError(name, err)
	}
	for p.dec.PeekKind() != ']' {
		if kind := p.dec.PeekKind(); kind != '0' && kind != 0 {
			return refuse(FieldInvalid, name, "%s holds a JSON %s", field, kind)
		}
		raw, err := p.dec.ReadValue()
		if err != nil {
			return jsonError(name, err)
		}
		if err := each(raw); err != nil {
			return err
		}
	}
	_, err := p.dec.ReadToken()
	return jsonError(name, err)
}

// check compares the size of shape and dtype with the offsets'.
func (t *Tensor) check() error {
	want, err := t.Shape.Bytes(t.DType)
	if err != nil {
		return refuse(SizeOverflow, t.Name, "%s", err)
	}
	if want != t.Size {
		return refuse(SizeMismatch, t.Name, "%v %v takes %d bytes, offsets give %d", t.DType, t.Shape, int64(want), int64(t.Size))
	}
	return nil
}

func byOffset(a, b Tensor) int {
	if c := cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size)); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// place sorts the tensors by offset, checks that they fill the data of a file
// of the given size, and makes their offsets absolute.
func (h *header) place(size int64) error {
	if !slices.IsSortedFunc(h.tensors, byOffset) {
		slices.SortFunc(h.tensors, byOffset)
	}
	data := size - h.data
	end := int64(0)
	for i := range h.tensors {
		t := &h.tensors[i]
		switch {
		case t.Offset < end:
			return refuse(OffsetsOverlap, t.Name, "it begins at %d, %q ends at %d", t.Offset, shorten(h.tensors[i-1].Name), end)
		case t.Offset > data || int64(t.Size) > data-t.Offset:
			return refuse(OffsetsOutside, t.Name, "it takes bytes %d to %d of the data, the file has %d", t.Offset, t.Offset+int64(t.Size), data)
		case t.Offset > end:
			return refuse(OffsetsGap, t.Name, "%d bytes", t.Offset-end)
		}
		end = t.Offset + int64(t.Size)
		t.Offset += h.data
	}
	if end != data {
		return refuse(DataTrailing, "", "%d bytes", data-end)
	}
	return nil
}

// jsonError turns the decoder's error into a reason; nil stays nil.
func jsonError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jsontext.ErrDuplicateName):
		return refuse(DuplicateName, name, "%v", err)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return refuse(HeaderNotJSON, name, "%s", shorten(fmt.Sprint(err)))
}
