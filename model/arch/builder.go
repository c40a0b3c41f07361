// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// builder writes one graph. It panics on a value or weight it was not given,
// which is a mistake in an architecture's file; graph.Validate finds the rest.
type builder struct {
	g graph.Graph
}

type val = graph.ValueID

func shape(es ...graph.Expr) []graph.Expr { return es }

func (b *builder) value(name string, k graph.Kind, s []graph.Expr) val {
	b.g.Values = append(b.g.Values, graph.Value{Name: name, Shape: s, Kind: k})
	return val(len(b.g.Values) - 1)
}

func (b *builder) input(v graph.Value) val {
	id := b.value(v.Name, v.Kind, v.Shape)
	b.g.Inputs = append(b.g.Inputs, id)
	return id
}

func (b *builder) constant(c graph.Constant) val {
	id := b.value(c.Name, graph.F32, c.Shape)
	b.g.Constants = append(b.g.Constants, id)
	return id
}

func (b *builder) output(ids ...val) { b.g.Outputs = append(b.g.Outputs, ids...) }

func (b *builder) tap(name string, layout graph.TapLayout, ids ...val) {
	b.g.Taps = append(b.g.Taps, graph.Tap{Name: name, Values: ids, Layout: layout})
}

func (b *builder) weight(name string, s ...int64) graph.WeightID {
	b.g.Weights = append(b.g.Weights, graph.Weight{Name: name, Shape: tensor.Shape(s)})
	return graph.WeightID(len(b.g.Weights) - 1)
}

// node adds an operation with one output of the given name, kind and shape.
func (b *builder) node(op graph.Op, a graph.Attrs, name string, k graph.Kind, s []graph.Expr, in ...val) val {
	out := b.value(name, k, s)
	b.g.Nodes = append(b.g.Nodes, graph.Node{Op: op, In: in, Out: []val{out}, Attrs: a})
	return out
}

// like adds an operation whose output has the type of its first input.
func (b *builder) like(op graph.Op, a graph.Attrs, name string, in ...val) val {
	v := b.g.Values[in[0]]
	return b.node(op, a, name, v.Kind, v.Shape, in...)
}

func (b *builder) cast(name string, k graph.Kind, x val) val {
	return b.node(graph.OpCast, graph.Attrs{}, name, k, b.g.Values[x].Shape, x)
}

// linear is named after its weights: prefix.weight [n,k] and prefix.bias [n].
func (b *builder) linear(name, prefix string, n, k int64, x val) val {
	v := b.g.Values[x]
	s := append(append([]graph.Expr{}, v.Shape[:len(v.Shape)-1]...), graph.Int(n))
	out := b.node(graph.OpLinear, graph.Attrs{}, name, v.Kind, s, x)
	b.g.Nodes[len(b.g.Nodes)-1].Weights = []graph.WeightID{b.weight(prefix+".weight", n, k), b.weight(prefix+".bias", n)}
	return out
}

// rmsNorm has one weight of the given name over the last n elements.
func (b *builder) rmsNorm(name, weight string, eps float64, n int64, x val) val {
	out := b.like(graph.OpRMSNorm, graph.Attrs{Eps: eps}, name, x)
	b.g.Nodes[len(b.g.Nodes)-1].Weights = []graph.WeightID{b.weight(weight, n)}
	return out
}

// split cuts x along axis into parts of the given names and extents.
func (b *builder) split(x val, axis int, names []string, extents ...graph.Expr) []val {
	v := b.g.Values[x]
	outs := make([]val, len(names))
	for i, n := range names {
		s := append([]graph.Expr{}, v.Shape...)
		s[axis] = extents[i]
		outs[i] = b.value(n, v.Kind, s)
	}
	b.g.Nodes = append(b.g.Nodes, graph.Node{Op: graph.OpSplit, In: []val{x}, Out: outs, Attrs: graph.Attrs{Axis: axis}})
	return outs
}

func (b *builder) concat(name string, axis int, extent graph.Expr, in ...val) val {
	v := b.g.Values[in[0]]
	s := append([]graph.Expr{}, v.Shape...)
	s[axis] = extent
	return b.node(graph.OpConcat, graph.Attrs{Axis: axis}, name, v.Kind, s, in...)
}

func (b *builder) reshape(name string, s []graph.Expr, x val) val {
	return b.node(graph.OpReshape, graph.Attrs{}, name, b.g.Values[x].Kind, s, x)
}
