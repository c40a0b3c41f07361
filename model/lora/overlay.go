// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/tensor"
)

// madePart is the part of an Overlay in which its own tensors lie: none of the
// checkpoint's.
const madePart = 1 << 30

// madePrefix is in front of the names of an Overlay's own tensors, which thus
// are none of the checkpoint's.
const madePrefix = "lora:"

// Overlay is a checkpoint with LoRAs: its own tensors stand beside the
// checkpoint's and are computed when they are read, a few rows at a time. It
// owns the LoRA files, not the checkpoint. Reads may run at the same time.
type Overlay struct {
	checkpoint.File
	source func(string) arch.Source
	model  *Model
	files  []checkpoint.File // of the uses
	alphas []map[string]float32
	made   []checkpoint.Tensor // in the order of their offsets
	index  map[string]int      // by weight name
	owns   bool                // the checkpoint too
}

// NewOverlay puts a model's LoRAs, whose files stand in the order of its uses,
// on a checkpoint; source says where the checkpoint has the base's weights. It
// reads every alpha.
func NewOverlay(base checkpoint.File, source func(string) arch.Source, m *Model, files []checkpoint.File) (*Overlay, error) {
	o := &Overlay{File: base, source: source, model: m, files: files, index: map[string]int{}}
	if len(files) != len(m.Uses) {
		return nil, fmt.Errorf("%d LoRA files for %d LoRAs", len(files), len(m.Uses))
	}
	offset := int64(0)
	for _, name := range slices.Sorted(maps.Keys(m.Made)) {
		made := m.Made[name]
		n, err := made.Shape.Bytes(made.DType)
		if err != nil {
			return nil, fmt.Errorf("weight %s: %w", name, err)
		}
		o.index[name] = len(o.made)
		o.made = append(o.made, checkpoint.Tensor{Name: madePrefix + name, DType: made.DType, Shape: made.Shape, Part: madePart, Offset: offset, Size: n})
		offset += int64(n)
	}
	for i := range m.Uses {
		alphas, err := readAlphas(files[i], m.Uses[i].Patch)
		if err != nil {
			return nil, fmt.Errorf("LoRA %s: %w", m.Uses[i].Name, err)
		}
		o.alphas = append(o.alphas, alphas)
	}
	return o, nil
}

func readAlphas(f checkpoint.File, p *Patch) (map[string]float32, error) {
	out := map[string]float32{}
	for _, pairs := range p.Pairs {
		for _, x := range pairs {
			if _, ok := out[x.Alpha]; ok || x.Alpha == "" {
				continue
			}
			v, err := values(f, x.Alpha, 0, 1, 1)
			if err != nil {
				return nil, err
			}
			if a := float64(v[0]); math.IsNaN(a) || math.IsInf(a, 0) {
				return nil, fmt.Errorf("%s is %g", quote(x.Alpha), a)
			}
			out[x.Alpha] = v[0]
		}
	}
	return out, nil
}

// Source says where a weight of the model with LoRAs comes from.
func (o *Overlay) Source(name string) arch.Source {
	if _, ok := o.index[name]; ok {
		return arch.Source{Slices: []arch.Slice{{Tensor: madePrefix + name}}}
	}
	return o.source(name)
}

// Lookup finds a tensor of the overlay or of the checkpoint.
func (o *Overlay) Lookup(name string) (checkpoint.Tensor, bool) {
	if len(name) > len(madePrefix) && name[:len(madePrefix)] == madePrefix {
		if i, ok := o.index[name[len(madePrefix):]]; ok {
			return o.made[i], true
		}
	}
	return o.File.Lookup(name)
}

// Tensors are the checkpoint's and behind them the overlay's own.
func (o *Overlay) Tensors() []checkpoint.Tensor {
	return append(slices.Clone(o.File.Tensors()), o.made...)
}

// ReadAt fills dst with bytes of a tensor.
func (o *Overlay) ReadAt(dst []byte, t checkpoint.Tensor, offset int64) error {
	if t.Part != madePart {
		return o.File.ReadAt(dst, t, offset)
	}
	return o.ReadPart(dst, madePart, t.Offset+offset)
}

// ReadPart fills dst from a position within a part.
func (o *Overlay) ReadPart(dst []byte, part int, offset int64) error {
	if part != madePart {
		return o.File.ReadPart(dst, part, offset)
	}
	if offset < 0 {
		return fmt.Errorf("read of a LoRA's weights at %d", offset)
	}
	i := sort.Search(len(o.made), func(i int) bool { return o.made[i].Offset+int64(o.made[i].Size) > offset })
	for ; len(dst) > 0; i++ {
		if i >= len(o.made) {
			return errors.New("read behind the last weight of a LoRA")
		}
		t := &o.made[i]
		from := offset - t.Offset
		n := min(int64(len(dst)), int64(t.Size)-from)
		name := t.Name[len(madePrefix):]
		if err := o.fill(dst[:n], name, o.model.Made[name], from); err != nil {
			return fmt.Errorf("weight %s with LoRAs: %w", name, err)
		}
		dst, offset = dst[n:], offset+n
	}
	return nil
}

// Reopen opens checkpoint and LoRA files once more, by their paths: an overlay
// that owns all of them.
func (o *Overlay) Reopen() (checkpoint.File, error) {
	base, err := checkpoint.Open(o.Path())
	if err != nil {
		return nil, err
	}
	again := *o
	again.File, again.files, again.owns = base, nil, true
	for _, f := range o.files {
		opened, err := checkpoint.Open(f.Path())
		if err != nil {
			return nil, errors.Join(err, again.Close())
		}
		again.files = append(again.files, opened)
	}
	return &again, nil
}

// Close closes the LoRA files; the checkpoint stays open unless it was opened by
// Reopen.
func (o *Overlay) Close() error {
	var errs []error
	if o.owns {
		errs = append(errs, o.File.Close())
	}
	for _, f := range o.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// stretchRows bounds the values that one worker holds at a time.
const stretchValues = 1 << 18

// fill computes the bytes of a made weight from offset on, its rows spread over
// the processors.
func (o *Overlay) fill(dst []byte, name string, m Made, offset int64) error {
	width := int64(1) // of a row
	if len(m.Shape) > 1 {
		width = m.Shape[1]
	}
	row := width * int64(m.DType.Size())
	first, last := offset/row, (offset+int64(len(dst))+row-1)/row
	per := max(1, stretchValues/width)
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for at := first; at < last; at += per {
		g.Go(func() error {
			n := min(per, last-at)
			v := make([]float32, n*width)
			if err := o.rows(v, name, m, at, n, width); err != nil {
				return err
			}
			raw := make([]byte, n*row)
			if err := encode(raw, v, m.DType); err != nil {
				return err
			}
			// The stretch lies at (at-first)·row in the bytes from the first row on.
			begin := at*row - offset
			if begin < 0 {
				raw, begin = raw[-begin:], 0
			}
			copy(dst[begin:], raw)
			return nil
		})
	}
	return g.Wait()
}

// encode rounds once to one of the dtypes that made weights have.
func encode(dst []byte, v []float32, d tensor.DType) error {
	switch d {
	case tensor.F32:
		tensor.PutF32(dst, v)
	case tensor.BF16:
		half := make([]uint16, len(v))
		tensor.BF16FromF32s(half, v)
		tensor.PutBF16(dst, half)
	default:
		return fmt.Errorf("weights with LoRAs are F32 or BF16, not %v", d)
	}
	return nil
}

// rows computes n rows of a made weight.
func (o *Overlay) rows(v []float32, name string, m Made, at, n, width int64) error {
	switch m.kind {
	case madeDown:
		return o.down(v, m, at, n, width)
	case madeUp:
		return o.up(v, m, at, n, width)
	}
	return o.merge(v, name, at, n, width)
}
