// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

import (
	"math"

	"github.com/distorch/distorch/model/numeric"
)

// Noise draws what torch.randn draws on the CPU in float32 after
// torch.manual_seed(seed), within 5e-7 of the largest value.
type Noise struct {
	bits   *twister
	spare  float64
	stored bool
}

// NewNoise seeds a generator. Like torch's, it uses the low 32 bits alone.
func NewNoise(seed uint64) *Noise { return &Noise{bits: newTwister(uint32(seed))} }

// Randn is n values of unit normal noise for a seed: a latent [B,C,H,W] takes
// B*C*H*W of them, row-major.
func Randn(seed uint64, n int) []float32 {
	out := make([]float32, n)
	NewNoise(seed).Fill(out)
	return out
}

// block is how many values torch's vectorised Box-Muller makes at once.
const block = 16

// Fill draws len(dst) values. As in torch, 16 values and more are drawn by
// another rule than fewer (ATen/native/cpu/DistributionTemplates.h): uniform
// numbers for all, then Box-Muller within blocks of 16; a last partial block
// draws its 16 numbers anew.
func (g *Noise) Fill(dst []float32) {
	if len(dst) < block {
		for i := range dst {
			dst[i] = float32(g.normal())
		}
		return
	}
	for i := range dst {
		dst[i] = g.uniform32()
	}
	for i := 0; i+block <= len(dst); i += block {
		boxMuller((*[block]float32)(dst[i:]))
	}
	if len(dst)%block != 0 {
		last := (*[block]float32)(dst[len(dst)-block:])
		for i := range last {
			last[i] = g.uniform32()
		}
		boxMuller(last)
	}
}

// uniform32 is in [0,1) with 24 bits.
func (g *Noise) uniform32() float32 {
	return float32(g.bits.uint32()&(1<<24-1)) * 0x1p-24
}

// uniform64 is in [0,1) with 53 bits.
func (g *Noise) uniform64() float64 {
	hi := uint64(g.bits.uint32())
	lo := uint64(g.bits.uint32())
	return float64((hi<<32|lo)&(1<<53-1)) * 0x1p-53
}

// boxMuller turns 16 uniform numbers into normal ones, rounding where the
// float32 code does.
func boxMuller(v *[block]float32) {
	for j := range block / 2 {
		u := 1 - v[j]
		square := -2 * float32(numeric.Log(float64(u)))
		radius := float32(math.Sqrt(float64(square)))
		theta := float32(2*math.Pi) * v[j+block/2]
		sin, cos := numeric.Sincos(float64(theta))
		v[j] = radius * float32(cos)
		v[j+block/2] = radius * float32(sin)
	}
}

// normal is one value by the scalar rule, which makes two and keeps one.
func (g *Noise) normal() float64 {
	if g.stored {
		g.stored = false
		return g.spare
	}
	u1, u2 := g.uniform64(), g.uniform64()
	radius := math.Sqrt(-2 * numeric.Log(1-u2))
	sin, cos := numeric.Sincos(2 * math.Pi * u1)
	g.spare, g.stored = float64(radius*sin), true
	return float64(radius * cos)
}
