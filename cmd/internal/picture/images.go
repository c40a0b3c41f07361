// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

import (
	"fmt"
	"slices"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
)

// Latent is an image in the model's space.
type Latent struct {
	Values []float32
	Shape  tensor.Shape // [1, channels, height/8, width/8]
}

// RefMethods are the ways to place reference latents, by ComfyUI's names, in the
// order of the word ref_method.
func RefMethods() []string { return []string{"offset", "index", "uxo"} }

// maxLatent bounds a latent: 64 channels of 8192x8192 pixels.
const maxLatent = 256 * tensor.MiB

// ReadLatent reads latent_tensor [1,channels,height/8,width/8] of a file that
// ComfyUI's SaveLatent or `distorch run --save-latent` wrote.
func ReadLatent(path string, channels int64) (Latent, error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return Latent{}, err
	}
	defer f.Close()
	l, err := readLatent(f, channels)
	if err != nil {
		return Latent{}, fmt.Errorf("latent %s: %w", path, err)
	}
	return l, nil
}

func readLatent(f *safetensors.File, channels int64) (l Latent, err error) {
	const name = "latent_tensor"
	t, ok := f.Lookup(name)
	switch {
	case !ok:
		return l, fmt.Errorf("tensor %s is missing; ComfyUI's SaveLatent and `distorch run --save-latent` write it", name)
	case len(t.Shape) != 4 || t.Shape[0] != 1 || t.Shape[1] != channels || t.Size == 0:
		return l, fmt.Errorf("tensor %s is %v: must be [1,%d,height/8,width/8]", name, t.Shape, channels)
	case t.Size > maxLatent:
		return l, fmt.Errorf("tensor %s has %v, at most %v are taken", name, t.Size, maxLatent)
	}
	if l.Values, l.Shape, err = f.Float32s(name); err != nil {
		return l, err
	}
	sampling.FluxLatents().In(l.Values)
	return l, nil
}

// ReadInput reads what stands behind the latent's channels in a Control or Fill
// model: latent_tensor, which has the picture's size, and for Fill mask
// [1,1,height,width], 1 where the picture is to be made anew.
func ReadInput(path string, m Model, width, height int) (Latent, error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return Latent{}, err
	}
	defer f.Close()
	l, err := readInput(f, m, m.LatentShape(width, height))
	if err != nil {
		return Latent{}, fmt.Errorf("input %s: %w", path, err)
	}
	return l, nil
}

func readInput(f *safetensors.File, m Model, size tensor.Shape) (Latent, error) {
	l, err := readLatent(f, m.Channels)
	if err != nil {
		return l, err
	}
	if !l.Shape.Equal(size) {
		return l, fmt.Errorf("tensor latent_tensor is %v, a picture of %dx%d pixels takes %v; give --width %d --height %d", l.Shape, size[3]*pixels, size[2]*pixels, size, l.Shape[3]*pixels, l.Shape[2]*pixels)
	}
	const name = "mask"
	want := tensor.Shape{1, 1, size[2] * pixels, size[3] * pixels}
	t, ok := f.Lookup(name)
	switch {
	case m.Concat == m.Channels && ok:
		return l, fmt.Errorf("%s takes no mask, and the file has one; Fill models do", m.Variant)
	case m.Concat == m.Channels:
		return l, nil
	case !ok:
		return l, fmt.Errorf("%s takes a tensor mask %v, 1 where the picture is to be made anew; the file has none", m.Variant, want)
	case !slices.Equal(t.Shape, want):
		return l, fmt.Errorf("tensor mask is %v, a picture of %dx%d pixels takes %v, 1 where it is to be made anew", t.Shape, want[3], want[2], want)
	}
	mask, _, err := f.Float32s(name)
	if err != nil {
		return l, err
	}
	l.Values = append(l.Values, sampling.FluxMaskChannels(mask, 1, int(size[2]), int(size[3]))...)
	l.Shape = tensor.Shape{1, m.Concat, size[2], size[3]}
	return l, nil
}
