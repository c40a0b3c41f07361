// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package source is what the readers of checkpoint formats share: bytes read by
// position, and the identity of a file of tensors.
//
// Imported by the packages of formats. It knows no format and must not import
// one.
package source

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"
)

// Source is bytes of a known size read by position: a file, or *bytes.Reader.
type Source interface {
	io.ReaderAt
	Size() int64
}

// File is an open file as a Source.
type File struct {
	*os.File
	size int64
}

// Size is the length that the file had when it was opened.
func (f File) Size() int64 { return f.size }

// Open opens a regular file.
func Open(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return File{}, errors.Join(err, f.Close())
	}
	return File{f, info.Size()}, nil
}

// Extent is where a tensor's bytes lie.
type Extent struct{ Offset, Size int64 }

// quickPrefix is how much of each tensor the quick id covers. Two fine-tunes
// can share a header; they do not share the beginning of every tensor.
const quickPrefix = 64 << 10

// QuickID names a file's content well enough to plan and to load one's own
// file: BLAKE3, in hexadecimal, over a label of the format, the header's bytes,
// the file's size and the first 64 KiB of each tensor in the given order. It
// reads about 50 MB of a FLUX.1 checkpoint. read fills dst from an offset.
func QuickID(label string, header, size int64, tensors []Extent, read func(dst []byte, at int64) error) (string, error) {
	h := blake3.New()
	var number [8]byte
	add := func(b []byte) {
		binary.LittleEndian.PutUint64(number[:], uint64(len(b)))
		_, _ = h.Write(number[:]) // a hash takes every write
		_, _ = h.Write(b)
	}
	add([]byte(label))
	raw := make([]byte, header)
	if err := read(raw, 0); err != nil {
		return "", err
	}
	add(raw)
	binary.LittleEndian.PutUint64(number[:], uint64(size))
	_, _ = h.Write(number[:])
	buf := make([]byte, quickPrefix)
	for _, t := range tensors {
		part := buf[:min(t.Size, quickPrefix)]
		if err := read(part, t.Offset); err != nil {
			return "", err
		}
		add(part)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
