// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/tensor"
)

// Stamp is a file's length and time of change.
type Stamp struct {
	path     string
	size     int64
	modified time.Time
}

// StampOf looks at a file now. One that is not on disk has no stamp, and counts
// as unchanged.
func StampOf(path string) Stamp {
	s := Stamp{path: path}
	if info, err := os.Stat(path); err == nil {
		s.size, s.modified = info.Size(), info.ModTime()
	}
	return s
}

// Check says whether the file is the one that was looked at.
func (s Stamp) Check() error {
	if now := StampOf(s.path); now.size != s.size || !now.modified.Equal(s.modified) {
		return fmt.Errorf("%s was changed while blocks of it rest on disk; put the file back and deploy again", s.path)
	}
	return nil
}

// File reads one block's stored bytes from a checkpoint, laid out by spans. The
// checkpoint is its opener's.
type File struct {
	file    checkpoint.File
	spans   []checkpoint.Span
	bytes   tensor.Bytes
	workers int
	stamp   Stamp
}

// NewFile reads with so many preads at a time.
func NewFile(f checkpoint.File, spans []checkpoint.Span, bytes tensor.Bytes, workers int) *File {
	return &File{file: f, spans: spans, bytes: bytes, workers: workers, stamp: StampOf(f.Path())}
}

// Bytes is the length of the block.
func (f *File) Bytes() tensor.Bytes { return f.bytes }

// Read fills dst[:Bytes()]; bytes between the spans stay as they are.
func (f *File) Read(ctx context.Context, dst []byte) error {
	if err := f.stamp.Check(); err != nil {
		return err
	}
	return checkpoint.ReadArena(ctx, f.file, dst[:f.bytes], f.spans, f.workers)
}

// Close leaves the checkpoint open.
func (f *File) Close() error { return nil }
