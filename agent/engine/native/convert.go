// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/numeric"
	"github.com/distorch/distorch/model/tensor"
)

// loader reads element i of a stretch as f32; storer rounds one to it.
type (
	loader func(b []byte, i int) float32
	storer func(b []byte, i int, v float32)
)

func access(d tensor.DType) (loader, storer) {
	if d == tensor.F32 {
		return func(b []byte, i int) float32 { return elements[float32](b)[i] },
			func(b []byte, i int, v float32) { elements[float32](b)[i] = v }
	}
	return func(b []byte, i int) float32 { return tensor.F32FromBF16(elements[uint16](b)[i]) },
		func(b []byte, i int, v float32) { elements[uint16](b)[i] = tensor.BF16FromF32(v) }
}

// convert is cast and scale: a product in f32, one rounding.
func (p *program) convert(st *graph.Step) (func(*frame) error, error) {
	x, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	for _, v := range []*graph.Tensor{x, out} {
		if v.DType != tensor.F32 && v.DType != tensor.BF16 {
			return nil, fmt.Errorf("value %s is %v; only F32 and BF16 are run", v.Name, v.DType)
		}
	}
	xs, os := p.data(st.In[0]), p.data(st.Out[0])
	xSize, oSize := x.DType.Size(), out.DType.Size()
	load, _ := access(x.DType)
	_, store := access(out.DType)
	scale := st.Op == graph.OpScale
	factor := float32(st.Attrs.Factor)
	n := int(out.Shape[len(out.Shape)-1])
	l := newLead(out, x)
	return func(f *frame) error {
		k := f.engine.vector
		l.each(f, n, func(o, row, rows int) {
			for r := row; r < row+rows; r++ {
				dst := os(f)[(l.at[0][o]+r*l.step[0])*oSize:][:n*oSize]
				src := xs(f)[(l.at[1][o]+r*l.step[1])*xSize:][:n*xSize]
				switch {
				case scale:
					for i := range n {
						store(dst, i, float32(load(src, i)*factor))
					}
				case x.DType == out.DType:
					copy(dst, src)
				case x.DType == tensor.F32:
					k.F32ToBF16(elements[uint16](dst), elements[float32](src))
				default:
					k.BF16ToF32(elements[float32](dst), elements[uint16](src))
				}
			}
		})
		return nil
	}, nil
}

// timestepEmbedding is cos and sin of v·f_k, the product rounded to f32, the
// functions computed in float64 and rounded once.
func (p *program) timestepEmbedding(st *graph.Step) (func(*frame) error, error) {
	v, freq, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.In[1]], &p.segment.Values[st.Out[0]]
	if freq.DType != tensor.F32 || out.DType != tensor.F32 {
		return nil, fmt.Errorf("frequencies are %v and the result %v; both must be F32", freq.DType, out.DType)
	}
	load, _ := access(v.DType)
	vs, fs, os := p.data(st.In[0]), p.data(st.In[1]), p.data(st.Out[0])
	b, n := int(out.Shape[0]), int(freq.Shape[0])
	step, ostep := int(v.Place.Strides[0]), int(out.Place.Strides[0])
	return func(f *frame) error {
		table, dst := elements[float32](fs(f)), elements[float32](os(f))
		for i := range b {
			t := load(vs(f), i*step)
			for k := range n {
				angle := float64(float32(t * table[k]))
				dst[i*ostep+k] = float32(numeric.Cos(angle))
				dst[i*ostep+n+k] = float32(numeric.Sin(angle))
			}
		}
		return nil
	}, nil
}
