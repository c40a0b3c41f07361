// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of a valid Model.
const (
	maxDims      = 64
	maxRuns      = 16
	maxBlocks    = 1 << 12
	maxValues    = 1 << 12
	maxNodes     = 1 << 12
	maxNameBytes = 256
	maxRank      = 8
	maxParts     = 64
	maxElements  = 1 << 43 // of a value at the largest dimensions
	maxWeight    = 1 << 36 // elements of one weight
)

// Validate says whether m is sound: known operations with the right arity,
// parameters, kinds and shapes (checked at the smallest, the largest and two
// mixed choices of the free dimensions, and again at each specialisation), no
// value empty at the largest dimensions, no shape that depends on a choice,
// every value made once and before its use, runs that fit together, unique
// names, bounded sizes. The error names the place and the fault. Nothing is
// allocated by an announced size.
func Validate(m *Model) error {
	if m == nil {
		return fmt.Errorf("no model")
	}
	if m.OpSet == 0 || m.OpSet > OpSet {
		return fmt.Errorf("model %s needs op set %d, this build has %d", quote(m.Arch), m.OpSet, OpSet)
	}
	if err := checkName("architecture", m.Arch); err != nil {
		return err
	}
	if err := m.validateDims(); err != nil {
		return err
	}
	if err := m.validateStructure(); err != nil {
		return err
	}
	if err := m.validateChoices(); err != nil {
		return err
	}
	for i, dims := range m.samplePoints() {
		if err := m.validateAt(dims, i == largest); err != nil {
			return err
		}
	}
	return nil
}

func quote(s string) string {
	if len(s) > maxNameBytes {
		s = s[:maxNameBytes] + "…"
	}
	return fmt.Sprintf("%q", s)
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxNameBytes || !utf8.ValidString(name) || strings.ContainsAny(name, "\x00\n\r") {
		return fmt.Errorf("%s has the name %s: must be 1 to %d bytes of text", what, quote(name), maxNameBytes)
	}
	return nil
}

// identifier keeps dimension names apart from numbers and operators, so that
// expressions are equal when their texts are.
func identifier(s string) bool {
	for i, c := range s {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != "" && len(s) <= maxNameBytes
}

func (m *Model) validateDims() error {
	if len(m.Dims) == 0 || len(m.Dims) > maxDims {
		return fmt.Errorf("model %s has %d dimensions, must be 1 to %d", m.Arch, len(m.Dims), maxDims)
	}
	known := Dims{}
	for _, d := range m.Dims {
		if !identifier(d.Name) {
			return fmt.Errorf("dimension %s: a name is a letter followed by letters, digits and _", quote(d.Name))
		}
		if _, dup := known[d.Name]; dup {
			return fmt.Errorf("dimension %q is defined twice", d.Name)
		}
		if d.Derived != nil {
			v, err := d.Derived.Eval(known)
			if err != nil {
				return fmt.Errorf("dimension %q: %w", d.Name, err)
			}
			if d.Request != "" || d.Unit != 0 || d.Choice {
				return fmt.Errorf("dimension %q is derived and cannot be requested", d.Name)
			}
			known[d.Name] = v
			continue
		}
		if d.Min < 0 || d.Max < max(d.Min, 1) || d.Max > MaxExtent {
			return fmt.Errorf("dimension %q has bounds %d..%d", d.Name, d.Min, d.Max)
		}
		if len(d.Request) > maxNameBytes || d.Unit < 0 || d.Unit > MaxExtent || (d.Request == "") != (d.Unit == 0) {
			return fmt.Errorf("dimension %q has a bad request rule", d.Name)
		}
		known[d.Name] = d.Max
	}
	return nil
}

// validateStructure checks everything that does not depend on dimensions.
func (m *Model) validateStructure() error {
	if len(m.Runs) == 0 || len(m.Runs) > maxRuns {
		return fmt.Errorf("model %s has %d runs of blocks, must be 1 to %d", m.Arch, len(m.Runs), maxRuns)
	}
	if err := m.validateInterface(); err != nil {
		return err
	}
	blocks := int64(0)
	for i := range m.Runs {
		r := &m.Runs[i]
		if err := checkName("run", r.Name); err != nil {
			return err
		}
		if r.Count < 1 || r.Count > maxBlocks {
			return fmt.Errorf("run %s has %d blocks, must be 1 to %d", r.Name, r.Count, maxBlocks)
		}
		blocks += r.Count
		for j := range i {
			if m.Runs[j].Name == r.Name {
				return fmt.Errorf("run %s is defined twice", r.Name)
			}
		}
		if err := checkValues("state of "+r.Name, r.State); err != nil {
			return err
		}
	}
	if blocks > maxBlocks {
		return fmt.Errorf("model %s has %d blocks, at most %d", m.Arch, blocks, maxBlocks)
	}
	weights := map[string]bool{}
	return m.eachGraph(func(p part) error {
		if err := p.graph.validate(p.reads, p.outputs, m.Constants); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		for _, w := range p.graph.Weights {
			if strings.Contains(w.Name, "{i}") != p.block {
				return fmt.Errorf("%s: weight %q: the block number {i} belongs in the weights of blocks and nowhere else", p.name, w.Name)
			}
			if weights[w.Name] {
				return fmt.Errorf("%s: weight %q is used by two parts of the model", p.name, w.Name)
			}
			weights[w.Name] = true
		}
		return nil
	})
}

func (m *Model) validateInterface() error {
	if err := checkValues("inputs", m.Inputs); err != nil {
		return err
	}
	if err := checkValues("output", []Value{m.Output}); err != nil {
		return err
	}
	if len(m.Travel) > 0 {
		if err := checkValues("travelling values", m.Travel); err != nil {
			return err
		}
	}
	if len(m.Constants) > maxDims {
		return fmt.Errorf("%d constants, at most %d", len(m.Constants), maxDims)
	}
	seen := map[string]bool{}
	for _, c := range m.Constants {
		if err := checkName("constant", c.Name); err != nil {
			return err
		}
		if seen[c.Name] {
			return fmt.Errorf("constant %q is defined twice", c.Name)
		}
		seen[c.Name] = true
		if err := c.validate(); err != nil {
			return fmt.Errorf("constant %q: %w", c.Name, err)
		}
	}
	for _, v := range slices.Concat(m.Inputs, m.Travel) {
		if seen[v.Name] {
			return fmt.Errorf("%q names both a constant and a value", v.Name)
		}
	}
	return nil
}

func checkValues(what string, vs []Value) error {
	if len(vs) == 0 || len(vs) > maxDims {
		return fmt.Errorf("%s: %d values, must be 1 to %d", what, len(vs), maxDims)
	}
	seen := map[string]bool{}
	for _, v := range vs {
		if err := checkValue(v); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if seen[v.Name] {
			return fmt.Errorf("%s: value %q is defined twice", what, v.Name)
		}
		seen[v.Name] = true
	}
	return nil
}

func checkValue(v Value) error {
	if err := checkName("value", v.Name); err != nil {
		return err
	}
	if v.Kind != Compute && v.Kind != F32 {
		return fmt.Errorf("value %q has an unknown kind", v.Name)
	}
	if len(v.Shape) == 0 || len(v.Shape) > maxRank {
		return fmt.Errorf("value %q has %d dimensions, must be 1 to %d", v.Name, len(v.Shape), maxRank)
	}
	return nil
}

// part is one graph of a model with what it may read and must make.
type part struct {
	name    string
	graph   *Graph
	reads   []Value
	outputs []Value
	block   bool
}

// eachGraph visits head, entries, blocks and tail in order.
func (m *Model) eachGraph(visit func(part) error) error {
	first := &m.Runs[0]
	head := slices.Concat(first.State, m.Travel)
	if first.Entry != nil {
		return fmt.Errorf("run %s is the first and cannot have an entry: the head makes its state", first.Name)
	}
	if err := visit(part{name: "head", graph: &m.Head, reads: m.Inputs, outputs: head}); err != nil {
		return err
	}
	state := first.State
	for i := range m.Runs {
		r := &m.Runs[i]
		if r.Entry != nil {
			p := part{name: r.Name + ".entry", graph: r.Entry, reads: slices.Concat(state, m.Travel), outputs: r.State}
			if err := visit(p); err != nil {
				return err
			}
		} else if i > 0 && !sameValues(state, r.State) {
			return fmt.Errorf("run %s has another state than the run before it and no entry", r.Name)
		}
		p := part{name: r.Name, graph: &r.Block, reads: slices.Concat(r.State, m.Travel), outputs: r.State, block: true}
		if err := visit(p); err != nil {
			return err
		}
		state = r.State
	}
	return visit(part{name: "tail", graph: &m.Tail, reads: slices.Concat(state, m.Travel), outputs: []Value{m.Output}})
}

func sameValues(a, b []Value) bool {
	return slices.EqualFunc(a, b, func(x, y Value) bool { return x.Name == y.Name && sameDeclared(x, y) })
}

// sameDeclared compares kinds and shapes as written.
func sameDeclared(a, b Value) bool {
	return a.Kind == b.Kind && slices.EqualFunc(a.Shape, b.Shape, func(x, y Expr) bool { return x.String() == y.String() })
}

// validateChoices refuses a shape that a choice, or a dimension derived from
// one, has a part in.
func (m *Model) validateChoices() error {
	chosen := map[string]bool{}
	depends := func(es []Expr) (found string) {
		for _, e := range es {
			e.names(func(n string) {
				if chosen[n] {
					found = n
				}
			})
		}
		return found
	}
	for _, d := range m.Dims {
		chosen[d.Name] = d.Choice || d.Derived != nil && depends([]Expr{*d.Derived}) != ""
	}
	check := func(what, name string, shape []Expr) error {
		if d := depends(shape); d != "" {
			return fmt.Errorf("the shape of %s %q depends on the choice %s", what, name, d)
		}
		return nil
	}
	for _, c := range m.Constants {
		if err := check("constant", c.Name, c.Shape); err != nil {
			return err
		}
		for _, p := range c.Positions {
			if err := check("constant", c.Name, p.Grid); err != nil {
				return err
			}
		}
	}
	for _, v := range slices.Concat(m.Inputs, m.Travel, []Value{m.Output}) {
		if err := check("value", v.Name, v.Shape); err != nil {
			return err
		}
	}
	return m.eachGraph(func(p part) error {
		for _, v := range p.graph.Values {
			if err := check("value", v.Name, v.Shape); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		return nil
	})
}

// largest is the sample point at which nothing may be empty.
const largest = 1

// samplePoints are choices of the free dimensions: smallest, largest, and two
// in which no two dimensions agree unless their bounds force them to.
func (m *Model) samplePoints() []Dims {
	points := []Dims{{}, {}, {}, {}}
	k := int64(0)
	for _, d := range m.Dims {
		if d.Derived != nil {
			continue
		}
		k++
		points[0][d.Name] = d.Min
		points[1][d.Name] = d.Max
		points[2][d.Name] = min(d.Max, d.Min+2*k+1)
		points[3][d.Name] = min(d.Max, d.Min+17*k)
	}
	return points
}

// validateAt checks every shape at one choice of the free dimensions.
func (m *Model) validateAt(free Dims, full bool) error {
	dims, err := m.Resolve(free)
	if err != nil {
		return err
	}
	for _, c := range m.Constants {
		if err := c.validateAt(dims); err != nil {
			return fmt.Errorf("constant %q at %v: %w", c.Name, free, err)
		}
	}
	return m.eachGraph(func(p part) error {
		shapes, err := p.graph.shapes(dims)
		if err == nil {
			err = p.graph.checkShapes(shapes)
		}
		for i, s := range shapes {
			if err == nil && full && slices.Contains(s, 0) {
				err = fmt.Errorf("value %q is %v: empty", p.graph.Values[i].Name, s)
			}
		}
		if err != nil {
			return fmt.Errorf("%s at %v: %w", p.name, free, err)
		}
		return nil
	})
}
