// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch_test

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

func TestRefusesBadModels(t *testing.T) {
	for _, c := range []struct {
		file, reason, message string
		kind                  error
	}{
		{"tensor-missing", "tensor-missing", `FLUX.1 without "double_blocks.0.img_mlp.2.bias"`, arch.ErrMalformed},
		{"tensor-shape", "tensor-shape", "tensor single_blocks.0.linear2.weight is [16,64], must be [16,80]", arch.ErrMalformed},
		{"block-gap", "block-gap", "single_blocks.1 is missing, but there is single_blocks.2", arch.ErrMalformed},
		{"axes-sum", "axes-sum", `metadata axes_dim "2,2,2" adds up to 6, must be the head size 8`, arch.ErrMalformed},
		{"axes-odd", "axes-odd", `metadata axes_dim "3,1,4": every axis must be even`, arch.ErrMalformed},
		{"axes-text", "axes-text", `metadata axes_dim "a,b,c" must be three numbers`, arch.ErrMalformed},
		{"axes-unknown", "axes-unknown", "add the metadata key axes_dim", arch.ErrMalformed},
		{"heads", "heads", "head size 12 (length of query_norm.scale) does not divide the hidden size 16", arch.ErrMalformed},
		{"foreign", "family", "this is a T5 text encoder", arch.ErrNotSupported},
		{"lora-alone", "family", "this is a LoRA", arch.ErrNotSupported},
		{"almost-flux", "family", `nearest supported architecture is FLUX.1, with 46 of its 48 kinds of tensors present; missing: "double_blocks.{i}.img_attn.qkv.bias", "double_blocks.{i}.img_attn.qkv.weight"; instead there are: "double_blocks.{i}.img_attn.to_qkv.bias"`, arch.ErrNotSupported},
	} {
		t.Run(c.file, func(t *testing.T) {
			f, tensors := openModel(t, filepath.Join("testdata", "bad", "model", c.file+".safetensors"))
			_, err := arch.Recognise(tensors, f.Metadata())
			refused(t, err, c.kind, c.reason, c.message)
		})
	}
}

func refused(t *testing.T, err, kind error, reason, message string) {
	t.Helper()
	var r *arch.Refusal
	if !errors.As(err, &r) || !errors.Is(err, kind) || r.Reason != reason || !strings.Contains(err.Error(), message) {
		t.Errorf("error %q, want %v with reason %s and %q", err, kind, reason, message)
	}
}

func TestUnknownTensorsAreReported(t *testing.T) {
	m := recognise(t, filepath.Join("testdata", "bad", "model", "tensor-unknown.safetensors"))
	if !slices.Equal(m.Unknown, []string{"double_blocks.0.img_attn.extra.weight"}) {
		t.Errorf("unknown: %v", m.Unknown)
	}
	if _, ok := m.Stored[m.Unknown[0]]; ok {
		t.Error("an unknown tensor belongs to the model")
	}
}

// published is the header of a FLUX.1 file as it is distributed.
func published(f arch.Flux, d tensor.DType) map[string]arch.Tensor {
	out := map[string]arch.Tensor{}
	m := f.Build(arch.Options{})
	add := func(ws []graph.Weight, n int64) {
		for _, w := range ws {
			for i := range n {
				out[graph.Resolve(w.Name, int(i))] = arch.Tensor{Shape: w.Shape, DType: d}
			}
		}
	}
	add(m.Head.Weights, 1)
	for _, r := range m.Runs {
		add(r.Block.Weights, r.Count)
	}
	add(m.Tail.Weights, 1)
	return out
}

func fluxDev() arch.Flux {
	return arch.Flux{
		Channels: 16, Hidden: 3072, Heads: 24, MLP: 12288, Context: 4096, Vector: 768,
		Double: 19, Single: 38, Axes: []int64{16, 56, 56}, Guidance: true,
	}
}

func TestRecognisesPublishedFiles(t *testing.T) {
	for _, guidance := range []bool{true, false} {
		want := fluxDev()
		want.Guidance = guidance
		tensors := published(want, tensor.F8E4M3)
		if n := map[bool]int{true: 780, false: 776}[guidance]; len(tensors) != n {
			t.Errorf("%d tensors, want %d", len(tensors), n)
		}
		r, err := arch.Recognise(tensors, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.Params); got != fmt.Sprint(want) || r.Prefix != "" || len(r.Stored) != len(tensors) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

func TestRecognisesFillAndControl(t *testing.T) {
	for variant, features := range map[string]int64{"FLUX.1 Fill": 384, "FLUX.1 Control (Canny, Depth)": 128} {
		want := fluxDev()
		want.Concat = features/4 - 16
		tensors := published(want, tensor.BF16)
		if s := tensors["img_in.weight"].Shape; s[1] != features {
			t.Errorf("img_in takes %d features, want %d", s[1], features)
		}
		r, err := arch.Recognise(tensors, nil)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(r.Params) != fmt.Sprint(want) || r.Variant != variant {
			t.Errorf("%s %v, want %s %v", r.Variant, r.Params, variant, want)
		}
	}
}

func TestRecognisesPrefixedFiles(t *testing.T) {
	tensors := map[string]arch.Tensor{
		"vae.decoder.conv_in.bias":            {Shape: tensor.Shape{8}, DType: tensor.F32},
		"text_encoders.clip_l.transformer.te": {Shape: tensor.Shape{8}, DType: tensor.I64},
	}
	for name, x := range published(fluxDev(), tensor.BF16) {
		tensors["model.diffusion_model."+name] = x
	}
	r, err := arch.Recognise(tensors, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Prefix != "model.diffusion_model." || len(r.Unknown) != 0 || len(r.Foreign) != 2 || len(r.Stored) != 780 || r.Variant != "FLUX.1 dev" {
		t.Errorf("prefix %q, unknown %v, foreign %v, %d stored", r.Prefix, r.Unknown, r.Foreign, len(r.Stored))
	}
}

func TestRefusesVariantsByName(t *testing.T) {
	one := func(name string, shape ...int64) map[string]arch.Tensor {
		return map[string]arch.Tensor{name: {Shape: shape, DType: tensor.BF16}}
	}
	with := func(add map[string]arch.Tensor) map[string]arch.Tensor {
		out := published(fluxDev(), tensor.BF16)
		maps.Copy(out, add)
		return out
	}
	keys := func(names ...string) map[string]arch.Tensor {
		out := map[string]arch.Tensor{}
		for _, n := range names {
			out[n] = arch.Tensor{Shape: tensor.Shape{8, 8}, DType: tensor.F16}
		}
		return out
	}
	for _, c := range []struct {
		name     string
		tensors  map[string]arch.Tensor
		metadata map[string]string
		reason   string
		message  string
	}{
		{"other channels", with(one("img_in.weight", 3072, 132)), nil, "variant", "takes 132 features and whose final_layer gives 64: must be as many (dev, schnell, Kontext), 128 (Control) or 384 (Fill)"},
		{"fewer channels in than out", with(one("img_in.weight", 3072, 32)), nil, "variant", "takes 32 features"},
		{"int8", with(map[string]arch.Tensor{"img_in.bias": {Shape: tensor.Shape{3072}, DType: tensor.I8}}), nil, "dtype", "tensor img_in.bias is stored as I8"},
		{"chroma", with(one("distilled_guidance_layer.in_proj.weight", 8, 8)), nil, "family", "this is Chroma"},
		{"hunyuan", with(one("txt_in.individual_token_refiner.blocks.0.norm1.weight", 8)), nil, "family", "this is HunyuanVideo"},
		{"flux2", with(one("double_stream_modulation_img.lin.weight", 8, 8)), nil, "family", "this is FLUX.2"},
		{"sdxl", keys("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.output_blocks.0.0.in_layers.0.weight", "model.diffusion_model.label_emb.0.0.weight", "first_stage_model.x"), nil, "family", "this is SDXL; of the supported architectures FLUX.1 is the nearest, and they share no tensor name"},
		{"sd15", keys("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.output_blocks.0.0.in_layers.0.weight"), nil, "family", "this is Stable Diffusion 1.x or 2.x"},
		{"wan", keys("head.modulation", "blocks.0.self_attn.q.weight"), nil, "family", "this is WAN"},
		{"lora", keys("double_blocks.0.img_attn.qkv.lora_A.weight"), nil, "family", "this is a LoRA"},
		{"nothing known", keys("a", "b"), nil, "family", `unknown architecture (2 tensors: "a", "b")`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := arch.Recognise(c.tensors, c.metadata)
			refused(t, err, arch.ErrNotSupported, c.reason, c.message)
		})
	}
	_, err := arch.Recognise(nil, nil)
	refused(t, err, arch.ErrMalformed, "empty", "no tensors")
}

// diffusers are the tensors of a file under diffusers names.
func diffusers(f arch.Flux, d tensor.DType) map[string]arch.Tensor {
	out := map[string]arch.Tensor{}
	shapes := f.Build(arch.Options{}).Weights()
	for name, s := range f.Diffusers() {
		for _, p := range s.Slices {
			shape := shapes[name].Clone()
			shape[0] = p.Rows
			if t, ok := out[p.Tensor]; ok {
				shape[0] += t.Shape[0]
			}
			out[p.Tensor] = arch.Tensor{Shape: shape, DType: d}
		}
	}
	return out
}

func TestRecognisesDiffusersNames(t *testing.T) {
	const prefix = "model.diffusion_model."
	for _, guidance := range []bool{true, false} {
		want := fluxDev()
		want.Guidance = guidance
		tensors := map[string]arch.Tensor{"vae.x": {Shape: tensor.Shape{1}, DType: tensor.F32}}
		for name, x := range diffusers(want, tensor.BF16) {
			tensors[prefix+name] = x
		}
		tensors[prefix+"proj_out.weight"] = arch.Tensor{Shape: tensor.Shape{64, 3072}, DType: tensor.F8E4M3}
		tensors[prefix+"proj_out.scale_weight"] = arch.Tensor{Shape: tensor.Shape{}, DType: tensor.F32}
		tensors[prefix+"pos_embed"] = arch.Tensor{Shape: tensor.Shape{8}, DType: tensor.F32}
		r, err := arch.Recognise(tensors, nil)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(r.Params) != fmt.Sprint(want) || len(r.Stored) != len(want.Build(arch.Options{}).Weights()) || r.Prefix != prefix {
			t.Errorf("%v with %d weights, want %v", r.Params, len(r.Stored), want)
		}
		if d := cmp.Diff([]string{"pos_embed"}, r.Unknown); d != "" {
			t.Errorf("unknown tensors (-want +got):\n%s", d)
		}
		single := prefix + "single_transformer_blocks.37."
		for name, want := range map[string]arch.Source{
			"single_blocks.37.linear1.bias": {Slices: []arch.Slice{
				{Tensor: single + "attn.to_q.bias", Rows: 3072}, {Tensor: single + "attn.to_k.bias", Rows: 3072},
				{Tensor: single + "attn.to_v.bias", Rows: 3072}, {Tensor: single + "proj_mlp.bias", Rows: 12288},
			}},
			"final_layer.adaLN_modulation.1.weight": {Slices: []arch.Slice{
				{Tensor: prefix + "norm_out.linear.weight", First: 3072, Rows: 3072}, {Tensor: prefix + "norm_out.linear.weight", Rows: 3072},
			}},
			"final_layer.linear.weight": {
				Slices: []arch.Slice{{Tensor: prefix + "proj_out.weight", Rows: 64}}, Scale: prefix + "proj_out.scale_weight",
			},
		} {
			if d := cmp.Diff(want, r.Source(name)); d != "" {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
		}
	}
}

func TestRefusesBadDiffusersNames(t *testing.T) {
	const q, k, v = "transformer_blocks.3.attn.add_q_proj.weight", "transformer_blocks.3.attn.add_k_proj.weight", "single_transformer_blocks.2.attn.to_v.bias"
	for _, c := range []struct {
		name   string
		change func(map[string]arch.Tensor)
		kind   error
		reason string
		text   string
	}{
		{"no sizes", func(m map[string]arch.Tensor) { delete(m, "transformer_blocks.0.ff.net.0.proj.weight") }, arch.ErrMalformed, "tensor-missing", `without "transformer_blocks.0.ff.net.0.proj.weight"`},
		{"missing", func(m map[string]arch.Tensor) { delete(m, k) }, arch.ErrMalformed, "tensor-missing", k},
		{"rows", func(m map[string]arch.Tensor) {
			m[k] = arch.Tensor{Shape: tensor.Shape{3071, 3072}, DType: tensor.BF16}
		}, arch.ErrMalformed, "tensor-shape", "must have 3072 rows"},
		{"columns", func(m map[string]arch.Tensor) { m[k] = arch.Tensor{Shape: tensor.Shape{3072, 1}, DType: tensor.BF16} }, arch.ErrMalformed, "tensor-shape", "must be as wide as"},
		{"columns of all", func(m map[string]arch.Tensor) {
			m["x_embedder.weight"] = arch.Tensor{Shape: tensor.Shape{3072, 63}, DType: tensor.BF16}
		}, arch.ErrMalformed, "tensor-shape", "img_in takes 63"},
		{"no dimensions", func(m map[string]arch.Tensor) { m[v] = arch.Tensor{DType: tensor.BF16} }, arch.ErrMalformed, "tensor-shape", v},
		{"two dtypes", func(m map[string]arch.Tensor) { m[k] = arch.Tensor{Shape: m[k].Shape, DType: tensor.F16} }, arch.ErrNotSupported, "dtype", q},
		{"scale of a part", func(m map[string]arch.Tensor) {
			m[q] = arch.Tensor{Shape: m[q].Shape, DType: tensor.F8E4M3}
			m[k], m["transformer_blocks.3.attn.add_v_proj.weight"] = m[q], m[q]
			m["transformer_blocks.3.attn.add_q_proj.scale_weight"] = arch.Tensor{DType: tensor.F32}
		}, arch.ErrNotSupported, "fp8-scaled", "is a part of a weight"},
		{"block gap", func(m map[string]arch.Tensor) {
			for name := range m {
				if strings.HasPrefix(name, "transformer_blocks.2.") {
					delete(m, name)
				}
			}
		}, arch.ErrMalformed, "block-gap", "transformer_blocks.2 is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tensors := diffusers(fluxDev(), tensor.BF16)
			c.change(tensors)
			_, err := arch.Recognise(tensors, nil)
			refused(t, err, c.kind, c.reason, c.text)
		})
	}
}

// A header is a list of lines "name dtype dim dim …"; "#key=value" is metadata.
func FuzzRecognise(f *testing.F) {
	var b strings.Builder
	small := published(arch.Flux{
		Channels: 16, Hidden: 16, Heads: 2, MLP: 64, Context: 8, Vector: 8, Double: 1, Single: 1, Axes: []int64{2, 2, 4},
	}, tensor.BF16)
	b.WriteString("#axes_dim=2,2,4\n")
	for name, x := range small {
		fmt.Fprintf(&b, "%s %v", name, x.DType)
		for _, n := range x.Shape {
			fmt.Fprintf(&b, " %d", n)
		}
		b.WriteString("\n")
	}
	f.Add(b.String())
	f.Add("model.diffusion_model.head.modulation F16 1 2 16\n")
	f.Fuzz(func(t *testing.T, header string) {
		tensors, metadata := map[string]arch.Tensor{}, map[string]string{}
		for line := range strings.Lines(header) {
			line = strings.TrimSuffix(line, "\n")
			if rest, ok := strings.CutPrefix(line, "#"); ok {
				k, v, _ := strings.Cut(rest, "=")
				metadata[k] = v
				continue
			}
			words := strings.Fields(line)
			if len(words) < 2 {
				continue
			}
			var x arch.Tensor
			if x.DType.UnmarshalText([]byte(words[1])) != nil {
				continue
			}
			for _, w := range words[2:] {
				var n int64
				fmt.Sscan(w, &n)
				x.Shape = append(x.Shape, n)
			}
			tensors[words[0]] = x
		}
		r, err := arch.Recognise(tensors, metadata)
		if err != nil {
			var refusal *arch.Refusal
			if !errors.As(err, &refusal) || refusal.Reason == "" {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		if len(r.Stored) == 0 {
			t.Fatal("a model without weights")
		}
	})
}
