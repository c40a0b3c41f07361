// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import "fmt"

// Bytes is a size in bytes. Texts show decimal units: 1 GB is 1e9 bytes.
type Bytes int64

// String shows the size as "23.8 GB", "31.0 MB" or "512 B".
func (b Bytes) String() string {
	div, unit := unitFor(max(b, -b))
	if div == 1 {
		return fmt.Sprintf("%d B", int64(b))
	}
	return fmt.Sprintf("%.1f %s", float64(b)/div, unit)
}

func unitFor(b Bytes) (float64, string) {
	switch {
	case b >= 1e9:
		return 1e9, "GB"
	case b >= 1e6:
		return 1e6, "MB"
	case b >= 1e3:
		return 1e3, "kB"
	default:
		return 1, "B"
	}
}

// DType names a compute or storage dtype: "f32", "bf16", "f16", "f8_e4m3".
type DType string

// Model is the block table of one checkpoint, specialised to a workload.
type Model struct {
	Name         string
	ComputeDType DType
	StoredDType  DType   // of the weights in the file; only used in advice
	Runs         []Run   // one or two, in order
	Head, Tail   Cost    // run by the first and the last stage
	Vec          Bytes   // modulation vector and the like, sent with every boundary
	Input        Bytes   // endpoint to first stage, per forward
	Output       Bytes   // last stage to endpoint, per forward
	Tokens       float64 // of one forward, to look up rates; 0 takes each curve's largest
	unfolded     []Run   // the true runs, where Runs counts some of them as one
	Heads        int     // attention heads: tensor parallel degrees divide it; 0 when the model cannot be split so
}

// Run is a number of identical blocks.
type Run struct {
	Name     string
	Count    int
	Block    Cost  // of one block
	Boundary Bytes // activation that leaves each block, without Model.Vec
}

// Cost is what one block (or the head, or the tail) takes for one forward at the workload.
type Cost struct {
	Weights     Bytes   // resident, as stored
	Staging     Bytes   // expanded or packed form in a staging slot; 0 when the engine computes on the resident bytes
	Expansion   Bytes   // stored bytes expanded in every pass; 0 when nothing is
	Linear      float64 // FLOPs in matrix products with weights
	Attention   float64 // FLOPs in attention
	Elementwise Bytes   // memory traffic of everything else (norms, modulation, activation functions)
	Scratch     Bytes   // liveness peak of one forward, boundary tensors in and out included
	Collective  Bytes   // partial sums that a tensor-parallel group adds up in one block (both of its all-reduces)
}

// Blocks is the number of blocks of all runs.
func (m Model) Blocks() int {
	n := 0
	for _, r := range m.Runs {
		n += r.Count
	}
	return n
}

// Weights is the resident size of the whole model as stored.
func (m Model) Weights() Bytes {
	w := m.Head.Weights + m.Tail.Weights
	for _, r := range m.Runs {
		w += Bytes(r.Count) * r.Block.Weights
	}
	return w
}

// BlockName is "double 3" for global block index i.
func (m Model) BlockName(i int) string {
	for _, r := range m.Runs {
		if i < r.Count {
			return fmt.Sprintf("%s %d", r.Name, i)
		}
		i -= r.Count
	}
	return "none"
}

const (
	maxBlocks = 1000
	maxCells  = 16384
	maxBytes  = Bytes(1) << 50
	maxFLOPs  = 1e24
	minRate   = 1
	maxRate   = 1e18
	maxNodes  = 1024
)

// ModelError says which figure of a model cannot be placed.
type ModelError struct {
	Model, Field, Problem string
}

func (e *ModelError) Error() string {
	return fmt.Sprintf("model %s: %s: %s", e.Model, e.Field, e.Problem)
}

// Validate checks every figure; the error is a *[ModelError].
func (m Model) Validate() error {
	bad := func(field, format string, args ...any) error {
		return &ModelError{Model: m.Name, Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	if m.ComputeDType == "" {
		return bad("compute dtype", "empty: name one, such as bf16")
	}
	if len(m.Runs) < 1 || len(m.Runs) > maxRuns {
		return bad("runs", "%d runs of blocks: must be 1 to %d", len(m.Runs), maxRuns)
	}
	for i, r := range m.Runs {
		field := fmt.Sprintf("run %d (%s)", i, r.Name)
		if r.Count < 1 || r.Count > maxBlocks {
			return bad(field, "%d blocks: must be 1 to %d", r.Count, maxBlocks)
		}
		if r.Boundary < 0 || r.Boundary > maxBytes {
			return bad(field, "boundary of %d bytes is out of range", int64(r.Boundary))
		}
		if what := r.Block.invalid(); what != "" {
			return bad(field, "%s", what)
		}
	}
	if shapeOf(m.folded(true)).cells() > maxCells {
		return bad("runs", "product of the run lengths is over %d", maxCells)
	}
	for _, c := range []struct {
		name string
		cost Cost
	}{{"head", m.Head}, {"tail", m.Tail}} {
		if what := c.cost.invalid(); what != "" {
			return bad(c.name, "%s", what)
		}
	}
	for _, c := range []struct {
		name string
		size Bytes
	}{{"vec", m.Vec}, {"input", m.Input}, {"output", m.Output}} {
		if c.size < 0 || c.size > maxBytes {
			return bad(c.name, "%d bytes is out of range", int64(c.size))
		}
	}
	return nil
}

func (c Cost) invalid() string {
	for _, b := range []struct {
		name string
		size Bytes
	}{
		{"weights", c.Weights}, {"staging", c.Staging}, {"expansion", c.Expansion},
		{"elementwise", c.Elementwise}, {"scratch", c.Scratch},
	} {
		if b.size < 0 || b.size > maxBytes {
			return fmt.Sprintf("%s of %d bytes is out of range", b.name, int64(b.size))
		}
	}
	if !(c.Linear >= 0 && c.Linear <= maxFLOPs) {
		return fmt.Sprintf("%g linear FLOPs is out of range", c.Linear)
	}
	if !(c.Attention >= 0 && c.Attention <= maxFLOPs) {
		return fmt.Sprintf("%g attention FLOPs is out of range", c.Attention)
	}
	return ""
}

// expands reports whether any part of the model needs an expansion rate.
func (m Model) expands() bool {
	if m.Head.Expansion > 0 || m.Tail.Expansion > 0 {
		return true
	}
	for _, r := range m.Runs {
		if r.Block.Expansion > 0 {
			return true
		}
	}
	return false
}

// boundary is what travels when the pipeline is cut after a block of run r.
func (m Model) boundary(r int) Bytes { return m.Runs[r].Boundary + m.Vec }

func (m Model) boundaryRange() (low, high Bytes) {
	low, high = m.boundary(0), m.boundary(0)
	for r := range m.Runs {
		low, high = min(low, m.boundary(r)), max(high, m.boundary(r))
	}
	return low, high
}

// behind is what a cut behind a global block index carries.
func (m Model) behind(block int) Bytes {
	runs := m.Runs
	if m.unfolded != nil {
		runs = m.unfolded
	}
	for _, r := range runs {
		if block < r.Count {
			return r.Boundary + m.Vec
		}
		block -= r.Count
	}
	return runs[len(runs)-1].Boundary + m.Vec
}
