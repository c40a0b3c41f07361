// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"

	"github.com/distorch/distorch/model/tensor"
)

// shapes evaluates every value's shape, each bounded.
func (g *Graph) shapes(dims Dims) ([]tensor.Shape, error) {
	out := make([]tensor.Shape, len(g.Values))
	for i, v := range g.Values {
		s, err := v.at(dims)
		if err != nil {
			return nil, err
		}
		out[i] = s
	}
	return out, nil
}

// at is the shape of v at these dimensions.
func (v Value) at(dims Dims) (tensor.Shape, error) {
	s, err := evalShape(v.Shape, dims)
	if err != nil {
		return nil, fmt.Errorf("value %q: %w", v.Name, err)
	}
	return s, nil
}

func evalShape(exprs []Expr, dims Dims) (tensor.Shape, error) {
	s := make(tensor.Shape, len(exprs))
	for i, e := range exprs {
		n, err := e.Eval(dims)
		if err != nil {
			return nil, err
		}
		s[i] = n
	}
	n, err := s.Elements()
	if err != nil {
		return nil, err
	}
	if n > maxElements {
		return nil, fmt.Errorf("shape %v has more than %d elements", s, int64(maxElements))
	}
	return s, nil
}

func (g *Graph) checkShapes(shapes []tensor.Shape) error {
	typedOf := func(ids []ValueID) []typed {
		ts := make([]typed, len(ids))
		for i, id := range ids {
			ts[i] = typed{g.Values[id].Name, shapes[id], g.Values[id].Kind}
		}
		return ts
	}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		w := make([]Weight, len(n.Weights))
		for j, id := range n.Weights {
			w[j] = g.Weights[id]
		}
		if err := checkNode(n.Op, n.Attrs, typedOf(n.In), typedOf(n.Out), w); err != nil {
			return fmt.Errorf("node %d (%s): %w", i, n.Op, err)
		}
	}
	return nil
}
