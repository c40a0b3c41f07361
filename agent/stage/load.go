// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// blockFile is where a launch's weights lie in the file and in a buffer.
type blockFile struct {
	spans []checkpoint.Span
	of    [][2]int     // by weight: its spans, from first to last
	bytes tensor.Bytes // of the buffer
}

// findWeights finds every launch's weights in the file.
func (st *Stage) findWeights() error {
	for i := range st.launches {
		l := &st.launches[i]
		var err error
		if l.file, err = st.place(l); err != nil {
			return err
		}
		l.stored = l.file.bytes
		if err := st.chooseStorage(l); err != nil {
			return err
		}
	}
	return nil
}

// source is where a weight of the graph comes from.
func (c *Checkpoint) source(name string) arch.Source {
	if c.Source == nil {
		return arch.Source{Slices: []arch.Slice{{Tensor: name}}}
	}
	return c.Source(name)
}

// pieces are a weight's bytes in the file, in the order of its rows.
type pieces struct {
	dtype tensor.DType
	parts []checkpoint.Tensor // Offset and Size are those of the rows taken
	bytes tensor.Bytes
	scale float32
}

// place finds a launch's tensors in the file and gives them places in a buffer:
// in the order of the file, so that neighbours are read together, every weight
// aligned.
func (st *Stage) place(l *launch) (blockFile, error) {
	found := make([]pieces, len(l.Segment.Weights))
	order := make([]int, len(found))
	l.weights = make([]engine.Weight, len(found))
	for i, w := range l.Segment.Weights {
		name := graph.Resolve(w.Name, l.Index)
		p, err := st.cfg.Checkpoint.find(name, w.Shape)
		if err != nil {
			return blockFile{}, err
		}
		found[i], order[i] = p, i
		l.weights[i] = engine.Weight{Name: name, DType: p.dtype, Shape: w.Shape, Scale: p.scale}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := found[a].parts[0], found[b].parts[0]
		return cmp.Or(cmp.Compare(x.Part, y.Part), cmp.Compare(x.Offset, y.Offset))
	})
	f := blockFile{of: make([][2]int, len(found))}
	for _, i := range order {
		at := (f.bytes + graph.Align - 1) / graph.Align * graph.Align
		l.weights[i].Offset = at
		first := len(f.spans)
		for _, t := range found[i].parts {
			f.spans = append(f.spans, checkpoint.Span{Part: t.Part, Offset: t.Offset, Size: int64(t.Size), At: int64(at)})
			at += t.Size
		}
		f.of[i] = [2]int{first, len(f.spans)}
		f.bytes = at
	}
	return f, nil
}

// find looks a weight up and checks that its rows add up to the shape.
func (c *Checkpoint) find(name string, shape tensor.Shape) (pieces, error) {
	const other = "the file is not the model that was placed"
	src := c.source(name)
	var p pieces
	rows := int64(0)
	for _, s := range src.Slices {
		t, ok := c.File.Lookup(s.Tensor)
		if !ok {
			return p, fmt.Errorf("%s: tensor %q is missing; %s", c.File.Path(), s.Tensor, other)
		}
		if len(src.Slices) == 1 && s.First == 0 && s.Rows == 0 {
			if !t.Shape.Equal(shape) {
				return p, fmt.Errorf("%s: tensor %q is %v, the graph takes %v; %s", c.File.Path(), s.Tensor, t.Shape, shape, other)
			}
			p.dtype, p.bytes, p.parts = t.DType, t.Size, []checkpoint.Tensor{t}
			break
		}
		cut, err := slice(t, s)
		if err != nil || len(p.parts) > 0 && t.DType != p.dtype {
			return p, fmt.Errorf("%s: tensor %q, %v %v, does not give rows of weight %q, %v; %s", c.File.Path(), s.Tensor, t.DType, t.Shape, name, shape, other)
		}
		p.dtype = t.DType
		p.parts = append(p.parts, cut)
		p.bytes += cut.Size
		rows += cut.Shape[0]
	}
	if want, err := shape.Bytes(p.dtype); err != nil || p.bytes != want || len(p.parts) == 0 {
		return p, fmt.Errorf("%s: weight %q has %d rows, %v, where the graph takes %v; %s", c.File.Path(), name, rows, p.bytes, shape, other)
	}
	var err error
	p.scale, err = c.scale(src.Scale)
	return p, err
}

// slice is rows of a tensor as a tensor.
func slice(t checkpoint.Tensor, s arch.Slice) (checkpoint.Tensor, error) {
	if len(t.Shape) == 0 || t.Shape[0] <= 0 {
		return t, fmt.Errorf("tensor %q has no rows", t.Name)
	}
	all := t.Shape[0]
	n := s.Rows
	if n == 0 {
		n = all - s.First
	}
	if s.First < 0 || n < 0 || s.First > all || n > all-s.First {
		return t, fmt.Errorf("tensor %q has %d rows", t.Name, all)
	}
	row := int64(t.Size) / all
	t.Shape = slices.Clone(t.Shape)
	t.Shape[0] = n
	t.Offset += s.First * row
	t.Size = tensor.Bytes(n * row)
	return t, nil
}

// scale reads the one float32 that multiplies a weight; 1 for no name.
func (c *Checkpoint) scale(name string) (float32, error) {
	if name == "" {
		return 1, nil
	}
	t, ok := c.File.Lookup(name)
	if !ok {
		return 0, fmt.Errorf("%s: tensor %q is missing; the file is not the model that was placed", c.File.Path(), name)
	}
	if t.DType != tensor.F32 || t.Size != 4 {
		return 0, fmt.Errorf("%s: scale %q is %v %v; one F32 is taken", c.File.Path(), name, t.DType, t.Shape)
	}
	var raw [4]byte
	if err := c.File.ReadAt(raw[:], t, 0); err != nil {
		return 0, err
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(raw[:])), nil
}

func (l *launch) name() string {
	if l.Run < 0 {
		return l.Segment.Name
	}
	return fmt.Sprintf("%s %d", l.Segment.Name, l.Index)
}
