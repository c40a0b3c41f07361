// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/tensor"
)

func TestRoundTripOfEveryDType(t *testing.T) {
	f := open(t, "testdata/dtypes.safetensors")
	var data []Data
	for _, e := range f.Tensors() {
		raw, _, err := f.Read(e.Name)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, Data{Entry{e.Name, e.DType, e.Shape}, raw})
	}
	path := filepath.Join(t.TempDir(), "copy.safetensors")
	if err := WriteFile(path, data, f.Metadata()); err != nil {
		t.Fatal(err)
	}
	back := open(t, path)
	if d := cmp.Diff(f.Metadata(), back.Metadata()); d != "" {
		t.Error(d)
	}
	for _, d := range data {
		raw, e, err := back.Read(d.Name)
		if err != nil || !bytes.Equal(raw, d.Bytes) || e.DType != d.DType || !e.Shape.Equal(d.Shape) {
			t.Errorf("%s: %v %v", d.Name, e, err)
		}
		if size := int64(max(e.DType.Size(), 1)); e.Size > 0 && e.Offset%size != 0 {
			t.Errorf("%s: %v at %d is not aligned", e.Name, e.DType, e.Offset)
		}
	}
}

func TestWriterChecksLengths(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.safetensors")
	entries := []Entry{{"a", tensor.F32, tensor.Shape{2}}}
	w, err := Create(path, entries, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil || !strings.Contains(err.Error(), "4 bytes fewer") {
		t.Errorf("short: %v", err)
	}
	w, err = Create(path, entries, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 9)); err == nil || !strings.Contains(err.Error(), "1 bytes more") {
		t.Errorf("long: %v", err)
	}
	if err := w.Commit(); err == nil {
		t.Error("committed after an error")
	}
	nothingIn(t, dir)
	for _, bad := range [][]Entry{
		{{"a", tensor.F32, tensor.Shape{-1}}},
		{{"a", tensor.F32, tensor.Shape{1}}, {"a", tensor.F32, tensor.Shape{1}}},
		{{"__metadata__", tensor.F32, tensor.Shape{1}}},
		{{"\xff", tensor.F32, tensor.Shape{1}}},
		{{"a", tensor.U8, tensor.Shape{1 << 62}}, {"b", tensor.U8, tensor.Shape{1 << 62}}},
	} {
		if _, err := Create(path, bad, nil); err == nil {
			t.Errorf("%v accepted", bad)
		}
	}
	nothingIn(t, dir)
}

func nothingIn(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// fullDisk is a file that takes only so many bytes.
type fullDisk struct {
	*os.File
	left int
}

func (f *fullDisk) Write(p []byte) (int, error) {
	n := min(len(p), f.left)
	f.left -= n
	n, err := f.File.Write(p[:n])
	if err == nil && n < len(p) {
		err = &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
	}
	return n, err
}

func TestFullDiskLeavesNothing(t *testing.T) {
	for _, room := range []int{0, 10, 150} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "m.safetensors")
			w, err := create(path, []Entry{{"a", tensor.U8, tensor.Shape{1_000_000}}}, nil, func(dir, pattern string) (tempFile, error) {
				f, err := os.CreateTemp(dir, pattern)
				return &fullDisk{f, room}, err
			})
			if err == nil {
				_, err = w.Write(make([]byte, 1_000_000))
				if e := w.Commit(); e == nil {
					t.Error("committed")
				}
			}
			var full *DiskFullError
			if !errors.As(err, &full) || full.Needed < 1_000_000 || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "1.0 MB") {
				t.Errorf("got %v", err)
			}
			nothingIn(t, dir)
		})
	}
}

func TestFailedWriteKeepsTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.safetensors")
	if err := WriteFile(path, []Data{FromFloat32s("a", tensor.Shape{1}, []float32{7})}, nil); err != nil {
		t.Fatal(err)
	}
	w, err := Create(path, []Entry{{"a", tensor.F32, tensor.Shape{1}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if v, _, err := open(t, path).Float32s("a"); err != nil || v[0] != 7 {
		t.Errorf("got %v, %v", v, err)
	}
}
