// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

// goldenFile is a file of the golden FLUX; the caller of the test closes nothing.
func goldenFile(t *testing.T, path ...string) checkpoint.File {
	t.Helper()
	f, err := checkpoint.Open(filepath.Join(append([]string{"..", "..", "model", "arch", "testdata", "golden", "flux"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// withLoRA is the golden model with a golden LoRA on it.
func withLoRA(t *testing.T, b *box, mode lora.Mode) stage.Config {
	t.Helper()
	return loraOn(t, b, goldenFile(t, "dev", "model.safetensors"), "lora-peft", mode)
}

func loraOn(t *testing.T, b *box, base checkpoint.File, name string, mode lora.Mode) stage.Config {
	t.Helper()
	file := goldenFile(t, name, "lora.safetensors")
	tensors := map[string]arch.Tensor{}
	for _, x := range base.Tensors() {
		tensors[x.Name] = arch.Tensor{Shape: x.Shape, DType: x.DType}
	}
	r, err := arch.Recognise(tensors, base.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	var header []lora.Tensor
	for _, x := range file.Tensors() {
		header = append(header, lora.Tensor{Name: x.Name, DType: x.DType, Shape: x.Shape})
	}
	parsed, err := lora.Parse(header)
	if err != nil {
		t.Fatal(err)
	}
	g := r.Params.Build(arch.Options{})
	m, err := lora.Apply(lora.Base{Graph: g, Params: r.Params, Stored: r.Stored}, tensor.F32,
		[]lora.Use{{Name: "peft", Patch: lora.Match(g, r.Params, parsed), Mode: mode, Strength: 0.7}})
	if err != nil {
		t.Fatal(err)
	}
	o, err := lora.NewOverlay(base, r.Source, m, []checkpoint.File{file})
	if err != nil {
		t.Fatal(err)
	}
	p, err := graph.Specialise(m.Graph, workload(), tensor.F32)
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config()
	made := func(weight string) bool {
		_, ok := m.Made[weight]
		return ok
	}
	cfg.Program, cfg.Checkpoint = p, stage.Checkpoint{File: o, Source: o.Source, Open: o.Reopen, Made: made}
	return cfg
}

// A LoRA's weights rest where their block does, on disk too, and the bits are
// the same; its strength is an input that changes from forward to forward.
func TestLoRABitsDoNotDependOnTiers(t *testing.T) {
	for _, mode := range []lora.Mode{lora.Add, lora.Merge} {
		b := newBox(t, 0, 0, 0)
		outputs := func(cfg stage.Config) (out [][]byte) {
			st, err := stage.Load(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			r, f := begin(t, b.device, st, workload())
			defer func() { r.Close(); f.Conditioning.Free() }()
			l, _ := graph.StepLayout(r.Program())
			for _, s := range []float32{0, 1, -0.5} {
				for _, v := range l.Values {
					if v.Name == lora.StrengthInput {
						tensor.PutF32(st.Inputs[0].Host()[v.Place.Offset:], []float32{s})
					}
				}
				if _, err := r.Do(t.Context(), f); err != nil {
					t.Fatal(err)
				}
				out = append(out, bytes.Clone(st.Outputs[0].Host()))
			}
			return out
		}
		want := outputs(withLoRA(t, b, mode))
		if same := bytes.Equal(want[0], want[1]); same != (mode == lora.Merge) {
			t.Errorf("%s: the strength of a forward has a part in the output: %v", mode, !same)
		}
		for _, k := range []offload.Kind{offload.Disk, offload.RAM, offload.Donor, offload.Remote} {
			for _, stored := range []bool{false, true} {
				cfg := withLoRA(t, b, mode)
				cfg.Tiers, cfg.Stored = []offload.Tier{b.tier(k, 0, 4)}, stored
				for i, got := range outputs(cfg) {
					if !bytes.Equal(got, want[i]) {
						t.Errorf("%s, blocks in tier %v, stored %v: forward %d gives other bits", mode, k, stored, i)
					}
				}
			}
		}
	}
}
