// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch_test

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/tensor"
)

// scaled is FLUX.1 dev in fp8 with scales for one weight under the given names.
func scaled(add map[string]arch.Tensor) map[string]arch.Tensor {
	out := published(fluxDev(), tensor.F8E4M3)
	maps.Copy(out, add)
	return out
}

func TestScalesOfFP8Files(t *testing.T) {
	one := arch.Tensor{DType: tensor.F32}
	row := arch.Tensor{DType: tensor.F32, Shape: tensor.Shape{1}}
	marker := arch.Tensor{DType: tensor.F8E4M3, Shape: tensor.Shape{0}}
	const formats = `{"format_version":"1.0","layers":{"img_in":{"format":"float8_e4m3fn"}}}`
	for _, c := range []struct {
		name     string
		add      map[string]arch.Tensor
		metadata map[string]string
		scale    string
	}{
		{"older names", map[string]arch.Tensor{"scaled_fp8": marker, "img_in.scale_weight": one, "img_in.scale_input": one}, nil, "img_in.scale_weight"},
		{"newer names", map[string]arch.Tensor{"img_in.weight_scale": row, "img_in.input_scale": row}, map[string]string{"_quantization_metadata": formats}, "img_in.weight_scale"},
		{"a marker alone", map[string]arch.Tensor{"scaled_fp8": marker}, nil, ""},
	} {
		r, err := arch.Recognise(scaled(c.add), c.metadata)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := arch.Source{Slices: []arch.Slice{{Tensor: "img_in.weight"}}, Scale: c.scale}
		if d := cmp.Diff(want, r.Source("img_in.weight")); d != "" || len(r.Unknown) != 0 || len(r.Stored) != 780 {
			t.Errorf("%s: %s unknown %v, %d stored", c.name, d, r.Unknown, len(r.Stored))
		}
		if s := r.Source("txt_in.weight"); s.Scale != "" {
			t.Errorf("%s: txt_in has scale %s", c.name, s.Scale)
		}
	}
}

func TestScalesBehindAPrefix(t *testing.T) {
	tensors := map[string]arch.Tensor{}
	for name, x := range scaled(map[string]arch.Tensor{"img_in.scale_weight": {DType: tensor.F32}}) {
		tensors["model.diffusion_model."+name] = x
	}
	r, err := arch.Recognise(tensors, nil)
	if err != nil {
		t.Fatal(err)
	}
	const p = "model.diffusion_model.img_in."
	want := arch.Source{Slices: []arch.Slice{{Tensor: p + "weight"}}, Scale: p + "scale_weight"}
	if d := cmp.Diff(want, r.Source("img_in.weight")); d != "" {
		t.Error(d)
	}
}

func TestRefusesScalesOfOtherKinds(t *testing.T) {
	one := arch.Tensor{DType: tensor.F32}
	for _, c := range []struct {
		name     string
		add      map[string]arch.Tensor
		metadata map[string]string
		kind     error
		message  string
	}{
		{"a scale per row", map[string]arch.Tensor{"img_in.weight_scale": {DType: tensor.F32, Shape: tensor.Shape{3072, 1}}}, nil, arch.ErrNotSupported, `scale "img_in.weight_scale" is F32 [3072,1]: must be one F32`},
		{"scales of scales", map[string]arch.Tensor{"img_in.weight_scale_2": one}, nil, arch.ErrNotSupported, "img_in.weight_scale_2"},
		{"two scales", map[string]arch.Tensor{"img_in.weight_scale": one, "img_in.scale_weight": one}, nil, arch.ErrMalformed, `"img_in.weight" has two scales`},
		{"no weight", map[string]arch.Tensor{"img_out.scale_weight": one}, nil, arch.ErrMalformed, `without "img_out.weight"`},
		{"a scaled F16", map[string]arch.Tensor{"img_in.scale_weight": one, "img_in.weight": {DType: tensor.F16, Shape: tensor.Shape{3072, 64}}}, nil, arch.ErrMalformed, "stored as F16"},
		{"another format", nil, map[string]string{"_quantization_metadata": `{"layers":{"img_in":{"format":"nvfp4"}}}`}, arch.ErrNotSupported, `layer "img_in" is quantised as "nvfp4"`},
		{"no JSON", nil, map[string]string{"_quantization_metadata": "{"}, arch.ErrMalformed, "is not JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := arch.Recognise(scaled(c.add), c.metadata)
			refused(t, err, c.kind, "fp8-scaled", c.message)
		})
	}
}

func TestGGUFTypesAreReadable(t *testing.T) {
	tensors := published(fluxDev(), tensor.F32)
	x := tensors["double_blocks.0.img_attn.qkv.weight"]
	x.DType = tensor.Q4_K
	tensors["double_blocks.0.img_attn.qkv.weight"] = x
	r, err := arch.Recognise(tensors, map[string]string{"general.architecture": "flux"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Stored["double_blocks.0.img_attn.qkv.weight"]; got != tensor.Q4_K {
		t.Errorf("stored as %v", got)
	}
	tensors["img_in.weight"] = arch.Tensor{Shape: tensor.Shape{3072, 64}, DType: tensor.Q4_K} // came reshaped
	_, err = arch.Recognise(tensors, nil)
	refused(t, err, arch.ErrNotSupported, "dtype", "rows are not made of whole blocks of 256")
}

func TestGoldenScaledFP8(t *testing.T) {
	runGolden(t, filepath.Join("testdata", "golden", "flux", "fp8-scaled"))
}

func TestScalesUnderDiffusersNames(t *testing.T) {
	one := arch.Tensor{DType: tensor.F32}
	tensors := diffusers(fluxDev(), tensor.F8E4M3)
	tensors["proj_out.scale_weight"] = one
	tensors["norm_out.linear.scale_weight"] = one // whose halves are swapped
	r, err := arch.Recognise(tensors, nil)
	if err != nil {
		t.Fatal(err)
	}
	for weight, scale := range map[string]string{
		"final_layer.linear.weight": "proj_out.scale_weight", "final_layer.adaLN_modulation.1.weight": "norm_out.linear.scale_weight", "img_in.weight": "",
	} {
		if got := r.Source(weight).Scale; got != scale {
			t.Errorf("%s has scale %q, want %q", weight, got, scale)
		}
	}
	tensors["transformer_blocks.0.attn.to_k.scale_weight"] = one
	_, err = arch.Recognise(tensors, nil)
	refused(t, err, arch.ErrNotSupported, "fp8-scaled", `"transformer_blocks.0.attn.to_k.weight" is a part of a weight`)
}
