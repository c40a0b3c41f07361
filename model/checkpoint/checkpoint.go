// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package checkpoint is one view of a model's weights on disk, whatever the
// file's format: names, dtypes, shapes and byte ranges.
//
// Imported by whoever reads weights: the catalog, stages, verify and the
// commands. It reads headers and the ranges it is asked for, never a whole
// file, and maps nothing; it must not import graphs, architectures or engines.
package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// File is an open checkpoint of any format. Reads may run at the same time.
type File interface {
	Path() string
	Size() tensor.Bytes // of all parts
	Tensors() []Tensor  // in the order of the file
	Lookup(name string) (Tensor, bool)
	Metadata() map[string]string // its text values
	// ReadAt fills dst with the bytes of t that begin at offset within it.
	ReadAt(dst []byte, t Tensor, offset int64) error
	// ReadPart fills dst from a position within a part of the file.
	ReadPart(dst []byte, part int, offset int64) error
	QuickID() (string, error)
	Close() error
}

// Tensor is an entry of a checkpoint. Shape is row-major, outermost first.
type Tensor struct {
	Name   string
	DType  tensor.DType
	Shape  tensor.Shape
	Part   int   // of a checkpoint split over several files; 0 otherwise
	Offset int64 // of its first byte within the part
	Size   tensor.Bytes
}

// magicBytes is how much of a file tells its format.
const magicBytes = 4

// Open finds the format by the file's first bytes. Close the File after use.
func Open(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	var magic [magicBytes]byte
	_, err = io.ReadFull(f, magic[:])
	if err := errors.Join(ignoreEnd(err), f.Close()); err != nil {
		return nil, fmt.Errorf("open checkpoint %s: %w", path, err)
	}
	s, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	return Safetensors(s), nil
}

// ignoreEnd leaves a file that is too short to its format's own reader.
func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// safetensorsFile is a safetensors.File under this package's interface.
type safetensorsFile struct {
	*safetensors.File
	tensors []Tensor
	byName  map[string]int
}

// Safetensors is an open safetensors file as a File, which then owns it.
func Safetensors(f *safetensors.File) File {
	s := &safetensorsFile{File: f, byName: map[string]int{}}
	for i, t := range f.Tensors() {
		s.tensors = append(s.tensors, Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape, Offset: t.Offset, Size: t.Size})
		s.byName[t.Name] = i
	}
	return s
}

func (s *safetensorsFile) Tensors() []Tensor { return s.tensors }

func (s *safetensorsFile) Lookup(name string) (Tensor, bool) {
	i, ok := s.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return s.tensors[i], true
}

func (s *safetensorsFile) ReadAt(dst []byte, t Tensor, offset int64) error {
	own, ok := s.File.Lookup(t.Name)
	if !ok {
		return fmt.Errorf("read tensor %q: %s has no such tensor", t.Name, s.Path())
	}
	return s.File.ReadAt(dst, own, offset)
}

func (s *safetensorsFile) ReadPart(dst []byte, part int, offset int64) error {
	if part != 0 {
		return fmt.Errorf("read %s: it has one part, part %d was asked for", s.Path(), part)
	}
	return s.File.ReadRange(dst, offset)
}
