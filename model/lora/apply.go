// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// Mode says when a difference is added.
type Mode string

// The modes.
const (
	Add   Mode = "add"   // to a linear's result at run time; the strength is an input
	Merge Mode = "merge" // to the weight when it is loaded; the strength is fixed
)

// Bounds on what a deployment may ask for.
const (
	MaxUses     = 16
	MaxStrength = 100
)

// ParseMode reads a mode; "" is Add.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Add, nil
	case Add, Merge:
		return m, nil
	}
	return "", fmt.Errorf("LoRA mode %s: use %s or %s", quote(s), Add, Merge)
}

// CheckStrength refuses strengths that are no numbers or senseless.
func CheckStrength(s float64) error {
	if !(math.Abs(s) <= MaxStrength) {
		return fmt.Errorf("LoRA strength %g: must be -%d to %d", s, MaxStrength, MaxStrength)
	}
	return nil
}

// Use is one LoRA of a deployment.
type Use struct {
	Name     string // for people
	Patch    *Patch
	Mode     Mode
	Strength float32 // of Merge; what requests get that name none, of Add
}

// Base is a model without LoRAs.
type Base struct {
	Graph   *graph.Model
	Params  arch.Params
	Options arch.Options
	Stored  map[string]tensor.DType // of the checkpoint, by resolved weight name
}

// Model is a model with its LoRAs.
type Model struct {
	Graph  *graph.Model
	Params arch.Params             // the base's, unless a LoRA makes it another variant
	Stored map[string]tensor.DType // by resolved weight name; of made weights, what they are made as
	// Made are the weights that are not the checkpoint's as they are there, by
	// resolved name.
	Made map[string]Made
	// Added are the uses that have a strength in the input StrengthInput, in its
	// order, as indices of Uses.
	Added  []int
	Uses   []Use
	Suffix string // of the numerics class: "+lora", "+lora-merge"
}

// StrengthInput is the request input [L] f32 of the strengths of added LoRAs;
// it comes with every step.
const StrengthInput = graph.LoRAStrength

// strengthTravel is the same value on its way from stage to stage.
const strengthTravel = graph.LoRAStrength + ".travel"

// Made is a weight that Overlay computes.
type Made struct {
	Shape  tensor.Shape
	DType  tensor.DType
	kind   madeKind
	target string // the weight that it changes
	first  int64  // of the rows of target that it changes, and how many
	count  int64
	ranks  []int // of every added use
	bias   bool  // an up with a column for every added use: its difference of the bias
}

type madeKind uint8

const (
	madeMerged madeKind = iota
	madeDown
	madeUp
)

// part is a graph of a model and how often it is run with other weights.
type part struct {
	graph *graph.Graph
	count int64
	head  bool
}

func parts(g *graph.Model) []part {
	out := []part{{&g.Head, 1, true}}
	for i := range g.Runs {
		r := &g.Runs[i]
		if r.Entry != nil {
			out = append(out, part{r.Entry, 1, false})
		}
		out = append(out, part{&r.Block, r.Count, false})
	}
	return append(out, part{&g.Tail, 1, false})
}

// Apply puts LoRAs on a model: the graph gets an input for the strengths of the
// added ones and, behind every linear that they change, low_rank and
// low_rank_add; merged ones change no graph. A layer that one block of a run
// has changed is changed by zeros in the others. compute is the dtype that made
// weights rest in, except that merged ones of F32 and BF16 weights keep those.
func Apply(b Base, compute tensor.DType, uses []Use) (*Model, error) {
	if len(uses) > MaxUses {
		return nil, fmt.Errorf("%d LoRAs, at most %d", len(uses), MaxUses)
	}
	r := &rewriter{base: b, compute: compute, out: &Model{Uses: uses, Made: map[string]Made{}, Stored: maps.Clone(b.Stored)}}
	for i := range uses {
		u := &uses[i]
		if u.Mode != Add && u.Mode != Merge {
			return nil, fmt.Errorf("LoRA %s: mode %s: use %s or %s", u.Name, quote(string(u.Mode)), Add, Merge)
		}
		if err := errors.Join(u.Patch.Err(), CheckStrength(float64(u.Strength))); err != nil {
			return nil, fmt.Errorf("LoRA %s: %w", u.Name, err)
		}
		if u.Mode == Add {
			r.out.Added = append(r.out.Added, i)
		}
	}
	var err error
	if r.out.Graph, err = r.widened(); err != nil {
		return nil, err
	}
	r.shapes = r.out.Graph.Weights()
	if err := r.rewrite(); err != nil {
		return nil, err
	}
	r.merged()
	for name, m := range r.out.Made {
		r.out.Stored[name] = m.DType
	}
	if len(r.out.Added) > 0 {
		r.out.Suffix = "+lora"
	}
	if len(r.out.Added) < len(uses) {
		r.out.Suffix += "+lora-merge"
	}
	if err := graph.Validate(r.out.Graph); err != nil {
		return nil, fmt.Errorf("model with LoRAs: %w", err)
	}
	return r.out, nil
}

type rewriter struct {
	base    Base
	compute tensor.DType
	out     *Model
	shapes  map[string]tensor.Shape
}

// widener is an architecture that can be built for a wider input layer.
type widener interface {
	Widen(weight string, to tensor.Shape) (arch.Params, error)
}

// widened is the base's graph, or that with the input layers which the LoRAs
// make wider; in either case with no graph shared.
func (r *rewriter) widened() (*graph.Model, error) {
	wider := map[string]tensor.Shape{}
	for i := range r.out.Uses {
		for name, s := range r.out.Uses[i].Patch.Wider {
			if old, ok := wider[name]; ok && !old.Equal(s) {
				return nil, fmt.Errorf("LoRAs make %s %v and %v; one deployment takes one of them", name, old, s)
			}
			wider[name] = s
		}
	}
	r.out.Params = r.base.Params
	if len(wider) == 0 {
		return cloned(r.base.Graph), nil
	}
	p := r.base.Params
	for _, name := range slices.Sorted(maps.Keys(wider)) {
		w, ok := p.(widener)
		if !ok {
			return nil, fmt.Errorf("%w: a LoRA makes %s wider, %v", ErrUnsupported, name, wider[name])
		}
		var err error
		if p, err = w.Widen(name, wider[name]); err != nil {
			return nil, err
		}
	}
	r.out.Params = p
	return p.Build(r.base.Options), nil
}

// cloned shares no slice that a rewrite changes.
func cloned(g *graph.Model) *graph.Model {
	m := *g
	m.Inputs, m.Travel, m.Runs = slices.Clone(g.Inputs), slices.Clone(g.Travel), slices.Clone(g.Runs)
	for i := range m.Runs {
		if e := m.Runs[i].Entry; e != nil {
			c := *e
			m.Runs[i].Entry = &c
		}
	}
	for _, p := range parts(&m) {
		p.graph.Values, p.graph.Inputs, p.graph.Outputs = slices.Clone(p.graph.Values), slices.Clone(p.graph.Inputs), slices.Clone(p.graph.Outputs)
		p.graph.Weights, p.graph.Nodes = slices.Clone(p.graph.Weights), slices.Clone(p.graph.Nodes)
	}
	return &m
}

// rewrite adds the input of strengths and what is behind linears.
func (r *rewriter) rewrite() error {
	if len(r.out.Added) == 0 {
		return nil
	}
	m := r.out.Graph
	m.OpSet = max(m.OpSet, lowRankOpSet)
	shape := []graph.Expr{graph.Int(int64(len(r.out.Added)))}
	input := graph.Value{Name: StrengthInput, Shape: shape, Kind: graph.F32}
	travel := graph.Value{Name: strengthTravel, Shape: shape, Kind: graph.F32}
	m.Inputs, m.Travel = append(m.Inputs, input), append(m.Travel, travel)
	linear := map[string]bool{}
	for _, p := range parts(m) {
		if err := r.part(p, input, travel, linear); err != nil {
			return err
		}
	}
	return r.onlyLinears(linear)
}

// lowRankOpSet is the first op set with low_rank and low_rank_add.
const lowRankOpSet = 2

// onlyLinears refuses added differences of other weights than those of linears
// and their biases.
func (r *rewriter) onlyLinears(linear map[string]bool) error {
	for _, i := range r.out.Added {
		u := &r.out.Uses[i]
		for _, name := range slices.Sorted(maps.Keys(u.Patch.Full)) {
			if !linear[name] {
				return fmt.Errorf("LoRA %s changes %s, which is no linear, by a difference; its strength cannot be an input: use mode %s", u.Name, name, Merge)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(u.Patch.Pairs)) {
			if !linear[name] {
				return fmt.Errorf("LoRA %s changes %s, which is no linear; use mode %s", u.Name, name, Merge)
			}
		}
	}
	return nil
}

// part rewrites one graph.
func (r *rewriter) part(p part, input, travel graph.Value, linear map[string]bool) error {
	g := p.graph
	strength := graph.ValueID(-1)
	bind := func() graph.ValueID {
		if strength < 0 {
			v := travel
			if p.head {
				v = input
			}
			g.Values = append(g.Values, v)
			strength = graph.ValueID(len(g.Values) - 1)
			g.Inputs = append(g.Inputs, strength)
		}
		return strength
	}
	var nodes []graph.Node
	for _, n := range g.Nodes {
		if n.Op != graph.OpLinear {
			nodes = append(nodes, n)
			continue
		}
		weight := g.Weights[n.Weights[0]].Name
		bias := ""
		if len(n.Weights) > 1 {
			bias = g.Weights[n.Weights[1]].Name
		}
		for i := range p.count {
			linear[graph.Resolve(weight, int(i))] = true
			linear[graph.Resolve(bias, int(i))] = true
		}
		nodes = r.behind(nodes, p, n, weight, bias, bind)
	}
	g.Nodes = nodes
	if p.head {
		from := bind()
		g.Values = append(g.Values, travel)
		to := graph.ValueID(len(g.Values) - 1)
		g.Nodes = append(g.Nodes, graph.Node{Op: graph.OpCast, In: []graph.ValueID{from}, Out: []graph.ValueID{to}})
		g.Outputs = append(g.Outputs, to)
	}
	return nil
}

// group is rows of one linear that pairs change together.
type group struct{ first, count int64 }

// groups are those of a weight in any block of a part, in order; the whole
// comes first where a bias is changed.
func (r *rewriter) groups(weight, bias string, p part) []group {
	all := map[group]bool{}
	for i := range p.count {
		w, b := graph.Resolve(weight, int(i)), graph.Resolve(bias, int(i))
		for _, u := range r.out.Added {
			patch := r.out.Uses[u].Patch
			for _, x := range patch.Pairs[w] {
				all[group{x.First, x.Rows}] = true
			}
			for _, x := range patch.Full[w] {
				all[group{x.First, x.Rows}] = true
			}
			if len(patch.Full[b]) > 0 {
				all[group{0, r.shapes[w][0]}] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b group) int { return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.count, a.count)) })
}

// behind appends a linear and what its result is changed by: the last node
// makes the value that the linear made, so that nothing else changes.
func (r *rewriter) behind(nodes []graph.Node, p part, n graph.Node, weight, bias string, strength func() graph.ValueID) []graph.Node {
	g := p.graph
	groups := r.groups(weight, bias, p)
	if len(groups) == 0 {
		return append(nodes, n)
	}
	final := n.Out[0]
	value := func(name string, like graph.Value, width int64) graph.ValueID {
		v := graph.Value{Name: name, Kind: like.Kind, Shape: slices.Clone(like.Shape)}
		if width > 0 {
			v.Shape[len(v.Shape)-1] = graph.Int(width)
		}
		g.Values = append(g.Values, v)
		return graph.ValueID(len(g.Values) - 1)
	}
	made := g.Values[final]
	y := value(made.Name+".base", made, 0)
	n.Out = []graph.ValueID{y}
	nodes = append(nodes, n)
	layer := strings.TrimSuffix(weight, ".weight")
	for k, at := range groups {
		down, up := r.make(weight, bias, at, p)
		name := fmt.Sprintf("%s.lora.%d", layer, k)
		for i := range p.count {
			d, u := down, up
			d.target, u.target = graph.Resolve(weight, int(i)), graph.Resolve(weight, int(i))
			r.out.Made[graph.Resolve(name+".down", int(i))], r.out.Made[graph.Resolve(name+".up", int(i))] = d, u
		}
		w := graph.WeightID(len(g.Weights))
		g.Weights = append(g.Weights, graph.Weight{Name: name + ".down", Shape: down.Shape}, graph.Weight{Name: name + ".up", Shape: up.Shape})
		t := value(fmt.Sprintf("%s.lora.%d", made.Name, k), made, up.Shape[1])
		out := final
		if k < len(groups)-1 {
			out = value(fmt.Sprintf("%s.lora.%d.added", made.Name, k), made, 0)
		}
		nodes = append(nodes,
			graph.Node{Op: graph.OpLowRank, In: []graph.ValueID{n.In[0], strength()}, Out: []graph.ValueID{t}, Weights: []graph.WeightID{w}, Attrs: graph.Attrs{Ranks: down.ranks}},
			graph.Node{Op: graph.OpLowRankAdd, In: []graph.ValueID{y, t}, Out: []graph.ValueID{out}, Weights: []graph.WeightID{w + 1}, Attrs: graph.Attrs{First: at.first}})
		y = out
	}
	return nodes
}

// make says how large the pair of a group is: the ranks are the largest over
// the blocks.
func (r *rewriter) make(weight, bias string, at group, p part) (down, up Made) {
	ranks := make([]int, len(r.out.Added))
	biased := false
	var shape tensor.Shape
	for i := range p.count {
		w, b := graph.Resolve(weight, int(i)), graph.Resolve(bias, int(i))
		shape = r.shapes[w]
		for l, u := range r.out.Added {
			patch := r.out.Uses[u].Patch
			ranks[l] = max(ranks[l], int(rankOf(patch, w, at)))
			biased = biased || at == group{0, shape[0]} && len(patch.Full[b]) > 0
		}
	}
	sum := int64(0)
	for _, n := range ranks {
		sum += int64(n)
	}
	if sum == 0 { // a bias alone: an operation takes no empty weight
		ranks[0], sum = 1, 1
	}
	wide := sum
	if biased {
		wide += int64(len(ranks))
	}
	base := Made{DType: r.compute, first: at.first, count: at.count, ranks: ranks, bias: biased}
	down, up = base, base
	down.kind, down.Shape = madeDown, tensor.Shape{sum, shape[1]}
	up.kind, up.Shape = madeUp, tensor.Shape{at.count, wide}
	return down, up
}

// rankOf is the rank of one use's difference of a group.
func rankOf(p *Patch, weight string, at group) (n int64) {
	for _, x := range p.Pairs[weight] {
		if x.First == at.first && x.Rows == at.count {
			n += x.Rank()
		}
	}
	for _, x := range p.Full[weight] {
		if x.First == at.first && x.Rows == at.count {
			n += x.rank()
		}
	}
	return n
}

// merged lists the weights that change when they are loaded.
func (r *rewriter) merged() {
	for i := range r.out.Uses {
		u := &r.out.Uses[i]
		names := append(slices.Collect(maps.Keys(u.Patch.Set)), slices.Collect(maps.Keys(u.Patch.Wider))...)
		if u.Mode == Merge {
			names = append(names, slices.Collect(maps.Keys(u.Patch.Pairs))...)
			names = append(names, slices.Collect(maps.Keys(u.Patch.Full))...)
		}
		for _, name := range names {
			d := r.base.Stored[name]
			if d != tensor.F32 && d != tensor.BF16 {
				d = r.compute
			}
			r.out.Made[name] = Made{Shape: r.shapes[name], DType: d, kind: madeMerged, target: name}
		}
	}
}
