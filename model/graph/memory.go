// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/distorch/distorch/model/tensor"
)

// storage is memory that one or more values share: the value that owns it, and
// views into it.
type storage struct {
	owner ValueID // root value: names the storage
	space Space
	index int
	bytes tensor.Bytes
	first int // step that first writes it
	last  int // step that last touches it
	at    tensor.Bytes
}

// planner gives every value of a segment its place.
//
// From the last step to the first it decides which values are made in place
// inside the concat or output that consumes them; from the first to the last
// it makes split and reshape views where strides allow, lets an element- or
// row-wise step write over an input that dies there, and gives everything else
// storage of its own. Arena storages are then packed by lifetime.
type planner struct {
	seg      *Segment
	keep     bool  // every value stays until the segment's end
	producer []int // step that makes a value, -1 for inputs and constants
	lastUse  []int // by value
	store    []int // by value: its storage, -1 as long as unknown
	storages []storage
}

// place assigns memory. bound, where given, is the same segment at dimensions
// nowhere smaller: its offsets are kept, so that the arena cannot be larger.
// keep gives up all reuse of memory.
func (s *Segment) place(bound *Segment, keep bool) error {
	p := &planner{seg: s, keep: keep}
	s.Kept = keep
	p.begin()
	for i := range slices.Backward(s.Steps) {
		p.pushDown(i)
	}
	for i := range s.Steps {
		p.step(i)
	}
	p.lifetimes()
	s.Arena = p.pack()
	p.finish()
	if bound != nil && s.Arena > bound.Arena {
		return p.adopt(bound)
	}
	return s.count()
}

func (p *planner) begin() {
	s := p.seg
	n := len(s.Values)
	p.producer, p.lastUse, p.store = make([]int, n), make([]int, n), make([]int, n)
	for i := range n {
		p.producer[i], p.lastUse[i], p.store[i] = -1, -1, -1
	}
	for i, st := range s.Steps {
		for _, id := range st.In {
			p.lastUse[id] = i
		}
		for _, id := range st.Out {
			p.producer[id] = i
			p.lastUse[id] = max(p.lastUse[id], i)
		}
	}
	for i, id := range s.Inputs {
		p.own(id, SpaceInput, i)
	}
	for i, id := range s.Constants {
		p.own(id, SpaceConstant, i)
	}
	for i, id := range s.Outputs {
		p.own(id, SpaceOutput, i)
		p.lastUse[id] = len(s.Steps)
	}
}

// own gives a value contiguous storage of its own.
func (p *planner) own(id ValueID, space Space, index int) {
	v := &p.seg.Values[id]
	p.store[id] = len(p.storages)
	p.storages = append(p.storages, storage{owner: id, space: space, index: index, bytes: v.Bytes})
	v.Place = Place{Space: space, Index: index, Strides: rowMajor(v.Shape)}
}

// share puts a value into another's storage.
func (p *planner) share(id ValueID, store int, offset tensor.Bytes, strides []int64) {
	st := &p.storages[store]
	p.store[id] = store
	p.seg.Values[id].Place = Place{Space: st.space, Index: st.index, Offset: offset, Strides: strides}
}

// pushDown decides, for a concat or renaming whose output has a place, that its
// inputs are made there. Values that stay undecided get a place in step.
func (p *planner) pushDown(i int) {
	s := p.seg
	st := &s.Steps[i]
	if st.Op != OpConcat && !p.renames(st) {
		return
	}
	out := st.Out[0]
	if p.store[out] < 0 {
		if st.Op != OpConcat {
			return
		}
		p.own(out, SpaceArena, 0)
	}
	whole := s.Values[out].Place
	if st.Op != OpConcat {
		in := st.In[0]
		strides, ok := viewStrides(s.Values[out].Shape, whole.Strides, s.Values[in].Shape)
		if ok && p.movable(in, strides) {
			p.share(in, p.store[out], whole.Offset, strides)
		}
		return
	}
	st.InPlace = make([]bool, len(st.In))
	offset := whole.Offset
	size := tensor.Bytes(s.Values[out].DType.Size())
	for j, in := range st.In {
		if p.movable(in, whole.Strides) {
			p.share(in, p.store[out], offset, slices.Clone(whole.Strides))
			st.InPlace[j] = true
		}
		offset += tensor.Bytes(s.Values[in].Shape[st.Attrs.Axis]*whole.Strides[st.Attrs.Axis]) * size
	}
}

// renames says whether a step gives the same elements another shape or name:
// a reshape, or a cast to the dtype that the value has already.
func (p *planner) renames(st *Step) bool {
	return st.Op == OpReshape || st.Op == OpCast && p.seg.Values[st.In[0]].DType == p.seg.Values[st.Out[0]].DType
}

// movable says whether a value may be made inside another, where it lies with
// these strides: it has no place yet, and the step that makes it writes
// elements rather than naming views. The steps that rearrange elements write
// contiguous results only.
func (p *planner) movable(id ValueID, strides []int64) bool {
	if p.store[id] >= 0 || p.producer[id] < 0 {
		return false
	}
	switch p.seg.Steps[p.producer[id]].Op {
	case OpSplit:
		return false
	case OpPatchify, OpUnpatchify, OpTimestepEmbedding, OpTranspose:
		return slices.Equal(strides, rowMajor(p.seg.Values[id].Shape))
	}
	return true
}

// step gives the outputs of a step their places where they have none.
func (p *planner) step(i int) {
	st := &p.seg.Steps[i]
	switch {
	case st.Op == OpSplit:
		p.split(st)
		return
	case p.renames(st):
		p.rename(st)
		st.View = st.View || p.empty(st.Out[0])
		return
	case st.Op == OpConcat:
		for j, in := range st.In {
			st.InPlace[j] = st.InPlace[j] || p.empty(in)
		}
		st.View = !slices.Contains(st.InPlace, false)
		return
	}
	st.View = p.empty(st.Out[0])
	for _, out := range st.Out {
		if p.store[out] >= 0 {
			continue
		}
		if in, ok := p.overwrites(i, out); ok {
			v := p.seg.Values[in].Place
			p.share(out, p.store[in], v.Offset, slices.Clone(v.Strides))
			continue
		}
		p.own(out, SpaceArena, 0)
	}
}

func (p *planner) empty(id ValueID) bool { return slices.Contains(p.seg.Values[id].Shape, 0) }

func (p *planner) split(st *Step) {
	s := p.seg
	in := st.In[0]
	whole := s.Values[in].Place
	offset := whole.Offset
	st.View = true
	for _, out := range st.Out {
		if p.store[out] < 0 {
			p.share(out, p.store[in], offset, slices.Clone(whole.Strides))
		} else {
			st.View = st.View && p.empty(out) // an output of the segment: copied
		}
		offset += tensor.Bytes(s.Values[out].Shape[st.Attrs.Axis]*whole.Strides[st.Attrs.Axis]) * tensor.Bytes(s.Values[in].DType.Size())
	}
}

func (p *planner) rename(st *Step) {
	s := p.seg
	in, out := st.In[0], st.Out[0]
	if p.store[out] >= 0 {
		st.View = p.store[out] == p.store[in] && s.Values[out].Place.Offset == s.Values[in].Place.Offset
		return
	}
	strides, ok := viewStrides(s.Values[in].Shape, s.Values[in].Place.Strides, s.Values[out].Shape)
	if !ok {
		p.own(out, SpaceArena, 0)
		return
	}
	st.View = true
	p.share(out, p.store[in], s.Values[in].Place.Offset, strides)
}

// overwrites finds an input that step i may write its output over: it alone
// fills arena storage, and no view of that storage is used afterwards.
func (p *planner) overwrites(i int, out ValueID) (ValueID, bool) {
	if p.keep {
		return 0, false
	}
	s := p.seg
	st := &s.Steps[i]
	var candidates []ValueID
	switch st.Op {
	case OpScale, OpSiLU, OpGELUTanh, OpLayerNorm, OpRMSNorm, OpModulate, OpRoPE, OpLowRankAdd:
		candidates = st.In[:1]
	case OpAdd, OpMul:
		candidates = st.In
	case OpGatedAdd:
		candidates = []ValueID{st.In[0], st.In[2]}
	}
	for _, in := range candidates {
		store := p.store[in]
		if p.storages[store].space != SpaceArena || s.Values[in].Bytes != p.storages[store].bytes ||
			s.Values[in].DType != s.Values[out].DType || !slices.Equal(s.Values[in].Place.Strides, rowMajor(s.Values[in].Shape)) {
			continue
		}
		if p.free(store, i) {
			return in, true
		}
	}
	return 0, false
}

// free says whether nothing in a storage is used after step i or is yet to be
// written into it, and step i reads it through one operand alone.
func (p *planner) free(store, i int) bool {
	reads := 0
	for _, id := range p.seg.Steps[i].In {
		if p.store[id] == store {
			reads++
		}
	}
	if reads != 1 {
		return false
	}
	for id, at := range p.store {
		if at == store && (p.lastUse[id] > i || p.producer[id] >= i) {
			return false
		}
	}
	return true
}

// lifetimes spans every storage over all values in it.
func (p *planner) lifetimes() {
	for i := range p.storages {
		p.storages[i].first, p.storages[i].last = len(p.seg.Steps), -1
		if p.keep {
			p.storages[i].first, p.storages[i].last = -1, len(p.seg.Steps)
		}
	}
	for id, at := range p.store {
		st := &p.storages[at]
		st.first = min(st.first, p.producer[id])
		st.last = max(st.last, p.lastUse[id])
	}
}

// pack gives arena storages their offsets, largest first, each at the lowest
// offset free over its lifetime, and returns the arena's size.
func (p *planner) pack() tensor.Bytes {
	order := make([]int, 0, len(p.storages))
	for i, st := range p.storages {
		if st.space == SpaceArena {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := p.storages[a], p.storages[b]
		return cmp.Or(cmp.Compare(y.bytes, x.bytes), cmp.Compare(x.first, y.first), cmp.Compare(x.owner, y.owner))
	})
	arena := tensor.Bytes(0)
	for n, i := range order {
		st := &p.storages[i]
		st.at = p.lowest(st, order[:n])
		arena = max(arena, st.at+aligned(st.bytes))
	}
	return arena
}

func aligned(n tensor.Bytes) tensor.Bytes { return (n + Align - 1) / Align * Align }

// lowest is the lowest offset at which st meets none of placed that lives at
// the same time.
func (p *planner) lowest(st *storage, placed []int) tensor.Bytes {
	type span struct{ from, to tensor.Bytes }
	var taken []span
	for _, i := range placed {
		if o := p.storages[i]; o.first <= st.last && st.first <= o.last {
			taken = append(taken, span{o.at, o.at + aligned(o.bytes)})
		}
	}
	slices.SortFunc(taken, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	at := tensor.Bytes(0)
	for _, t := range taken {
		if at+aligned(st.bytes) <= t.from {
			break
		}
		at = max(at, t.to)
	}
	return at
}

// finish adds the storages' offsets to their values' places.
func (p *planner) finish() {
	for id := range p.seg.Values {
		p.seg.Values[id].Place.Offset += p.storages[p.store[id]].at
	}
}

// adopt moves the storages to the offsets they have in bound, where every one
// of them is at least as large.
func (p *planner) adopt(bound *Segment) error {
	s := p.seg
	for i := range p.storages {
		st := &p.storages[i]
		if st.space != SpaceArena {
			continue
		}
		o := bound.Values[st.owner]
		if o.Place.Space != SpaceArena || o.Bytes < st.bytes || o.Place.Offset%Align != 0 {
			return fmt.Errorf("value %q lies otherwise than in the workload's program", o.Name)
		}
		delta := o.Place.Offset - st.at
		st.at = o.Place.Offset
		for id := range s.Values {
			if p.store[id] == i {
				s.Values[id].Place.Offset += delta
			}
		}
	}
	s.Arena = bound.Arena
	return s.count()
}

// viewStrides are the strides that show elements of shape from, lying with
// strides, in shape to without moving them; ok is false where that is
// impossible. Extents of one are treated like any other, so that the answer
// does not depend on the batch.
func viewStrides(from tensor.Shape, strides []int64, to tensor.Shape) (out []int64, ok bool) {
	out = make([]int64, len(to))
	i, j := len(from)-1, len(to)-1
	for i >= 0 && j >= 0 {
		n, m := from[i], to[j]
		stride := strides[i]
		if n == m {
			out[j] = stride
			i, j = i-1, j-1
			continue
		}
		if n > m { // one dimension of from becomes several of to
			run := int64(1)
			for j >= 0 && run < n {
				out[j] = stride * run
				run *= to[j]
				j--
			}
			if run != n {
				return nil, false
			}
			i--
			continue
		}
		run := n // several of from become one of to
		for i--; i >= 0 && run < m; i-- {
			if strides[i] != stride*run {
				return nil, false
			}
			run *= from[i]
		}
		if run != m {
			return nil, false
		}
		out[j] = stride
		j--
	}
	for ; i >= 0; i-- {
		if from[i] != 1 {
			return nil, false
		}
	}
	for ; j >= 0; j-- {
		if to[j] != 1 {
			return nil, false
		}
		out[j] = 1
	}
	if len(out) > 0 && out[len(out)-1] != 1 {
		return nil, false
	}
	return out, true
}
