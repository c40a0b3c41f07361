// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package blocktable_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/blocktable"
)

// published are figures counted from the shapes of all weights, at workloads
// with other numbers of tokens.
type published struct {
	Tokens   int64 `json:"S"`
	Boundary int64 `json:"boundary_bytes_16bit"`
	Blocks   []struct {
		Name      string
		Count     int
		Params    int64
		Linear    float64 `json:"lin_flops"`
		Attention float64 `json:"attn_flops"`
		BF16      float64 `json:"bf16"`
		FP8       float64 `json:"fp8"`
		Q8        float64 `json:"q8_0"`
		Q4        float64 `json:"q4_k"`
	}
	Params int64 `json:"params_total"`
	Latent int64 `json:"latent_fp32_bytes"`
}

func load(t *testing.T) map[string]published {
	t.Helper()
	text, err := os.ReadFile("testdata/block-costs.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]published
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPublishedFigures(t *testing.T) {
	all := load(t)
	for _, tc := range []struct {
		entry, name string
		w           blocktable.Workload
	}{
		{"FLUX.1-dev 1024x1024 txt256 (ComfyUI default)", "flux1-dev", blocktable.Workload{Width: 1024, Height: 1024, Text: 256}},
		{"FLUX.1-dev 1024x1024 txt512 (BFL/diffusers)", "flux1-dev", blocktable.Workload{}},
		{"Qwen-Image 1328x1328 txt128", "qwen-image", blocktable.Workload{}},
		{"WAN2.1/2.2-14B 832x480x81 txt512", "wan2.1-14b", blocktable.Workload{}},
		{"WAN2.1/2.2-14B 1280x720x81 txt512", "wan2.1-14b", blocktable.Workload{Width: 1280, Height: 720}},
		{"WAN2.1-1.3B 832x480x81 txt512", "wan2.1-1.3b", blocktable.Workload{}},
		{"HunyuanVideo-13B 1280x720x129 txt256", "hunyuan-video", blocktable.Workload{}},
		{"HunyuanVideo-13B 848x480x73 txt256", "hunyuan-video", blocktable.Workload{Width: 848, Height: 480, Frames: 73}},
	} {
		t.Run(tc.entry, func(t *testing.T) {
			want, found := all[tc.entry]
			if !found {
				t.Fatal("no such entry")
			}
			k, err := blocktable.Lookup(tc.name)
			if err != nil {
				t.Fatal(err)
			}
			if k.Params() != want.Params {
				t.Errorf("%d parameters, published %d", k.Params(), want.Params)
			}
			for dtype, bytes := range map[placement.DType]func(i int) float64{
				"bf16":    func(i int) float64 { return want.Blocks[i].BF16 },
				"f8_e4m3": func(i int) float64 { return want.Blocks[i].FP8 },
				"q8_0":    func(i int) float64 { return want.Blocks[i].Q8 },
				"q4_k":    func(i int) float64 { return want.Blocks[i].Q4 },
			} {
				w := tc.w
				w.Stored = dtype
				m, err := k.Model(w)
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Validate(); err != nil {
					t.Fatal(err)
				}
				if int64(m.Tokens) != want.Tokens || int64(m.Output) != want.Latent {
					t.Errorf("%g tokens and %d bytes of latent, want %d and %d", m.Tokens, m.Output, want.Tokens, want.Latent)
				}
				for i, b := range want.Blocks {
					r := m.Runs[i]
					if r.Name != b.Name || r.Count != b.Count || int64(r.Boundary) != want.Boundary {
						t.Errorf("run %s x %d, boundary %d; want %s x %d, %d", r.Name, r.Count, r.Boundary, b.Name, b.Count, want.Boundary)
					}
					if r.Block.Linear != b.Linear || r.Block.Attention != b.Attention {
						t.Errorf("%s: %g and %g FLOPs, want %g and %g", r.Name, r.Block.Linear, r.Block.Attention, b.Linear, b.Attention)
					}
					if float64(r.Block.Weights) != bytes(i) {
						t.Errorf("%s in %s: %d bytes, want %g", r.Name, dtype, r.Block.Weights, bytes(i))
					}
				}
			}
		})
	}
}

// TestFluxGraph holds the table against the costs of the graph that runs.
func TestFluxGraph(t *testing.T) {
	f := arch.Flux{Channels: 16, Hidden: 3072, Heads: 24, MLP: 12288, Context: 4096, Vector: 768, Double: 19, Single: 38, Axes: []int64{16, 56, 56}, Guidance: true}
	g := f.Build(arch.Options{})
	k, err := blocktable.Lookup("FLUX1-dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{512, 1024, 2048, 1040} {
		dims := graph.Dims{"B": 1, "S_txt": 512, "h": int64(size / 8), "w": int64(size / 8)}
		w := blocktable.Workload{Width: size, Height: size}
		if size == 1040 { // with all that a request may bring
			dims["ref0_h"], dims["ref0_w"], dims["ref1_h"], dims["ref1_w"], dims["mask"] = 64, 128, 33, 20, 1
			w.References, w.Mask = []blocktable.Size{{Width: 1024, Height: 512}, {Width: 160, Height: 264}}, true
		}
		p, err := graph.Specialise(g, dims, tensor.BF16)
		if err != nil {
			t.Fatal(err)
		}
		m, err := k.Model(w)
		if err != nil {
			t.Fatal(err)
		}
		parts := []struct {
			name  string
			got   placement.Cost
			want  *graph.Segment
			slack float64 // of elementwise traffic
		}{
			{"head", m.Head, p.Head, 1}, {"tail", m.Tail, p.Tail, 0.3},
			{"double", m.Runs[0].Block, p.Runs[0].Block, 0.03}, {"single", m.Runs[1].Block, p.Runs[1].Block, 0.03},
		}
		for _, part := range parts {
			c := part.want.Cost
			if part.got.Linear != float64(c.LinearFLOPs) || part.got.Attention != float64(c.AttentionFLOPs) {
				t.Errorf("%d %s: %g and %g FLOPs, the graph takes %d and %d", size, part.name, part.got.Linear, part.got.Attention, c.LinearFLOPs, c.AttentionFLOPs)
			}
			if off := math.Abs(float64(part.got.Elementwise)/float64(c.MovedBytes) - 1); off > part.slack {
				t.Errorf("%d %s: moves %v, the graph %d", size, part.name, part.got.Elementwise, c.MovedBytes)
			}
			if own := float64(part.want.Arena); float64(part.got.Scratch) < own {
				t.Errorf("%d %s: scratch %v is less than the arena of %g", size, part.name, part.got.Scratch, own)
			}
		}
		step, _ := graph.StepLayout(p)
		if m.Vec != placement.Bytes(p.Travel[0].Bytes+p.Travel[1].Bytes) || math.Abs(float64(m.Input)-float64(step.Bytes)) > 256 || m.Output != placement.Bytes(graph.OutputLayout(p).Bytes) {
			t.Errorf("%d: vec %d, input %d, output %d; the graph %d, %d, %d", size, m.Vec, m.Input, m.Output, p.Travel[0].Bytes+p.Travel[1].Bytes, step.Bytes, graph.OutputLayout(p).Bytes)
		}
	}
}

func TestRefusals(t *testing.T) {
	_, err := blocktable.Lookup("flux-dev")
	var unknown *blocktable.UnknownModelError
	if !errors.As(err, &unknown) || unknown.Nearest != "flux1-dev" {
		t.Errorf("flux-dev: %v", err)
	}
	for _, tc := range []struct {
		model string
		w     blocktable.Workload
		want  string
	}{
		{"flux1-dev", blocktable.Workload{Frames: 9}, "it makes pictures"},
		{"flux1-dev", blocktable.Workload{References: []blocktable.Size{{Width: 8, Height: 64}}}, "ref: 8x64: must be 16 to"},
		{"flux1-dev", blocktable.Workload{References: make([]blocktable.Size, 5)}, "5 reference latents: at most 4"},
		{"wan2.1-14b", blocktable.Workload{Mask: true}, "takes no attention mask"},
		{"qwen-image", blocktable.Workload{References: make([]blocktable.Size, 1)}, "leave ref out"},
		{"wan2.1-14b", blocktable.Workload{Frames: 80}, "such as 77"},
		{"flux1-dev", blocktable.Workload{Width: -1, Height: 1024}, "width: -1: must be 16"},
		{"flux1-dev", blocktable.Workload{Width: 1 << 30}, "must be 16 to 16384"},
		{"flux1-dev", blocktable.Workload{Compute: "q8_0"}, "must be bf16, f16 or f32"},
		{"flux1-dev", blocktable.Workload{Stored: "f8_e4m4"}, `did you mean "f8_e4m3"?`},
	} {
		k, err := blocktable.Lookup(tc.model)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Model(tc.w); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %+v: %v, want %q", tc.model, tc.w, err, tc.want)
		}
	}
}
