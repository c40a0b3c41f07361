// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

import "github.com/distorch/distorch/model/numeric"

// Levels is the noise schedule a flow model was trained with: sigma as a
// function of time, tabulated. Build it with FluxLevels or DiscreteFlowLevels.
type Levels struct {
	table      []float32 // sigma at 1/n, 2/n, …, 1
	sigma      func(t float64) float64
	multiplier float64
}

// DefaultFluxShift is mu of FLUX.1-dev, at every resolution unless a
// ModelSamplingFlux node says otherwise.
const DefaultFluxShift = 1.15

// FluxShift is mu for an image of that size in pixels, as the ModelSamplingFlux
// node computes it: linear in the number of tokens (16x16 pixels each),
// baseShift at 256 of them and maxShift at 4096. The node's defaults are 0.5
// and 1.15.
func FluxShift(width, height int, baseShift, maxShift float64) float64 {
	slope := (maxShift - baseShift) / (4096 - 256)
	offset := baseShift - float64(slope*256)
	return float64(float64(width)*float64(height)/(8*8*2*2)*slope) + offset
}

// FluxLevels is FLUX.1-dev's sigma(t) = e^mu / (e^mu + 1/t - 1), 10,000 levels
// (ModelSamplingFlux).
func FluxLevels(mu float64) *Levels {
	e := numeric.Exp(mu)
	return newLevels(10_000, 1, func(t float64) float64 { return e / (e + (1/t - 1)) })
}

// DiscreteFlowLevels is sigma(t) = shift*t / (1 + (shift-1)*t), 1,000 levels
// (ModelSamplingDiscreteFlow); FLUX.1-schnell has shift 1 and multiplier 1.
// The model is given sigma*multiplier as its timestep.
func DiscreteFlowLevels(shift, multiplier float64) *Levels {
	return newLevels(1000, multiplier, func(t float64) float64 {
		return float64(shift*t) / (1 + float64((shift-1)*t))
	})
}

func newLevels(n int, multiplier float64, sigma func(float64) float64) *Levels {
	l := &Levels{table: make([]float32, n), sigma: sigma, multiplier: multiplier}
	for i := range l.table {
		t := float32(i+1) / float32(n)
		l.table[i] = float32(sigma(float64(t)))
	}
	return l
}

// Timestep is what the model is given as time at that sigma.
func (l *Levels) Timestep(sigma float32) float32 { return sigma * float32(l.multiplier) }

// Min is the smallest sigma of the table.
func (l *Levels) Min() float32 { return l.table[0] }

// Max is the largest sigma; 1 for a flow model.
func (l *Levels) Max() float32 { return l.table[len(l.table)-1] }

// at is sigma of a timestep, which may lie between two levels.
func (l *Levels) at(timestep float64) float32 { return float32(l.sigma(timestep / l.multiplier)) }
