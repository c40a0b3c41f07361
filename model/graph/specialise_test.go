// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// dev is FLUX.1 dev as published.
func dev() arch.Flux {
	return arch.Flux{
		Channels: 16, Hidden: 3072, Heads: 24, MLP: 12288, Context: 4096, Vector: 768,
		Double: 19, Single: 38, Axes: []int64{16, 56, 56}, Guidance: true,
	}
}

func small() arch.Flux {
	return arch.Flux{
		Channels: 16, Hidden: 64, Heads: 2, MLP: 256, Context: 64, Vector: 64,
		Double: 2, Single: 3, Axes: []int64{8, 12, 12}, Guidance: true,
	}
}

func specialise(t *testing.T, f arch.Flux, dims graph.Dims, d tensor.DType) *graph.Program {
	t.Helper()
	m := f.Build(arch.Options{})
	if err := graph.Validate(m); err != nil {
		t.Fatal(err)
	}
	p, err := graph.Specialise(m, dims, d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// storedAs gives every weight of the model one dtype.
func storedAs(p *graph.Program, d tensor.DType) map[string]tensor.DType {
	out := map[string]tensor.DType{}
	launches, _ := p.Stage(0, p.Model.Blocks(), true, true)
	for _, l := range launches {
		for _, w := range l.Segment.Weights {
			out[graph.Resolve(w.Name, l.Index)] = d
		}
	}
	return out
}

// The published figures of FLUX.1 dev (block-costs of the reference, 1024² with
// 256 text tokens).
func TestFluxDevFigures(t *testing.T) {
	p := specialise(t, dev(), graph.Dims{"B": 1, "S_txt": 256, "h": 128, "w": 128}, tensor.BF16)
	stored := storedAs(p, tensor.F8E4M3)
	if len(stored) != 780 {
		t.Errorf("%d tensors, want 780", len(stored))
	}
	table, err := p.Table(stored)
	if err != nil {
		t.Fatal(err)
	}
	params, tensors, bytes, packed, flops := table.Totals()
	if params != 11_901_408_320 || tensors != 780 || bytes != 11_901_408_320 || packed != 2*11_901_408_320 {
		t.Errorf("%d params, %d tensors, %d bytes, %d packed", params, tensors, bytes, packed)
	}
	// Head and tail add 0.003 TFLOP to the 69.4568 of the blocks.
	if got := float64(flops) / 69_456_881_516_544; got < 1 || got > 1.001 {
		t.Errorf("%d FLOPs in a forward", flops)
	}
	if len(table.Blocks) != 57 {
		t.Fatalf("%d blocks", len(table.Blocks))
	}
	for i, want := range map[int]graph.Part{
		0:  {Name: "double_blocks.0", Params: 339_831_296, Tensors: 24, Cost: graph.Cost{LinearFLOPs: 985_921_486_848, AttentionFLOPs: 232_733_540_352}},
		18: {Name: "double_blocks.18", Params: 339_831_296, Tensors: 24, Cost: graph.Cost{LinearFLOPs: 985_921_486_848, AttentionFLOPs: 232_733_540_352}},
		19: {Name: "single_blocks.0", Params: 141_591_808, Tensors: 8, Cost: graph.Cost{LinearFLOPs: 985_751_617_536, AttentionFLOPs: 232_733_540_352}},
		56: {Name: "single_blocks.37", Params: 141_591_808, Tensors: 8, Cost: graph.Cost{LinearFLOPs: 985_751_617_536, AttentionFLOPs: 232_733_540_352}},
	} {
		b := table.Blocks[i]
		if b.Name != want.Name || b.Index != i || b.Params != want.Params || b.Tensors != want.Tensors ||
			b.Cost.LinearFLOPs != want.Cost.LinearFLOPs || b.Cost.AttentionFLOPs != want.Cost.AttentionFLOPs {
			t.Errorf("block %d is %+v, want %+v", i, b, want)
		}
		// 26,738,688 bytes of state, and the modulation vector that travels along.
		if b.Boundary != 26_738_688+2*3072 {
			t.Errorf("block %d has a boundary of %d bytes", i, b.Boundary)
		}
	}
	wide := specialise(t, dev(), graph.Dims{"B": 1, "S_txt": 512, "h": 128, "w": 128}, tensor.BF16)
	if c := wide.Runs[0].Block.Cost; c.LinearFLOPs != 1_043_903_545_344 || c.AttentionFLOPs != 260_919_263_232 {
		t.Errorf("512 text tokens: %+v", c)
	}
}

// Scratch must stay near what a block cannot do without: the output of linear1
// and the input of linear2 of a single block.
func TestArenaIsTight(t *testing.T) {
	p := specialise(t, dev(), graph.Dims{"B": 1, "S_txt": 256, "h": 128, "w": 128}, tensor.BF16)
	s := int64(4352)
	need := tensor.Bytes(2 * s * (21504 + 3072 + 12288))
	if got := p.Runs[1].Block.Arena; got < need || float64(got) > 1.3*float64(need) {
		t.Errorf("single block: arena %v, at least %v are needed", got, need)
	}
	for _, seg := range p.Segments() {
		t.Logf("%s: arena %v, moved %v", seg.Name, seg.Arena, tensor.Bytes(seg.Cost.MovedBytes))
	}
	if entry := p.Runs[1].Entry; entry.Arena != 0 {
		t.Errorf("joining two streams needs no scratch, takes %v", entry.Arena)
	}
}

// At no step may memory that is still needed be shared with what the step
// writes, but for the overlaps that Step documents.
func TestPlacesDoNotOverlap(t *testing.T) {
	for _, dims := range []graph.Dims{
		{"B": 1, "S_txt": 7, "h": 9, "w": 7},
		{"B": 2, "S_txt": 10, "h": 8, "w": 12},
		{"B": 3, "S_txt": 1, "h": 2, "w": 2},
		{"B": 2, "S_txt": 3, "h": 4, "w": 6, "mask": 1},
		{"B": 2, "S_txt": 3, "h": 4, "w": 6, "mask": 1, "ref0_h": 6, "ref0_w": 3, "ref1_h": 2, "ref1_w": 2, "ref_method": 1},
		{"B": 1, "S_txt": 3, "h": 4, "w": 6, "ref2_h": 6, "ref2_w": 3},
	} {
		for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
			for _, seg := range specialise(t, small(), dims, d).Segments() {
				t.Run(fmt.Sprintf("%s %v B=%d", seg.Name, d, dims["B"]), func(t *testing.T) { checkPlaces(t, seg) })
			}
		}
	}
}

// element names an element by the value it was first computed for and its
// number there.
type element struct {
	value string
	n     int
}

type cell struct {
	space graph.Space
	index int
	at    tensor.Bytes
}

// checkPlaces simulates which value every element of memory holds.
func checkPlaces(t *testing.T, s *graph.Segment) { checkPlacesUntil(t, s, false) }

// checkPlacesUntil wants, with kept, every value to be intact at the end.
func checkPlacesUntil(t *testing.T, s *graph.Segment, kept bool) {
	t.Helper()
	holds := map[cell]element{}
	cells := func(v graph.Tensor) []cell {
		var out []cell
		index := make([]int64, len(v.Shape))
		if v.Bytes == 0 {
			return nil
		}
		for {
			at := int64(0)
			for i, n := range index {
				at += n * v.Place.Strides[i]
			}
			off := v.Place.Offset + tensor.Bytes(at*int64(v.DType.Size()))
			if v.Place.Space == graph.SpaceArena && (off < 0 || off+tensor.Bytes(v.DType.Size()) > s.Arena) {
				t.Fatalf("%s reaches byte %d of an arena of %d", v.Name, off, s.Arena)
			}
			out = append(out, cell{v.Place.Space, v.Place.Index, off})
			i := len(index) - 1
			for ; i >= 0; i-- {
				if index[i]++; index[i] < v.Shape[i] {
					break
				}
				index[i] = 0
			}
			if i < 0 {
				return out
			}
		}
	}
	// Elements are named by where they were first computed, so that views keep them.
	content := map[graph.ValueID][]element{}
	write := func(id graph.ValueID, what []element) {
		content[id] = what
		for i, c := range cells(s.Values[id]) {
			holds[c] = what[i]
		}
	}
	fresh := func(id graph.ValueID) []element {
		n, _ := s.Values[id].Shape.Elements()
		what := make([]element, n)
		for i := range what {
			what[i] = element{s.Values[id].Name, i}
		}
		return what
	}
	for _, ids := range [][]graph.ValueID{s.Inputs, s.Constants} {
		for _, id := range ids {
			write(id, fresh(id))
		}
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		for _, id := range st.In {
			for j, c := range cells(s.Values[id]) {
				if holds[c] != content[id][j] {
					t.Fatalf("step %d (%s) reads %s, whose element %d was overwritten by %v", i, st.Op, s.Values[id].Name, j, holds[c])
				}
			}
		}
		switch st.Op {
		case graph.OpReshape:
			write(st.Out[0], content[st.In[0]])
		case graph.OpSplit, graph.OpConcat:
			joinOrSplit(s, st, content, write)
		default:
			if st.View {
				write(st.Out[0], content[st.In[0]])
				continue
			}
			write(st.Out[0], fresh(st.Out[0]))
		}
		if st.View {
			for _, id := range st.Out {
				for j, c := range cells(s.Values[id]) {
					if holds[c] != content[id][j] {
						t.Fatalf("step %d (%s) is no view of its input", i, st.Op)
					}
				}
			}
		}
	}
	for id, v := range s.Values {
		for j, c := range cells(v) {
			if kept && holds[c] != content[graph.ValueID(id)][j] {
				t.Fatalf("%s was overwritten by %v", v.Name, holds[c])
			}
		}
	}
	for _, id := range s.Outputs {
		if s.Values[id].Place.Space != graph.SpaceOutput {
			t.Errorf("output %s lies elsewhere", s.Values[id].Name)
		}
		for j, c := range cells(s.Values[id]) {
			if holds[c] != content[id][j] {
				t.Fatalf("output %s was overwritten by %v", s.Values[id].Name, holds[c])
			}
		}
	}
}

func TestSpecialiseKeptOverwritesNothing(t *testing.T) {
	m := small().Build(arch.Options{})
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
		p, err := graph.SpecialiseKept(m, graph.Dims{"B": 2, "S_txt": 5, "h": 5, "w": 6}, d)
		if err != nil {
			t.Fatal(err)
		}
		for _, seg := range p.Segments() {
			checkPlacesUntil(t, seg, true)
		}
	}
}

func joinOrSplit(s *graph.Segment, st *graph.Step, content map[graph.ValueID][]element, write func(graph.ValueID, []element)) {
	whole, parts := st.Out[0], st.In
	if st.Op == graph.OpSplit {
		whole, parts = st.In[0], st.Out
	}
	shape := s.Values[whole].Shape
	inner, row := int64(1), int64(1)
	for i, n := range shape {
		if i > st.Attrs.Axis {
			inner *= n
		}
		if i >= st.Attrs.Axis {
			row *= n
		}
	}
	n, _ := shape.Elements()
	if st.Op == graph.OpConcat {
		content[whole] = make([]element, n)
	}
	from := int64(0)
	for _, id := range parts {
		width := s.Values[id].Shape[st.Attrs.Axis] * inner
		var part []element
		for o := int64(0); o < n; o += row {
			if st.Op == graph.OpSplit {
				part = append(part, content[whole][o+from:o+from+width]...)
			} else {
				copy(content[whole][o+from:], content[id][o/row*width:][:width])
			}
		}
		if st.Op == graph.OpSplit {
			write(id, part)
		}
		from += width
	}
	if st.Op == graph.OpConcat {
		write(whole, content[whole])
	}
}

func TestBoundaryLayout(t *testing.T) {
	p := specialise(t, small(), graph.Dims{"B": 1, "S_txt": 7, "h": 9, "w": 7}, tensor.BF16)
	for cut, want := range map[int]string{
		0: "img@0[1,20,64] txt@2560[1,7,64] vec@3456[1,64] mask@3584[0,27,27] 3584",
		2: "img@0[1,20,64] txt@2560[1,7,64] vec@3456[1,64] mask@3584[0,27,27] 3584",
		3: "joint@0[1,27,64] vec@3456[1,64] mask@3584[0,27,27] 3584",
		5: "joint@0[1,27,64] vec@3456[1,64] mask@3584[0,27,27] 3584",
	} {
		l, err := graph.BoundaryLayout(p, cut)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, v := range l.Values {
			got += fmt.Sprintf("%s@%d%v ", v.Name, v.Place.Offset, v.Shape)
		}
		if got += fmt.Sprint(int64(l.Bytes)); got != want {
			t.Errorf("cut %d: %s, want %s", cut, got, want)
		}
	}
	for _, cut := range []int{-1, 6} {
		if _, err := graph.BoundaryLayout(p, cut); err == nil {
			t.Errorf("cut %d accepted", cut)
		}
	}
}

func TestStage(t *testing.T) {
	p := specialise(t, small(), graph.Dims{"B": 1, "S_txt": 7, "h": 9, "w": 7}, tensor.BF16)
	names := func(first, count int, head, tail bool) string {
		ls, err := p.Stage(first, count, head, tail)
		if err != nil {
			return err.Error()
		}
		var out []string
		for _, l := range ls {
			out = append(out, fmt.Sprintf("%s.%d", l.Segment.Name, l.Index))
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		first, count int
		head, tail   bool
		want         string
	}{
		{0, 5, true, true, "head.0 double_blocks.0 double_blocks.1 single_blocks.entry.0 single_blocks.0 single_blocks.1 single_blocks.2 tail.0"},
		{0, 2, true, false, "head.0 double_blocks.0 double_blocks.1"},
		{2, 1, false, false, "single_blocks.entry.0 single_blocks.0"},
		{1, 2, false, false, "double_blocks.1 single_blocks.entry.0 single_blocks.0"},
		{3, 2, false, true, "single_blocks.1 single_blocks.2 tail.0"},
		{0, 0, true, false, "head.0"},
		{5, 0, false, true, "tail.0"},
		{4, 2, false, false, "stage of 2 blocks from block 4: the model has 5"},
		{1, 1, true, false, "stage of 1 blocks from block 1 of 5 cannot have the head or tail"},
	} {
		if got := names(c.first, c.count, c.head, c.tail); got != c.want {
			t.Errorf("stage %d+%d: %s, want %s", c.first, c.count, got, c.want)
		}
	}
}

// Whatever a request is, its program fits what was set aside for the workload.
func TestRequestsFitTheWorkload(t *testing.T) {
	workload := specialise(t, small(), graph.Dims{"B": 2, "S_txt": 33, "h": 24, "w": 31}, tensor.BF16)
	tiny, err := workload.Within(graph.Dims{"B": 1, "S_txt": 2, "h": 3, "w": 6})
	if err != nil {
		t.Fatal(err)
	}
	for _, seg := range tiny.Segments() {
		checkPlaces(t, seg)
	}
	for b := int64(1); b <= 2; b++ {
		for s := int64(1); s <= 33; s += 8 {
			for h := int64(2); h <= 24; h += 11 {
				for w := int64(2); w <= 31; w++ {
					p, err := workload.Within(graph.Dims{"B": b, "S_txt": s, "h": h, "w": w})
					if err != nil {
						t.Fatal(err)
					}
					for i, seg := range p.Segments() {
						if limit := workload.Segments()[i].Arena; seg.Arena > limit {
							t.Fatalf("%v: %s takes %v of %v", p.Dims, seg.Name, seg.Arena, limit)
						}
					}
				}
			}
		}
	}
}

func TestRequestTooLarge(t *testing.T) {
	m := dev().Build(arch.Options{})
	dims, err := m.Request(map[string]int64{"width": 1000, "height": 1024, "text_tokens": 256, "batch": 1})
	if err != nil {
		t.Fatal(err)
	}
	if dims["w"] != 125 || dims["h"] != 128 {
		t.Errorf("%v", dims)
	}
	workload, err := graph.Specialise(m, dims, tensor.BF16)
	if err != nil {
		t.Fatal(err)
	}
	_, err = workload.Within(graph.Dims{"B": 1, "S_txt": 256, "h": 130, "w": 125})
	if !errors.Is(err, graph.ErrTooLarge) || err.Error() != "height 1040 is more than the 1024 that this deployment is placed for; deploy it again with a larger workload" {
		t.Errorf("%v", err)
	}
	_, err = m.Request(map[string]int64{"width": 1 << 20, "height": 1024, "text_tokens": 256, "batch": 1})
	if !errors.Is(err, graph.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	for name, words := range map[string]map[string]int64{
		"missing": {"width": 64, "height": 64, "batch": 1},
		"unknown": {"width": 64, "height": 64, "text_tokens": 5, "batch": 1, "frames": 3},
		"zero":    {"width": 0, "height": 64, "text_tokens": 5, "batch": 1},
		"small":   {"width": 4, "height": 64, "text_tokens": 5, "batch": 1},
	} {
		if _, err := m.Request(words); err == nil || errors.Is(err, graph.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, free := range map[string]graph.Dims{
		"missing": {"B": 1, "S_txt": 256, "h": 128},
		"unknown": {"B": 1, "S_txt": 256, "h": 128, "w": 128, "T": 1},
		"derived": {"B": 1, "S_txt": 256, "h": 128, "w": 128, "S": 1},
	} {
		if _, err := graph.Specialise(m, free, tensor.BF16); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := graph.Specialise(m, dims, tensor.F16); err == nil {
		t.Error("F16 accepted")
	}
}
