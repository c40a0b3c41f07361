// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// Bounds on hyper-parameters; real models stay far below.
const (
	fluxMaxBlocks = 1024
	fluxMaxWidth  = 1 << 17
)

// looksLikeFlux is ComfyUI's own test, without what marks its relatives.
func looksLikeFlux(own map[string]Tensor) bool {
	for _, name := range []string{"double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight"} {
		if _, ok := own[name]; !ok {
			return false
		}
	}
	for name := range own {
		if relativeOfFlux(name) {
			return false
		}
	}
	return true
}

// relativeOfFlux marks Chroma, HunyuanVideo, FLUX.2 and ControlNets.
func relativeOfFlux(name string) bool {
	for _, relative := range []string{
		"distilled_guidance_layer.", "txt_in.individual_token_refiner.", "double_stream_modulation_img.", "controlnet_blocks.", "controlnet_x_embedder.",
	} {
		if strings.HasPrefix(name, relative) {
			return true
		}
	}
	return false
}

// recogniseFlux reads the hyper-parameters from shapes and checks every tensor
// against them.
func recogniseFlux(own map[string]Tensor, metadata map[string]string) (*Recognised, error) {
	f, err := fluxParams(own, metadata)
	if err != nil {
		return nil, err
	}
	r := &Recognised{Arch: f.Arch(), Variant: f.variant(), Params: f}
	want := f.weights()
	var missing []string
	for _, name := range sortedKeys(want) {
		if _, ok := own[name]; !ok {
			missing = append(missing, name)
		}
	}
	for _, name := range sortedKeys(own) {
		if _, ok := want[name]; !ok {
			r.Unknown = append(r.Unknown, name)
		}
	}
	if len(missing) > 0 {
		return nil, fluxMissing(own, missing, r.Unknown)
	}
	r.Stored = make(map[string]tensor.DType, len(want))
	for _, name := range sortedKeys(want) {
		t := own[name]
		if !t.Shape.Equal(want[name]) {
			return nil, malformed("tensor-shape", "tensor %s is %v, must be %v", name, t.Shape, want[name])
		}
		if err := readable(name, t); err != nil {
			return nil, err
		}
		r.Stored[name] = t.DType
	}
	return r, nil
}

// fluxMissing tells a damaged FLUX file from one with renamed tensors.
func fluxMissing(own map[string]Tensor, missing, unknown []string) error {
	if len(unknown) == 0 || len(difference(fluxKinds(), kinds(sortedKeys(own)))) == 0 {
		return malformed("tensor-missing", "FLUX.1 without %s", list(missing))
	}
	return unsupported("family", "unknown architecture; %s", nearestFlux(sortedKeys(own)))
}

func fluxParams(own map[string]Tensor, metadata map[string]string) (Flux, error) {
	var f Flux
	read := func(name string, rank int) (tensor.Shape, error) {
		t, ok := own[name]
		if !ok {
			return nil, fluxMissing(own, []string{name}, difference(kinds(sortedKeys(own)), fluxKinds()))
		}
		if len(t.Shape) != rank {
			return nil, malformed("tensor-shape", "tensor %s is %v, must have %d dimensions", name, t.Shape, rank)
		}
		for _, n := range t.Shape {
			if n < 1 || n > fluxMaxWidth {
				return nil, malformed("tensor-shape", "tensor %s is %v: not a width of FLUX.1", name, t.Shape)
			}
		}
		return t.Shape, nil
	}
	img, err := read("img_in.weight", 2)
	if err != nil {
		return f, err
	}
	txt, err := read("txt_in.weight", 2)
	if err != nil {
		return f, err
	}
	vec, err := read("vector_in.in_layer.weight", 2)
	if err != nil {
		return f, err
	}
	mlp, err := read("double_blocks.0.img_mlp.0.weight", 2)
	if err != nil {
		return f, err
	}
	last, err := read("final_layer.linear.weight", 2)
	if err != nil {
		return f, err
	}
	head, err := read("double_blocks.0.img_attn.norm.query_norm.scale", 1)
	if err != nil {
		return f, err
	}
	f.Hidden, f.Context, f.Vector, f.MLP = img[0], txt[1], vec[1], mlp[0]
	if err := f.channels(img[1], last[0]); err != nil {
		return f, err
	}
	if f.Hidden%head[0] != 0 {
		return f, malformed("heads", "head size %d (length of query_norm.scale) does not divide the hidden size %d", head[0], f.Hidden)
	}
	f.Heads = f.Hidden / head[0]
	_, f.Guidance = own["guidance_in.in_layer.weight"]
	if f.Double, err = countBlocks(own, "double_blocks."); err != nil {
		return f, err
	}
	if f.Single, err = countBlocks(own, "single_blocks."); err != nil {
		return f, err
	}
	f.Axes, err = fluxAxes(head[0], metadata)
	return f, err
}

// variant is the published model that has these shapes. Kontext and Krea have
// those of dev.
func (f Flux) variant() string {
	switch {
	case f.Concat == f.Channels+fluxMask:
		return "FLUX.1 Fill"
	case f.Concat == f.Channels:
		return "FLUX.1 Control (Canny, Depth)"
	case f.Guidance:
		return "FLUX.1 dev"
	}
	return "FLUX.1 schnell"
}

// channels derives the latent's channels and those that stand behind them on
// the way in.
func (f *Flux) channels(in, out int64) error {
	const patch = fluxPatch * fluxPatch
	if in%patch != 0 || out%patch != 0 {
		return malformed("tensor-shape", "img_in takes %d and final_layer gives %d features, must be multiples of %d", in, out, patch)
	}
	f.Channels = out / patch
	f.Concat = (in - out) / patch
	switch f.Concat {
	case 0, f.Channels, f.Channels + fluxMask:
		return nil
	}
	return unsupported("variant", "a FLUX.1 variant whose img_in takes %d features and whose final_layer gives %d: must be as many (dev, schnell, Kontext), %d (Control) or %d (Fill)", in, out, 2*out, 2*out+fluxMask*patch)
}

// countBlocks counts the numbers behind prefix and wants them without a gap.
func countBlocks(own map[string]Tensor, prefix string) (int64, error) {
	seen := map[int64]bool{}
	for name := range own {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		digits, _, _ := strings.Cut(rest, ".")
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || strconv.FormatInt(n, 10) != digits {
			continue // reported as an unknown tensor
		}
		seen[n] = true
	}
	n := int64(len(seen))
	if n == 0 {
		return 0, malformed("block-gap", "FLUX.1 without any %s*", prefix)
	}
	if n > fluxMaxBlocks {
		return 0, malformed("size", "%d %s*, more than %d", n, prefix, fluxMaxBlocks)
	}
	for i := range n {
		if !seen[i] {
			highest := int64(0)
			for k := range seen {
				highest = max(highest, k)
			}
			return 0, malformed("block-gap", "%s%d is missing, but there is %s%d", prefix, i, prefix, highest)
		}
	}
	return n, nil
}

// fluxAxes reads how a head is cut into RoPE axes: from the metadata, else 128
// is (16,56,56).
func fluxAxes(head int64, metadata map[string]string) ([]int64, error) {
	text, ok := metadata["axes_dim"]
	if !ok {
		if head == 128 {
			return []int64{16, 56, 56}, nil
		}
		return nil, malformed("axes-unknown", "head size %d does not tell its rotation axes (128 means 16,56,56): add the metadata key axes_dim with three even numbers that add up to %d", head, head)
	}
	parts := strings.Split(text, ",")
	if len(parts) != 3 {
		return nil, malformed("axes-text", "metadata axes_dim %s must be three numbers", quote(text))
	}
	axes, sum := make([]int64, 3), int64(0)
	for i, p := range parts {
		n, err := strconv.ParseInt(strings.TrimSpace(p), 10, 32)
		if err != nil || n < 1 {
			return nil, malformed("axes-text", "metadata axes_dim %s must be three numbers", quote(text))
		}
		axes[i] = n
		sum += n
	}
	if slices.ContainsFunc(axes, func(n int64) bool { return n%2 != 0 }) {
		return nil, malformed("axes-odd", "metadata axes_dim %s: every axis must be even", quote(text))
	}
	if sum != head {
		return nil, malformed("axes-sum", "metadata axes_dim %s adds up to %d, must be the head size %d", quote(text), sum, head)
	}
	return axes, nil
}

// weights are the names and shapes of every tensor of the model.
func (f Flux) weights() map[string]tensor.Shape { return f.Build(Options{}).Weights() }
