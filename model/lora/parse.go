// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// Architecture is what records of LoRA files have in the place of a model's.
const Architecture = "lora"

// Tensor is what a file's header says of one tensor.
type Tensor struct {
	Name  string
	DType tensor.DType
	Shape tensor.Shape
}

// Role is what a tensor is to the layer that its name begins with.
type Role string

// The roles that are understood. A pair Up [n,r], Down [r,k] means a difference
// Alpha/r·Up·Down, Diff and DiffBias one of the weight's or bias's shape; Set
// replaces a weight whatever the strength; Reshape announces a larger weight.
const (
	Down     Role = "down"
	Up       Role = "up"
	Alpha    Role = "alpha"
	Diff     Role = "diff"
	DiffBias Role = "diff_b"
	Set      Role = "set"
	Reshape  Role = "reshape"
)

// Change is what a file has for one layer.
type Change struct {
	Layer   string // as in the file, its prefix included
	Tensors map[Role]Tensor
	// Kind is what the layer is changed by, when that is not supported: "LoHa",
	// "DoRA".
	Kind string
	Keys []string // all of its tensors, in order of name
}

// File is a parsed header.
type File struct {
	Changes []Change // in order of the layer's name
	Style   string   // the key style, for people: "kohya", "diffusers", "ComfyUI", "BFL", "client"
	Rank    int64    // the largest
	Loose   []Tensor // tensors whose names end as no difference does, or that no patch has
	// Patches are set instead of Changes for a file that lists them.
	Patches []WeightPatch
}

// Bounds on a header, which a reader has bounded already.
const (
	maxTensors = 100_000
	maxRank    = 1 << 13
)

type ending struct {
	text string
	role Role
	kind string // of what is not supported
}

// endings are what names of differences end in, longest first where one ends
// another (ComfyUI comfy/weight_adapter, comfy/lora.py; lycoris).
func endings() []ending {
	return []ending{
		{".lora_up.weight", Up, ""}, {".lora_down.weight", Down, ""},
		{"_lora.up.weight", Up, ""}, {"_lora.down.weight", Down, ""},
		{".lora_B.default.weight", Up, ""}, {".lora_A.default.weight", Down, ""},
		{".lora_B.weight", Up, ""}, {".lora_A.weight", Down, ""},
		{".lora.up.weight", Up, ""}, {".lora.down.weight", Down, ""},
		{".lora_linear_layer.up.weight", Up, ""}, {".lora_linear_layer.down.weight", Down, ""},
		{".lora_B.bias", DiffBias, ""},
		{".lora_B", Up, ""}, {".lora_A", Down, ""},
		{".alpha", Alpha, ""},
		{".diff_b", DiffBias, ""}, {".diff", Diff, ""},
		{".b_norm", DiffBias, ""}, {".w_norm", Diff, ""},
		{".set_weight", Set, ""}, {".reshape_weight", Reshape, ""},
		{".lora_mid.weight", "", "a convolution's LoRA (lora_mid)"},
		{".dora_scale", "", "DoRA"}, {".lora_magnitude_vector", "", "DoRA"}, {".lora_magnitude_vector.weight", "", "DoRA"},
		{".hada_w1_a", "", "LoHa"}, {".hada_w1_b", "", "LoHa"}, {".hada_w2_a", "", "LoHa"}, {".hada_w2_b", "", "LoHa"},
		{".hada_t1", "", "LoHa"}, {".hada_t2", "", "LoHa"},
		{".lokr_w1", "", "LoKr"}, {".lokr_w2", "", "LoKr"}, {".lokr_w1_a", "", "LoKr"}, {".lokr_w1_b", "", "LoKr"},
		{".lokr_w2_a", "", "LoKr"}, {".lokr_w2_b", "", "LoKr"}, {".lokr_t2", "", "LoKr"},
		{".a1.weight", "", "GLoRA"}, {".a2.weight", "", "GLoRA"}, {".b1.weight", "", "GLoRA"}, {".b2.weight", "", "GLoRA"},
		{".oft_blocks", "", "OFT"}, {".oft_diag", "", "OFT"}, {".rescale", "", "OFT"},
	}
}

// Looks says whether names are those of a LoRA file: one in them ends as a
// difference does.
func Looks(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		_, e := cut(name)
		return e.text != "" && e.role != Alpha && e.role != Reshape
	})
}

// cut takes a known ending off a name; its text is empty where there is none.
func cut(name string) (layer string, e ending) {
	for _, e := range endings() {
		if layer, ok := strings.CutSuffix(name, e.text); ok && layer != "" {
			return layer, e
		}
	}
	return name, ending{}
}

// Parse groups the tensors of a header by the layer that they change. The error
// says why the file is no LoRA.
func Parse(tensors []Tensor) (*File, error) {
	if len(tensors) > maxTensors {
		return nil, fmt.Errorf("%d tensors, at most %d", len(tensors), maxTensors)
	}
	sorted := slices.SortedFunc(slices.Values(tensors), func(a, b Tensor) int { return cmp.Compare(a.Name, b.Name) })
	f := &File{}
	at := map[string]int{}
	found := false
	for _, t := range sorted {
		layer, e := cut(t.Name)
		if e.text == "" {
			f.Loose = append(f.Loose, t)
			continue
		}
		found = found || e.role != Alpha
		i, ok := at[layer]
		if !ok {
			i = len(f.Changes)
			at[layer] = i
			f.Changes = append(f.Changes, Change{Layer: layer, Tensors: map[Role]Tensor{}})
		}
		c := &f.Changes[i]
		c.Keys = append(c.Keys, t.Name)
		switch _, twice := c.Tensors[e.role]; {
		case e.kind != "":
			c.Kind = e.kind
		case twice:
			return nil, fmt.Errorf("layer %s has two tensors for its %s, %s and %s", quote(layer), e.role, quote(c.Tensors[e.role].Name), quote(t.Name))
		default:
			c.Tensors[e.role] = t
		}
		if e.role == Down && len(t.Shape) > 0 {
			f.Rank = max(f.Rank, t.Shape[0])
		}
	}
	if !found {
		return nil, fmt.Errorf("no tensor is named as one of a LoRA")
	}
	slices.SortFunc(f.Changes, func(a, b Change) int { return cmp.Compare(a.Layer, b.Layer) })
	f.Style = f.style()
	return f, nil
}

func (f *File) style() string {
	for _, s := range []struct{ prefix, style string }{
		{"lora_unet_", "kohya"}, {"lora_transformer_", "OneTrainer"}, {"lycoris_", "LyCORIS"},
		{"diffusion_model.", "ComfyUI"}, {"model.diffusion_model.", "ComfyUI"},
		{"transformer.", "diffusers"}, {"base_model.model.", "PEFT"},
	} {
		if slices.ContainsFunc(f.Changes, func(c Change) bool { return strings.HasPrefix(c.Layer, s.prefix) }) {
			return s.style
		}
	}
	if slices.ContainsFunc(f.Changes, func(c Change) bool { return strings.Contains(c.Layer, "transformer_blocks.") }) {
		return "diffusers"
	}
	return "BFL"
}

// quote makes a name from a file safe and short enough to print.
func quote(name string) string {
	const limit = 120
	if len(name) > limit {
		name = name[:limit] + "…"
	}
	return fmt.Sprintf("%q", name)
}
