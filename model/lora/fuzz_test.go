// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

// FuzzHeader takes lines "name dtype shape": whatever a header says, parsing
// and matching end, and a model that takes the file is valid.
func FuzzHeader(f *testing.F) {
	for _, seed := range []string{
		"double_blocks.0.img_attn.qkv.lora_A.weight F32 4,64\ndouble_blocks.0.img_attn.qkv.lora_B.weight F32 192,4\ndouble_blocks.0.img_attn.qkv.lora_B.bias F32 192",
		"lora_unet_single_blocks_1_linear2.lora_down.weight BF16 4,320\nlora_unet_single_blocks_1_linear2.lora_up.weight BF16 64,4\nlora_unet_single_blocks_1_linear2.alpha BF16 ",
		"transformer.norm_out.linear.lora_A.weight F16 4,64\ntransformer.norm_out.linear.lora_B.weight F16 128,4",
		"img_in.lora_A.weight F32 4,128\nimg_in.lora_B.weight F32 64,4\nsingle_blocks.0.norm.key_norm.scale F32 32",
		"diffusion_model.txt_in.diff F32 64,64\ndiffusion_model.final_layer.linear.set_weight F32 64,64",
		"x.lokr_w1 F32 8,8\nlora_te1_x.alpha F32 ",
	} {
		f.Add(seed)
	}
	params := arch.Flux{
		Channels: 16, Hidden: 64, Heads: 2, MLP: 256, Context: 64, Vector: 64,
		Double: 2, Single: 2, Axes: []int64{8, 12, 12}, Guidance: true,
	}
	base := lora.Base{Graph: params.Build(arch.Options{}), Params: params, Stored: map[string]tensor.DType{}}
	f.Fuzz(func(t *testing.T, text string) {
		var tensors []lora.Tensor
		for line := range strings.Lines(text) {
			fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
			if len(fields) != 3 || len(tensors) > 64 {
				continue
			}
			d, err := tensor.ParseDType(fields[1])
			if err != nil {
				continue
			}
			x := lora.Tensor{Name: fields[0], DType: d}
			for n := range strings.SplitSeq(fields[2], ",") {
				if v, err := strconv.ParseInt(n, 10, 64); err == nil {
					x.Shape = append(x.Shape, v)
				}
			}
			tensors = append(tensors, x)
		}
		parsed, err := lora.Parse(tensors)
		if err != nil {
			return
		}
		patch := lora.Match(base.Graph, params, parsed)
		named := len(parsed.Loose)
		for _, c := range parsed.Changes {
			named += len(c.Keys)
		}
		if named != len(tensors) {
			t.Fatalf("%d of %d tensors are accounted for", named, len(tensors))
		}
		for _, mode := range []lora.Mode{lora.Add, lora.Merge} {
			m, err := lora.Apply(base, tensor.BF16, []lora.Use{{Name: "f", Patch: patch, Mode: mode, Strength: 1}})
			if err != nil {
				continue
			}
			if err := graph.Validate(m.Graph); err != nil {
				t.Fatal(err)
			}
		}
	})
}
