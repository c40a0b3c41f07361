// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package refexec runs segments with plain loops in float64: slow, short and
// clear. It is the meaning of the operations and the proof that a segment's
// places do not overwrite what is still needed: every value lives where its
// Place says, in an arena that is filled with NaN at first.
//
// Imported by tests only. It imports model/graph, model/tensor and
// model/numeric. It belongs to no numerics class: engines are compared with it
// within a tolerance.
package refexec

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/numeric"
	"github.com/distorch/distorch/model/tensor"
)

// Values are tensors by name, row-major.
type Values map[string][]float32

// Machine runs the launches of one program.
type Machine struct {
	Program *graph.Program
	// Weight gives a weight by its resolved name.
	Weight func(name string) ([]float32, error)
	// Tap, where set, sees every tap of every launch with its resolved name
	// and layout applied.
	Tap func(name string, v []float32)

	constants Values
}

// Forward runs the whole program on a request's inputs and returns its output.
func (m *Machine) Forward(in Values) ([]float32, error) {
	launches, err := m.Program.Stage(0, m.Program.Model.Blocks(), true, true)
	if err != nil {
		return nil, err
	}
	have := Values{}
	maps.Copy(have, in)
	for _, l := range launches {
		out, err := m.Run(l, have)
		if err != nil {
			return nil, fmt.Errorf("%s %d: %w", l.Segment.Name, l.Index, err)
		}
		for i, v := range out {
			have[l.State[i].Name] = v
		}
	}
	return have[m.Program.Output.Name], nil
}

// run is one execution of a segment.
type run struct {
	m       *Machine
	seg     *graph.Segment
	index   int
	arena   []byte
	inputs  [][]byte
	consts  [][]byte
	outputs [][]byte
}

// Run executes one launch; have binds its inputs by name.
func (m *Machine) Run(l graph.Launch, have Values) ([][]float32, error) {
	s := l.Segment
	r := &run{m: m, seg: s, index: l.Index, arena: make([]byte, s.Arena)}
	for i := range r.arena {
		r.arena[i] = 0xff // NaN in every float dtype
	}
	for _, id := range s.Inputs {
		v, ok := have[s.Values[id].Name]
		if !ok && s.Values[id].Bytes > 0 {
			return nil, fmt.Errorf("no input %q", s.Values[id].Name)
		}
		r.inputs = append(r.inputs, encode(v, s.Values[id].DType))
	}
	for _, id := range s.Constants {
		v, err := m.constant(s.Values[id].Name)
		if err != nil {
			return nil, err
		}
		r.consts = append(r.consts, encode(v, tensor.F32))
	}
	for _, id := range s.Outputs {
		r.outputs = append(r.outputs, make([]byte, s.Values[id].Bytes))
	}
	taps := r.tapsAfter()
	r.taps(taps[-1])
	for i := range s.Steps {
		if err := r.step(&s.Steps[i]); err != nil {
			return nil, fmt.Errorf("step %d (%s): %w", i, s.Steps[i].Op, err)
		}
		r.taps(taps[i])
	}
	out := make([][]float32, len(s.Outputs))
	for i, id := range s.Outputs {
		out[i] = r.load(id)
	}
	return out, nil
}

func (m *Machine) constant(name string) ([]float32, error) {
	if v, ok := m.constants[name]; ok {
		return v, nil
	}
	v, err := m.Program.Constant(name)
	if err != nil {
		return nil, err
	}
	if m.constants == nil {
		m.constants = Values{}
	}
	m.constants[name] = v
	return v, nil
}

// tapsAfter lists the taps to show after each step: as soon as their values
// exist, before anything is written over them.
func (r *run) tapsAfter() map[int][]graph.Tap {
	made := map[graph.ValueID]int{}
	for i, st := range r.seg.Steps {
		for _, id := range st.Out {
			made[id] = i
		}
	}
	out := map[int][]graph.Tap{}
	for _, t := range r.seg.Taps {
		at := -1
		for _, id := range t.Values {
			if i, ok := made[id]; ok {
				at = max(at, i)
			}
		}
		out[at] = append(out[at], t)
	}
	return out
}

func (r *run) taps(taps []graph.Tap) {
	if r.m.Tap == nil {
		return
	}
	for _, t := range taps {
		vs := make([][]float32, len(t.Values))
		for i, id := range t.Values {
			vs[i] = r.load(id)
		}
		r.m.Tap(graph.Resolve(t.Name, r.index), Layout(t.Layout, r.seg.Values[t.Values[0]].Shape, vs))
	}
}

// Layout shows the values of a tap, the first of which has the given shape, as
// the tap wants them.
func Layout(l graph.TapLayout, s tensor.Shape, vs [][]float32) []float32 {
	switch l {
	case graph.TapHeadsFirst:
		out := make([]float32, 0, len(vs[0]))
		for b := range s[0] {
			for h := range s[2] {
				for i := range s[1] {
					at := ((b*s[1]+i)*s[2] + h) * s[3]
					out = append(out, vs[0][at:at+s[3]]...)
				}
			}
		}
		return out
	case graph.TapRotation:
		out := make([]float32, 0, 4*len(vs[0]))
		for i, c := range vs[0] {
			sin := vs[1][i]
			out = append(out, c, -sin, sin, c)
		}
		return out
	}
	return vs[0]
}

func encode(v []float32, d tensor.DType) []byte {
	out := make([]byte, len(v)*d.Size())
	for i, x := range v {
		put(out, tensor.Bytes(i*d.Size()), d, float64(x))
	}
	return out
}

func put(dst []byte, at tensor.Bytes, d tensor.DType, x float64) {
	if d == tensor.BF16 {
		binary.LittleEndian.PutUint16(dst[at:], tensor.BF16FromF64(x))
		return
	}
	binary.LittleEndian.PutUint32(dst[at:], math.Float32bits(float32(x)))
}

func (r *run) memory(p graph.Place) []byte {
	switch p.Space {
	case graph.SpaceInput:
		return r.inputs[p.Index]
	case graph.SpaceConstant:
		return r.consts[p.Index]
	case graph.SpaceOutput:
		return r.outputs[p.Index]
	}
	return r.arena
}

// each calls f with the byte offset of every element in row-major order.
func each(t graph.Tensor, f func(at tensor.Bytes)) {
	size := tensor.Bytes(t.DType.Size())
	index := make([]int64, len(t.Shape))
	if slices.Contains(t.Shape, 0) {
		return
	}
	for {
		at := int64(0)
		for i, n := range index {
			at += n * t.Place.Strides[i]
		}
		f(t.Place.Offset + tensor.Bytes(at)*size)
		i := len(index) - 1
		for ; i >= 0; i-- {
			if index[i]++; index[i] < t.Shape[i] {
				break
			}
			index[i] = 0
		}
		if i < 0 {
			return
		}
	}
}

func (r *run) load(id graph.ValueID) []float32 {
	t := r.seg.Values[id]
	mem := r.memory(t.Place)
	var out []float32
	each(t, func(at tensor.Bytes) {
		if t.DType == tensor.BF16 {
			out = append(out, tensor.F32FromBF16(binary.LittleEndian.Uint16(mem[at:])))
		} else {
			out = append(out, math.Float32frombits(binary.LittleEndian.Uint32(mem[at:])))
		}
	})
	return out
}

func (r *run) store(id graph.ValueID, v []float64) {
	t := r.seg.Values[id]
	mem := r.memory(t.Place)
	i := 0
	each(t, func(at tensor.Bytes) {
		put(mem, at, t.DType, v[i])
		i++
	})
}

// round gives x the precision of d.
func round(x float64, d tensor.DType) float64 {
	if d == tensor.BF16 {
		return float64(tensor.F32FromBF16(tensor.BF16FromF64(x)))
	}
	return float64(float32(x))
}

func (r *run) weights(st *graph.Step) ([][]float32, error) {
	out := make([][]float32, len(st.Weights))
	for i, id := range st.Weights {
		w := r.seg.Weights[id]
		v, err := r.m.Weight(graph.Resolve(w.Name, r.index))
		if err != nil {
			return nil, err
		}
		n, err := w.Shape.Elements()
		if err != nil || int64(len(v)) != n {
			return nil, fmt.Errorf("weight %q has %d elements, must have shape %v (%w)", w.Name, len(v), w.Shape, err)
		}
		out[i] = make([]float32, len(v))
		for j, x := range v {
			out[i][j] = float32(round(float64(x), r.seg.Compute))
		}
	}
	return out, nil
}

func (r *run) step(st *graph.Step) error {
	if st.View {
		return nil
	}
	w, err := r.weights(st)
	if err != nil {
		return err
	}
	in := make([][]float32, len(st.In))
	for i, id := range st.In {
		if i < len(st.InPlace) && st.InPlace[i] {
			continue
		}
		in[i] = r.load(id)
	}
	shapes := func(id graph.ValueID) tensor.Shape { return r.seg.Values[id].Shape }
	out := st.Out[0]
	switch st.Op {
	case graph.OpConcat:
		r.concat(st, in)
		return nil
	case graph.OpSplit:
		r.split(st, in[0])
		return nil
	case graph.OpPatchify:
		r.store(out, patchify(st.Attrs.Patch, shapes(st.In[0]), in[0]))
	case graph.OpUnpatchify:
		r.store(out, unpatchify(st.Attrs.Patch, shapes(out), in[0]))
	case graph.OpTimestepEmbedding:
		r.store(out, embedding(in[0], in[1]))
	case graph.OpLinear:
		s := shapes(out)
		r.store(out, linear(in[0], int(s[len(s)-1]), w))
	case graph.OpLowRank:
		s := shapes(out)
		r.store(out, lowRank(st.Attrs.Ranks, in[0], in[1], int(s[len(s)-1]), w[0]))
	case graph.OpLowRankAdd:
		s := shapes(out)
		r.store(out, lowRankAdd(int(st.Attrs.First), in[0], in[1], int(s[len(s)-1]), w[0], len(w[0])/int(r.seg.Weights[st.Weights[0]].Shape[1])))
	case graph.OpLayerNorm, graph.OpRMSNorm:
		s := shapes(out)
		r.store(out, norm(st.Op == graph.OpLayerNorm, st.Attrs.Eps, int(s[len(s)-1]), in[0], w))
	case graph.OpModulate, graph.OpGatedAdd:
		r.store(out, r.perSample(st, in))
	case graph.OpRoPE:
		r.store(out, rope(shapes(out), in))
	case graph.OpAttention:
		r.store(out, attention(st.Attrs.Scale, shapes(out), shapes(st.In[1])[1], in))
	case graph.OpTranspose:
		r.store(out, transpose(st.Attrs.Perm, shapes(out), shapes(st.In[0]), in[0]))
	default:
		v, err := elementwise(st, in)
		if err != nil {
			return err
		}
		r.store(out, v)
	}
	return nil
}

func elementwise(st *graph.Step, in [][]float32) ([]float64, error) {
	out := make([]float64, len(in[0]))
	for i := range out {
		x := float64(in[0][i])
		switch st.Op {
		case graph.OpCast, graph.OpReshape:
			out[i] = x
		case graph.OpScale:
			out[i] = st.Attrs.Factor * x
		case graph.OpAdd:
			out[i] = x + float64(in[1][i])
		case graph.OpMul:
			out[i] = x * float64(in[1][i])
		case graph.OpSiLU:
			out[i] = x / (1 + numeric.Exp(-x))
		case graph.OpGELUTanh:
			out[i] = 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
		default:
			return nil, fmt.Errorf("unknown operation")
		}
	}
	return out, nil
}

func (r *run) concat(st *graph.Step, in [][]float32) {
	whole := r.seg.Values[st.Out[0]]
	at := tensor.Bytes(0)
	for i, id := range st.In {
		t := r.seg.Values[id]
		dst := graph.Tensor{Shape: t.Shape, DType: t.DType, Place: whole.Place}
		dst.Place.Offset += at
		at += tensor.Bytes(t.Shape[st.Attrs.Axis]*whole.Place.Strides[st.Attrs.Axis]) * tensor.Bytes(t.DType.Size())
		if st.InPlace[i] {
			continue
		}
		mem, j := r.memory(whole.Place), 0
		each(dst, func(at tensor.Bytes) {
			put(mem, at, t.DType, float64(in[i][j]))
			j++
		})
	}
}

func (r *run) split(st *graph.Step, x []float32) {
	s := r.seg.Values[st.In[0]].Shape
	outer, inner := int64(1), int64(1)
	for i, n := range s {
		if i < st.Attrs.Axis {
			outer *= n
		} else if i > st.Attrs.Axis {
			inner *= n
		}
	}
	row, from := s[st.Attrs.Axis]*inner, int64(0)
	for _, id := range st.Out {
		width := r.seg.Values[id].Shape[st.Attrs.Axis] * inner
		var v []float64
		for o := range outer {
			for _, e := range x[o*row+from : o*row+from+width] {
				v = append(v, float64(e))
			}
		}
		r.store(id, v)
		from += width
	}
}

func transpose(perm []int, to, from tensor.Shape, x []float32) []float64 {
	out := make([]float64, len(x))
	for i := range out {
		rest, at := int64(i), int64(0)
		for d, t := range slices.Backward(to) {
			step := int64(1)
			for _, n := range from[perm[d]+1:] {
				step *= n
			}
			at += rest % t * step
			rest /= t
		}
		out[i] = float64(x[at])
	}
	return out
}

func patchify(p [2]int64, s tensor.Shape, x []float32) []float64 {
	rows, cols := (s[2]+p[0]-1)/p[0], (s[3]+p[1]-1)/p[1]
	out := make([]float64, 0, s[0]*s[1]*rows*cols*p[0]*p[1])
	for b := range s[0] {
		for r := range rows {
			for c := range cols {
				for ch := range s[1] {
					for i := range p[0] {
						for j := range p[1] {
							y, z := (r*p[0]+i)%s[2], (c*p[1]+j)%s[3]
							out = append(out, float64(x[((b*s[1]+ch)*s[2]+y)*s[3]+z]))
						}
					}
				}
			}
		}
	}
	return out
}

func unpatchify(p [2]int64, s tensor.Shape, x []float32) []float64 {
	rows, cols := (s[2]+p[0]-1)/p[0], (s[3]+p[1]-1)/p[1]
	var out []float64
	for b := range s[0] {
		for ch := range s[1] {
			for y := range s[2] {
				for z := range s[3] {
					token := (b*rows+y/p[0])*cols + z/p[1]
					out = append(out, float64(x[token*s[1]*p[0]*p[1]+(ch*p[0]+y%p[0])*p[1]+z%p[1]]))
				}
			}
		}
	}
	return out
}

func embedding(v, f []float32) []float64 {
	var out []float64
	for _, x := range v {
		sines := make([]float64, len(f))
		for k, w := range f {
			sin, cos := numeric.Sincos(float64(float32(x * w)))
			sines[k] = sin
			out = append(out, cos)
		}
		out = append(out, sines...)
	}
	return out
}

func linear(x []float32, n int, w [][]float32) []float64 {
	k := len(w[0]) / n
	rows := len(x) / k
	out := make([]float64, 0, rows*n)
	for r := range rows {
		for j := range n {
			sum := 0.0
			for i := range k {
				sum += float64(x[r*k+i]) * float64(w[0][j*k+i])
			}
			if len(w) > 1 {
				sum += float64(w[1][j])
			}
			out = append(out, sum)
		}
	}
	return out
}

func lowRank(ranks []int, x, strength []float32, width int, down []float32) []float64 {
	var by []float64
	for l, n := range ranks {
		for range n {
			by = append(by, float64(strength[l]))
		}
	}
	n := len(by)
	var out []float64
	products := linear(x, n, [][]float32{down})
	for row := range len(products) / n {
		for j := range width {
			if j < n {
				out = append(out, products[row*n+j]*by[j])
			} else {
				out = append(out, float64(strength[j-n]))
			}
		}
	}
	return out
}

func lowRankAdd(first int, y, t []float32, n int, up []float32, m int) []float64 {
	delta := linear(t, m, [][]float32{up})
	out := make([]float64, len(y))
	for i := range out {
		out[i] = float64(y[i])
		if at := i%n - first; at >= 0 && at < m {
			out[i] += delta[i/n*m+at]
		}
	}
	return out
}

func norm(layer bool, eps float64, d int, x []float32, w [][]float32) []float64 {
	out := make([]float64, 0, len(x))
	for ; len(x) > 0; x = x[d:] {
		mean, square := 0.0, 0.0
		if layer {
			for _, v := range x[:d] {
				mean += float64(v)
			}
			mean /= float64(d)
		}
		for _, v := range x[:d] {
			square += (float64(v) - mean) * (float64(v) - mean)
		}
		inv := 1 / math.Sqrt(square/float64(d)+eps)
		for i, v := range x[:d] {
			y := (float64(v) - mean) * inv
			if len(w) > 0 {
				y *= float64(w[0][i])
			}
			if len(w) > 1 {
				y += float64(w[1][i])
			}
			out = append(out, y)
		}
	}
	return out
}

func (r *run) perSample(st *graph.Step, in [][]float32) []float64 {
	t := r.seg.Values[st.Out[0]]
	rows, d := t.Shape[1], t.Shape[2]
	out := make([]float64, len(in[0]))
	for i := range out {
		sample := int64(i)/(rows*d)*d + int64(i)%d
		x, second := float64(in[0][i]), float64(in[1][sample])
		if st.Op == graph.OpModulate {
			out[i] = x*round(1+second, t.DType) + float64(in[2][sample])
			continue
		}
		y := second * float64(in[2][i])
		if !st.Attrs.Fused {
			y = round(y, t.DType)
		}
		out[i] = x + y
	}
	return out
}

func rope(s tensor.Shape, in [][]float32) []float64 {
	out := make([]float64, len(in[0]))
	half := s[3] / 2
	for i := int64(0); i < int64(len(out)); i += 2 {
		at := i/(s[2]*s[3])%s[1]*half + i%s[3]/2
		c, sin := float64(in[1][at]), float64(in[2][at])
		a, b := float64(in[0][i]), float64(in[0][i+1])
		out[i], out[i+1] = c*a-sin*b, sin*a+c*b
	}
	return out
}

func attention(scale float64, s tensor.Shape, keys int64, in [][]float32) []float64 {
	heads, d := s[2], s[3]
	out := make([]float64, len(in[0]))
	p := make([]float64, keys)
	var mask []float32
	if len(in) > 3 && len(in[3]) > 0 {
		mask = in[3]
	}
	row := func(x []float32, b, n, i, h int64) []float32 {
		at := ((b*n+i)*heads + h) * d
		return x[at : at+d]
	}
	for b := range s[0] {
		for h := range heads {
			for i := range s[1] {
				q := row(in[0], b, s[1], i, h)
				top, sum := math.Inf(-1), 0.0
				for j := range keys {
					dot := 0.0
					for e, v := range row(in[1], b, keys, j, h) {
						dot += float64(v) * float64(q[e])
					}
					p[j] = dot * scale
					if mask != nil {
						p[j] += float64(mask[(b*s[1]+i)*keys+j])
					}
					top = max(top, p[j])
				}
				for j := range keys {
					p[j] = numeric.Exp(p[j] - top)
					sum += p[j]
				}
				at := ((b*s[1]+i)*heads + h) * d
				for j := range keys {
					for e, v := range row(in[2], b, keys, j, h) {
						out[at+int64(e)] += p[j] / sum * float64(v)
					}
				}
			}
		}
	}
	return out
}
