// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire converts graphs to and from their protobuf form and its
// canonical JSON.
//
// Imported by the edges that send or store models: the coordinator, the agent,
// cmd. It is the only package under model that imports proto. What it makes
// from received bytes is bounded and validated: a *graph.Model that it returns
// is sound.
package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// MaxBytes bounds a model on the wire; FLUX.1 takes 20 KB.
const MaxBytes = 4 << 20

const (
	maxItems = 1 << 12 // of any list
	maxDepth = 8       // of an expression
)

// Marshal is the deterministic protobuf form: equal models give equal bytes.
func Marshal(m *graph.Model) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(ToProto(m))
}

// Unmarshal reads and validates a model.
func Unmarshal(b []byte) (*graph.Model, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("model of %d bytes, at most %d", len(b), MaxBytes)
	}
	var p pb.Model
	if err := proto.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	return FromProto(&p)
}

// JSON is the canonical JSON of the protobuf form: proto field names, no
// insignificant space, the same bytes for equal models.
func JSON(m *graph.Model) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(ToProto(m))
	if err != nil {
		return nil, err
	}
	// protojson varies its spacing on purpose.
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// FromJSON reads and validates a model.
func FromJSON(b []byte) (*graph.Model, error) {
	if len(b) > 4*MaxBytes {
		return nil, fmt.Errorf("model of %d bytes of JSON, at most %d", len(b), 4*MaxBytes)
	}
	var p pb.Model
	if err := protojson.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	return FromProto(&p)
}

// each converts a list.
func each[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, x := range in {
		out[i] = f(x)
	}
	return out
}

func number[A, B ~int | ~int32 | ~int64](x A) B { return B(x) }

// ToProto is the protobuf form of a model.
func ToProto(m *graph.Model) *pb.Model {
	return &pb.Model{
		Arch:      m.Arch,
		OpSet:     m.OpSet,
		Dims:      each(m.Dims, dimTo),
		Inputs:    each(m.Inputs, valueTo),
		Output:    valueTo(m.Output),
		Constants: each(m.Constants, constantTo),
		Travel:    each(m.Travel, valueTo),
		Head:      graphTo(&m.Head),
		Runs:      each(m.Runs, runTo),
		Tail:      graphTo(&m.Tail),
	}
}

func runTo(r graph.Run) *pb.BlockRun {
	out := &pb.BlockRun{Name: r.Name, Count: r.Count, Block: graphTo(&r.Block), State: each(r.State, valueTo)}
	if r.Entry != nil {
		out.Entry = graphTo(r.Entry)
	}
	return out
}

func dimTo(d graph.Dim) *pb.ModelDim {
	out := &pb.ModelDim{Name: d.Name, Min: d.Min, Max: d.Max, Request: d.Request, Unit: d.Unit, Choice: d.Choice}
	if d.Derived != nil {
		out.Derived = exprTo(*d.Derived)
	}
	return out
}

func exprTo(e graph.Expr) *pb.Expr {
	switch e.Kind {
	case graph.ExprInt:
		return &pb.Expr{Form: &pb.Expr_Value{Value: e.Value}}
	case graph.ExprDim:
		return &pb.Expr{Form: &pb.Expr_Dim{Dim: e.Name}}
	case graph.ExprSum:
		return &pb.Expr{Form: &pb.Expr_Sum{Sum: &pb.Expr_List{Args: each(e.Args, exprTo)}}}
	case graph.ExprProduct:
		return &pb.Expr{Form: &pb.Expr_Product{Product: &pb.Expr_List{Args: each(e.Args, exprTo)}}}
	case graph.ExprCeilDiv:
		if len(e.Args) == 2 {
			return &pb.Expr{Form: &pb.Expr_Ceildiv{Ceildiv: &pb.Expr_CeilDiv{Dividend: exprTo(e.Args[0]), Divisor: exprTo(e.Args[1])}}}
		}
	case graph.ExprIfGreater:
		if len(e.Args) == 4 {
			return &pb.Expr{Form: &pb.Expr_Ifgreater{Ifgreater: &pb.Expr_IfGreater{
				Left: exprTo(e.Args[0]), Right: exprTo(e.Args[1]), Then: exprTo(e.Args[2]), Otherwise: exprTo(e.Args[3]),
			}}}
		}
	}
	return &pb.Expr{}
}

func valueTo(v graph.Value) *pb.GraphValue {
	return &pb.GraphValue{Name: v.Name, Shape: each(v.Shape, exprTo), Kind: pb.ValueKind(v.Kind)}
}

func constantTo(c graph.Constant) *pb.ModelConstant {
	return &pb.ModelConstant{
		Name: c.Name, Shape: each(c.Shape, exprTo), Recipe: string(c.Recipe),
		Theta: c.Theta, Axes: c.Axes, RoundPositions: c.RoundPositions, Period: c.Period, Half: c.Half,
		Positions: each(c.Positions, func(p graph.Positions) *pb.TokenPositions {
			return &pb.TokenPositions{Grid: each(p.Grid, exprTo), Axes: each(p.Axes, number[int, int32]), Start: each(p.Start, exprTo)}
		}),
	}
}

func graphTo(g *graph.Graph) *pb.Graph {
	return &pb.Graph{
		Values:    each(g.Values, valueTo),
		Inputs:    each(g.Inputs, number[graph.ValueID, int32]),
		Constants: each(g.Constants, number[graph.ValueID, int32]),
		Outputs:   each(g.Outputs, number[graph.ValueID, int32]),
		Weights: each(g.Weights, func(w graph.Weight) *pb.GraphWeight {
			return &pb.GraphWeight{Name: w.Name, Shape: w.Shape}
		}),
		Nodes: each(g.Nodes, nodeTo),
		Taps: each(g.Taps, func(t graph.Tap) *pb.GraphTap {
			return &pb.GraphTap{Name: t.Name, Values: each(t.Values, number[graph.ValueID, int32]), Layout: pb.TapLayout(t.Layout)}
		}),
	}
}

func nodeTo(n graph.Node) *pb.GraphNode {
	a := n.Attrs
	attrs := &pb.GraphAttrs{Eps: a.Eps, Factor: a.Factor, Scale: a.Scale, Axis: int32(a.Axis), Fused: a.Fused, Perm: each(a.Perm, number[int, int32]),
		Ranks: each(a.Ranks, number[int, int32]), First: a.First}
	if a.Patch != [2]int64{} {
		attrs.Patch = a.Patch[:]
	}
	out := &pb.GraphNode{
		Op:      string(n.Op),
		Inputs:  each(n.In, number[graph.ValueID, int32]),
		Outputs: each(n.Out, number[graph.ValueID, int32]),
		Weights: each(n.Weights, number[graph.WeightID, int32]),
	}
	if proto.Size(attrs) > 0 {
		out.Attrs = attrs
	}
	return out
}

// reader remembers the first fault, so that converting reads straight on.
type reader struct{ err error }

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// list converts a list whose length is bounded.
func list[A, B any](r *reader, in []A, f func(A) B) []B {
	if len(in) > maxItems {
		r.fail("a list of %d items, at most %d", len(in), maxItems)
	}
	if r.err != nil {
		return nil
	}
	return each(in, f)
}

// FromProto converts and validates a model. The result shares nothing with p.
func FromProto(p *pb.Model) (*graph.Model, error) {
	if p == nil {
		return nil, fmt.Errorf("no model")
	}
	r := &reader{}
	m := &graph.Model{
		Arch:      p.GetArch(),
		OpSet:     p.GetOpSet(),
		Dims:      list(r, p.GetDims(), r.dim),
		Inputs:    r.values(p.GetInputs()),
		Output:    r.value(p.GetOutput()),
		Constants: list(r, p.GetConstants(), r.constant),
		Travel:    r.values(p.GetTravel()),
		Head:      r.graph(p.GetHead()),
		Runs:      list(r, p.GetRuns(), r.run),
		Tail:      r.graph(p.GetTail()),
	}
	if r.err != nil {
		return nil, fmt.Errorf("read model: %w", r.err)
	}
	if err := graph.Validate(m); err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	return m, nil
}

func (r *reader) dim(p *pb.ModelDim) graph.Dim {
	d := graph.Dim{Name: p.GetName(), Min: p.GetMin(), Max: p.GetMax(), Request: p.GetRequest(), Unit: p.GetUnit(), Choice: p.GetChoice()}
	if p.GetDerived() != nil {
		e := r.expr(p.GetDerived(), 0)
		d.Derived = &e
	}
	return d
}

func (r *reader) exprs(ps []*pb.Expr, depth int) []graph.Expr {
	return list(r, ps, func(p *pb.Expr) graph.Expr { return r.expr(p, depth) })
}

func (r *reader) expr(p *pb.Expr, depth int) graph.Expr {
	if depth > maxDepth {
		r.fail("expression nested deeper than %d", maxDepth)
		return graph.Expr{}
	}
	switch f := p.GetForm().(type) {
	case *pb.Expr_Value:
		return graph.Int(f.Value)
	case *pb.Expr_Dim:
		return graph.D(f.Dim)
	case *pb.Expr_Sum:
		return graph.Sum(r.exprs(f.Sum.GetArgs(), depth+1)...)
	case *pb.Expr_Product:
		return graph.Product(r.exprs(f.Product.GetArgs(), depth+1)...)
	case *pb.Expr_Ceildiv:
		return graph.CeilDiv(r.expr(f.Ceildiv.GetDividend(), depth+1), r.expr(f.Ceildiv.GetDivisor(), depth+1))
	case *pb.Expr_Ifgreater:
		arg := func(e *pb.Expr) graph.Expr { return r.expr(e, depth+1) }
		g := f.Ifgreater
		return graph.IfGreater(arg(g.GetLeft()), arg(g.GetRight()), arg(g.GetThen()), arg(g.GetOtherwise()))
	}
	r.fail("expression without a form")
	return graph.Expr{}
}

func (r *reader) values(ps []*pb.GraphValue) []graph.Value { return list(r, ps, r.value) }

func (r *reader) value(p *pb.GraphValue) graph.Value {
	if k := p.GetKind(); k < 0 || k > math.MaxUint8 {
		r.fail("value kind %d is unknown", k)
	}
	return graph.Value{Name: p.GetName(), Shape: r.exprs(p.GetShape(), 0), Kind: graph.Kind(p.GetKind())}
}

func (r *reader) constant(p *pb.ModelConstant) graph.Constant {
	return graph.Constant{
		Name: p.GetName(), Shape: r.exprs(p.GetShape(), 0), Recipe: graph.Recipe(p.GetRecipe()),
		Theta: p.GetTheta(), Axes: list(r, p.GetAxes(), number[int64, int64]), RoundPositions: p.GetRoundPositions(),
		Period: p.GetPeriod(), Half: p.GetHalf(),
		Positions: list(r, p.GetPositions(), func(t *pb.TokenPositions) graph.Positions {
			return graph.Positions{Grid: r.exprs(t.GetGrid(), 0), Axes: list(r, t.GetAxes(), number[int32, int]), Start: r.exprs(t.GetStart(), 0)}
		}),
	}
}

func (r *reader) run(p *pb.BlockRun) graph.Run {
	out := graph.Run{Name: p.GetName(), Count: p.GetCount(), Block: r.graph(p.GetBlock()), State: r.values(p.GetState())}
	if p.GetEntry() != nil {
		e := r.graph(p.GetEntry())
		out.Entry = &e
	}
	return out
}

func (r *reader) graph(p *pb.Graph) graph.Graph {
	ids := func(in []int32) []graph.ValueID { return list(r, in, number[int32, graph.ValueID]) }
	return graph.Graph{
		Values:    r.values(p.GetValues()),
		Inputs:    ids(p.GetInputs()),
		Constants: ids(p.GetConstants()),
		Outputs:   ids(p.GetOutputs()),
		Weights: list(r, p.GetWeights(), func(w *pb.GraphWeight) graph.Weight {
			return graph.Weight{Name: w.GetName(), Shape: tensor.Shape(list(r, w.GetShape(), number[int64, int64]))}
		}),
		Nodes: list(r, p.GetNodes(), r.node),
		Taps: list(r, p.GetTaps(), func(t *pb.GraphTap) graph.Tap {
			if l := t.GetLayout(); l < 0 || l > math.MaxUint8 {
				r.fail("tap layout %d is unknown", l)
			}
			return graph.Tap{Name: t.GetName(), Values: ids(t.GetValues()), Layout: graph.TapLayout(t.GetLayout())}
		}),
	}
}

func (r *reader) node(p *pb.GraphNode) graph.Node {
	a := p.GetAttrs()
	n := graph.Node{
		Op:      graph.Op(p.GetOp()),
		In:      list(r, p.GetInputs(), number[int32, graph.ValueID]),
		Out:     list(r, p.GetOutputs(), number[int32, graph.ValueID]),
		Weights: list(r, p.GetWeights(), number[int32, graph.WeightID]),
		Attrs: graph.Attrs{
			Eps: a.GetEps(), Factor: a.GetFactor(), Scale: a.GetScale(), Axis: int(a.GetAxis()),
			Fused: a.GetFused(), Perm: list(r, a.GetPerm(), number[int32, int]),
			Ranks: list(r, a.GetRanks(), number[int32, int]), First: a.GetFirst(),
		},
	}
	switch patch := a.GetPatch(); len(patch) {
	case 0:
	case 2:
		n.Attrs.Patch = [2]int64(patch)
	default:
		r.fail("a patch of %d numbers, must be two", len(patch))
	}
	return n
}
