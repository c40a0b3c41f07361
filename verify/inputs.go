// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
)

// refMethod is the option of a case that says how reference latents are placed.
const refMethod = "ref_latents_method"

// refMethods are its values, in the order of the word ref_method.
func refMethods() []string { return []string{"offset", "index", "uxo"} }

// unknownOption is an option of the case that this build cannot follow.
func (c *goldenCase) unknownOption() string {
	for _, o := range sorted(c.Options) {
		if o != refMethod {
			return o
		}
	}
	return ""
}

// aside are tensors under in. that only explain others.
func aside() []string { return []string{"mask_reference"} }

// given are the case's inputs by name.
func (c *goldenCase) given() []string {
	return slices.DeleteFunc(c.names("in."), func(n string) bool { return slices.Contains(aside(), n) })
}

// inputs are the case's inputs as the graph takes them, and its free dimensions.
func (c *goldenCase) inputs(m *graph.Model, given []string) (Tensors, graph.Dims, error) {
	in, shapes := Tensors{}, map[string]tensor.Shape{}
	for _, name := range given {
		var err error
		if in[name], shapes[name], err = c.io.Float32s("in." + name); err != nil {
			return nil, nil, err
		}
	}
	if err := cutChannels(m, in, shapes); err != nil {
		return nil, nil, err
	}
	at, err := dims(m, shapes)
	if err != nil {
		return nil, nil, err
	}
	if raw, ok := c.Options[refMethod]; ok {
		var name string
		if err := json.Unmarshal(raw, &name); err != nil {
			return nil, nil, fmt.Errorf("option %s: %w", refMethod, err)
		}
		i := slices.Index(refMethods(), name)
		if i < 0 {
			return nil, nil, fmt.Errorf("option %s is %q, known are %v", refMethod, name, refMethods())
		}
		at["ref_method"] = int64(i)
	}
	return in, at, nil
}

// cutChannels makes the input concat of the channels of x [B,C,h,w] that are
// more than the graph's own, where the graph has such an input.
func cutChannels(m *graph.Model, in Tensors, shapes map[string]tensor.Shape) error {
	find := func(name string) (graph.Value, bool) {
		i := slices.IndexFunc(m.Inputs, func(v graph.Value) bool { return v.Name == name })
		if i < 0 {
			return graph.Value{}, false
		}
		return m.Inputs[i], true
	}
	behind, ok := find("concat")
	x, known := find("x")
	s := shapes["x"]
	if !ok || !known || shapes["concat"] != nil || len(s) != 4 || len(x.Shape) != 4 {
		return nil
	}
	own, more := x.Shape[1].Value, behind.Shape[1].Value
	if s[1] != own+more {
		return fmt.Errorf("input x has %d channels; this model takes %d, and %d behind them", s[1], own, more)
	}
	all := in["x"]
	in["x"], in["concat"] = nil, nil
	cut, item := int(own*s[2]*s[3]), int(s[1]*s[2]*s[3])
	for ; len(all) >= item && item > 0; all = all[item:] {
		in["x"], in["concat"] = append(in["x"], all[:cut]...), append(in["concat"], all[cut:item]...)
	}
	shapes["x"] = tensor.Shape{s[0], own, s[2], s[3]}
	shapes["concat"] = tensor.Shape{s[0], more, s[2], s[3]}
	return nil
}

// dims finds the free dimensions in the shapes of a request's inputs. One that
// is missing is taken for empty.
func dims(m *graph.Model, shapes map[string]tensor.Shape) (graph.Dims, error) {
	out := graph.Dims{}
	for _, v := range m.Inputs {
		s, ok := shapes[v.Name]
		if !ok {
			continue
		}
		if len(s) != len(v.Shape) {
			return nil, fmt.Errorf("input %s has shape %v; %d dimensions are taken", v.Name, s, len(v.Shape))
		}
		for i, e := range v.Shape {
			solve(m, e, s[i], out)
		}
	}
	at, err := m.Resolve(out)
	if err != nil {
		return nil, fmt.Errorf("the inputs' shapes: %w", err)
	}
	for _, v := range m.Inputs {
		want, ok := make(tensor.Shape, len(v.Shape)), true
		for i, e := range v.Shape {
			if want[i], err = e.Eval(at); err != nil {
				return nil, err
			}
			ok = ok && want[i] > 0
		}
		switch s, given := shapes[v.Name]; {
		case !given && ok:
			return nil, fmt.Errorf("input %s is missing", v.Name)
		case given && !s.Equal(want):
			return nil, fmt.Errorf("input %s has shape %v, must be %v to fit the model and the other inputs", v.Name, s, want)
		}
	}
	return out, nil
}

// solve enters the free dimension whose value follows from e being n: e is that
// dimension, or its product with others that are known.
func solve(m *graph.Model, e graph.Expr, n int64, known graph.Dims) {
	free := func(name string) bool {
		return slices.ContainsFunc(m.Dims, func(d graph.Dim) bool { return d.Name == name && d.Derived == nil })
	}
	unknown := ""
	args := []graph.Expr{e}
	if e.Kind == graph.ExprProduct {
		args = e.Args
	}
	for _, a := range args {
		v, ok := known[a.Name]
		switch {
		case a.Kind != graph.ExprDim || !free(a.Name) || !ok && unknown != "":
			return
		case !ok:
			unknown = a.Name
		case v == 0:
			return
		default:
			n /= v
		}
	}
	if unknown != "" {
		known[unknown] = n
	}
}

// behind checks, in a case of FLUX.1 Fill, that the channels behind the latent
// are made of its image and mask as upstream made them.
func (v *verifier) behind(c *goldenCase) error {
	image, shape, err := c.io.Float32s("fill.image")
	if err != nil {
		return err
	}
	mask, _, err := c.io.Float32s("fill.mask")
	if err != nil {
		return err
	}
	x, of, err := c.io.Float32s("in.x")
	if err != nil {
		return err
	}
	if len(shape) != 4 || len(of) != 4 || len(mask) != 64*len(image)/max(1, int(shape[1])) {
		return fmt.Errorf("fill.image %v, fill.mask of %d values and in.x %v do not belong together", shape, len(mask), of)
	}
	n, h, w := int(shape[0]), int(shape[2]), int(shape[3])
	sampling.FluxLatents().In(image)
	mask = sampling.FluxMaskChannels(mask, n, h, w)
	var got, want []float32
	for i := range n {
		own, all := len(image)/n, len(x)/n
		got = append(append(got, image[i*own:(i+1)*own]...), mask[i*len(mask)/n:(i+1)*len(mask)/n]...)
		want = append(want, x[i*all+own:(i+1)*all]...)
	}
	r := Record{Case: c.Name, Output: "in.x", DType: "f32", Error: relative(got, want), Digest: digest(bytesOf(got))}
	r.Tolerance, _ = c.tolerance("out")
	v.emit(r)
	return nil
}
