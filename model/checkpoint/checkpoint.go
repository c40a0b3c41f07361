// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package checkpoint is one view of a model's weights on disk, whatever the
// file's format (safetensors, GGUF) and however many files it was split over:
// names, dtypes, shapes and byte ranges.
//
// Imported by whoever reads weights: the catalog, stages, verify and the
// commands. It reads headers and the ranges it is asked for, never a whole
// file, and maps nothing; it must not import graphs, architectures or engines.
package checkpoint

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/distorch/distorch/model/gguf"
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

// ErrUnsupported is a sound file of a version, byte order or type that this
// build does not read.
var ErrUnsupported = gguf.ErrUnsupported

// Open finds the format by the file's first bytes. Of a checkpoint that was
// split (NAME-00001-of-00003.gguf) it takes the first part and opens all; one
// that is missing is named. Close the File after use.
func Open(path string) (File, error) {
	name, err := splitName(path)
	if err != nil {
		return nil, err
	}
	c := &file{byName: map[string]int{}}
	for i := range name.parts {
		p, err := openPart(name.path(i), i, name.parts)
		if err == nil {
			err = c.add(p)
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// openPart opens part i of n.
func openPart(path string, i, n int) (part, error) {
	is, err := isGGUF(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && n > 1:
		return part{}, fmt.Errorf("open checkpoint: part %d of %d is missing: put %s beside the others", i+1, n, path)
	case err != nil:
		return part{}, fmt.Errorf("open checkpoint: %w", err)
	case !is:
		f, err := safetensors.Open(path)
		if err != nil {
			return part{}, err
		}
		return ofSafetensors(f), nil
	}
	f, err := gguf.Open(path)
	if err != nil {
		return part{}, err
	}
	if no, count := f.Split(); (no != i || count != n) && (count > 1 || n > 1) {
		err := fmt.Errorf("open %s: its header says part %d of %d, its name part %d of %d; give it back the name that it was made with", path, no+1, count, i+1, n)
		return part{}, errors.Join(err, f.Close())
	}
	return ofGGUF(f), nil
}

// isGGUF says whether a file is GGUF or, by its name, was meant to be. Whatever
// else it is goes to the safetensors reader, as that format has no magic.
func isGGUF(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // too short: its reader says so
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err // which names the file
	}
	return string(magic[:]) == "GGUF" || strings.EqualFold(filepath.Ext(path), ".gguf"), nil
}

// source is an open file of one format.
type source interface {
	Path() string
	Size() tensor.Bytes
	Metadata() map[string]string
	ReadRange(dst []byte, offset int64) error
	QuickID() (string, error)
	Close() error
}

// part is a source and its tensors.
type part struct {
	source
	tensors []Tensor
}

func ofSafetensors(f *safetensors.File) part {
	p := part{source: f}
	for _, t := range f.Tensors() {
		p.tensors = append(p.tensors, Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape, Offset: t.Offset, Size: t.Size})
	}
	return p
}

func ofGGUF(f *gguf.File) part {
	p := part{source: f}
	for _, t := range f.Tensors() {
		p.tensors = append(p.tensors, Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape, Offset: t.Offset, Size: t.Size})
	}
	return p
}

// Safetensors is an open safetensors file as a File, which then owns it.
func Safetensors(f *safetensors.File) File {
	c := &file{byName: map[string]int{}}
	_ = c.add(ofSafetensors(f)) // one file has no name twice
	return c
}

// file is a checkpoint of one or more parts.
type file struct {
	parts   []part
	tensors []Tensor
	byName  map[string]int
}

// add takes the next part, and owns it even when it refuses it.
func (c *file) add(p part) error {
	i := len(c.parts)
	c.parts = append(c.parts, p)
	for _, t := range p.tensors {
		if first, twice := c.byName[t.Name]; twice {
			return fmt.Errorf("open %s: tensor %.200q is in %s as well; the parts are not of one checkpoint", p.Path(), t.Name, filepath.Base(c.parts[c.tensors[first].Part].Path()))
		}
		t.Part = i
		c.byName[t.Name] = len(c.tensors)
		c.tensors = append(c.tensors, t)
	}
	return nil
}

// Path is that of the first part.
func (c *file) Path() string { return c.parts[0].Path() }

func (c *file) Size() (n tensor.Bytes) {
	for _, p := range c.parts {
		n += p.Size()
	}
	return n
}

func (c *file) Tensors() []Tensor { return c.tensors }

func (c *file) Lookup(name string) (Tensor, bool) {
	i, ok := c.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return c.tensors[i], true
}

// Metadata is that of all parts; of a key in several the first one counts.
func (c *file) Metadata() map[string]string {
	out := map[string]string{}
	for i := range c.parts {
		maps.Copy(out, c.parts[len(c.parts)-1-i].Metadata())
	}
	return out
}

func (c *file) ReadAt(dst []byte, t Tensor, offset int64) error {
	own, ok := c.Lookup(t.Name)
	if !ok {
		return fmt.Errorf("read tensor %q: %s has no such tensor", t.Name, c.Path())
	}
	if offset < 0 || offset > int64(own.Size) || int64(len(dst)) > int64(own.Size)-offset {
		return fmt.Errorf("read tensor %q: bytes %d to %d lie outside its %d", t.Name, offset, offset+int64(len(dst)), int64(own.Size))
	}
	if err := c.parts[own.Part].ReadRange(dst, own.Offset+offset); err != nil {
		return fmt.Errorf("read tensor %q: %w", t.Name, err)
	}
	return nil
}

func (c *file) ReadPart(dst []byte, part int, offset int64) error {
	if part < 0 || part >= len(c.parts) {
		return fmt.Errorf("read %s: of its %d parts number %d was asked for, from 0", c.Path(), len(c.parts), part)
	}
	return c.parts[part].ReadRange(dst, offset)
}

// QuickID is that of the file's format; of several parts the BLAKE3 of theirs.
func (c *file) QuickID() (string, error) {
	if len(c.parts) == 1 {
		return c.parts[0].QuickID()
	}
	h := blake3.New()
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], uint64(len(c.parts)))
	_, _ = h.WriteString("distorch quick id 1 parts") // a hash takes every write
	_, _ = h.Write(number[:])
	for _, p := range c.parts {
		id, err := p.QuickID()
		if err != nil {
			return "", err
		}
		_, _ = h.WriteString(id)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (c *file) Close() error {
	var errs []error
	for _, p := range c.parts {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
