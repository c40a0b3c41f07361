// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"slices"
)

// validate checks a graph's structure: bounds, names, references, single
// assignment, order, arity and bindings.
func (g *Graph) validate(reads, outputs []Value, constants []Constant) error {
	if len(g.Values) > maxValues || len(g.Nodes) > maxNodes || len(g.Weights) > maxValues || len(g.Taps) > maxValues {
		return fmt.Errorf("%d values, %d nodes, %d weights, %d taps: beyond the bounds", len(g.Values), len(g.Nodes), len(g.Weights), len(g.Taps))
	}
	seen := make(map[string]bool, len(g.Values))
	for _, v := range g.Values {
		if err := checkValue(v); err != nil {
			return err
		}
		if seen[v.Name] {
			return fmt.Errorf("value %q is defined twice", v.Name)
		}
		seen[v.Name] = true
	}
	if err := g.validateWeights(); err != nil {
		return err
	}
	made := make([]bool, len(g.Values))
	if err := g.bindInputs(made, reads, constants); err != nil {
		return err
	}
	bound := slices.Clone(made)
	used := make([]bool, len(g.Weights))
	for i := range g.Nodes {
		if err := g.validateNode(&g.Nodes[i], made, used); err != nil {
			return fmt.Errorf("node %d (%s): %w", i, quote(string(g.Nodes[i].Op)), err)
		}
	}
	for i, ok := range made {
		if !ok {
			return fmt.Errorf("value %q is never made", g.Values[i].Name)
		}
	}
	for i, ok := range used {
		if !ok {
			return fmt.Errorf("weight %q is never used", g.Weights[i].Name)
		}
	}
	if err := g.validateOutputs(bound, outputs); err != nil {
		return err
	}
	return g.validateTaps()
}

func (g *Graph) validateWeights() error {
	seen := make(map[string]bool, len(g.Weights))
	for _, w := range g.Weights {
		if err := checkName("weight", w.Name); err != nil {
			return err
		}
		if seen[w.Name] {
			return fmt.Errorf("weight %q is defined twice", w.Name)
		}
		seen[w.Name] = true
		n, err := w.Shape.Elements()
		if err != nil {
			return fmt.Errorf("weight %q: %w", w.Name, err)
		}
		if n == 0 || n > maxWeight || len(w.Shape) > maxRank {
			return fmt.Errorf("weight %q has shape %v: empty or beyond the bounds", w.Name, w.Shape)
		}
	}
	return nil
}

func (g *Graph) bindInputs(made []bool, reads []Value, constants []Constant) error {
	for _, id := range g.Inputs {
		v, err := g.take(id, made)
		if err != nil {
			return fmt.Errorf("input: %w", err)
		}
		i := slices.IndexFunc(reads, func(r Value) bool { return r.Name == v.Name })
		if i < 0 {
			return fmt.Errorf("input %q is nothing that this part may read", v.Name)
		}
		if !sameDeclared(*v, reads[i]) {
			return fmt.Errorf("input %q has another kind or shape than where it comes from", v.Name)
		}
	}
	for _, id := range g.Constants {
		v, err := g.take(id, made)
		if err != nil {
			return fmt.Errorf("constant: %w", err)
		}
		i := slices.IndexFunc(constants, func(c Constant) bool { return c.Name == v.Name })
		if i < 0 {
			return fmt.Errorf("constant %q is unknown", v.Name)
		}
		if !sameDeclared(*v, Value{Name: v.Name, Shape: constants[i].Shape, Kind: F32}) {
			return fmt.Errorf("constant %q has another kind or shape than its definition", v.Name)
		}
	}
	return nil
}

// take marks a value as made.
func (g *Graph) take(id ValueID, made []bool) (*Value, error) {
	if id < 0 || int(id) >= len(g.Values) {
		return nil, fmt.Errorf("value %d does not exist", id)
	}
	if made[id] {
		return nil, fmt.Errorf("value %q is made twice", g.Values[id].Name)
	}
	made[id] = true
	return &g.Values[id], nil
}

func (g *Graph) validateNode(n *Node, made, used []bool) error {
	a, ok := n.Op.arity()
	if !ok {
		return fmt.Errorf("unknown operation: op set %d does not have it", OpSet)
	}
	if n.Op == OpAllReduce {
		return fmt.Errorf("reserved for tensor parallelism, which op set %d does not have", OpSet)
	}
	if !within(len(n.In), a.minIn, a.maxIn) || !within(len(n.Out), a.minOut, a.maxOut) || !within(len(n.Weights), a.minW, a.maxW) ||
		len(n.In) > maxParts || len(n.Out) > maxParts {
		return fmt.Errorf("%d inputs, %d outputs, %d weights: not what it takes", len(n.In), len(n.Out), len(n.Weights))
	}
	if len(n.Attrs.Ranks) > maxParts {
		return fmt.Errorf("%d ranks, at most %d", len(n.Attrs.Ranks), maxParts)
	}
	if len(n.Attrs.Perm) > maxRank {
		return fmt.Errorf("permutation of %d dimensions", len(n.Attrs.Perm))
	}
	if err := checkAttrs(n.Op, n.Attrs); err != nil {
		return err
	}
	for _, id := range n.In {
		if id < 0 || int(id) >= len(g.Values) {
			return fmt.Errorf("input value %d does not exist", id)
		}
		if !made[id] {
			return fmt.Errorf("value %q is used before it is made", g.Values[id].Name)
		}
	}
	for _, id := range n.Weights {
		if id < 0 || int(id) >= len(g.Weights) {
			return fmt.Errorf("weight %d does not exist", id)
		}
		if used[id] {
			return fmt.Errorf("weight %q is used twice", g.Weights[id].Name)
		}
		used[id] = true
	}
	for _, id := range n.Out {
		if _, err := g.take(id, made); err != nil {
			return err
		}
	}
	return nil
}

func (g *Graph) validateOutputs(bound []bool, outputs []Value) error {
	if len(g.Outputs) != len(outputs) {
		return fmt.Errorf("%d outputs, must be %d", len(g.Outputs), len(outputs))
	}
	for i, id := range g.Outputs {
		if id < 0 || int(id) >= len(g.Values) {
			return fmt.Errorf("output value %d does not exist", id)
		}
		v := g.Values[id]
		if bound[id] {
			return fmt.Errorf("output %q is an input or a constant, must be made by a node", v.Name)
		}
		if slices.Contains(g.Outputs[:i], id) {
			return fmt.Errorf("output %q stands twice", v.Name)
		}
		if !sameDeclared(v, outputs[i]) {
			return fmt.Errorf("output %q has another kind or shape than %q, which it becomes", v.Name, outputs[i].Name)
		}
	}
	return nil
}

func (g *Graph) validateTaps() error {
	for _, t := range g.Taps {
		if err := checkName("tap", t.Name); err != nil {
			return err
		}
		want, dims := 1, 0
		switch t.Layout {
		case TapAsIs:
		case TapHeadsFirst:
			dims = 4
		case TapRotation:
			want, dims = 2, 2
		default:
			return fmt.Errorf("tap %q has an unknown layout", t.Name)
		}
		if len(t.Values) != want {
			return fmt.Errorf("tap %q shows %d values, must be %d", t.Name, len(t.Values), want)
		}
		for _, id := range t.Values {
			if id < 0 || int(id) >= len(g.Values) {
				return fmt.Errorf("tap %q shows value %d, which does not exist", t.Name, id)
			}
			if dims > 0 && len(g.Values[id].Shape) != dims {
				return fmt.Errorf("tap %q shows %q, which does not have %d dimensions", t.Name, g.Values[id].Name, dims)
			}
		}
	}
	return nil
}
