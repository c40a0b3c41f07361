// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/demo"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// pixels per latent cell and direction.
const pixels = 8

// Model is what sampling needs to know of a deployment's model.
type Model struct {
	Name     string
	Variant  string
	Channels int64 // of the latent
	Concat   int64 // further channels that the model takes behind those: Control's image, Fill's image and mask
	Guidance bool  // takes a guidance value
	Demo     bool  // its text is the demo's words and its latents are the demo's pictures
}

// NewModel reads a model's record. Architectures that this build cannot sample
// are an error.
func NewModel(r *pb.ModelRecord) (Model, error) {
	if r.GetArchitecture() != "flux" {
		return Model{}, fmt.Errorf("model %s is of the architecture %q; this build samples flux", r.GetName(), r.GetArchitecture())
	}
	m := Model{Name: r.Name, Variant: r.Variant, Channels: 16, Guidance: !strings.Contains(r.Variant, "schnell")}
	h := r.HyperParameters
	if n, err := strconv.ParseInt(h["channels"], 10, 32); err == nil && n > 0 {
		m.Channels = n
	}
	if n, err := strconv.ParseInt(h["concat"], 10, 32); err == nil && n > 0 {
		m.Concat = n
	}
	if g, err := strconv.ParseBool(h["guidance_embed"]); err == nil {
		m.Guidance = g
	}
	width := strconv.Itoa(demo.Width)
	m.Demo = h["context"] == width && h["vector"] == width
	if len(h) == 0 {
		m.Demo = r.Name == "demo.safetensors"
	}
	return m, nil
}

// levels is the noise schedule that the model was trained with.
func (m Model) levels(shift float64) *sampling.Levels {
	if m.Guidance {
		return sampling.FluxLevels(shift)
	}
	return sampling.DiscreteFlowLevels(1, 1)
}

// Cells is a size in pixels, rounded up to whole cells of the latent.
func Cells(width, height int) (w, h int) {
	return (width + pixels - 1) / pixels * pixels, (height + pixels - 1) / pixels * pixels
}

// LatentShape is [1, channels, height/8, width/8], rounded up.
func (m Model) LatentShape(width, height int) tensor.Shape {
	return tensor.Shape{1, m.Channels, int64(height+pixels-1) / pixels, int64(width+pixels-1) / pixels}
}
