// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

// LoRA is a file on a deployment's model.
type LoRA struct {
	ID, Name string
	Mode     lora.Mode
	Strength float32
	Layers   int      // of a plan: applied
	Notes    []string // of a plan: what of the file is not applied
	// Params are, of a plan, the model's hyper-parameters that are others with it.
	Params map[string]string
	// Brought by a client: coordinators keep the file and give it to every node.
	Brought bool
}

// Bounds on what a plan repeats of a file.
const (
	maxNotes     = 16
	maxNoteBytes = 400
)

// WithLoRAs is a model with LoRAs on it, as agents run it, with the LoRAs as a
// plan lists them and what the numerics class gets as a suffix.
func WithLoRAs(m *Model, known func(id string) *Model, loras []LoRA, dtype string) (*Model, []LoRA, string, error) {
	if len(loras) == 0 {
		return m, nil, "", nil
	}
	compute, err := tensor.ParseDType(strings.ToUpper(dtype))
	if err != nil {
		return nil, nil, "", fmt.Errorf("compute dtype %q: use f32 or bf16", dtype)
	}
	params, err := arch.ParamsOf(m.Arch, m.Params)
	if err != nil {
		return nil, nil, "", fmt.Errorf("LoRAs on model %s: %w", m.Name, err)
	}
	out := slices.Clone(loras)
	uses := make([]lora.Use, len(loras))
	for i := range out {
		l := &out[i]
		file := known(l.ID)
		if file == nil || file.LoRA == nil {
			return nil, nil, "", fmt.Errorf("no node has the LoRA %s; put the file into a folder of models.dirs and start its agent again", l.Name)
		}
		p := lora.Match(m.Graph, params, file.LoRA)
		uses[i] = lora.Use{Name: l.Name, Patch: p, Mode: l.Mode, Strength: l.Strength}
		l.Layers, l.Notes = p.Layers, notes(p)
	}
	with, err := lora.Apply(lora.Base{Graph: m.Graph, Params: params, Stored: m.Stored}, compute, uses)
	if err != nil {
		return nil, nil, "", err
	}
	if err := otherParams(m, with.Params, uses, out); err != nil {
		return nil, nil, "", err
	}
	changed := *m
	changed.Graph, changed.Stored = with.Graph, with.Stored
	return &changed, out, with.Suffix, nil
}

// otherParams says of the LoRA that makes the model another variant which
// hyper-parameters change.
func otherParams(m *Model, p arch.Params, uses []lora.Use, out []LoRA) error {
	for i := range uses {
		if len(uses[i].Patch.Wider) == 0 {
			continue
		}
		now, err := arch.HyperParameters(p)
		if err != nil {
			return err
		}
		out[i].Params = map[string]string{}
		for name, v := range now {
			if m.Params[name] != v {
				out[i].Params[name] = v
			}
		}
	}
	return nil
}

// notes are what of a file is not applied, as text.
func notes(p *lora.Patch) (out []string) {
	for i, n := range p.Unused {
		if i == maxNotes {
			return append(out, fmt.Sprintf("and %d more layers", len(p.Unused)-i))
		}
		text := n.String()
		if len(text) > maxNoteBytes {
			text = strings.ToValidUTF8(text[:maxNoteBytes], "") + "…"
		}
		out = append(out, text)
	}
	return out
}

// lacks is a LoRA of the deployment whose file a node has not.
func (w *world) lacks(node string, spec *Spec) string {
	for _, l := range spec.LoRAs {
		if !l.Brought && !w.holds[Holder{Model: l.ID, Node: node}] {
			return l.Name
		}
	}
	return ""
}
