// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// Every change makes the model unsound in one way; the error must say which.
func TestValidateRefuses(t *testing.T) {
	block := func(m *graph.Model) *graph.Graph { return &m.Runs[0].Block }
	find := func(g *graph.Graph, op graph.Op) *graph.Node {
		for i := range g.Nodes {
			if g.Nodes[i].Op == op {
				return &g.Nodes[i]
			}
		}
		panic("no " + op)
	}
	dim := func(m *graph.Model, name string) *graph.Dim {
		return &m.Dims[slices.IndexFunc(m.Dims, func(d graph.Dim) bool { return d.Name == name })]
	}
	for _, c := range []struct {
		want   string
		change func(*graph.Model)
	}{
		{"unknown operation", func(m *graph.Model) { m.Head.Nodes[0].Op = "conv" }},
		{"reserved for tensor parallelism", func(m *graph.Model) { find(block(m), graph.OpSiLU).Op = graph.OpAllReduce }},
		{"not what it takes", func(m *graph.Model) { n := find(block(m), graph.OpLinear); n.Weights = nil }},
		{"not what it takes", func(m *graph.Model) { n := find(block(m), graph.OpModulate); n.In = n.In[:2] }},
		{"parameter that it does not use", func(m *graph.Model) { find(block(m), graph.OpLinear).Attrs.Eps = 1 }},
		{"eps NaN", func(m *graph.Model) { find(block(m), graph.OpRMSNorm).Attrs.Eps = math.NaN() }},
		{"scale -1", func(m *graph.Model) { find(block(m), graph.OpAttention).Attrs.Scale = -1 }},
		{"patch [0 2]", func(m *graph.Model) { find(&m.Head, graph.OpPatchify).Attrs.Patch = [2]int64{0, 2} }},
		{"axis -1", func(m *graph.Model) { find(block(m), graph.OpConcat).Attrs.Axis = -1 }},
		{"axis 9", func(m *graph.Model) { find(block(m), graph.OpSplit).Attrs.Axis = 9 }},
		{"before it is made", func(m *graph.Model) { n := block(m).Nodes; n[0], n[1] = n[1], n[0] }},
		{"made twice", func(m *graph.Model) { n := block(m).Nodes; n[1].Out[0] = n[0].Out[0] }},
		{"does not exist", func(m *graph.Model) { block(m).Nodes[0].In[0] = 4000 }},
		{"does not exist", func(m *graph.Model) { block(m).Nodes[0].Out[0] = -1 }},
		{"never made", func(m *graph.Model) {
			block(m).Values = append(block(m).Values, graph.Value{Name: "z", Shape: []graph.Expr{graph.Int(1)}, Kind: graph.F32})
		}},
		{"weight \"w{i}\" is never used", func(m *graph.Model) {
			block(m).Weights = append(block(m).Weights, graph.Weight{Name: "w{i}", Shape: tensor.Shape{1}})
		}},
		{"used twice", func(m *graph.Model) { n := find(block(m), graph.OpLinear); n.Weights[1] = n.Weights[0] }},
		{"value \"txt\" is defined twice", func(m *graph.Model) { block(m).Values[0].Name = "txt" }},
		{"is defined twice", func(m *graph.Model) { block(m).Weights[1].Name = block(m).Weights[0].Name }},
		{"used by two parts", func(m *graph.Model) { m.Tail.Weights[0].Name = m.Head.Weights[0].Name }},
		{"block number {i}", func(m *graph.Model) { block(m).Weights[0].Name = "fixed" }},
		{"block number {i}", func(m *graph.Model) { m.Head.Weights[0].Name = "w.{i}" }},
		{"does not multiply", func(m *graph.Model) { block(m).Weights[0].Shape = tensor.Shape{384, 65} }},
		{"must be [", func(m *graph.Model) { block(m).Weights[1].Shape = tensor.Shape{383} }},
		{"beyond the bounds", func(m *graph.Model) { block(m).Weights[0].Shape = tensor.Shape{1 << 20, 1 << 20} }},
		{"nothing that this part may read", func(m *graph.Model) { block(m).Values[block(m).Inputs[0]].Name = "y" }},
		{"another kind or shape than where it comes from", func(m *graph.Model) { m.Head.Values[m.Head.Inputs[0]].Kind = graph.Compute }},
		{"another kind or shape than", func(m *graph.Model) { m.Runs[1].State[0].Shape[1] = graph.D("S_img") }},
		{"another kind or shape than its definition", func(m *graph.Model) { m.Constants[0].Shape = []graph.Expr{graph.D("S"), graph.Int(3)} }},
		{"recipe rope_cos makes", func(m *graph.Model) { m.Constants[0].Positions = m.Constants[0].Positions[1:] }},
		{"must be even", func(m *graph.Model) { m.Constants[1].Axes = []int64{8, 11, 13} }},
		{"grid dimension 2 of 2", func(m *graph.Model) { m.Constants[1].Positions[1].Axes[0] = 2 }},
		{"unknown recipe", func(m *graph.Model) { m.Constants[2].Recipe = "noise" }},
		{"an input or a constant", func(m *graph.Model) { block(m).Outputs[0] = block(m).Inputs[0] }},
		{"stands twice", func(m *graph.Model) { block(m).Outputs[1] = block(m).Outputs[0] }},
		{"1 outputs, must be 2", func(m *graph.Model) { block(m).Outputs = block(m).Outputs[:1] }},
		{"cannot have an entry", func(m *graph.Model) { m.Runs[0].Entry = m.Runs[1].Entry }},
		{"no entry", func(m *graph.Model) { m.Runs[1].Entry = nil }},
		{"run double_blocks is defined twice", func(m *graph.Model) { m.Runs[1].Name = "double_blocks" }},
		{"has 0 blocks", func(m *graph.Model) { m.Runs[1].Count = 0 }},
		{"unknown dimension \"q\"", func(m *graph.Model) { dim(m, "S").Derived.Args[0] = graph.D("q") }},
		{"division by zero", func(m *graph.Model) { dim(m, "H2").Derived.Args[1] = graph.Int(0) }},
		{"bounds 5..3", func(m *graph.Model) { m.Dims[0].Min, m.Dims[0].Max = 5, 3 }},
		{"a name is a letter", func(m *graph.Model) { m.Dims[0].Name = "2" }},
		{"overflows", func(m *graph.Model) { m.Dims[2].Max, m.Dims[3].Max = 1<<40, 1<<40 }},
		{"elements", func(m *graph.Model) { m.Dims[0].Max = 1 << 30 }},
		{"shows value", func(m *graph.Model) { block(m).Taps[0].Values[0] = -2 }},
		{"must be 2", func(m *graph.Model) { block(m).Taps[0].Values = block(m).Taps[0].Values[:1] }},
		{"smaller than one patch", func(m *graph.Model) { m.Dims[2].Min = 1 }},
		{"bounds 0..0", func(m *graph.Model) { dim(m, "mask").Max = 0 }},
		{"derived and cannot be requested", func(m *graph.Model) { dim(m, "H2").Choice = true }},
		{"depends on the choice S", func(m *graph.Model) {
			dim(m, "S").Derived = &graph.Expr{Kind: graph.ExprSum, Args: []graph.Expr{graph.D("S_txt"), graph.D("S_img"), graph.D("ref_method")}}
		}},
		{"depends on the choice mask", func(m *graph.Model) { dim(m, "mask").Choice = true }},
		{"attention_mask\" is [0,532480,532480]: empty", func(m *graph.Model) {
			none := graph.Int(0)
			*dim(m, "mask") = graph.Dim{Name: "mask", Derived: &none}
		}},
		{"mask txt is [1,1,64], must be [1,2,2], or [0,2,2] for none", func(m *graph.Model) {
			find(block(m), graph.OpAttention).In[3] = block(m).Inputs[1]
		}},
		{"start at 2 numbers", func(m *graph.Model) { p := &m.Constants[0].Positions[2]; p.Start = p.Start[:2] }},
	} {
		t.Run(c.want, func(t *testing.T) {
			m := small().Build(arch.Options{})
			c.change(m)
			err := graph.Validate(m)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestExprBounds(t *testing.T) {
	dims := graph.Dims{"a": 7, "b": 3}
	for text, e := range map[string]graph.Expr{
		"a+b = 10":               graph.Sum(graph.D("a"), graph.D("b")),
		"a*b = 21":               graph.Product(graph.D("a"), graph.D("b")),
		"ceildiv(a,b) = 3":       graph.CeilDiv(graph.D("a"), graph.D("b")),
		"ifgreater(a,b,1,0) = 1": graph.IfGreater(graph.D("a"), graph.D("b"), graph.Int(1), graph.Int(0)),
		"ifgreater(b,a,b,a) = 7": graph.Max(graph.D("b"), graph.D("a")),
		"b*(a+1) = 24":           graph.Product(graph.D("b"), graph.Sum(graph.D("a"), graph.Int(1))),
	} {
		n, err := e.Eval(dims)
		if got := fmt.Sprintf("%v = %d", e, n); got != text || err != nil {
			t.Errorf("%s (%v), want %s", got, err, text)
		}
	}
	big := graph.Int(1 << 39)
	for _, e := range []graph.Expr{
		{}, graph.Int(-1), graph.Sum(), graph.D("c"), graph.Sum(big, big, big), graph.Product(big, big, big),
		{Kind: graph.ExprCeilDiv}, {Kind: 99},
	} {
		if n, err := e.Eval(dims); err == nil {
			t.Errorf("%v = %d", e, n)
		}
	}
}

// The frequency table of the reference (golden tables, PyTorch on the CPU), bit
// for bit.
func TestSinusoidTable(t *testing.T) {
	p := specialise(t, small(), graph.Dims{"B": 1, "S_txt": 7, "h": 9, "w": 7}, tensor.F32)
	f, err := p.Constant("sinusoid.freqs")
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	for _, x := range f {
		if err := binary.Write(h, binary.LittleEndian, x); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != "b5c3f7dda95bc52035d318adbe28f7629426fd8d96ac447e237835678e945788" {
		t.Errorf("digest %s", got)
	}
	if _, err := p.Constant("nothing"); err == nil {
		t.Error("an unknown constant was computed")
	}
}

// In bf16, positions are held in bf16: 257 is 256, 259 is 260.
func TestRopePositionsAreRounded(t *testing.T) {
	dims := graph.Dims{"B": 1, "S_txt": 2, "h": 2, "w": 600}
	row := func(d tensor.DType, position int64) []float32 {
		p := specialise(t, small(), dims, d)
		c, err := p.Constant("rope.sin")
		if err != nil {
			t.Fatal(err)
		}
		at := (2 + position) * 16
		return c[at : at+16]
	}
	same := func(a, b []float32) bool { return fmt.Sprint(a) == fmt.Sprint(b) }
	for pos, as := range map[int64]int64{256: 256, 257: 256, 258: 258, 259: 260} {
		if !same(row(tensor.BF16, pos), row(tensor.F32, as)) {
			t.Errorf("position %d in bf16 is not that of %d", pos, as)
		}
	}
	if same(row(tensor.F32, 257), row(tensor.F32, 256)) {
		t.Error("float32 positions are rounded")
	}
}
