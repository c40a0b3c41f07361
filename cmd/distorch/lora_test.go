// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

func TestCutStrengths(t *testing.T) {
	for text, want := range map[string]struct {
		ref       string
		strengths []float64
	}{
		"style.safetensors":             {"style.safetensors", nil},
		"style.safetensors:0.8":         {"style.safetensors", []float64{0.8}},
		"style:1:-0.25":                 {"style", []float64{1, -0.25}},
		`C:\loras\style.safetensors`:    {`C:\loras\style.safetensors`, nil},
		`C:\loras\style.safetensors:.5`: {`C:\loras\style.safetensors`, []float64{0.5}},
		"a:1:2:3":                       {"a:1", []float64{2, 3}},
	} {
		ref, s, err := cutStrengths(text)
		if err != nil || ref != want.ref || cmp.Diff(s, want.strengths) != "" {
			t.Errorf("%s: %q, %v, %v", text, ref, s, err)
		}
	}
	for _, text := range []string{"", "style:101", "style:nan", "style:inf"} {
		if _, _, err := cutStrengths(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	if _, err := parseLoRAs([]string{"style:1:0"}, "add"); err == nil {
		t.Error("a deployment took two strengths of one LoRA")
	}
	if _, err := parseLoRAs(nil, "merge"); err == nil || exitCode(err) != exitUsage {
		t.Errorf("a mode without a LoRA: %v", err)
	}
	if _, err := parseLoRAs(nil, "mix"); err == nil || !strings.Contains(err.Error(), "--lora-mode") {
		t.Errorf("mode mix: %v", err)
	}
}

// The command that adds a LoRA keeps what the deployment has.
func TestDeployCommand(t *testing.T) {
	got := deployCommand(&pb.DeploymentSpec{
		Name: "flux", ModelName: "flux1-dev.safetensors", Dtype: "bf16", Excludes: []string{"c"},
		Workload: &pb.Workload{Dims: map[string]int64{"width": 1024, "height": 768, "text_tokens": 512, "batch": 1}},
		Pins:     []*pb.Pin{{Node: "a", Blocks: 57}}, Loras: []*pb.LoRA{{Name: "style.safetensors", Mode: "merge", Strength: 0.5}},
	}, "detail.safetensors")
	want := "distorch deploy flux --model flux1-dev.safetensors --workload 1024x768,batch=1,tokens=512 --dtype bf16 --pin a=0-56 --exclude c --lora style.safetensors:0.5 --lora detail.safetensors --lora-mode merge"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A run's strengths are of LoRAs that the deployment has, one for each.
func TestRunStrengths(t *testing.T) {
	spec := &pb.DeploymentSpec{Name: "flux", ModelName: "dev", Loras: []*pb.LoRA{{Id: "1", Name: "style.safetensors"}, {Id: "2", Name: "detail.safetensors"}}}
	for name, tc := range map[string]struct {
		flags []string
		want  string
	}{
		"two":               {[]string{"style:0.5", "detail:1:0"}, ""},
		"one LoRA twice":    {[]string{"style:1", "style.safetensors:2"}, "style.safetensors has a strength already"},
		"no strength":       {[]string{"style"}, "the strength is missing or no number"},
		"no number":         {[]string{"style:much"}, "the strength is missing or no number"},
		"one that it lacks": {[]string{"stile:1"}, "deployment flux has no LoRA stile (it has style.safetensors, detail.safetensors); this adds it: distorch deploy"},
	} {
		got, err := runStrengths(nil, nil, spec, tc.flags)
		switch {
		case tc.want == "" && (err != nil || len(got) != len(tc.flags)):
			t.Errorf("%s: %v, %v", name, got, err)
		case tc.want != "" && (err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// What has no room is said in the words of a workload that has.
func TestPlacedFor(t *testing.T) {
	spec := &pb.DeploymentSpec{Name: "flux", Workload: &pb.Workload{Dims: map[string]int64{"width": 128, "height": 128, "text_tokens": 16, "batch": 1, "ref0_width": 128, "ref0_height": 64}}}
	latent := func(height, width int64) picture.Latent {
		return picture.Latent{Shape: tensor.Shape{1, 16, height, width}}
	}
	r := picture.Request{Width: 128, Height: 128, RefMethod: "uxo", References: []picture.Latent{latent(8, 16)}, Text: picture.Text{ContextShape: tensor.Shape{1, 16, 4}}}
	if err := placedFor(spec, r); err != nil {
		t.Error(err)
	}
	r.References = []picture.Latent{latent(16, 8), latent(4, 4)}
	r.Text.Mask = []float32{0}
	err := placedFor(spec, r)
	want := "deployment flux is placed for 128x128,batch=1,ref=128x64,tokens=16; for this request deploy it again with --workload 128x128,mask=1,batch=1,ref=128x128,ref=32x32,tokens=16"
	if err == nil || exitCode(err) != exitUsage || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestFew(t *testing.T) {
	for n, want := range map[int]string{0: "", 3: "a a a", 4: "a a a and 1 more", 20: "a a a and 17 more"} {
		if got := strings.Join(few(slices.Repeat([]string{"a"}, n)), " "); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
