// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// Space is where a value's elements lie.
type Space uint8

// The spaces.
const (
	SpaceArena    Space = iota // the segment's scratch arena
	SpaceInput                 // the buffer bound for Segment.Inputs[Index]
	SpaceConstant              // the buffer bound for Segment.Constants[Index]
	SpaceOutput                // the buffer bound for Segment.Outputs[Index]
)

// Align is the alignment of every value that owns memory, in bytes.
const Align tensor.Bytes = 64

// Place says where a value lies. Bound tensors are row-major and contiguous;
// values inside may be views with strides. The last dimension is always
// contiguous (stride 1).
type Place struct {
	Space   Space
	Index   int          // of the input, constant or output
	Offset  tensor.Bytes // from the start of the arena or bound tensor
	Strides []int64      // in elements, one per dimension
}

// Tensor is a value with everything known: name, shape, dtype and place.
type Tensor struct {
	Name  string
	Shape tensor.Shape
	DType tensor.DType
	Bytes tensor.Bytes // of a contiguous tensor of this shape
	Place Place
}

// Step is a node to execute. Views (reshape, split, a cast to the same dtype,
// the parts of a concat made in place, anything that makes empty values alone)
// need no work: View is set when nothing is to be done at all, and InPlace[i]
// when input i of a concat already lies in its output or is empty. A split,
// reshape or cast without View copies.
//
// The output of an element- or row-wise step (scale, silu, gelu_tanh, norms,
// modulate, rope, low_rank_add: In[0]; add, mul: either; gated_add: In[0] or In[2]) may lie
// exactly on that input. Apart from that no output overlaps an input.
// Values may have strides in any dimension but the last; those that patchify,
// unpatchify, timestep_embedding and transpose make are contiguous.
type Step struct {
	Node
	View    bool
	InPlace []bool
}

// Segment is a graph at concrete dimensions: what an engine compiles. Values,
// ids, weights and taps are those of the Graph it came from.
//
// Outputs never overlap inputs, constants or the arena: the caller binds
// separate buffers. Nodes run in order; an engine that runs them otherwise
// must keep to the reuse of the arena that this order gives.
type Segment struct {
	Name      string // "head", "double_blocks", "single_blocks.entry", "tail"
	Compute   tensor.DType
	Values    []Tensor
	Inputs    []ValueID
	Constants []ValueID
	Outputs   []ValueID
	Weights   []Weight
	Steps     []Step
	Taps      []Tap
	Arena     tensor.Bytes // liveness peak of values inside, Align-ed
	Kept      bool         // every value is to be found at its place after a run
	Cost      Cost
}

// Cost counts the work of one execution, FLOP = 2·multiply-add.
type Cost struct {
	LinearFLOPs    int64
	AttentionFLOPs int64
	MovedBytes     int64 // read and written by all other operations
	WeightElements int64
}

// Resolve replaces "{i}" in a weight's or tap's name template by the block's
// number within its run.
func Resolve(template string, i int) string {
	return strings.ReplaceAll(template, "{i}", strconv.Itoa(i))
}

// Program is a Model at concrete dimensions and one compute dtype.
type Program struct {
	Model     *Model
	Dims      Dims // every dimension, derived ones included
	Compute   tensor.DType
	Inputs    []Tensor // of a request
	Output    Tensor
	Constants []Tensor
	Travel    []Tensor
	Head      *Segment
	Runs      []ProgramRun
	Tail      *Segment
	kept      bool // made by SpecialiseKept
}

// ProgramRun is a Run at concrete dimensions. Entry is nil where the run has
// none.
type ProgramRun struct {
	Name  string
	Count int
	State []Tensor
	Entry *Segment
	Block *Segment
}
