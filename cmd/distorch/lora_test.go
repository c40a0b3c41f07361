// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
