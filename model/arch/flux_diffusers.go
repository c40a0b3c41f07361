// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"slices"
	"strings"
)

// looksLikeDiffusersFlux is ComfyUI's own test, without what marks FLUX.1's
// relatives.
func looksLikeDiffusersFlux(own map[string]Tensor) bool {
	if _, ok := own["x_embedder.weight"]; !ok {
		return false
	}
	blocks := false
	for name := range own {
		if relativeOfFlux(name) {
			return false
		}
		blocks = blocks || strings.HasPrefix(name, "single_transformer_blocks.")
	}
	return blocks
}

// Diffusers says where every weight of the model comes from in a file under
// diffusers names, without a prefix (ComfyUI comfy/utils.py flux_to_diffusers,
// diffusers convert_flux_to_diffusers.py). Rows are always given.
func (f Flux) Diffusers() map[string]Source {
	out := map[string]Source{}
	d := f.Hidden
	// layer adds a weight and its bias, of parts of the given rows each.
	layer := func(name string, parts ...Slice) {
		for _, kind := range []string{".weight", ".bias"} {
			var s Source
			for _, p := range parts {
				p.Tensor += kind
				s.Slices = append(s.Slices, p)
			}
			out[name+kind] = s
		}
	}
	part := func(tensor string, rows int64) Slice { return Slice{Tensor: tensor, Rows: rows} }
	norms := func(name, query, key string) {
		out[name+".query_norm.scale"] = Source{Slices: []Slice{part(query+".weight", f.headSize())}}
		out[name+".key_norm.scale"] = Source{Slices: []Slice{part(key+".weight", f.headSize())}}
	}
	embed := func(name, from string) {
		layer(name+".in_layer", part("time_text_embed."+from+".linear_1", d))
		layer(name+".out_layer", part("time_text_embed."+from+".linear_2", d))
	}
	layer("img_in", part("x_embedder", d))
	layer("txt_in", part("context_embedder", d))
	embed("time_in", "timestep_embedder")
	embed("vector_in", "text_embedder")
	if f.Guidance {
		embed("guidance_in", "guidance_embedder")
	}
	for i := range f.Double {
		from := fmt.Sprintf("transformer_blocks.%d.", i)
		for _, s := range []struct{ name, mod, q, k, v, queryNorm, keyNorm, proj, mlp string }{
			{"img", "norm1", "to_q", "to_k", "to_v", "norm_q", "norm_k", "to_out.0", "ff"},
			{"txt", "norm1_context", "add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k", "to_add_out", "ff_context"},
		} {
			to, attn := fmt.Sprintf("double_blocks.%d.%s", i, s.name), from+"attn."
			layer(to+"_mod.lin", part(from+s.mod+".linear", 6*d))
			layer(to+"_attn.qkv", part(attn+s.q, d), part(attn+s.k, d), part(attn+s.v, d))
			norms(to+"_attn.norm", attn+s.queryNorm, attn+s.keyNorm)
			layer(to+"_attn.proj", part(attn+s.proj, d))
			layer(to+"_mlp.0", part(from+s.mlp+".net.0.proj", f.MLP))
			layer(to+"_mlp.2", part(from+s.mlp+".net.2", d))
		}
	}
	for i := range f.Single {
		from, to := fmt.Sprintf("single_transformer_blocks.%d.", i), fmt.Sprintf("single_blocks.%d.", i)
		attn := from + "attn."
		layer(to+"modulation.lin", part(from+"norm.linear", 3*d))
		layer(to+"linear1", part(attn+"to_q", d), part(attn+"to_k", d), part(attn+"to_v", d), part(from+"proj_mlp", f.MLP))
		norms(to+"norm", attn+"norm_q", attn+"norm_k")
		layer(to+"linear2", part(from+"proj_out", d))
	}
	layer("final_layer.linear", part("proj_out", f.Channels*fluxPatch*fluxPatch))
	// Here the shift stands before the scale, there behind it.
	const last = "norm_out.linear"
	layer("final_layer.adaLN_modulation.1", Slice{Tensor: last, First: d, Rows: d}, Slice{Tensor: last, Rows: d})
	return out
}

// fromDiffusers gives the tensors of a file under diffusers names the names and
// shapes of the graph's weights, and says where each comes from. Tensors that
// are no part of any keep their names.
func fromDiffusers(own map[string]Tensor) (map[string]Tensor, map[string]Source, error) {
	f, err := diffusersSizes(own)
	if err != nil {
		return nil, nil, err
	}
	sources := f.Diffusers()
	out, used := make(map[string]Tensor, len(own)), map[string]bool{}
	for _, name := range sortedKeys(sources) {
		t, err := joined(sources[name], own)
		if err != nil {
			return nil, nil, err
		}
		out[name] = t
		for _, s := range sources[name].Slices {
			used[s.Tensor] = true
		}
	}
	for name, t := range own {
		if !used[name] {
			out[name] = t
		}
	}
	return out, sources, nil
}

// diffusersSizes reads what the names' meaning depends on.
func diffusersSizes(own map[string]Tensor) (f Flux, err error) {
	rows := func(name string) (n int64) {
		t, ok := own[name]
		switch {
		case err != nil:
		case !ok:
			err = malformed("tensor-missing", "FLUX.1 (diffusers names) without %s", quote(name))
		case len(t.Shape) == 0 || t.Shape[0] < 1 || t.Shape[0] > fluxMaxWidth:
			err = malformed("tensor-shape", "tensor %s is %v: not a width of FLUX.1", name, t.Shape)
		default:
			return t.Shape[0]
		}
		return 1
	}
	f = Flux{Hidden: rows("x_embedder.weight"), MLP: rows("transformer_blocks.0.ff.net.0.proj.weight"), Heads: 1}
	f.Heads = max(1, f.Hidden/rows("transformer_blocks.0.attn.norm_q.weight"))
	f.Channels = rows("proj_out.weight") / (fluxPatch * fluxPatch)
	if err != nil {
		return f, err
	}
	_, f.Guidance = own["time_text_embed.guidance_embedder.linear_1.weight"]
	if f.Double, err = countBlocks(own, "transformer_blocks."); err != nil {
		return f, err
	}
	f.Single, err = countBlocks(own, "single_transformer_blocks.")
	return f, err
}

// joined is the tensor that a source's slices make up. Its rows are those of
// the whole tensors, so that a wrong shape shows where all shapes are checked.
func joined(s Source, own map[string]Tensor) (Tensor, error) {
	var out Tensor
	for i, p := range s.Slices {
		t, ok := own[p.Tensor]
		if !ok {
			return out, malformed("tensor-missing", "FLUX.1 (diffusers names) without %s", quote(p.Tensor))
		}
		whole := p.First + p.Rows
		if p.First == 0 && i > 0 && s.Slices[i-1].Tensor == p.Tensor {
			whole = s.Slices[i-1].First + s.Slices[i-1].Rows
		}
		if len(t.Shape) == 0 || t.Shape[0] != whole {
			return out, malformed("tensor-shape", "tensor %s is %v, must have %d rows", quote(p.Tensor), t.Shape, whole)
		}
		if i == 0 {
			out = Tensor{Shape: slices.Clone(t.Shape), DType: t.DType}
			out.Shape[0] = p.Rows
			continue
		}
		if t.DType != out.DType {
			return out, unsupported("dtype", "tensors %s (%v) and %s (%v) are parts of one weight and stored differently: use the file under ComfyUI's or BFL's names", quote(s.Slices[0].Tensor), out.DType, quote(p.Tensor), t.DType)
		}
		if !slices.Equal(t.Shape[1:], out.Shape[1:]) {
			return out, malformed("tensor-shape", "tensor %s is %v, must be as wide as %s, %v", quote(p.Tensor), t.Shape, quote(s.Slices[0].Tensor), own[s.Slices[0].Tensor].Shape)
		}
		out.Shape[0] += p.Rows
	}
	return out, nil
}
