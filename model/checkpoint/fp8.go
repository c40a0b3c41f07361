// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"fmt"
	"slices"

	"github.com/distorch/distorch/model/tensor"
)

// chunkElements is how many elements are quantised at a time: whole blocks of
// every dtype.
const chunkElements = 16 << 10

// fp8File is a File of which some tensors read as F8_E4M3_B64. They lie one
// after another in a part of their own, which exists only while it is read.
type fp8File struct {
	File
	tensors []Tensor
	byName  map[string]int
	own     []int // of tensors: those that are quantised, by Offset
	part    int   // theirs
	bytes   int64 // of that part
}

// InFP8 shows f with the tensors of the names that pick takes (nil: all) in
// the dtype of tensor.StorageF8. They are read as f stores them and quantised
// on the way (tensor.FromF32), so equal files give equal bytes. The identity
// and size are f's; f is closed with the result.
func InFP8(f File, pick func(name string) bool) File {
	q := &fp8File{File: f, byName: map[string]int{}}
	for _, t := range f.Tensors() {
		q.part = max(q.part, t.Part+1)
	}
	for i, t := range f.Tensors() {
		if d := tensor.StorageF8(t.Shape, t.DType); d != t.DType && (pick == nil || pick(t.Name)) {
			size, err := t.Shape.Bytes(d)
			if err == nil { // StorageF8 has asked
				t.DType, t.Part, t.Offset, t.Size = d, q.part, q.bytes, size
				q.bytes += int64(size)
				q.own = append(q.own, i)
			}
		}
		q.byName[t.Name] = i
		q.tensors = append(q.tensors, t)
	}
	return q
}

func (q *fp8File) Tensors() []Tensor { return q.tensors }

func (q *fp8File) Lookup(name string) (Tensor, bool) {
	i, ok := q.byName[name]
	if !ok {
		return Tensor{}, false
	}
	return q.tensors[i], true
}

func (q *fp8File) ReadAt(dst []byte, t Tensor, offset int64) error {
	own, ok := q.Lookup(t.Name)
	if !ok || own.Part != q.part {
		return q.File.ReadAt(dst, t, offset)
	}
	if offset < 0 || offset > int64(own.Size) || int64(len(dst)) > int64(own.Size)-offset {
		return fmt.Errorf("read tensor %q: bytes %d to %d lie outside its %d", t.Name, offset, offset+int64(len(dst)), int64(own.Size))
	}
	return q.ReadPart(dst, q.part, own.Offset+offset)
}

func (q *fp8File) ReadPart(dst []byte, part int, offset int64) error {
	if part != q.part {
		return q.File.ReadPart(dst, part, offset)
	}
	if offset < 0 || offset > q.bytes || int64(len(dst)) > q.bytes-offset {
		return fmt.Errorf("read %s: bytes %d to %d lie outside the %d of its tensors in %v", q.Path(), offset, offset+int64(len(dst)), q.bytes, tensor.F8E4M3B64)
	}
	at, _ := slices.BinarySearchFunc(q.own, offset, func(i int, offset int64) int {
		if t := q.tensors[i]; t.Offset+int64(t.Size) <= offset {
			return -1
		}
		return 1
	})
	var w quantiser
	for len(dst) > 0 {
		t := q.tensors[q.own[at]]
		within := offset - t.Offset
		n := min(int64(len(dst)), int64(t.Size)-within)
		if err := w.read(q.File, t, dst[:n], within); err != nil {
			return err
		}
		dst, offset, at = dst[n:], offset+n, at+1
	}
	return nil
}

// quantiser holds the memory of one read.
type quantiser struct {
	stored, out []byte
	values      []float32
}

// read fills dst with the bytes of t, quantised, that begin at offset.
func (w *quantiser) read(f File, t Tensor, dst []byte, offset int64) error {
	stored, ok := f.Lookup(t.Name)
	if !ok {
		return fmt.Errorf("read tensor %q: %s has no such tensor", t.Name, f.Path())
	}
	total, err := t.Shape.Elements()
	if err != nil {
		return err
	}
	chunk := t.DType.RowBytes(chunkElements)
	for len(dst) > 0 {
		first := offset / chunk * chunkElements
		n := min(chunkElements, total-first)
		if err := w.quantise(f, stored, first, n, t.DType); err != nil {
			return fmt.Errorf("%s: tensor %q: %w", f.Path(), t.Name, err)
		}
		done := copy(dst, w.out[offset%chunk:])
		dst, offset = dst[done:], offset+int64(done)
	}
	return nil
}

// quantise makes out from n elements of t.
func (w *quantiser) quantise(f File, t Tensor, first, n int64, d tensor.DType) error {
	w.stored = slices.Grow(w.stored[:0], int(t.DType.RowBytes(n)))[:t.DType.RowBytes(n)]
	w.values = slices.Grow(w.values[:0], int(n))[:n]
	w.out = slices.Grow(w.out[:0], int(d.RowBytes(n)))[:d.RowBytes(n)]
	if err := f.ReadAt(w.stored, t, t.DType.RowBytes(first)); err != nil {
		return err
	}
	if err := tensor.ToF32(w.values, w.stored, t.DType); err != nil {
		return err
	}
	return tensor.FromF32(w.out, w.values, d)
}
