// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import (
	"fmt"

	"github.com/distorch/distorch/model/tensor"
)

// merge computes rows of a weight with its LoRAs: the base's, expanded to
// float32, with zeros in further columns, then for every use in turn what it
// sets, and what it adds where it is merged: w + strength·factor·(up·down), the
// product summed over the rank first, as ComfyUI does.
func (o *Overlay) merge(v []float32, name string, at, n, width int64) error {
	if err := o.base(v, name, at, n, width); err != nil {
		return err
	}
	for u := range o.model.Uses {
		use := &o.model.Uses[u]
		if t, ok := use.Patch.Set[name]; ok {
			set, err := values(o.files[u], t.Name, at, n, width)
			if err != nil {
				return err
			}
			copy(v, set)
		}
		if use.Mode != Merge {
			continue
		}
		for _, p := range use.Patch.Pairs[name] {
			if err := o.addPair(v, u, p, at, n, width); err != nil {
				return err
			}
		}
		for _, d := range use.Patch.Full[name] {
			if err := o.addFull(v, u, d, at, n, width); err != nil {
				return err
			}
		}
	}
	return nil
}

// base reads rows of the weight without LoRAs.
func (o *Overlay) base(v []float32, name string, at, n, width int64) error {
	src := o.source(name)
	scale := float32(1)
	if src.Scale != "" {
		s, err := values(o.File, src.Scale, 0, 1, 1)
		if err != nil {
			return err
		}
		scale = s[0]
	}
	begin := int64(0)
	for _, s := range src.Slices {
		t, ok := o.File.Lookup(s.Tensor)
		if !ok || len(t.Shape) == 0 || len(t.Shape) > 2 {
			return fmt.Errorf("%s: tensor %s is missing or no matrix", o.Path(), quote(s.Tensor))
		}
		count, have := s.Rows, int64(1)
		if count == 0 {
			count = t.Shape[0] - s.First
		}
		if len(t.Shape) == 2 {
			have = t.Shape[1]
		}
		from, to := max(begin, at), min(begin+count, at+n)
		begin += count
		if from >= to {
			continue
		}
		if have > width {
			return fmt.Errorf("%s: tensor %s is %v, the weight has %d columns", o.Path(), quote(s.Tensor), t.Shape, width)
		}
		all, err := rowsOf(o.File, t, s.First+from-(begin-count), to-from, have)
		if err != nil {
			return err
		}
		for i := range to - from {
			row := v[(from-at+i)*width:][:have]
			for j, x := range all[i*have : (i+1)*have] {
				row[j] = x * scale
			}
		}
	}
	if at+n > begin {
		return fmt.Errorf("%s: weight %s has %d rows, row %d is wanted", o.Path(), quote(name), begin, at+n-1)
	}
	return nil
}

// addPair adds a low-rank difference to the rows that it changes.
func (o *Overlay) addPair(v []float32, use int, p Pair, at, n, width int64) error {
	from, to := max(p.First, at), min(p.First+p.Rows, at+n)
	if from >= to {
		return nil
	}
	rank, k := p.Rank(), p.Down.Shape[1]
	up, err := values(o.files[use], p.Up.Name, p.From+from-p.First, to-from, rank)
	if err != nil {
		return err
	}
	down, err := values(o.files[use], p.Down.Name, 0, rank, k)
	if err != nil {
		return err
	}
	by := o.model.Uses[use].Strength * o.scale(use, p)
	diff := make([]float32, k)
	for i := range to - from {
		clear(diff)
		addRows(diff, down, up[i*rank:(i+1)*rank])
		addTimes(v[(from-at+i)*width:][:k], diff, by)
	}
	return nil
}

// addRows is to + Σ by[r]·rows[r], r ascending, each product and sum rounded:
// four rows at a time, so that to is read and written less often.
func addRows(to, rows, by []float32) {
	k := len(to)
	for ; len(by) >= 4; by, rows = by[4:], rows[4*k:] {
		a, b, c, d := rows[:k][:len(to)], rows[k:][:len(to)], rows[2*k:][:len(to)], rows[3*k:][:len(to)]
		w, x, y, z := by[0], by[1], by[2], by[3]
		for i, v := range to {
			v += float32(a[i] * w)
			v += float32(b[i] * x)
			v += float32(c[i] * y)
			to[i] = v + float32(d[i]*z)
		}
	}
	for r, x := range by {
		addTimes(to, rows[r*k:(r+1)*k], x)
	}
}

// addTimes is to + from·by: a product and a sum, each rounded, on every CPU.
func addTimes(to, from []float32, by float32) {
	to = to[:len(from)]
	for i, x := range from {
		to[i] += float32(x * by)
	}
}

// addFull adds a whole difference.
func (o *Overlay) addFull(v []float32, use int, d Full, at, n, width int64) error {
	from, to := max(d.First, at), min(d.First+d.Rows, at+n)
	if from >= to {
		return nil
	}
	k := int64(1)
	if len(d.Tensor.Shape) > 1 {
		k = d.Tensor.Shape[1]
	}
	all, err := values(o.files[use], d.Tensor.Name, d.From+from-d.First, to-from, k)
	if err != nil {
		return err
	}
	for i := range to - from {
		addTimes(v[(from-at+i)*width:][:k], all[i*k:(i+1)*k], o.model.Uses[use].Strength)
	}
	return nil
}

// Float32s is a weight of the model with its LoRAs, expanded; for tests and for
// comparison with other implementations.
func (o *Overlay) Float32s(name string) ([]float32, tensor.Shape, error) {
	t, ok := o.Lookup(madePrefix + name)
	if !ok {
		return nil, nil, fmt.Errorf("no LoRA changes weight %s", quote(name))
	}
	raw := make([]byte, t.Size)
	if err := o.ReadAt(raw, t, 0); err != nil {
		return nil, nil, err
	}
	n, err := t.Shape.Elements()
	if err != nil {
		return nil, nil, err
	}
	out := make([]float32, n)
	return out, t.Shape, tensor.ToF32(out, raw, t.DType)
}
