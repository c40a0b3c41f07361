// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// computes refuses values of another dtype than the compute one.
func (p *program) computes(ids ...graph.ValueID) error {
	for _, id := range ids {
		if v := &p.segment.Values[id]; v.DType != p.segment.Compute {
			return fmt.Errorf("value %s is %v; only the compute dtype %v is run", v.Name, v.DType, p.segment.Compute)
		}
	}
	return nil
}

// lowRank is x·downᵀ with every column times its strength; behind them, where
// the result is wider, the strengths themselves. With strengths of zero alone it
// is zeros and costs nothing, whatever x is.
func (p *program) lowRank(st *graph.Step) (func(*frame) error, error) {
	if err := p.computes(st.In[0], st.Out[0]); err != nil {
		return nil, err
	}
	x, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	w := &p.weights[st.Weights[0]]
	l := newLead(x, out)
	p.needScratch(matmul.ScratchLen(p.dtype, l.inner, w.k, p.session.pool.Workers()))
	xs, os, ss, ws := p.data(st.In[0]), p.data(st.Out[0]), p.data(st.In[1]), p.weight(st.Weights[0])
	size, ranks := p.dtype.Size(), st.Attrs.Ranks
	step := int(p.segment.Values[st.In[1]].Place.Strides[0])
	width := int(out.Shape[len(out.Shape)-1])
	wider := width > w.n
	return func(f *frame) error {
		strengths := elements[float32](ss(f))
		by := make([]float32, 0, w.n)
		own := make([]byte, 0, len(ranks)*size)
		for i, n := range ranks {
			s := strengths[i*step]
			for range n {
				by = append(by, s)
			}
			own = appendValue(own, s, p.segment.Compute)
		}
		dst := os(f)
		if zeros(strengths, len(ranks), step) {
			f.turnOff(st.Out[0])
			for o := range l.outer {
				for row := range l.inner {
					clear(dst[(l.at[1][o]+row*l.step[1])*size:][:width*size])
				}
			}
			return nil
		}
		for o := range l.outer {
			lin := matmul.Linear{
				Type: p.dtype, M: l.inner, N: w.n, K: w.k, W: ws(f), OutType: p.dtype, Scale: by,
				X:   matmul.Matrix{Data: xs(f)[l.at[0][o]*size:], Stride: l.step[0]},
				Out: matmul.Matrix{Data: dst[l.at[1][o]*size:], Stride: l.step[1]},
			}
			if lin.M == 1 {
				lin.X.Stride, lin.Out.Stride = max(lin.X.Stride, w.k), max(lin.Out.Stride, w.n)
			}
			if err := f.engine.matmul.Run(f.pool, &lin, f.scratch); err != nil {
				return err
			}
			for row := range l.inner {
				if wider {
					copy(dst[(l.at[1][o]+row*l.step[1]+w.n)*size:], own)
				}
			}
		}
		return nil
	}, nil
}

// zeros says whether n strengths, step apart, switch everything off.
func zeros(strengths []float32, n, step int) bool {
	for i := range n {
		if strengths[i*step] != 0 {
			return false
		}
	}
	return true
}

func (f *frame) turnOff(id graph.ValueID) {
	if f.off == nil {
		f.off = map[graph.ValueID]bool{}
	}
	f.off[id] = true
}

func appendValue(b []byte, v float32, d tensor.DType) []byte {
	raw := make([]byte, d.Size())
	_, store := access(d)
	store(raw, 0, v)
	return append(b, raw...)
}

// lowRankAdd adds t·upᵀ to columns of y. Where the result does not lie on y,
// the other columns are copied; all of them are where t is switched off.
func (p *program) lowRankAdd(st *graph.Step) (func(*frame) error, error) {
	if err := p.computes(st.In[0], st.In[1], st.Out[0]); err != nil {
		return nil, err
	}
	y, t, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.In[1]], &p.segment.Values[st.Out[0]]
	w := &p.weights[st.Weights[0]]
	l := newLead(y, t, out)
	p.needScratch(matmul.ScratchLen(p.dtype, l.inner, w.k, p.session.pool.Workers()))
	ys, ts, os, ws := p.data(st.In[0]), p.data(st.In[1]), p.data(st.Out[0]), p.weight(st.Weights[0])
	size, first := p.dtype.Size(), int(st.Attrs.First)
	rest, all := p.copyRest(st, first, w.n), p.copyRest(st, 0, 0)
	return func(f *frame) error {
		if f.off[st.In[1]] {
			for _, c := range all {
				c(f)
			}
			return nil
		}
		for _, c := range rest {
			c(f)
		}
		for o := range l.outer {
			lin := matmul.Linear{
				Type: p.dtype, M: l.inner, N: w.n, K: w.k, W: ws(f), OutType: p.dtype,
				X:   matmul.Matrix{Data: ts(f)[l.at[1][o]*size:], Stride: l.step[1]},
				Add: matmul.Matrix{Data: ys(f)[(l.at[0][o]+first)*size:], Stride: l.step[0]},
				Out: matmul.Matrix{Data: os(f)[(l.at[2][o]+first)*size:], Stride: l.step[2]},
			}
			if lin.M == 1 {
				lin.X.Stride, lin.Add.Stride, lin.Out.Stride = max(lin.X.Stride, w.k), max(lin.Add.Stride, w.n), max(lin.Out.Stride, w.n)
			}
			if err := f.engine.matmul.Run(f.pool, &lin, f.scratch); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// copyRest copies the columns before first and from first+n on, unless the
// output lies on y.
func (p *program) copyRest(st *graph.Step, first, n int) []func(*frame) {
	y, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	if y.Place.Space == out.Place.Space && y.Place.Index == out.Place.Index && y.Place.Offset == out.Place.Offset {
		return nil
	}
	last := len(y.Shape) - 1
	size := out.DType.Size()
	part := func(from, to int) func(*frame) {
		s := y.Shape.Clone()
		s[last] = int64(to - from)
		return p.copyView(s, out.Place.Strides, y.Place.Strides, size, shifted(p.data(st.Out[0]), from*size), shifted(p.data(st.In[0]), from*size))
	}
	var all []func(*frame)
	if first > 0 {
		all = append(all, part(0, first))
	}
	if width := int(y.Shape[last]); first+n < width {
		all = append(all, part(first+n, width))
	}
	return all
}
