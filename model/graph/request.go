// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

// DigestBytes is the length of a conditioning's digest.
const DigestBytes = 32

// PerStep says whether a request input changes with every step. All others are
// conditioning: they stay the same over the steps of one branch and are sent
// once.
func PerStep(name string) bool { return name == "x" || name == "timestep" || name == LoRAStrength }

// LoRAStrength is the input [L] f32 of a model whose linears L LoRAs change:
// what each is multiplied by in this forward.
const LoRAStrength = "lora.strength"

// StepLayout is what a client sends to the first stage for every forward: the
// per-step inputs and, behind them at offset digest, the digest of the
// conditioning that the forward uses.
func StepLayout(p *Program) (l Layout, digest int64) {
	l = layout(p.inputs(true))
	digest = int64(l.Bytes)
	l.Bytes += aligned(DigestBytes)
	return l, digest
}

// ConditioningLayout is what a client sends once for each branch of a run.
func ConditioningLayout(p *Program) Layout { return layout(p.inputs(false)) }

func (p *Program) inputs(perStep bool) []Tensor {
	var out []Tensor
	for _, t := range p.Inputs {
		if PerStep(t.Name) == perStep {
			out = append(out, t)
		}
	}
	return out
}
