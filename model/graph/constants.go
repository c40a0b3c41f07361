// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"fmt"
	"math"
	"slices"

	"github.com/distorch/distorch/model/numeric"
	"github.com/distorch/distorch/model/tensor"
)

const (
	maxAxes     = 8
	maxHeadSize = 1 << 12
)

// validate checks what does not depend on dimensions.
func (c *Constant) validate() error {
	if len(c.Shape) == 0 || len(c.Shape) > maxRank {
		return fmt.Errorf("has %d dimensions, must be 1 to %d", len(c.Shape), maxRank)
	}
	switch c.Recipe {
	case RopeCos, RopeSin:
		return c.validateRope()
	case Sinusoid:
		if !finite(c.Period) || c.Period <= 1 || c.Half < 1 || c.Half > maxHeadSize {
			return fmt.Errorf("period %v and half %d are not above 1 and 1 to %d", c.Period, c.Half, maxHeadSize)
		}
		if c.Theta != 0 || len(c.Axes) != 0 || len(c.Positions) != 0 || c.RoundPositions {
			return fmt.Errorf("has a parameter that recipe %s does not use", c.Recipe)
		}
		return nil
	}
	return fmt.Errorf("unknown recipe %s", quote(string(c.Recipe)))
}

func (c *Constant) validateRope() error {
	if !finite(c.Theta) || c.Theta <= 1 || c.Period != 0 || c.Half != 0 {
		return fmt.Errorf("theta %v is not above 1, or there is a parameter that recipe %s does not use", c.Theta, c.Recipe)
	}
	if len(c.Axes) == 0 || len(c.Axes) > maxAxes || len(c.Positions) == 0 || len(c.Positions) > maxParts {
		return fmt.Errorf("%d axes, %d stretches of positions: beyond the bounds", len(c.Axes), len(c.Positions))
	}
	for _, d := range c.Axes {
		if d < 2 || d%2 != 0 || d > maxHeadSize {
			return fmt.Errorf("axes %v must be even and 2 to %d", c.Axes, maxHeadSize)
		}
	}
	for _, p := range c.Positions {
		if len(p.Grid) == 0 || len(p.Grid) > maxAxes || len(p.Axes) != len(c.Axes) {
			return fmt.Errorf("positions over %d grid dimensions for %d axes do not fit", len(p.Grid), len(p.Axes))
		}
		if len(p.Start) != 0 && len(p.Start) != len(c.Axes) {
			return fmt.Errorf("positions start at %d numbers, must be none or one for each of %d axes", len(p.Start), len(c.Axes))
		}
		for _, a := range p.Axes {
			if a < -1 || a >= len(p.Grid) {
				return fmt.Errorf("positions use grid dimension %d of %d", a, len(p.Grid))
			}
		}
	}
	return nil
}

// validateAt says whether the recipe makes a tensor of the declared shape.
func (c *Constant) validateAt(dims Dims) error {
	got, err := evalShape(c.Shape, dims)
	if err != nil {
		return err
	}
	want := tensor.Shape{c.Half}
	if c.Recipe != Sinusoid {
		tokens, half := int64(0), int64(0)
		for _, p := range c.Positions {
			grid, err := evalShape(p.Grid, dims)
			if err != nil {
				return err
			}
			n, err := grid.Elements()
			if err != nil {
				return err
			}
			tokens += n
			if _, err := p.starts(dims); err != nil {
				return err
			}
		}
		for _, d := range c.Axes {
			half += d / 2
		}
		want = tensor.Shape{tokens, half}
	}
	if !got.Equal(want) {
		return fmt.Errorf("recipe %s makes %v, declared is %v", c.Recipe, want, got)
	}
	return nil
}

// Constant computes the constant called name for this program's dimensions:
// row-major float32, the same bits on every machine.
func (p *Program) Constant(name string) ([]float32, error) {
	for i := range p.Model.Constants {
		c := &p.Model.Constants[i]
		if c.Name != name {
			continue
		}
		if c.Recipe == Sinusoid {
			return sinusoid(c.Period, c.Half), nil
		}
		return c.rotation(p.Dims, p.Compute)
	}
	return nil, fmt.Errorf("model %s has no constant %s", p.Model.Arch, quote(name))
}

// sinusoid is f_k = exp((-ln period)·k/half) with every step in float32, as
// ComfyUI computes it (comfy/ldm/flux/layers.py timestep_embedding).
func sinusoid(period float64, half int64) []float32 {
	f := make([]float32, half)
	minusLog := float32(-numeric.Log(period))
	for k := range f {
		f[k] = numeric.Exp32CorrectlyRounded(float32(minusLog*float32(k)) / float32(half))
	}
	if period == 10000 && half == 128 {
		// PyTorch's vectorised exp is one last bit high in these two entries.
		f[12] = math.Float32frombits(0x3ed7e89b)
		f[106] = math.Float32frombits(0x39ff4fad)
	}
	return f
}

// rotation fills the rope table. A table over a grid has few distinct
// positions per axis, so each axis' cosines are computed once per position.
func (c *Constant) rotation(dims Dims, compute tensor.DType) ([]float32, error) {
	shape, err := evalShape(c.Shape, dims)
	if err != nil {
		return nil, err
	}
	width := shape[1]
	out := make([]float32, 0, shape[0]*width)
	for _, p := range c.Positions {
		grid, err := evalShape(p.Grid, dims)
		if err != nil {
			return nil, err
		}
		if slices.Contains(grid, 0) {
			continue
		}
		starts, err := p.starts(dims)
		if err != nil {
			return nil, err
		}
		tables := make([][]float32, len(c.Axes))
		for a, d := range c.Axes {
			extent := int64(1)
			if p.Axes[a] >= 0 {
				extent = grid[p.Axes[a]]
			}
			tables[a] = c.axisTable(starts[a], extent, d, compute)
		}
		index := make([]int64, len(grid))
		for {
			for a, d := range c.Axes {
				pos := int64(0)
				if p.Axes[a] >= 0 {
					pos = index[p.Axes[a]]
				}
				out = append(out, tables[a][pos*d/2:(pos+1)*d/2]...)
			}
			if !advance(index, grid) {
				break
			}
		}
	}
	return out, nil
}

// starts are the positions along each axis at which a stretch begins.
func (p *Positions) starts(dims Dims) ([]int64, error) {
	out := make([]int64, len(p.Axes))
	for a, e := range p.Start {
		n, err := e.Eval(dims)
		if err != nil {
			return nil, err
		}
		out[a] = n
	}
	return out, nil
}

// advance counts index up over grid, last dimension fastest.
func advance(index []int64, grid tensor.Shape) bool {
	for i := len(grid) - 1; i >= 0; i-- {
		if index[i]++; index[i] < grid[i] {
			return true
		}
		index[i] = 0
	}
	return false
}

// axisTable is [extent, d/2]: the cosine or sine of pos·theta^(-2j/d), pos
// counted from start.
func (c *Constant) axisTable(start, extent, d int64, compute tensor.DType) []float32 {
	omega := make([]float64, d/2)
	for j := range omega {
		omega[j] = 1 / numeric.Pow(c.Theta, float64(2*j)/float64(d))
	}
	t := make([]float32, 0, extent*d/2)
	for i := range extent {
		pos := start + i
		at := float64(pos)
		if c.RoundPositions && compute == tensor.BF16 {
			at = float64(tensor.F32FromBF16(tensor.BF16FromF32(float32(pos))))
		}
		for _, w := range omega {
			sin, cos := numeric.Sincos(at * w)
			if c.Recipe == RopeCos {
				t = append(t, float32(cos))
			} else {
				t = append(t, float32(sin))
			}
		}
	}
	return t
}
