// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"context"
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/attention"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// program is a compiled segment: its steps as closures over a frame, and the
// layout of its weights.
type program struct {
	session *session
	segment *graph.Segment
	dtype   matmul.DType
	weights []packedWeight
	packed  tensor.Bytes
	kernel  tensor.Bytes // scratch of the kernels, after the arena
	steps   []func(*frame) error
}

// packedWeight is where a weight lies in a packed block and in which form.
type packedWeight struct {
	graph.Weight
	panels bool // [n,k] in matmul's panels; otherwise row-major
	n, k   int
	offset tensor.Bytes
	bytes  tensor.Bytes
}

// frame is one execution of a program.
type frame struct {
	*session
	arena, scratch, weights    []byte
	inputs, constants, outputs [][]byte
	// off are results of low_rank whose strengths are all zero: they change nothing.
	off map[graph.ValueID]bool
}

// Compile checks the segment and lays its weights out. It fails for an
// operation, dtype or size that the engine does not run, naming the step.
func (s *session) Compile(_ context.Context, seg *graph.Segment) (engine.Program, error) {
	p := &program{session: s, segment: seg}
	switch seg.Compute {
	case tensor.F32:
		p.dtype = matmul.F32
	case tensor.BF16:
		p.dtype = matmul.BF16
	default:
		return nil, fmt.Errorf("segment %s: the native engine computes in F32 and BF16, not in %v", seg.Name, seg.Compute)
	}
	if err := p.layOut(); err != nil {
		return nil, fmt.Errorf("segment %s: %w", seg.Name, err)
	}
	for i := range seg.Steps {
		st := &seg.Steps[i]
		if st.View {
			continue
		}
		f, err := p.compileStep(st)
		if err != nil {
			return nil, fmt.Errorf("segment %s, step %d (%s): %w", seg.Name, i, st.Op, err)
		}
		p.steps = append(p.steps, f)
	}
	return p, nil
}

// Segment is what was compiled.
func (p *program) Segment() *graph.Segment { return p.segment }

// Scratch is the arena and, after it, what the kernels use.
func (p *program) Scratch() tensor.Bytes { return alignUp(p.segment.Arena) + p.kernel }

// PackedBytes is one block's weights as Run takes them.
func (p *program) PackedBytes() tensor.Bytes { return p.packed }

// Placed is where a weight lies in a packed block.
func (p *program) Placed(i int) (offset, n tensor.Bytes) {
	return p.weights[i].offset, p.weights[i].bytes
}

// layOut gives every weight its place: matrices of linears in panels, all
// others row-major in the compute dtype.
func (p *program) layOut() error {
	seg := p.segment
	matrix := make([]bool, len(seg.Weights))
	for i := range seg.Steps {
		switch st := &seg.Steps[i]; st.Op {
		case graph.OpLinear, graph.OpLowRank, graph.OpLowRankAdd:
			matrix[st.Weights[0]] = true
		}
	}
	for i, w := range seg.Weights {
		pw := packedWeight{Weight: w, panels: matrix[i], offset: p.packed}
		if pw.panels {
			pw.n, pw.k = int(w.Shape[0]), int(w.Shape[1])
			pw.bytes = tensor.Bytes(matmul.PackedLen(p.dtype, pw.n, pw.k))
		} else {
			b, err := w.Shape.Bytes(seg.Compute)
			if err != nil {
				return fmt.Errorf("weight %s: %w", w.Name, err)
			}
			pw.bytes = b
		}
		p.packed = alignUp(p.packed + pw.bytes)
		p.weights = append(p.weights, pw)
	}
	return nil
}

// needScratch makes room for one kernel; kernels of a program share it.
func (p *program) needScratch(n int) { p.kernel = max(p.kernel, alignUp(tensor.Bytes(n))) }

// weight is the bytes of weight id in a packed block.
func (p *program) weight(id graph.WeightID) func(*frame) []byte {
	w := &p.weights[id]
	return func(f *frame) []byte { return f.weights[w.offset : w.offset+w.bytes] }
}

// data is the bytes of a value from its first element on.
func (p *program) data(id graph.ValueID) func(*frame) []byte {
	v := &p.segment.Values[id]
	at, i := v.Place.Offset, v.Place.Index
	switch v.Place.Space {
	case graph.SpaceInput:
		return func(f *frame) []byte { return f.inputs[i][at:] }
	case graph.SpaceConstant:
		return func(f *frame) []byte { return f.constants[i][at:] }
	case graph.SpaceOutput:
		return func(f *frame) []byte { return f.outputs[i][at:] }
	}
	return func(f *frame) []byte { return f.arena[at:] }
}

// Run executes the program once.
func (s *session) Run(ep engine.Program, weights engine.Buffer, weightsOffset tensor.Bytes, scratch engine.Buffer, bindings []engine.Binding, after ...engine.Event) engine.Event {
	return s.Issue(Computing, after, func() error {
		p, ok := ep.(*program)
		if !ok || p.session != s {
			return fmt.Errorf("run: the program was compiled by another session")
		}
		f, err := p.bind(weights, weightsOffset, scratch, bindings)
		if err != nil {
			return fmt.Errorf("run segment %s: %w", p.segment.Name, err)
		}
		for _, step := range p.steps {
			if err := step(f); err != nil {
				return fmt.Errorf("run segment %s: %w", p.segment.Name, err)
			}
		}
		return nil
	})
}

func (p *program) bind(weights engine.Buffer, at tensor.Bytes, scratch engine.Buffer, bindings []engine.Binding) (*frame, error) {
	f := &frame{session: p.session}
	var err error
	if p.packed > 0 {
		if f.weights, err = window(weights, at, p.packed, "weights"); err != nil {
			return nil, err
		}
	}
	if p.Scratch() > 0 {
		all, err := window(scratch, 0, p.Scratch(), "scratch")
		if err != nil {
			return nil, err
		}
		f.arena, f.scratch = all[:alignUp(p.segment.Arena)], all[alignUp(p.segment.Arena):]
	}
	for _, set := range []struct {
		ids []graph.ValueID
		to  *[][]byte
	}{{p.segment.Inputs, &f.inputs}, {p.segment.Constants, &f.constants}, {p.segment.Outputs, &f.outputs}} {
		for _, id := range set.ids {
			v := &p.segment.Values[id]
			b, err := find(bindings, v)
			if err != nil {
				return nil, err
			}
			*set.to = append(*set.to, b)
		}
	}
	return f, nil
}

func find(bindings []engine.Binding, v *graph.Tensor) ([]byte, error) {
	for _, b := range bindings {
		if b.Name == v.Name {
			return window(b.Buffer, b.Offset, v.Bytes, v.Name)
		}
	}
	return nil, fmt.Errorf("%s is not bound", v.Name)
}

// compileStep is the step's closure.
func (p *program) compileStep(st *graph.Step) (func(*frame) error, error) {
	switch st.Op {
	case graph.OpLinear:
		return p.linear(st)
	case graph.OpLowRank:
		return p.lowRank(st)
	case graph.OpLowRankAdd:
		return p.lowRankAdd(st)
	case graph.OpAttention:
		return p.attention(st)
	case graph.OpCast, graph.OpScale:
		return p.convert(st)
	case graph.OpTimestepEmbedding:
		return p.timestepEmbedding(st)
	case graph.OpPatchify, graph.OpUnpatchify:
		return p.patch(st)
	case graph.OpConcat, graph.OpSplit, graph.OpReshape, graph.OpTranspose:
		return p.move(st)
	}
	if p.isF32(st.Out[0]) {
		return rowStep(p, st, &p.session.engine.vector.F32)
	}
	return rowStep(p, st, &p.session.engine.vector.BF16)
}

func (p *program) isF32(id graph.ValueID) bool { return p.segment.Values[id].DType == tensor.F32 }

// linear runs matmul once per stretch of rows of one stride.
func (p *program) linear(st *graph.Step) (func(*frame) error, error) {
	x, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	if x.DType != p.segment.Compute || out.DType != p.segment.Compute {
		return nil, fmt.Errorf("linear from %v to %v; only the compute dtype %v is run", x.DType, out.DType, p.segment.Compute)
	}
	w := &p.weights[st.Weights[0]]
	l := newLead(x, out)
	p.needScratch(matmul.ScratchLen(p.dtype, l.inner, w.k, p.session.pool.Workers()))
	xs, os, ws := p.data(st.In[0]), p.data(st.Out[0]), p.weight(st.Weights[0])
	var bias func(*frame) []byte
	if len(st.Weights) > 1 {
		bias = p.weight(st.Weights[1])
	}
	size := p.dtype.Size()
	return func(f *frame) error {
		for o := range l.outer {
			lin := matmul.Linear{
				Type: p.dtype, M: l.inner, N: w.n, K: w.k, W: ws(f), OutType: p.dtype, BiasType: p.dtype,
				X:   matmul.Matrix{Data: xs(f)[l.at[0][o]*size:], Stride: l.step[0]},
				Out: matmul.Matrix{Data: os(f)[l.at[1][o]*size:], Stride: l.step[1]},
			}
			if lin.M == 1 {
				lin.X.Stride, lin.Out.Stride = max(lin.X.Stride, w.k), max(lin.Out.Stride, w.n)
			}
			if bias != nil {
				lin.Bias = bias(f)
			}
			if err := f.engine.matmul.Run(f.pool, &lin, f.scratch); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// attention hands strided views of q, k, v [B,S,H,d] and, unless it is empty,
// of the mask [B,S,T] to the kernel.
func (p *program) attention(st *graph.Step) (func(*frame) error, error) {
	q, k := &p.segment.Values[st.In[0]], &p.segment.Values[st.In[1]]
	if q.DType != p.segment.Compute {
		return nil, fmt.Errorf("attention in %v, compute dtype is %v", q.DType, p.segment.Compute)
	}
	if q.Shape[3] > attention.MaxDim {
		return nil, fmt.Errorf("heads of %d elements; at most %d are run", q.Shape[3], attention.MaxDim)
	}
	shape := attention.Attention{
		Type: p.dtype, Batch: int(q.Shape[0]), Queries: int(q.Shape[1]), Keys: int(k.Shape[1]),
		Heads: int(q.Shape[2]), Dim: int(q.Shape[3]), Scale: float32(st.Attrs.Scale),
	}
	p.needScratch(attention.ScratchLen(p.dtype, shape.Dim, p.session.pool.Workers()))
	view := func(id graph.ValueID) func(*frame) attention.View {
		data, s := p.data(id), p.segment.Values[id].Place.Strides
		return func(f *frame) attention.View {
			return attention.View{Data: data(f), Batch: int(s[0]), Row: int(s[1]), Head: int(s[2])}
		}
	}
	qv, kv, vv, ov := view(st.In[0]), view(st.In[1]), view(st.In[2]), view(st.Out[0])
	mask := func(*frame) attention.View { return attention.View{} }
	if len(st.In) > 3 && p.segment.Values[st.In[3]].Bytes > 0 {
		data, s := p.data(st.In[3]), p.segment.Values[st.In[3]].Place.Strides
		mask = func(f *frame) attention.View { return attention.View{Data: data(f), Batch: int(s[0]), Row: int(s[1])} }
	}
	return func(f *frame) error {
		a := shape
		a.Q, a.K, a.V, a.Out, a.Mask = qv(f), kv(f), vv(f), ov(f), mask(f)
		return f.engine.attention.Run(f.pool, &a, f.scratch)
	}, nil
}
