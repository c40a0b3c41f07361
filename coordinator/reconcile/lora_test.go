// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

// What LoRAs take is counted: pairs beside the weights in mode add; in mode
// merge weights of fp8 that rest in the compute dtype.
func TestLoRAsAreCounted(t *testing.T) {
	params := arch.Flux{
		Channels: 16, Hidden: 256, Heads: 2, MLP: 1024, Context: 64, Vector: 64,
		Double: 2, Single: 2, Axes: []int64{16, 56, 56}, Guidance: true,
	}
	hyper, err := arch.HyperParameters(params)
	if err != nil {
		t.Fatal(err)
	}
	m := &Model{ID: "m", Name: "m", Graph: params.Build(arch.Options{}), Arch: params.Arch(), Params: hyper, Stored: map[string]tensor.DType{}}
	for name := range m.Graph.Weights() {
		m.Stored[name] = tensor.F8E4M3
	}
	const layer = "double_blocks.1.img_mlp.0"
	file, err := lora.Parse([]lora.Tensor{
		{Name: layer + ".lora_A.weight", DType: tensor.BF16, Shape: tensor.Shape{16, 256}},
		{Name: layer + ".lora_B.weight", DType: tensor.BF16, Shape: tensor.Shape{1024, 16}},
		{Name: "lora_te1_x.alpha", DType: tensor.BF16, Shape: tensor.Shape{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	known := func(id string) *Model {
		if id == "l" {
			return &Model{ID: "l", LoRA: file}
		}
		return nil
	}
	stored := func(m *Model) tensor.Bytes {
		p, err := graph.Specialise(m.Graph, graph.Dims{"B": 1, "S_txt": 8, "h": 8, "w": 8}, tensor.BF16)
		if err != nil {
			t.Fatal(err)
		}
		f, err := StageFootprint(p, m.Stored, StageShape{Blocks: 4, Head: true, Tail: true, Stored: true})
		if err != nil {
			t.Fatal(err)
		}
		return f.Weights
	}
	plain := stored(m)
	const pair = 2 * (16*256 + 1024*16) // in both double blocks, as they are one graph
	for mode, want := range map[lora.Mode]tensor.Bytes{lora.Add: 2 * pair, lora.Merge: 1024 * 256} {
		with, list, suffix, err := WithLoRAs(m, known, []LoRA{{ID: "l", Name: "style", Mode: mode, Strength: 1}}, "bf16")
		if err != nil {
			t.Fatal(err)
		}
		if got := stored(with) - plain; got != want {
			t.Errorf("%s takes %d bytes more, want %d", mode, got, want)
		}
		if list[0].Layers != 1 || len(list[0].Notes) != 1 || !strings.HasPrefix(suffix, "+lora") {
			t.Errorf("%s: %+v, suffix %s", mode, list, suffix)
		}
	}
	if _, _, _, err := WithLoRAs(m, known, []LoRA{{ID: "gone", Name: "gone", Mode: lora.Add}}, "bf16"); err == nil || !strings.Contains(err.Error(), "no node has the LoRA gone") {
		t.Errorf("a LoRA that nobody has: %v", err)
	}
}
