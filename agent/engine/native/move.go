// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"

	"github.com/distorch/distorch/model/graph"
)

// mover copies elements of one size without looking at them.
type mover func(dst []byte, di int, src []byte, si, n int)

func moverOf(size int) mover {
	return func(dst []byte, di int, src []byte, si, n int) {
		copy(dst[di*size:(di+n)*size], src[si*size:(si+n)*size])
	}
}

// move is concat, split, reshape and transpose where they are not views.
func (p *program) move(st *graph.Step) (func(*frame) error, error) {
	out := &p.segment.Values[st.Out[0]]
	for _, id := range st.In {
		if v := &p.segment.Values[id]; v.DType != out.DType {
			return nil, fmt.Errorf("input %s is %v, output %s is %v", v.Name, v.DType, out.Name, out.DType)
		}
	}
	switch st.Op {
	case graph.OpConcat:
		return p.concat(st), nil
	case graph.OpSplit:
		return p.split(st), nil
	case graph.OpReshape:
		return p.reshape(st), nil
	default:
		return p.transpose(st), nil
	}
}

// copyView copies a tensor of one shape between two views.
func (p *program) copyView(shape, dstStrides, srcStrides []int64, size int, dst, src func(*frame) []byte) func(*frame) {
	lead, n := shape[:len(shape)-1], int(shape[len(shape)-1])
	l := walk(lead, [][]int64{dstStrides[:len(lead)], srcStrides[:len(lead)]})
	mv := moverOf(size)
	return func(f *frame) {
		d, s := dst(f), src(f)
		l.each(f, n, func(o, row, rows int) {
			for r := row; r < row+rows; r++ {
				mv(d, l.at[0][o]+r*l.step[0], s, l.at[1][o]+r*l.step[1], n)
			}
		})
	}
}

func shifted(data func(*frame) []byte, bytes int) func(*frame) []byte {
	return func(f *frame) []byte { return data(f)[bytes:] }
}

func (p *program) concat(st *graph.Step) func(*frame) error {
	out := &p.segment.Values[st.Out[0]]
	size := out.DType.Size()
	at := 0
	var copies []func(*frame)
	for i, id := range st.In {
		v := &p.segment.Values[id]
		if i >= len(st.InPlace) || !st.InPlace[i] {
			dst := shifted(p.data(st.Out[0]), at*int(out.Place.Strides[st.Attrs.Axis])*size)
			copies = append(copies, p.copyView(v.Shape, out.Place.Strides, v.Place.Strides, size, dst, p.data(id)))
		}
		at += int(v.Shape[st.Attrs.Axis])
	}
	return func(f *frame) error {
		for _, c := range copies {
			c(f)
		}
		return nil
	}
}

func (p *program) split(st *graph.Step) func(*frame) error {
	x := &p.segment.Values[st.In[0]]
	size := x.DType.Size()
	at := 0
	var copies []func(*frame)
	for _, id := range st.Out {
		v := &p.segment.Values[id]
		src := shifted(p.data(st.In[0]), at*int(x.Place.Strides[st.Attrs.Axis])*size)
		copies = append(copies, p.copyView(v.Shape, v.Place.Strides, x.Place.Strides, size, p.data(id), src))
		at += int(v.Shape[st.Attrs.Axis])
	}
	return func(f *frame) error {
		for _, c := range copies {
			c(f)
		}
		return nil
	}
}

// reshape copies elements in row-major order from one shape to the other, in
// stretches that lie side by side in both.
func (p *program) reshape(st *graph.Step) func(*frame) error {
	x, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	n := gcd(denseTail(x), denseTail(out))
	from, to := stretches(x, n), stretches(out, n)
	mv := moverOf(out.DType.Size())
	xs, os := p.data(st.In[0]), p.data(st.Out[0])
	l := lead{outer: 1, inner: len(from)}
	return func(f *frame) error {
		d, s := os(f), xs(f)
		l.each(f, int(n), func(_, first, count int) {
			for i := first; i < first+count; i++ {
				mv(d, to[i], s, from[i], int(n))
			}
		})
		return nil
	}
}

// denseTail is how many elements lie side by side: the last dimensions as far
// as their strides are those of a contiguous tensor.
func denseTail(v *graph.Tensor) int64 {
	n := int64(1)
	for d := len(v.Shape) - 1; d >= 0 && v.Place.Strides[d] == n; d-- {
		n *= v.Shape[d]
	}
	return n
}

// stretches lists where every n elements of a value begin; n divides its dense
// tail.
func stretches(v *graph.Tensor, n int64) []int {
	tail, d := int64(1), len(v.Shape)
	for whole := denseTail(v); tail < whole; {
		d--
		tail *= v.Shape[d]
	}
	dims := append(append([]int64{}, v.Shape[:d]...), tail/n)
	steps := append(append([]int64{}, v.Place.Strides[:d]...), n)
	count := 1
	for _, d := range dims {
		count *= int(d)
	}
	return offsets(dims, steps, count)
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (p *program) transpose(st *graph.Step) func(*frame) error {
	x, out := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	dims := len(out.Shape)
	from := make([]int64, dims)
	for d, s := range st.Attrs.Perm {
		from[d] = x.Place.Strides[s]
	}
	n, last := int(out.Shape[dims-1]), int(from[dims-1])
	l := walk(out.Shape[:dims-1], [][]int64{out.Place.Strides[:dims-1], from[:dims-1]})
	mv := moverOf(out.DType.Size())
	xs, os := p.data(st.In[0]), p.data(st.Out[0])
	return func(f *frame) error {
		d, s := os(f), xs(f)
		l.each(f, n, func(o, row, rows int) {
			for r := row; r < row+rows; r++ {
				for i := range n {
					mv(d, l.at[0][o]+r*l.step[0]+i, s, l.at[1][o]+r*l.step[1]+i*last, 1)
				}
			}
		})
		return nil
	}
}

// patch moves between latents [B,C,h,w] and tokens [B,H'·W',C·p·q]; the padding
// at the bottom and right takes the first rows and columns.
func (p *program) patch(st *graph.Step) (func(*frame) error, error) {
	lat, tok := &p.segment.Values[st.In[0]], &p.segment.Values[st.Out[0]]
	latData, tokData := p.data(st.In[0]), p.data(st.Out[0])
	toTokens := st.Op == graph.OpPatchify
	if !toTokens {
		lat, tok, latData, tokData = tok, lat, tokData, latData
	}
	if lat.DType != tok.DType {
		return nil, fmt.Errorf("latent is %v, tokens are %v", lat.DType, tok.DType)
	}
	ph, pw := int(st.Attrs.Patch[0]), int(st.Attrs.Patch[1])
	if ph < 1 || pw < 1 {
		return nil, fmt.Errorf("patch of %d×%d", ph, pw)
	}
	b, c, h, w := int(lat.Shape[0]), int(lat.Shape[1]), int(lat.Shape[2]), int(lat.Shape[3])
	rows, cols := (h+ph-1)/ph, (w+pw-1)/pw
	ls, ts := lat.Place.Strides, tok.Place.Strides
	mv := moverOf(lat.DType.Size())
	return func(f *frame) error {
		ld, td := latData(f), tokData(f)
		f.pool.Do(b*rows, func(_, i int) {
			item, row := i/rows, i%rows
			for col := range cols {
				token := item*int(ts[0]) + (row*cols+col)*int(ts[1])
				for feature := range c * ph * pw {
					ch, py, px := feature/(ph*pw), feature/pw%ph, feature%pw
					y, x := row*ph+py, col*pw+px
					inside := y < h && x < w
					at := item*int(ls[0]) + ch*int(ls[1]) + y%h*int(ls[2]) + x%w*int(ls[3])
					switch {
					case toTokens:
						mv(td, token+feature, ld, at, 1)
					case inside:
						mv(ld, at, td, token+feature, 1)
					}
				}
			}
		})
		return nil
	}, nil
}
