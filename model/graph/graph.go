// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import "github.com/distorch/distorch/model/tensor"

// Kind is the element type of a value before the compute dtype is known.
type Kind uint8

// The kinds.
const (
	KindInvalid Kind = iota
	Compute          // the deployment's compute dtype
	F32              // float32 whatever the compute dtype is
)

// DType is the element type of k when computing in compute.
func (k Kind) DType(compute tensor.DType) tensor.DType {
	if k == Compute {
		return compute
	}
	return tensor.F32
}

// String is "compute" or "f32".
func (k Kind) String() string {
	switch k {
	case Compute:
		return "compute"
	case F32:
		return "f32"
	}
	return "invalid"
}

// ValueID indexes Graph.Values.
type ValueID int32

// WeightID indexes Graph.Weights.
type WeightID int32

// Value is a tensor that a graph reads or makes. Names are unique within a
// graph; an input, constant or output has the name by which it is bound.
type Value struct {
	Name  string
	Shape []Expr
	Kind  Kind
}

// Weight is a tensor of the checkpoint. Name is a template in the blocks of a
// run: "{i}" stands for the block's number within its run.
type Weight struct {
	Name  string
	Shape tensor.Shape
}

// Node makes Out from In and Weights.
type Node struct {
	Op      Op
	In      []ValueID
	Out     []ValueID
	Weights []WeightID
	Attrs   Attrs
}

// TapLayout says how a tap's elements lie compared with its values.
type TapLayout uint8

// The tap layouts.
const (
	TapAsIs       TapLayout = iota // as the value
	TapHeadsFirst                  // the value [B,S,H,d] shown as [B,H,S,d]
	TapRotation                    // values cos, sin [S,p] shown as [S,p,2,2] = [[cos,-sin],[sin,cos]]
)

// Tap names a value for comparison with other implementations. Name is a
// template as a weight's: "double.{i}.img".
type Tap struct {
	Name   string
	Values []ValueID
	Layout TapLayout
}

// Graph is a program in single-assignment form. Every value is an input, a
// constant or the output of exactly one node; nodes stand in an order in which
// each value is made before it is used. Outputs are made by nodes.
type Graph struct {
	Values    []Value
	Inputs    []ValueID // bound by name: request inputs, state, travelling values
	Constants []ValueID // bound by name to the Model's constants
	Outputs   []ValueID
	Weights   []Weight
	Nodes     []Node
	Taps      []Tap
}

// Dim is a named dimension: free, between Min and Max, or derived from others
// before it when Derived is set. A free one whose Min is 0 may be left out of a
// request, and is 0 then.
type Dim struct {
	Name    string
	Min     int64
	Max     int64
	Derived *Expr
	// Request and Unit say how a free dimension follows from a workload:
	// ceil(workload[Request] / Unit).
	Request string
	Unit    int64
	// Choice marks a free dimension that is no size but a choice between ways
	// to compute: no shape depends on it, and a workload does not bound it.
	Choice bool
}

// Recipe names how a constant is computed.
type Recipe string

// The recipes. All yield float32.
const (
	// RopeCos and RopeSin: [tokens, Σ Axes/2], cosine and sine of position ·
	// Theta^(-2j/d), angles in float64, result rounded once.
	RopeCos Recipe = "rope_cos"
	RopeSin Recipe = "rope_sin"
	// Sinusoid: [Half], f_k = exp((-ln Period)·k/Half): the argument rounded to
	// float32 after each step, the exponential correctly rounded, but for
	// Period 10000 and Half 128 the entries 12 and 106 are one last bit higher,
	// as PyTorch's CPU exp makes them.
	Sinusoid Recipe = "sinusoid"
)

// Positions gives position ids to a stretch of tokens laid out row-major over
// Grid. Axis a of the rotation takes the index along Grid[Axes[a]], or 0 where
// Axes[a] is -1, plus Start[a] where there is a Start. A Grid may be empty.
type Positions struct {
	Grid  []Expr
	Axes  []int
	Start []Expr
}

// Constant is a tensor computed once per specialisation and given to every
// engine as an input.
type Constant struct {
	Name   string
	Shape  []Expr
	Recipe Recipe
	// For RopeCos and RopeSin. Position ids are held in the compute dtype when
	// RoundPositions is set (bf16 rounds those above 256).
	Theta          float64
	Axes           []int64
	Positions      []Positions
	RoundPositions bool
	// For Sinusoid.
	Period float64
	Half   int64
}

// Run is a number of identical blocks. State are the names of the values that
// one block hands to the next, in order: Block has inputs of these names, and
// its Outputs are the new state, position by position. Entry, if there is one,
// makes this run's first state from the state before it.
type Run struct {
	Name  string // "double_blocks"
	Count int64
	Entry *Graph
	Block Graph
	State []Value
}

// Model is an architecture with its hyper-parameters, as data.
//
// Head reads Inputs and makes the first run's state and Travel; every Entry,
// Block and the Tail may also read Travel and Constants; Tail reads the last
// run's state and makes Output. State values are rounded to their kind after
// every block, hop or no hop.
type Model struct {
	Arch      string // "flux"
	OpSet     uint32
	Dims      []Dim
	Inputs    []Value
	Output    Value
	Constants []Constant
	Travel    []Value
	Head      Graph
	Runs      []Run
	Tail      Graph
}

// Blocks is the number of blocks over all runs.
func (m *Model) Blocks() int {
	n := int64(0)
	for i := range m.Runs {
		n += m.Runs[i].Count
	}
	return int(n)
}

// Weights are the shapes of all weights by their resolved names.
func (m *Model) Weights() map[string]tensor.Shape {
	out := map[string]tensor.Shape{}
	add := func(g *Graph, count int64) {
		for _, w := range g.Weights {
			for i := range count {
				out[Resolve(w.Name, int(i))] = w.Shape
			}
		}
	}
	add(&m.Head, 1)
	for i := range m.Runs {
		r := &m.Runs[i]
		if r.Entry != nil {
			add(r.Entry, 1)
		}
		add(&r.Block, r.Count)
	}
	add(&m.Tail, 1)
	return out
}

// BlockAt is the run and the number within it of a block counted over all
// runs; ok is false when there is no such block.
func (m *Model) BlockAt(block int) (run, index int, ok bool) {
	if block < 0 {
		return 0, 0, false
	}
	for r := range m.Runs {
		if int64(block) < m.Runs[r].Count {
			return r, block, true
		}
		block -= int(m.Runs[r].Count)
	}
	return 0, 0, false
}
