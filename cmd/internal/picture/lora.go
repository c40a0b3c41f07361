// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

// LoRA is the strength of one of the deployment's LoRAs: First in the first
// step, Last in the last one, evenly between.
type LoRA struct {
	Name, ID    string
	First, Last float64
}

// strengths are those of a step, from 0, by id.
func (r Request) strengths(step int) map[string]float32 {
	if len(r.LoRAs) == 0 {
		return nil
	}
	out := map[string]float32{}
	for _, l := range r.LoRAs {
		s := l.First
		if r.Steps > 1 {
			s += (l.Last - l.First) * float64(step) / float64(r.Steps-1)
		}
		out[l.ID] = float32(s)
	}
	return out
}

// changing are the strengths of a step where it may have others than the run.
func (r Request) changing(step int) map[string]float32 {
	for _, l := range r.LoRAs {
		if l.First != l.Last {
			return r.strengths(step)
		}
	}
	return nil
}
