// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"slices"
	"strings"
)

// family is a kind of file that this build knows by name alone. A marker that
// ends in a dot or underscore is a prefix of names, one that begins with a dot
// the end of names, any other a whole name.
type family struct {
	name    string
	markers []string // all must be present
	alone   bool     // the name says what to do; the nearest architecture adds nothing
}

// families are tested in this order (after ComfyUI's model_detection.py).
func families() []family {
	return []family{
		{"a LoRA, which goes on top of a model and is none (deploy --lora)", []string{"lora_"}, true},
		{"a LoRA, which goes on top of a model and is none (deploy --lora)", []string{".lora_A.weight"}, true},
		{"a LoRA, which goes on top of a model and is none (deploy --lora)", []string{".lora_down.weight"}, true},
		{"FLUX.2", []string{"double_stream_modulation_img."}, false},
		{"Chroma", []string{"distilled_guidance_layer."}, false},
		{"HunyuanVideo", []string{"txt_in.individual_token_refiner."}, false},
		{"Stable Diffusion 3", []string{"joint_blocks."}, false},
		{"Qwen-Image", []string{"txt_norm.weight", "transformer_blocks."}, false},
		{"WAN", []string{"head.modulation"}, false},
		{"Mochi", []string{"t5_yproj.weight"}, false},
		{"LTX-Video", []string{"adaln_single.emb.timestep_embedder.linear_1.bias"}, false},
		{"Z-Image or Lumina 2", []string{"cap_embedder.1.weight"}, false},
		{"HiDream", []string{"caption_projection.0.linear.weight"}, false},
		{"SDXL", []string{"input_blocks.", "label_emb."}, false},
		{"Stable Diffusion 1.x or 2.x", []string{"input_blocks.", "output_blocks."}, false},
		{"a Stable Diffusion model under diffusers names", []string{"down_blocks.", "up_blocks."}, false},
		{"a FLUX ControlNet", []string{"controlnet_blocks."}, false},
		{"a T5 text encoder", []string{"encoder.block.0.", "shared.weight"}, false},
		{"a CLIP text encoder", []string{"text_model."}, false},
		{"a language model", []string{"model.layers."}, false},
		{"a language model or text encoder under llama.cpp's names", []string{"token_embd.weight"}, true},
		{"a VAE", []string{"decoder.conv_in.weight"}, false},
	}
}

func (f family) matches(names []string) bool {
	for _, m := range f.markers {
		has := func(n string) bool {
			switch {
			case strings.HasPrefix(m, "."):
				return strings.HasSuffix(n, m)
			case strings.HasSuffix(m, ".") || strings.HasSuffix(m, "_"):
				return strings.HasPrefix(n, m)
			}
			return n == m
		}
		if !slices.ContainsFunc(names, has) {
			return false
		}
	}
	return true
}

// refuseFamily names what the file is, if it is something known, and the
// nearest supported architecture with what differs.
func refuseFamily(own map[string]Tensor) error {
	names := sortedKeys(own)
	nearest := nearestFlux(names)
	for _, f := range families() {
		if f.matches(names) && f.alone {
			return unsupported("family", "this is %s", f.name)
		}
		if f.matches(names) {
			return unsupported("family", "this is %s; %s", f.name, nearest)
		}
	}
	return unsupported("family", "unknown architecture (%d tensors: %s); %s", len(names), list(names), nearest)
}

// nearestFlux compares the kinds of names (block numbers taken out) with those
// of FLUX.1, the one architecture of this build.
func nearestFlux(names []string) string {
	want := fluxKinds()
	have := kinds(names)
	missing, extra := difference(want, have), difference(have, want)
	shared := len(want) - len(missing)
	if shared == 0 {
		return "of the supported architectures FLUX.1 is the nearest, and they share no tensor name"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the nearest supported architecture is FLUX.1, with %d of its %d kinds of tensors present", shared, len(want))
	if len(missing) > 0 {
		fmt.Fprintf(&b, "; missing: %s", list(missing))
	}
	if len(extra) > 0 {
		fmt.Fprintf(&b, "; instead there are: %s", list(extra))
	}
	return b.String()
}

// fluxKinds are the kinds of tensors that every FLUX.1 file has.
func fluxKinds() []string {
	f := Flux{Channels: 16, Hidden: 64, Heads: 2, MLP: 256, Context: 64, Vector: 64, Double: 1, Single: 1, Axes: []int64{8, 12, 12}}
	return kinds(sortedKeys(f.weights()))
}

// kinds replaces every number between dots by {i} and drops duplicates. The
// numbers of FLUX.1's inner layers go the same way on both sides.
func kinds(names []string) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		parts := strings.Split(n, ".")
		for i, p := range parts {
			if p != "" && strings.Trim(p, "0123456789") == "" && i == 1 {
				parts[i] = "{i}"
			}
		}
		out = append(out, strings.Join(parts, "."))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// difference is a without b, both sorted.
func difference(a, b []string) []string {
	var out []string
	for _, n := range a {
		if _, found := slices.BinarySearch(b, n); !found {
			out = append(out, n)
		}
	}
	return out
}
