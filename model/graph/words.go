// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"slices"

	"github.com/distorch/distorch/model/tensor"
)

// Words is Request's inverse: the request that input tensors of these shapes, by
// name, are of. A word says the size of the dimensions that stand alone in an
// input's shape (x [B,16,h,w]: batch, height and width); an input that has the
// name of a word itself makes it 1 (attention_mask). Words that no shape tells
// are missing. Inputs that disagree, of another rank, or that the model does not
// have are errors.
func (m *Model) Words(shapes map[string]tensor.Shape) (map[string]int64, error) {
	free := map[string]Dim{}
	words := map[string]int64{}
	for _, d := range m.Dims {
		if d.Derived == nil && d.Request != "" {
			free[d.Name] = d
			if _, given := shapes[d.Request]; given {
				words[d.Request] = 1
			}
		}
	}
	from := map[string]string{}
	for _, name := range sortedNames(shapes) {
		shape := shapes[name]
		i := slices.IndexFunc(m.Inputs, func(v Value) bool { return v.Name == name })
		switch {
		case i < 0:
			return nil, fmt.Errorf("tensor %s is not an input of this model; it takes %v", quote(name), m.inputNames())
		case len(shape) != len(m.Inputs[i].Shape):
			return nil, fmt.Errorf("tensor %s has %d dimensions, want %d", quote(name), len(shape), len(m.Inputs[i].Shape))
		}
		for axis, e := range m.Inputs[i].Shape {
			d, ok := free[e.Name]
			if e.Kind != ExprDim || !ok {
				continue
			}
			n := satMul(shape[axis], d.Unit)
			if before, ok := words[d.Request]; ok && before != n {
				return nil, fmt.Errorf("tensor %s says %s %d, tensor %s says %d", from[d.Request], d.Request, before, quote(name), n)
			}
			words[d.Request], from[d.Request] = n, quote(name)
		}
	}
	return words, nil
}

func (m *Model) inputNames() []string {
	var out []string
	for _, v := range m.Inputs {
		out = append(out, v.Name)
	}
	return out
}
