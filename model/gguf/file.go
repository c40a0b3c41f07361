// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"errors"
	"fmt"
	"io"

	"github.com/distorch/distorch/model/source"
	"github.com/distorch/distorch/model/tensor"
)

// Source is bytes of a known size read by position.
type Source = source.Source

// File is a GGUF file whose header has been read and checked.
type File struct {
	src    Source
	closer io.Closer
	path   string
	header *header
	byName map[string]int
}

// Open reads and checks the header of the file at path. Close it after use.
// Errors of the format are *FormatError.
func Open(path string) (*File, error) {
	src, err := source.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open GGUF file: %w", err)
	}
	f, err := Parse(src)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, errors.Join(err, src.Close()))
	}
	f.path, f.closer = path, src
	return f, nil
}

// Parse reads and checks the header of src, which must not change while the
// File is in use.
func Parse(src Source) (*File, error) {
	h, err := readHeader(src)
	if err != nil {
		return nil, err
	}
	f := &File{src: src, header: h, byName: make(map[string]int, len(h.tensors))}
	for i, t := range h.tensors {
		f.byName[t.Name] = i
	}
	return f, nil
}

// Close closes the file that Open opened.
func (f *File) Close() error {
	if f.closer == nil {
		return nil
	}
	return f.closer.Close()
}

// Path is what Open was given; empty after Parse.
func (f *File) Path() string { return f.path }

// Size is the length of the whole file.
func (f *File) Size() tensor.Bytes { return tensor.Bytes(f.src.Size()) }

// Version is 2 or 3.
func (f *File) Version() int { return int(f.header.version) }

// Tensors are the entries sorted by offset. The slice is the File's own.
func (f *File) Tensors() []Tensor { return f.header.tensors }

// Lookup is the entry of that name.
func (f *File) Lookup(name string) (Tensor, bool) {
	i, ok := f.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return f.header.tensors[i], true
}

// Values is all metadata by key: bool, uint8 to float64, string, slices of
// these, or []any for arrays of arrays. The map is the File's own.
func (f *File) Values() map[string]any { return f.header.values }

// Metadata is the metadata that is text.
func (f *File) Metadata() map[string]string {
	out := map[string]string{}
	for key, v := range f.header.values {
		if s, ok := v.(string); ok {
			out[key] = s
		}
	}
	return out
}

// Split is which part of how many this file is, from 0; 0 of 1 without the
// keys split.no and split.count.
func (f *File) Split() (part, parts int) {
	count, ok := integer(f.header.values[keySplitCount])
	if !ok || count < 2 {
		return 0, 1
	}
	no, _ := integer(f.header.values[keySplitNo])
	return int(no), int(count)
}

// ReadAt fills dst with the bytes of t that begin at offset within it.
func (f *File) ReadAt(dst []byte, t Tensor, offset int64) error {
	if offset < 0 || offset > int64(t.Size) || int64(len(dst)) > int64(t.Size)-offset {
		return fmt.Errorf("read tensor %q: bytes %d to %d lie outside its %d", t.Name, offset, offset+int64(len(dst)), int64(t.Size))
	}
	if err := readFull(f.src, dst, t.Offset+offset); err != nil {
		return fmt.Errorf("read tensor %q: %w", t.Name, err)
	}
	return nil
}

// ReadRange fills dst with the bytes of the file that begin at offset.
func (f *File) ReadRange(dst []byte, offset int64) error {
	if offset < 0 {
		return fmt.Errorf("read %d bytes at %d: negative offset", len(dst), offset)
	}
	return readFull(f.src, dst, offset)
}

// readFull fills dst from offset at.
func readFull(src Source, dst []byte, at int64) error {
	n, err := src.ReadAt(dst, at)
	switch {
	case n == len(dst):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return refuse(ChangedOnDisk, "", "%d bytes at %d, %d wanted", n, at, len(dst))
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(dst), at, err)
}

// QuickID is source.QuickID of the file.
func (f *File) QuickID() (string, error) {
	tensors := make([]source.Extent, len(f.header.tensors))
	for i, t := range f.header.tensors {
		tensors[i] = source.Extent{Offset: t.Offset, Size: int64(t.Size)}
	}
	return source.QuickID("distorch quick id 1 gguf", f.header.end, f.src.Size(), tensors, func(dst []byte, at int64) error { return readFull(f.src, dst, at) })
}
