// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// A LoRA that cannot be put on a model is an error of its deployment; the agent
// stays up.
func TestOnTopRefuses(t *testing.T) {
	file, err := checkpoint.Open(filepath.Join("..", "demo", "demo.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	known, err := catalog.Recognise(file)
	if err != nil {
		t.Fatal(err)
	}
	const layer = "diffusion_model.single_blocks.0.linear2"
	write := func(name string, alpha float32) string {
		path := filepath.Join(t.TempDir(), name)
		down, up := tensor.Shape{1, 1280}, tensor.Shape{256, 1}
		err := safetensors.WriteFile(path, []safetensors.Data{
			safetensors.FromFloat32s(layer+".lora_down.weight", down, make([]float32, down[1])),
			safetensors.FromFloat32s(layer+".lora_up.weight", up, make([]float32, up[0])),
			safetensors.FromFloat32s(layer+".alpha", tensor.Shape{}, []float32{alpha}),
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	a := &Agent{}
	for id, path := range map[string]string{
		"sound": write("sound.safetensors", 1), "alpha": write("alpha.safetensors", float32(math.NaN())), "gone": write("gone.safetensors", 1),
	} {
		stamp, err := catalog.StampOf(path)
		if err != nil {
			t.Fatal(err)
		}
		a.entries = append(a.entries, catalog.Entry{Path: path, Record: &pb.ModelRecord{Id: id}, Stamp: stamp})
		if id == "gone" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for id, want := range map[string]string{"sound": "", "alpha": "alpha\" is NaN", "gone": "gone.safetensors", "unknown": "no file of LoRA unknown"} {
		p := &pb.Plan{Dtype: "f32", Loras: []*pb.LoRA{{Id: "sound", Name: "sound", Strength: 1}, {Id: id, Name: id, Strength: 1}}}
		_, _, done, err := a.onTop(t.Context(), p, known.Params.Build(arch.Options{}), file, known)
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", id, err, want)
			}
			continue
		}
		if err != nil || done() != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}
