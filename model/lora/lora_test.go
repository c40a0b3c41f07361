// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/refexec"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

var fluxRoot = filepath.Join("..", "arch", "testdata", "golden", "flux")

// opened is a checkpoint and the model in it.
type opened struct {
	checkpoint.File
	*arch.Recognised
	base lora.Base
}

func openFile(t *testing.T, path ...string) checkpoint.File {
	t.Helper()
	f, err := checkpoint.Open(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openModel(t *testing.T, path ...string) opened {
	t.Helper()
	f := openFile(t, path...)
	tensors := map[string]arch.Tensor{}
	for _, x := range f.Tensors() {
		tensors[x.Name] = arch.Tensor{Shape: x.Shape, DType: x.DType}
	}
	r, err := arch.Recognise(tensors, f.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	return opened{f, r, lora.Base{Graph: r.Params.Build(arch.Options{}), Params: r.Params, Stored: r.Stored}}
}

func header(f checkpoint.File) (out []lora.Tensor) {
	for _, t := range f.Tensors() {
		out = append(out, lora.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape})
	}
	return out
}

func parse(t *testing.T, f checkpoint.File) *lora.File {
	t.Helper()
	p, err := lora.Parse(header(f))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func loraFile(t *testing.T, name string) checkpoint.File {
	t.Helper()
	return openFile(t, fluxRoot, "lora-"+name, "lora.safetensors")
}

// overlay puts LoRAs on a model.
func overlay(t *testing.T, m opened, compute tensor.DType, files []checkpoint.File, mode lora.Mode, strengths ...float32) (*lora.Model, *lora.Overlay) {
	t.Helper()
	var uses []lora.Use
	for i, f := range files {
		uses = append(uses, lora.Use{Name: f.Path(), Patch: lora.Match(m.base.Graph, m.Params, parse(t, f)), Mode: mode, Strength: strengths[i]})
	}
	with, err := lora.Apply(m.base, compute, uses)
	if err != nil {
		t.Fatal(err)
	}
	o, err := lora.NewOverlay(m.File, m.Source, with, files)
	if err != nil {
		t.Fatal(err)
	}
	return with, o
}

// Every golden file changes the weights that its case names, in the style that
// it is of.
func TestMatchGolden(t *testing.T) {
	m := openModel(t, fluxRoot, "dev", "model.safetensors")
	styles := map[string]string{"kohya": "kohya", "peft": "diffusers", "native": "ComfyUI", "bfl-control": "BFL", "bf16": "kohya", "unknown-key": "kohya", "wrong-rank": "kohya"}
	for name, style := range styles {
		raw, err := os.ReadFile(filepath.Join(fluxRoot, "lora-"+name, "case.json"))
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Changes []string
			Says    []string `json:"comfyui_says"`
		}
		if err := json.Unmarshal(raw, &c); err != nil {
			t.Fatal(err)
		}
		f := parse(t, loraFile(t, name))
		if f.Style != style {
			t.Errorf("%s: style %s, want %s", name, f.Style, style)
		}
		p := lora.Match(m.base.Graph, m.Params, f)
		if err := p.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		changed := map[string]bool{}
		for w := range p.Pairs {
			changed[w] = true
		}
		for w := range p.Full {
			changed[w] = true
		}
		for w := range p.Set {
			changed[w] = true
		}
		if d := cmp.Diff(c.Changes, slices.Sorted(maps.Keys(changed))); d != "" {
			t.Errorf("%s changes (-want +got):\n%s", name, d)
		}
		if (len(c.Says) > 0) != (len(p.Unused) > 0) {
			t.Errorf("%s: not applied: %v; ComfyUI says %v", name, p.Unused, c.Says)
		}
	}
}

func vec(name string, shape ...int64) lora.Tensor {
	return lora.Tensor{Name: name, DType: tensor.F32, Shape: shape}
}

// What cannot be applied is named with the reason; nothing is dropped silently.
func TestNotApplied(t *testing.T) {
	m := openModel(t, fluxRoot, "dev", "model.safetensors")
	const qkv = "lora_unet_double_blocks_0_img_attn_qkv"
	good := []lora.Tensor{vec("double_blocks.1.img_mlp.0.lora_A.weight", 2, 64), vec("double_blocks.1.img_mlp.0.lora_B.weight", 256, 2)}
	for want, c := range map[string]struct {
		tensors []lora.Tensor
		refused bool // the whole file
	}{
		"LoHa":              {[]lora.Tensor{vec(qkv+".hada_w1_a", 192, 4), vec(qkv+".hada_w1_b", 4, 64), vec(qkv+".hada_w2_a", 192, 4), vec(qkv+".hada_w2_b", 4, 64)}, true},
		"LoKr":              {[]lora.Tensor{vec(qkv+".lokr_w1", 8, 8), vec(qkv+".lokr_w2", 24, 8)}, true},
		"DoRA":              {[]lora.Tensor{vec(qkv+".lora_up.weight", 192, 4), vec(qkv+".lora_down.weight", 4, 64), vec(qkv+".dora_scale", 192, 1)}, true},
		"GLoRA":             {[]lora.Tensor{vec(qkv+".a1.weight", 192, 4)}, true},
		"OFT":               {[]lora.Tensor{vec(qkv+".oft_blocks", 4, 16, 16)}, true},
		"lora_mid":          {[]lora.Tensor{vec(qkv+".lora_mid.weight", 4, 4, 3, 3)}, true},
		"no down beside it": {[]lora.Tensor{vec(qkv+".lora_up.weight", 192, 4)}, false},
		"no up beside it":   {[]lora.Tensor{vec(qkv+".lora_down.weight", 4, 64)}, false},
		"has 191 rows":      {[]lora.Tensor{vec(qkv+".lora_up.weight", 191, 4), vec(qkv+".lora_down.weight", 4, 64)}, false},
		"must be matrices":  {[]lora.Tensor{vec(qkv+".lora_up.weight", 192, 4, 1, 1), vec(qkv+".lora_down.weight", 4, 64)}, false},
		"one number":        {[]lora.Tensor{vec(qkv+".lora_up.weight", 192, 4), vec(qkv+".lora_down.weight", 4, 64), vec(qkv+".alpha", 3)}, false},
		"nothing but":       {[]lora.Tensor{vec(qkv+".alpha", 1)}, false},
		"stored as I64":     {[]lora.Tensor{{Name: qkv + ".diff", DType: tensor.I64, Shape: tensor.Shape{192, 64}}}, false},
		"the layer [192":    {[]lora.Tensor{vec(qkv+".diff", 192, 63)}, false},
		"no layer of that":  {[]lora.Tensor{vec("lora_unet_down_blocks_0.alpha", 1)}, false},
		"text encoder":      {[]lora.Tensor{vec("lora_te2_x.hada_w1_a", 4, 4)}, false},
		"named as no":       {[]lora.Tensor{vec("double_blocks.0.img_attn.qkv.weight", 192, 64)}, false},
		"replaces no whole": {[]lora.Tensor{vec("transformer.transformer_blocks.0.attn.to_q.set_weight", 64, 64)}, false},
	} {
		f, err := lora.Parse(append(slices.Clone(good), c.tensors...))
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		p := lora.Match(m.base.Graph, m.Params, f)
		notes := p.Unused
		if c.refused {
			notes = p.Refused
		}
		if len(notes) != 1 || !strings.Contains(notes[0].String(), want) || !strings.Contains(notes[0].String(), c.tensors[0].Name) {
			t.Errorf("%s: notes %v", want, notes)
		}
		if err := p.Err(); c.refused != errors.Is(err, lora.ErrUnsupported) || !c.refused && err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, tensors := range [][]lora.Tensor{nil, {vec("img_in.weight", 64, 64)}, {vec("lora_unet_x.alpha")}} {
		if _, err := lora.Parse(tensors); err == nil {
			t.Errorf("%v was taken for a LoRA", tensors)
		}
	}
	if _, err := lora.Parse([]lora.Tensor{vec("a.lora_up.weight", 4, 4), vec("a.lora_B.weight", 4, 4)}); err == nil || !strings.Contains(err.Error(), "a.lora_up.weight") {
		t.Errorf("two ups: %v", err)
	}
	f, err := lora.Parse([]lora.Tensor{vec("lora_te1_x.lora_up.weight", 4, 4), vec("lora_te1_x.lora_down.weight", 4, 4)})
	if err != nil {
		t.Fatal(err)
	}
	if err := lora.Match(m.base.Graph, m.Params, f).Err(); err == nil || !strings.Contains(err.Error(), "text encoder") {
		t.Errorf("a file without a layer of the model: %v", err)
	}
}

// forward runs a model with its LoRAs in float64.
func forward(t *testing.T, m opened, with *lora.Model, o *lora.Overlay, strengths []float32) []float32 {
	t.Helper()
	p, err := graph.Specialise(with.Graph, graph.Dims{"B": 2, "S_txt": 3, "h": 4, "w": 6}, tensor.F32)
	if err != nil {
		t.Fatal(err)
	}
	in := refexec.Values{lora.StrengthInput: strengths}
	for _, x := range p.Inputs {
		n, err := x.Shape.Elements()
		if err != nil {
			t.Fatal(err)
		}
		if x.Name == lora.StrengthInput {
			continue
		}
		v := make([]float32, n)
		for i := range v {
			v[i] = float32((i*31+len(x.Name))%17)/17 - 0.3
		}
		in[x.Name] = v
	}
	machine := refexec.Machine{Program: p, Weight: func(name string) ([]float32, error) {
		if _, ok := with.Made[name]; ok {
			v, _, err := o.Float32s(name)
			return v, err
		}
		src := m.Source(name)
		x, ok := m.Lookup(src.Slices[0].Tensor)
		if !ok {
			return nil, fmt.Errorf("no weight %q", name)
		}
		raw := make([]byte, x.Size)
		if err := m.ReadAt(raw, x, 0); err != nil {
			return nil, err
		}
		n, _ := x.Shape.Elements()
		v := make([]float32, n)
		return v, tensor.ToF32(v, raw, x.DType)
	}}
	out, err := machine.Forward(in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func off(got, want []float32) float64 {
	diff, top := 0.0, 0.0
	for i := range want {
		diff, top = max(diff, math.Abs(float64(got[i])-float64(want[i]))), max(top, math.Abs(float64(want[i])))
	}
	return diff / top
}

// Several LoRAs of all styles at once, one of which makes the model another
// variant: added is the same as merged, at any strengths; the weights of the
// graph are the same whatever the strengths are.
func TestSeveralAddedEqualMerged(t *testing.T) {
	m := openModel(t, fluxRoot, "dev", "model.safetensors")
	names := []string{"kohya", "peft", "native", "bfl-control"}
	files := func() (out []checkpoint.File) {
		for _, n := range names {
			out = append(out, loraFile(t, n))
		}
		return out
	}
	added, o := overlay(t, m, tensor.F32, files(), lora.Add, 1, 1, 1, 1)
	if added.Suffix != "+lora" || len(added.Added) != 4 {
		t.Errorf("suffix %s, added %v", added.Suffix, added.Added)
	}
	for _, strengths := range [][]float32{{1, 1, 1, 1}, {0.35, -0.5, 2, 0}, {0, 0, 0, 0}} {
		merged, with := overlay(t, m, tensor.F32, files(), lora.Merge, strengths...)
		if merged.Suffix != "+lora-merge" || len(merged.Added) != 0 {
			t.Errorf("suffix %s, added %v", merged.Suffix, merged.Added)
		}
		want := forward(t, m, merged, with, nil)
		if e := off(forward(t, m, added, o, strengths), want); e > 2e-6 {
			t.Errorf("strengths %v: added is %.2g off from merged", strengths, e)
		}
	}
}

// Merging into a file under other names, or stored as quantised bytes, gives
// what merging into its values does.
func TestMergeIntoOtherFiles(t *testing.T) {
	dev := openModel(t, fluxRoot, "dev", "model.safetensors")
	_, plain := overlay(t, dev, tensor.F32, []checkpoint.File{loraFile(t, "kohya")}, lora.Merge, 0.7)
	renamed := openModel(t, fluxRoot, "diffusers", "model.safetensors")
	_, other := overlay(t, renamed, tensor.F32, []checkpoint.File{loraFile(t, "kohya")}, lora.Merge, 0.7)
	changed := lora.Match(dev.base.Graph, dev.Params, parse(t, loraFile(t, "kohya"))).Pairs
	for name := range changed {
		want, _, err := plain.Float32s(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := other.Float32s(name); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s from a file under diffusers names differs (%v)", name, err)
		}
	}
	_, zero := overlay(t, dev, tensor.F32, []checkpoint.File{loraFile(t, "kohya")}, lora.Merge, 0)
	for _, path := range []string{filepath.Join("flux", "fp8-scaled", "model.safetensors"), filepath.Join("gguf", "flux-k", "model.gguf")} {
		m := openModel(t, fluxRoot, "..", path)
		with, quantised := overlay(t, m, tensor.F32, []checkpoint.File{loraFile(t, "kohya")}, lora.Merge, 0.7)
		_, unchanged := overlay(t, m, tensor.F32, []checkpoint.File{loraFile(t, "kohya")}, lora.Merge, 0)
		if len(with.Made) == 0 {
			t.Fatalf("%s: nothing is merged", path)
		}
		for name := range with.Made {
			if d := with.Stored[name]; d != tensor.F32 {
				t.Errorf("%s: %s rests as %v", path, name, d)
			}
			read := func(o *lora.Overlay) []float32 {
				v, _, err := o.Float32s(name)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			got, base, full, before := read(quantised), read(unchanged), read(plain), read(zero)
			for i := range got {
				if d := (got[i] - base[i]) - (full[i] - before[i]); math.Abs(float64(d)) > 1e-6 {
					t.Fatalf("%s: %s[%d] changes by %g, in the file of floats by %g", path, name, i, got[i]-base[i], full[i]-before[i])
				}
			}
		}
	}
}

// Any range of bytes reads as that range of the whole.
func TestReadRanges(t *testing.T) {
	m := openModel(t, fluxRoot, "dev-bf16", "model.safetensors")
	for _, mode := range []lora.Mode{lora.Add, lora.Merge} {
		_, o := overlay(t, m, tensor.BF16, []checkpoint.File{loraFile(t, "peft"), loraFile(t, "native")}, mode, 1, 0.5)
		all := o.Tensors()
		made := all[slices.IndexFunc(all, func(x checkpoint.Tensor) bool { return strings.HasPrefix(x.Name, "lora:") }):]
		last := made[len(made)-1]
		whole := make([]byte, last.Offset+int64(last.Size))
		if err := o.ReadPart(whole, last.Part, 0); err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < int64(len(whole)); at += 1013 {
			n := min(2+at%5000, int64(len(whole))-at)
			part := make([]byte, n)
			if err := o.ReadPart(part, last.Part, at); err != nil {
				t.Fatal(err)
			}
			if string(part) != string(whole[at:at+n]) {
				t.Fatalf("%s: bytes %d to %d differ", mode, at, at+n)
			}
		}
		again, err := o.Reopen()
		if err != nil {
			t.Fatal(err)
		}
		twice := make([]byte, len(whole))
		if err := errors.Join(again.ReadPart(twice, last.Part, 0), again.Close()); err != nil || string(twice) != string(whole) {
			t.Errorf("%s: opened again it reads other bytes (%v)", mode, err)
		}
		if err := o.ReadPart(make([]byte, 2), last.Part, int64(len(whole))-1); err == nil {
			t.Error("read behind the end")
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	m := openModel(t, fluxRoot, "dev", "model.safetensors")
	norm, err := lora.Parse([]lora.Tensor{vec("double_blocks.0.img_attn.norm.key_norm.scale.diff", 32)})
	if err != nil {
		t.Fatal(err)
	}
	p := lora.Match(m.base.Graph, m.Params, norm)
	if _, err := lora.Apply(m.base, tensor.F32, []lora.Use{{Name: "n", Patch: p, Mode: lora.Add}}); err == nil || !strings.Contains(err.Error(), "mode merge") {
		t.Errorf("a norm's difference at run time: %v", err)
	}
	if _, err := lora.Apply(m.base, tensor.F32, []lora.Use{{Name: "n", Patch: p, Mode: lora.Merge, Strength: float32(math.NaN())}}); err == nil {
		t.Error("strength NaN was taken")
	}
	if _, err := lora.Apply(m.base, tensor.F32, make([]lora.Use, lora.MaxUses+1)); err == nil {
		t.Error("too many were taken")
	}
}
