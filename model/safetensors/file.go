// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/distorch/distorch/model/source"
	"github.com/distorch/distorch/model/tensor"
)

// Source is bytes of a known size read by position.
type Source = source.Source

// File is a safetensors file whose header has been read and checked.
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
		return nil, fmt.Errorf("open safetensors file: %w", err)
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

// Metadata is a copy of __metadata__; nil where the file has none.
func (f *File) Metadata() map[string]string { return maps.Clone(f.header.metadata) }

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

// ReadRange fills dst from a position in the file.
func (f *File) ReadRange(dst []byte, offset int64) error {
	if offset < 0 || offset > f.src.Size() || int64(len(dst)) > f.src.Size()-offset {
		return fmt.Errorf("read bytes %d to %d: the file had %d", offset, offset+int64(len(dst)), f.src.Size())
	}
	return readFull(f.src, dst, offset)
}

// Read is the whole of a tensor in new memory.
func (f *File) Read(name string) ([]byte, Tensor, error) {
	t, ok := f.Lookup(name)
	if !ok {
		return nil, Tensor{}, fmt.Errorf("read tensor %q: the file has no such tensor", name)
	}
	raw := make([]byte, t.Size)
	return raw, t, f.ReadAt(raw, t, 0)
}

// Float32s is a tensor of any float dtype expanded to float32 (see
// tensor.ToF32), and its shape.
func (f *File) Float32s(name string) ([]float32, tensor.Shape, error) {
	raw, t, err := f.Read(name)
	if err != nil {
		return nil, nil, err
	}
	if !t.DType.Float() {
		return nil, nil, fmt.Errorf("read tensor %q: %v is not a float dtype", name, t.DType)
	}
	v := make([]float32, len(raw)/t.DType.Size())
	return v, t.Shape, tensor.ToF32(v, raw, t.DType)
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
	return source.QuickID("distorch quick id 1", f.header.data, f.src.Size(), tensors, func(dst []byte, at int64) error { return readFull(f.src, dst, at) })
}
