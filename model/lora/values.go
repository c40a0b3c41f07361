// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import (
	"fmt"
	"strings"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/tensor"
)

// values reads rows of a tensor of a LoRA file as float32; a tensor of one
// dimension has rows of one element.
func values(f checkpoint.File, name string, first, n, width int64) ([]float32, error) {
	t, ok := f.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("%s: tensor %s is missing; the file is not the one that was placed", f.Path(), quote(name))
	}
	return rowsOf(f, t, first, n, width)
}

// rowsOf reads n rows of width elements from row first on.
func rowsOf(f checkpoint.File, t checkpoint.Tensor, first, n, width int64) ([]float32, error) {
	row, err := tensor.Shape{width}.Bytes(t.DType)
	if err != nil {
		return nil, fmt.Errorf("%s: tensor %s: %w", f.Path(), quote(t.Name), err)
	}
	if (first+n)*int64(row) > int64(t.Size) {
		return nil, fmt.Errorf("%s: tensor %s is %v, rows %d to %d of %d elements are wanted; the file is not the one that was placed", f.Path(), quote(t.Name), t.Shape, first, first+n, width)
	}
	raw := make([]byte, n*int64(row))
	if err := f.ReadAt(raw, t, first*int64(row)); err != nil {
		return nil, fmt.Errorf("read tensor %s of %s: %w", quote(t.Name), f.Path(), err)
	}
	out := make([]float32, n*width)
	return out, tensor.ToF32(out, raw, t.DType)
}

// scale is a pair's factor: alpha/rank, or 1 without an alpha.
func (o *Overlay) scale(use int, p Pair) float32 {
	switch {
	case p.Given != nil:
		return *p.Given / float32(p.Rank())
	case p.Alpha == "":
		return 1
	}
	return o.alphas[use][p.Alpha] / float32(p.Rank())
}

// down computes rows of the downs of all added uses one below the other: those
// of pairs as they are, those of a whole difference its rows (or, where it has
// fewer columns than rows, ones on the diagonal), then zeros up to the rank.
func (o *Overlay) down(v []float32, m Made, at, n, width int64) error {
	begin := int64(0)
	put := func(rank int64, read func(first, count int64, to []float32) error) error {
		from, to := max(begin, at), min(begin+rank, at+n)
		begin += rank
		if from >= to {
			return nil
		}
		return read(from-(begin-rank), to-from, v[(from-at)*width:(to-at)*width])
	}
	for l, u := range o.model.Added {
		end := begin + int64(m.ranks[l])
		for _, p := range o.pairs(u, m) {
			if err := put(p.Rank(), func(first, count int64, to []float32) error {
				return o.padded(u, p.Down.Name, first, count, p.Down.Shape[1], width, to)
			}); err != nil {
				return err
			}
		}
		for _, d := range o.full(u, m) {
			if err := put(d.rank(), func(first, count int64, to []float32) error {
				if d.rank() == d.Rows {
					return o.padded(u, d.Tensor.Name, d.From+first, count, d.Tensor.Shape[1], width, to)
				}
				for i := range count {
					to[i*width+first+i] = 1
				}
				return nil
			}); err != nil {
				return err
			}
		}
		begin = end
	}
	return nil
}

// padded reads rows of fewer columns than they are to have.
func (o *Overlay) padded(use int, name string, first, n, have, width int64, to []float32) error {
	all, err := values(o.files[use], name, first, n, have)
	if err != nil {
		return err
	}
	for i := range n {
		copy(to[i*width:(i+1)*width], all[i*have:(i+1)*have])
	}
	return nil
}

// up computes rows of the ups of all added uses side by side, times their
// factors, and behind them a column for every use's difference of the bias.
func (o *Overlay) up(v []float32, m Made, at, n, width int64) error {
	begin := int64(0)
	for l, u := range o.model.Added {
		end := begin + int64(m.ranks[l])
		for _, p := range o.pairs(u, m) {
			rank, by := p.Rank(), o.scale(u, p)
			all, err := values(o.files[u], p.Up.Name, p.From+at, n, rank)
			if err != nil {
				return err
			}
			for i := range n {
				for j, x := range all[i*rank : (i+1)*rank] {
					v[i*width+begin+int64(j)] = x * by
				}
			}
			begin += rank
		}
		for _, d := range o.full(u, m) {
			if err := o.upOfFull(v[begin:], u, d, at, n, width); err != nil {
				return err
			}
			begin += d.rank()
		}
		begin = end
	}
	if !m.bias {
		return nil
	}
	for l, u := range o.model.Added {
		for _, d := range o.model.Uses[u].Patch.Full[biasOf(m.target)] {
			from, to := max(d.First, at), min(d.First+d.Rows, at+n)
			if from >= to {
				continue
			}
			all, err := values(o.files[u], d.Tensor.Name, d.From+from-d.First, to-from, 1)
			if err != nil {
				return err
			}
			for i, x := range all {
				v[(from-at+int64(i))*width+begin+int64(l)] += x
			}
		}
	}
	return nil
}

// upOfFull is the up of a whole difference: ones on the diagonal, or the
// difference itself where that is on the down's side. v begins at its column.
func (o *Overlay) upOfFull(v []float32, use int, d Full, at, n, width int64) error {
	if d.rank() == d.Rows {
		for i := range n {
			v[i*width+at+i] = 1
		}
		return nil
	}
	k := d.rank()
	all, err := values(o.files[use], d.Tensor.Name, d.From+at, n, k)
	if err != nil {
		return err
	}
	for i := range n {
		copy(v[i*width:], all[i*k:(i+1)*k])
	}
	return nil
}

// pairs and full are the differences of one use that a made down or up holds.
func (o *Overlay) pairs(use int, m Made) (out []Pair) {
	for _, p := range o.model.Uses[use].Patch.Pairs[m.target] {
		if p.First == m.first && p.Rows == m.count {
			out = append(out, p)
		}
	}
	return out
}

func (o *Overlay) full(use int, m Made) (out []Full) {
	for _, d := range o.model.Uses[use].Patch.Full[m.target] {
		if d.First == m.first && d.Rows == m.count {
			out = append(out, d)
		}
	}
	return out
}

func biasOf(weight string) string { return strings.TrimSuffix(weight, ".weight") + ".bias" }
