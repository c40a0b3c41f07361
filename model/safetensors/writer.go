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
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/tensor"
	"github.com/go-json-experiment/json/jsontext"
)

// Entry is a tensor to be written.
type Entry struct {
	Name  string
	DType tensor.DType
	Shape tensor.Shape
}

// DiskFullError is a file that did not fit; nothing of it is left behind.
type DiskFullError struct {
	Path   string
	Needed tensor.Bytes // of the whole file
	Err    error
}

func (e *DiskFullError) Error() string {
	return fmt.Sprintf("write %s: disk is full, the file needs %v (%d bytes); free some or choose another disk: %v", e.Path, e.Needed, int64(e.Needed), e.Err)
}

func (e *DiskFullError) Unwrap() error { return e.Err }

// Header is the beginning of a safetensors file that holds the entries in the
// given order, padded so that the data begins at a multiple of 8, and the
// length of the whole file. metadata may be nil.
func Header(entries []Entry, metadata map[string]string) ([]byte, tensor.Bytes, error) {
	out := bytes.NewBuffer(make([]byte, headerLengthSize))
	enc := jsontext.NewEncoder(out)
	end, err := encodeHeader(enc, entries, metadata)
	if err != nil {
		return nil, 0, fmt.Errorf("safetensors header: %w", err)
	}
	raw := bytes.TrimRight(out.Bytes(), "\n")
	for len(raw)%8 != 0 {
		raw = append(raw, ' ')
	}
	n := len(raw) - headerLengthSize
	if n > maxHeader {
		return nil, 0, fmt.Errorf("safetensors header: %d bytes are over the format's limit of %d", n, maxHeader)
	}
	binary.LittleEndian.PutUint64(raw, uint64(n))
	if end > math.MaxInt64-tensor.Bytes(len(raw)) {
		return nil, 0, errors.New("safetensors header: file size overflows 64 bits")
	}
	return raw, tensor.Bytes(len(raw)) + end, nil
}

// encodeHeader writes the JSON object and returns the length of the data.
func encodeHeader(enc *jsontext.Encoder, entries []Entry, metadata map[string]string) (tensor.Bytes, error) {
	var failed error
	put := func(tokens ...jsontext.Token) {
		for _, t := range tokens {
			if failed == nil {
				failed = enc.WriteToken(t)
			}
		}
	}
	put(jsontext.BeginObject)
	if metadata != nil {
		put(jsontext.String(metadataKey), jsontext.BeginObject)
		for _, k := range slices.Sorted(maps.Keys(metadata)) {
			put(jsontext.String(k), jsontext.String(metadata[k]))
		}
		put(jsontext.EndObject)
	}
	end := tensor.Bytes(0)
	for _, e := range entries {
		size, err := e.Shape.Bytes(e.DType)
		switch {
		case err != nil:
			return 0, fmt.Errorf("tensor %q: %w", e.Name, err)
		case e.Name == metadataKey:
			return 0, fmt.Errorf("tensor %q: the name is taken by the format", e.Name)
		case size > math.MaxInt64-end:
			return 0, fmt.Errorf("tensor %q: file size overflows 64 bits", e.Name)
		}
		put(jsontext.String(e.Name), jsontext.BeginObject,
			jsontext.String("dtype"), jsontext.String(e.DType.String()),
			jsontext.String("shape"), jsontext.BeginArray)
		for _, d := range e.Shape {
			put(jsontext.Int(d))
		}
		put(jsontext.EndArray, jsontext.String("data_offsets"),
			jsontext.BeginArray, jsontext.Int(int64(end)), jsontext.Int(int64(end+size)), jsontext.EndArray,
			jsontext.EndObject)
		end += size
	}
	put(jsontext.EndObject)
	return end, failed
}

// tempFile is what a Writer needs of an *os.File.
type tempFile interface {
	io.WriteCloser
	Name() string
	Sync() error
}

// Writer streams tensors, in the order of its entries, into a temporary file
// beside path that takes path's place when Commit succeeds. Until then, and
// after any error, path is as it was.
type Writer struct {
	file   tempFile
	path   string
	needed tensor.Bytes
	left   tensor.Bytes
	err    error
	closed bool
}

// Create writes the header for entries. The caller writes their bytes, one
// after the other, then calls Commit; a deferred Abort removes what is there
// when it does not come to that.
func Create(path string, entries []Entry, metadata map[string]string) (*Writer, error) {
	return create(path, entries, metadata, func(dir, pattern string) (tempFile, error) {
		return os.CreateTemp(dir, pattern)
	})
}

func create(path string, entries []Entry, metadata map[string]string, temp func(dir, pattern string) (tempFile, error)) (*Writer, error) {
	raw, size, err := Header(entries, metadata)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	f, err := temp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	w := &Writer{file: f, path: path, needed: size, left: size}
	if err != nil {
		w.closed = true
		return nil, w.fail(err)
	}
	if _, err := w.Write(raw); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return w, nil
}

// Write appends data of the entries.
func (w *Writer) Write(p []byte) (int, error) {
	switch {
	case w.err != nil:
		return 0, w.err
	case w.closed:
		return 0, fmt.Errorf("write %s: already closed", w.path)
	case tensor.Bytes(len(p)) > w.left:
		w.err = fmt.Errorf("write %s: %d bytes more than the header announces", w.path, tensor.Bytes(len(p))-w.left)
		return 0, w.err
	}
	n, err := w.file.Write(p)
	w.left -= tensor.Bytes(n)
	if err != nil {
		w.err = w.fail(err)
	}
	return n, w.err
}

// Commit makes the file durable and puts it at path. On error nothing is left.
func (w *Writer) Commit() error {
	if w.closed {
		return fmt.Errorf("write %s: already closed", w.path)
	}
	if w.err == nil && w.left != 0 {
		w.err = fmt.Errorf("write %s: %d bytes fewer than the header announces", w.path, int64(w.left))
	}
	if w.err == nil {
		if err := w.file.Sync(); err != nil {
			w.err = w.fail(err)
		}
	}
	if w.err != nil {
		return errors.Join(w.err, w.Abort())
	}
	w.closed = true
	err := w.file.Close()
	if err == nil {
		err = os.Chmod(w.file.Name(), 0o644) // a temporary file is its owner's alone
	}
	if err == nil {
		err = os.Rename(w.file.Name(), w.path)
	}
	if err != nil {
		return errors.Join(w.fail(err), os.Remove(w.file.Name()))
	}
	return nil
}

// Abort removes the temporary file; after Commit or Abort it does nothing.
func (w *Writer) Abort() error {
	if w.closed {
		return nil
	}
	w.closed = true
	return errors.Join(w.file.Close(), os.Remove(w.file.Name()))
}

func (w *Writer) fail(err error) error {
	if diskFull(err) {
		return &DiskFullError{Path: w.path, Needed: w.needed, Err: err}
	}
	return fmt.Errorf("write %s: %w", w.path, err)
}

// Data is a tensor with its little-endian bytes.
type Data struct {
	Entry
	Bytes []byte
}

// WriteFile writes tensors to path at once, in the order the format's own
// writer chooses: wide elements first, then by name.
func WriteFile(path string, tensors []Data, metadata map[string]string) error {
	sorted, entries, err := arrange(tensors)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	w, err := Create(path, entries, metadata)
	if err != nil {
		return err
	}
	for _, t := range sorted {
		if _, err := w.Write(t.Bytes); err != nil {
			return errors.Join(err, w.Abort())
		}
	}
	return w.Commit()
}

// Encode is WriteFile into out.
func Encode(out io.Writer, tensors []Data, metadata map[string]string) error {
	sorted, entries, err := arrange(tensors)
	if err != nil {
		return err
	}
	raw, _, err := Header(entries, metadata)
	if err != nil {
		return err
	}
	if _, err := out.Write(raw); err != nil {
		return err
	}
	for _, t := range sorted {
		if _, err := out.Write(t.Bytes); err != nil {
			return err
		}
	}
	return nil
}

func arrange(tensors []Data) ([]Data, []Entry, error) {
	sorted := slices.Clone(tensors)
	slices.SortStableFunc(sorted, func(a, b Data) int {
		return cmp.Or(cmp.Compare(b.DType.Bits(), a.DType.Bits()), strings.Compare(a.Name, b.Name))
	})
	entries := make([]Entry, len(sorted))
	for i, t := range sorted {
		size, err := t.Shape.Bytes(t.DType)
		if err != nil {
			return nil, nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		if size != tensor.Bytes(len(t.Bytes)) {
			return nil, nil, fmt.Errorf("tensor %q: %v %v takes %d bytes, got %d", t.Name, t.DType, t.Shape, int64(size), len(t.Bytes))
		}
		entries[i] = t.Entry
	}
	return sorted, entries, nil
}

// FromFloat32s is a float32 tensor's Data.
func FromFloat32s(name string, shape tensor.Shape, values []float32) Data {
	raw := make([]byte, 4*len(values))
	tensor.PutF32(raw, values)
	return Data{Entry{name, tensor.F32, shape}, raw}
}
