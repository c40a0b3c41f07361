// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"encoding/json"
	"fmt"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// HyperParameters are an architecture's numbers by name, as JSON.
func HyperParameters(p Params) (map[string]string, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("hyper-parameters: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("hyper-parameters: %w", err)
	}
	out := make(map[string]string, len(fields))
	for name, v := range fields {
		out[name] = string(v)
	}
	return out, nil
}

// ParamsOf reads hyper-parameters as HyperParameters writes them.
func ParamsOf(arch string, values map[string]string) (Params, error) {
	if arch != (Flux{}).Arch() {
		return nil, fmt.Errorf("architecture %s: its hyper-parameters are not known to this build", quote(arch))
	}
	fields := make(map[string]json.RawMessage, len(values))
	for name, v := range values {
		fields[name] = json.RawMessage(v)
	}
	var f Flux
	b, err := json.Marshal(fields)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return nil, fmt.Errorf("hyper-parameters of %s: %.200w", arch, err)
	}
	if f.Hidden < 1 || f.Heads < 1 || f.Hidden > fluxMaxWidth || f.Double < 1 || f.Single < 1 || f.Double > fluxMaxBlocks || f.Single > fluxMaxBlocks || f.Hidden%f.Heads != 0 {
		return nil, fmt.Errorf("hyper-parameters of %s: %d wide, %d heads, %d and %d blocks", arch, f.Hidden, f.Heads, f.Double, f.Single)
	}
	if err := graph.Validate(f.Build(Options{})); err != nil {
		return nil, fmt.Errorf("hyper-parameters of %s: %w", arch, err)
	}
	return f, nil
}

// Widen is the model with a larger input layer, as a LoRA makes it (BFL's
// control LoRAs: dev becomes Control).
func (f Flux) Widen(weight string, to tensor.Shape) (Params, error) {
	if weight != "img_in.weight" || len(to) != 2 || to[0] != f.Hidden {
		return nil, unsupported("variant", "weight %s cannot become %v", quote(weight), to)
	}
	if err := f.channels(to[1], f.Channels*fluxPatch*fluxPatch); err != nil {
		return nil, err
	}
	return f, nil
}
