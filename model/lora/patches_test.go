// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// patchOf says what ComfyUI makes of a layer of a LoRA file for FLUX of hidden
// size 64: the weight, the rows, the function.
type patchOf struct {
	layer, key, kind string
	offset           []int64
	function         string
}

// goldenPatches are the layers of the golden files, by ComfyUI's key maps.
func goldenPatches() map[string][]patchOf {
	return map[string][]patchOf{
		"kohya": {
			{layer: "lora_unet_double_blocks_0_img_attn_qkv", key: "double_blocks.0.img_attn.qkv.weight"},
			{layer: "lora_unet_double_blocks_0_img_mlp_0", key: "double_blocks.0.img_mlp.0.weight"},
			{layer: "lora_unet_double_blocks_0_img_mod_lin", key: "double_blocks.0.img_mod.lin.weight"},
			{layer: "lora_unet_double_blocks_0_txt_attn_proj", key: "double_blocks.0.txt_attn.proj.weight"},
			{layer: "lora_unet_double_blocks_1_txt_mlp_2", key: "double_blocks.1.txt_mlp.2.weight"},
			{layer: "lora_unet_single_blocks_0_linear1", key: "single_blocks.0.linear1.weight"},
			{layer: "lora_unet_single_blocks_0_modulation_lin", key: "single_blocks.0.modulation.lin.weight"},
			{layer: "lora_unet_single_blocks_1_linear2", key: "single_blocks.1.linear2.weight"},
		},
		"peft": {
			{layer: "transformer.norm_out.linear", key: "final_layer.adaLN_modulation.1.weight", function: "swap_scale_shift"},
			{layer: "transformer.single_transformer_blocks.0.attn.to_k", key: "single_blocks.0.linear1.weight", offset: []int64{0, 64, 64}},
			{layer: "transformer.single_transformer_blocks.0.proj_mlp", key: "single_blocks.0.linear1.weight", offset: []int64{0, 192, 256}},
			{layer: "transformer.single_transformer_blocks.1.proj_out", key: "single_blocks.1.linear2.weight"},
			{layer: "transformer.transformer_blocks.0.attn.add_k_proj", key: "double_blocks.0.txt_attn.qkv.weight", offset: []int64{0, 64, 64}},
			{layer: "transformer.transformer_blocks.0.attn.to_out.0", key: "double_blocks.0.img_attn.proj.weight"},
			{layer: "transformer.transformer_blocks.0.attn.to_q", key: "double_blocks.0.img_attn.qkv.weight", offset: []int64{0, 0, 64}},
			{layer: "transformer.transformer_blocks.0.attn.to_v", key: "double_blocks.0.img_attn.qkv.weight", offset: []int64{0, 128, 64}},
			{layer: "transformer.transformer_blocks.1.ff.net.0.proj", key: "double_blocks.1.img_mlp.0.weight"},
			{layer: "transformer.transformer_blocks.1.ff_context.net.2", key: "double_blocks.1.txt_mlp.2.weight"},
			{layer: "transformer.transformer_blocks.1.norm1.linear", key: "double_blocks.1.img_mod.lin.weight"},
			{layer: "transformer.x_embedder", key: "img_in.weight"},
		},
		"native": { // its set_weight is no patch that a client may send
			{layer: "diffusion_model.double_blocks.0.img_mlp.2", key: "double_blocks.0.img_mlp.2.bias", kind: "diff"},
			{layer: "diffusion_model.double_blocks.1.img_attn.qkv", key: "double_blocks.1.img_attn.qkv.weight"},
			{layer: "diffusion_model.final_layer.linear", key: "final_layer.linear.weight"},
			{layer: "diffusion_model.single_blocks.2.linear1", key: "single_blocks.2.linear1.weight"},
			{layer: "diffusion_model.txt_in", key: "txt_in.weight", kind: "diff"},
		},
	}
}

// written is a safetensors file in a folder of the test.
func written(t *testing.T, data []safetensors.Data, metadata map[string]string) checkpoint.File {
	t.Helper()
	var b bytes.Buffer
	if err := safetensors.Encode(&b, data, metadata); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "lora.safetensors")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return openFile(t, path)
}

func raw(t *testing.T, f checkpoint.File, name, as string) safetensors.Data {
	t.Helper()
	x, ok := f.Lookup(name)
	if !ok {
		t.Fatalf("no tensor %s", name)
	}
	b := make([]byte, x.Size)
	if err := f.ReadAt(b, x, 0); err != nil {
		t.Fatal(err)
	}
	return safetensors.Data{Entry: safetensors.Entry{Name: as, DType: x.DType, Shape: x.Shape}, Bytes: b}
}

// asPatches is a golden file as a client sends it.
func asPatches(t *testing.T, f checkpoint.File, table []patchOf) checkpoint.File {
	t.Helper()
	var data []safetensors.Data
	var list []map[string]any
	changes := map[string]lora.Change{}
	for _, c := range parse(t, f).Changes {
		changes[c.Layer] = c
	}
	for i, p := range table {
		c := changes[p.layer]
		entry := map[string]any{"key": p.key, "type": "lora", "offset": nil, "function": nil, "alpha": nil}
		if p.offset != nil {
			entry["offset"] = p.offset
		}
		if p.function != "" {
			entry["function"] = p.function
		}
		roles := map[string]lora.Role{"up": lora.Up, "down": lora.Down}
		entry["tensors"] = []string{fmt.Sprintf("%d.up", i), fmt.Sprintf("%d.down", i)}
		if p.kind == "diff" {
			entry["type"], entry["tensors"] = p.kind, []string{fmt.Sprintf("%d.diff", i)}
			roles = map[string]lora.Role{"diff": lora.Diff}
			if strings.HasSuffix(p.key, ".bias") {
				roles["diff"] = lora.DiffBias
			}
		} else if a, ok := c.Tensors[lora.Alpha]; ok {
			v := make([]float32, 1)
			if err := tensor.ToF32(v, raw(t, f, a.Name, "").Bytes, a.DType); err != nil {
				t.Fatal(err)
			}
			entry["alpha"] = v[0]
		}
		for _, as := range slices.Sorted(maps.Keys(roles)) {
			data = append(data, raw(t, f, c.Tensors[roles[as]].Name, fmt.Sprintf("%d.%s", i, as)))
		}
		list = append(list, entry)
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return written(t, data, map[string]string{lora.PatchesKey: string(text)})
}

// plain is a golden file without the tensors that a client does not send.
func plain(t *testing.T, name string) checkpoint.File {
	t.Helper()
	f := loraFile(t, name)
	if name != "native" {
		return f
	}
	var data []safetensors.Data
	for _, x := range f.Tensors() {
		if !strings.HasSuffix(x.Name, ".set_weight") {
			data = append(data, raw(t, f, x.Name, x.Name))
		}
	}
	return written(t, data, nil)
}

func readPatches(t *testing.T, f checkpoint.File) *lora.File {
	t.Helper()
	p, err := lora.Read(header(f), f.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A client's patches make every weight the same, byte for byte, as the LoRA
// file that they came from, added and merged.
func TestPatchesEqualTheirFile(t *testing.T) {
	m := openModel(t, fluxRoot, "dev", "model.safetensors")
	for name, table := range goldenPatches() {
		want, got := plain(t, name), asPatches(t, plain(t, name), table)
		for _, mode := range []lora.Mode{lora.Add, lora.Merge} {
			over := func(f checkpoint.File) (*lora.Model, *lora.Overlay) {
				p := lora.Match(m.base.Graph, m.Params, readPatches(t, f))
				if err := p.Err(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				with, err := lora.Apply(m.base, tensor.BF16, []lora.Use{{Name: name, Patch: p, Mode: mode, Strength: 0.35}})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				o, err := lora.NewOverlay(m.File, m.Source, with, []checkpoint.File{f})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				return with, o
			}
			fileModel, fileOver := over(want)
			blobModel, blobOver := over(got)
			names := slices.Sorted(maps.Keys(fileModel.Made))
			if !slices.Equal(slices.Sorted(maps.Keys(blobModel.Made)), names) || len(names) == 0 {
				t.Fatalf("%s, %s: the file makes %v, the patches %v", name, mode, names, slices.Sorted(maps.Keys(blobModel.Made)))
			}
			for _, w := range names {
				a, shape, err := fileOver.Float32s(w)
				b, other, err2 := blobOver.Float32s(w)
				if err := errors.Join(err, err2); err != nil {
					t.Fatal(err)
				}
				if !shape.Equal(other) || !slices.Equal(a, b) {
					t.Errorf("%s, %s: weight %s differs", name, mode, w)
				}
			}
			if mode == lora.Add {
				s := []float32{-0.5}
				if !slices.Equal(forward(t, m, fileModel, fileOver, s), forward(t, m, blobModel, blobOver, s)) {
					t.Errorf("%s: the outputs differ", name)
				}
			}
		}
	}
}

// What patches cannot be is refused by the weight's name.
func TestPatchesRefused(t *testing.T) {
	m := openModel(t, fluxRoot, "dev", "model.safetensors")
	tensors := []lora.Tensor{vec("0.up", 192, 4), vec("0.down", 4, 64), vec("0.mid", 4, 4), vec("0.diff", 192, 64), vec("0.bias", 192), vec("0.wide", 4, 128), vec("0.in", 64, 4)}
	const key = "double_blocks.0.img_attn.qkv.weight"
	refused := func(entry string) error {
		t.Helper()
		var named []lora.Tensor
		for _, x := range tensors {
			if strings.Contains(entry, `"`+x.Name+`"`) {
				named = append(named, x)
			}
		}
		f, err := lora.ParsePatches("["+entry+"]", named)
		if err != nil {
			return err
		}
		return lora.Match(m.base.Graph, m.Params, f).Err()
	}
	for want, entry := range map[string]string{
		"mid":                `{"key":"` + key + `","type":"lora","tensors":["0.up","0.down","0.mid"]}`,
		"dora_scale":         `{"key":"` + key + `","type":"lora","dora_scale":"0.bias","tensors":["0.up","0.down"]}`,
		"reshape":            `{"key":"` + key + `","type":"lora","reshape":[64,128],"tensors":["0.up","0.down"]}`,
		"has 128 columns":    `{"key":"img_in.weight","type":"lora","tensors":["0.in","0.wide"]}`,
		"model_as_lora":      `{"key":"` + key + `","type":"model_as_lora","tensors":["0.diff"]}`,
		`"set"`:              `{"key":"` + key + `","type":"set","tensors":["0.diff"]}`,
		"transpose":          `{"key":"` + key + `","type":"lora","function":"transpose","tensors":["0.up","0.down"]}`,
		"swap_scale_shift":   `{"key":"` + key + `","type":"lora","function":"swap_scale_shift","offset":[0,0,64],"tensors":["0.up","0.down"]}`,
		"dimension 1":        `{"key":"` + key + `","type":"lora","offset":[1,0,64],"tensors":["0.up","0.down"]}`,
		"rows 100 to 200":    `{"key":"` + key + `","type":"lora","offset":[0,100,100],"tensors":["0.up","0.down"]}`,
		"has 192 rows":       `{"key":"` + key + `","type":"lora","offset":[0,0,64],"tensors":["0.up","0.down"]}`,
		"no weight of that":  `{"key":"blocks.0.weight","type":"lora","tensors":["0.up","0.down"]}`,
		"is no matrix":       `{"key":"double_blocks.0.img_attn.qkv.bias","type":"lora","tensors":["0.up","0.down"]}`,
		"the layer":          `{"key":"img_in.weight","type":"diff","tensors":["0.diff"]}`,
		"alpha of a patch":   `{"key":"` + key + `","type":"diff","alpha":2,"tensors":["0.diff"]}`,
		"alpha 1e+300":       `{"key":"` + key + `","type":"lora","alpha":1e300,"tensors":["0.up","0.down"]}`,
		"has 1 tensors":      `{"key":"` + key + `","type":"lora","tensors":["0.up"]}`,
		"not in the file":    `{"key":"` + key + `","type":"lora","tensors":["0.up","1.down"]}`,
		"no tensor":          `{"key":"` + key + `","type":"lora","tensors":[]}`,
		"offset":             `{"key":"` + key + `","type":"lora","offset":[1],"tensors":["0.up","0.down"]}`,
		"names no weight":    `{"type":"lora","tensors":["0.up","0.down"]}`,
		"is no list":         `{`,
		"it names no weight": `{},{}`,
	} {
		if err := refused(entry); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it to say %q", entry, err, want)
		} else if strings.Contains(entry, key) && !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v does not name the weight", entry, err)
		}
	}
	f, err := lora.ParsePatches(`[{"key":"`+key+`","type":"lora","dora_scale":null,"tensors":["0.up","0.down"]}]`, tensors[:3])
	if err != nil {
		t.Fatal(err)
	}
	if err := lora.Match(m.base.Graph, m.Params, f).Err(); err == nil || !strings.Contains(err.Error(), "0.mid") {
		t.Errorf("a tensor of no patch: %v", err)
	}
	if _, err := lora.ParsePatches("[]", nil); err == nil {
		t.Error("a list of nothing was taken")
	}
}

// FuzzPatches takes any list of patches of a few tensors: reading and matching
// end, and a model that takes the file is valid.
func FuzzPatches(f *testing.F) {
	for _, seed := range []string{
		`[{"key":"double_blocks.0.img_attn.qkv.weight","type":"lora","offset":[0,64,64],"alpha":2,"tensors":["0.up","0.down"]}]`,
		`[{"key":"final_layer.adaLN_modulation.1.weight","type":"lora","function":"swap_scale_shift","tensors":["1.up","0.down"]}]`,
		`[{"key":"img_in.bias","type":"diff","tensors":["0.diff"]},{"key":"img_in.weight","type":"lora","mid":[],"tensors":["0.up","0.down"]}]`,
	} {
		f.Add(seed)
	}
	tensors := []lora.Tensor{vec("0.up", 64, 4), vec("1.up", 128, 4), vec("0.down", 4, 64), vec("0.diff", 64)}
	m := arch.Flux{Channels: 16, Hidden: 64, Heads: 2, MLP: 256, Context: 64, Vector: 64, Double: 2, Single: 2, Axes: []int64{8, 12, 12}, Guidance: true}
	base := lora.Base{Graph: m.Build(arch.Options{}), Params: m, Stored: map[string]tensor.DType{}}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := lora.ParsePatches(text, tensors)
		if err != nil {
			return
		}
		parsed.Loose = nil
		for _, mode := range []lora.Mode{lora.Add, lora.Merge} {
			patch := lora.Match(base.Graph, m, parsed)
			if len(patch.Pairs)+len(patch.Full) > 0 && patch.Err() == nil && patch.Layers != len(parsed.Patches) {
				t.Fatalf("%d of %d patches are accounted for", patch.Layers, len(parsed.Patches))
			}
			_, _ = lora.Apply(base, tensor.BF16, []lora.Use{{Name: "f", Patch: patch, Mode: mode, Strength: 1}})
		}
	})
}
