// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package blocktable knows the block tables of published models by name, so
// that a model can be planned before its checkpoint is there.
//
// The command line imports it. It is pure like placement: it must not import
// os, net, context, sync, a logger or a clock.
//
// Parameters and FLOPs are exact integer arithmetic from the layers' shapes
// (2 FLOPs for a multiply-add): for two joint streams a linear part of 24 D² for
// a token, for WAN 12 D² + 4 D F for a token and 4 D² for a token of text, and
// attention of 4 D for a pair of tokens. Elementwise traffic and scratch are
// estimates: those of FLUX.1 follow its graph, and the other models take the
// figures of the block that is most like theirs.
package blocktable

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/placement"
)

// Known is a published model.
type Known struct {
	Name     string
	Title    string
	Source   string // where the shapes are published
	Branches int    // forwards of one step: 2 with classifier-free guidance
	Default  Workload

	family family
	width  int64 // D
	inner  int64 // F, of the feed-forward layers
	heads  int
	runs   []run
	head   []layer // in front of the blocks
	tail   []layer // behind them
}

// family says how a model counts tokens.
type family uint8

const (
	image family = iota // latent cells of 8x8 pixels, patches of 2x2
	video               // the same over (frames-1)/4+1 latent frames
)

// block is a kind of block.
type block uint8

const (
	double block = iota // two streams with their own weights and one attention
	single              // one stream, attention and feed-forward side by side
	cross               // self-attention, attention to the text, feed-forward
)

type run struct {
	name  string
	kind  block
	count int
}

// layer is a matrix product in front of the blocks or behind them, bias included.
type layer struct {
	in, out int64
	rows    rows
	extra   int64 // parameters that multiply nothing: norms, tables
}

// rows says for how many rows a layer runs.
type rows uint8

const (
	one    rows = iota // a vector: time, guidance, pooled text
	onImg              // every token of the picture
	onText             // every token of the text
)

func (l layer) params() int64 { return l.in*l.out + l.out + l.extra }

const (
	latentChannels = 16
	pixelsPerToken = 16 // in each direction
	framesPerToken = 4
	maxSide        = 16384
	maxFrames      = 4096
	maxText        = 8192
	maxBatch       = 64
	maxReferences  = 4
)

// Workload is a request that a model is planned for; zero values take the
// model's own.
type Workload struct {
	Width, Height int // pixels
	Frames        int // of a video; models of pictures have 1
	Text          int // tokens
	Batch         int // requests in one forward; 1 when 0
	References    []Size
	Mask          bool // an attention mask goes with the stream from block to block

	Compute placement.DType // bf16, f16 or f32; bf16 when empty
	Stored  placement.DType // of the weights in the file; Compute when empty
}

// Size is that of a reference image, in pixels.
type Size struct{ Width, Height int }

// UnknownModelError is a name that no table is known for.
type UnknownModelError struct {
	Name, Nearest string
	Known         []string
}

func (e *UnknownModelError) Error() string {
	hint := ""
	if e.Nearest != "" {
		hint = fmt.Sprintf(", did you mean %q?", e.Nearest)
	}
	return fmt.Sprintf("no block table of a model %q%s (known are %s)", e.Name, hint, strings.Join(e.Known, ", "))
}

// WorkloadError is a workload that a model does not take.
type WorkloadError struct {
	Model, Field, Problem string
}

func (e *WorkloadError) Error() string {
	return fmt.Sprintf("model %s: %s: %s", e.Model, e.Field, e.Problem)
}

// Lookup finds a model by its name, whatever the case of its letters; the error
// is an *[UnknownModelError].
func Lookup(name string) (Known, error) {
	low := strings.ToLower(name)
	for _, k := range all() {
		if k.Name == low {
			return k, nil
		}
	}
	names := Names()
	return Known{}, &UnknownModelError{Name: name, Nearest: edits.Nearest(low, names), Known: names}
}

// Names are the known models' names, those of pictures first.
func Names() []string {
	var out []string
	for _, k := range all() {
		out = append(out, k.Name)
	}
	return out
}

// StoredDTypes are the storage dtypes that tables are made for.
func StoredDTypes() []placement.DType {
	return []placement.DType{"bf16", "f16", "f32", "f8_e4m3", "f8_e5m2", "q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_0", "q3_k", "q2_k"}
}

// Params is the number of parameters.
func (k Known) Params() int64 {
	n := int64(0)
	for _, r := range k.runs {
		total, _ := k.params(r.kind)
		n += int64(r.count) * total
	}
	for _, l := range slices.Concat(k.head, k.tail) {
		n += l.params()
	}
	return n
}

// params are a block's parameters, and how many of them are biases, norms and
// modulation tables, which files keep at a higher precision.
func (k Known) params(b block) (total, small int64) {
	d, f := k.width, k.inner
	headSize := d / int64(k.heads)
	switch b {
	case double:
		small = 2 * (6*d + 3*d + d + f + d + 2*headSize)
		return 2*(6*d*d+3*d*d+d*d+2*d*f) + small, small
	case single:
		small = 3*d + (3*d + f) + d + 2*headSize
		return 3*d*d + d*(3*d+f) + (d+f)*d + small, small
	}
	small = 8*d + f + d + 6*d + 2*d + 4*d
	return 8*d*d + 2*d*f + small, small
}

// all are the models, in the order they are listed.
func all() []Known {
	const d, wan = 3072, 5120
	vector := func(in, d int64) []layer { return []layer{{in: in, out: d}, {in: d, out: d}} }
	final := func(d int64) []layer { return []layer{{in: d, out: 2 * d}, {in: d, out: 64, rows: onImg}} }
	flux := func(name, title string, guidance bool) Known {
		head := slices.Concat([]layer{{in: 64, out: d, rows: onImg}, {in: 4096, out: d, rows: onText}}, vector(256, d), vector(768, d))
		if guidance {
			head = append(head, vector(256, d)...)
		}
		return Known{
			Name: name, Title: title, Source: "black-forest-labs/flux src/flux/util.py, model.py", Branches: 1, Default: Workload{Width: 1024, Height: 1024, Text: 512},
			width: d, inner: 4 * d, heads: 24, head: head, tail: final(d),
			runs: []run{{"double_blocks", double, 19}, {"single_blocks", single, 38}},
		}
	}
	qwen := Known{
		Name: "qwen-image", Title: "Qwen-Image", Source: "Qwen/Qwen-Image transformer/config.json", Branches: 2, Default: Workload{Width: 1328, Height: 1328, Text: 128},
		width: d, inner: 4 * d, heads: 24, tail: final(d), runs: []run{{"transformer_blocks", double, 60}},
		head: slices.Concat([]layer{{in: 64, out: d, rows: onImg}, {in: 3584, out: d, rows: onText, extra: 3584}}, vector(256, d)),
	}
	wanOf := func(name, title string, d, f int64, heads, blocks int) Known {
		in := []layer{{in: 64, out: d, rows: onImg}, {in: 4096, out: d, rows: onText}, {in: d, out: d, rows: onText}}
		return Known{
			Name: name, Title: title, Source: "Wan-Video/Wan2.1 wan/configs", Branches: 2, Default: Workload{Width: 832, Height: 480, Frames: 81, Text: 512},
			family: video, width: d, inner: f, heads: heads, runs: []run{{"blocks", cross, blocks}},
			head: slices.Concat(in, vector(256, d), []layer{{in: d, out: 6 * d}}),
			tail: []layer{{in: d, out: 64, rows: onImg, extra: 2 * d}},
		}
	}
	refine := []layer{
		{in: d, out: 3 * d, rows: onText, extra: 4 * d}, {in: d, out: d, rows: onText},
		{in: d, out: 4 * d, rows: onText}, {in: 4 * d, out: d, rows: onText}, {in: d, out: 2 * d},
	}
	hunyuan := Known{
		Name: "hunyuan-video", Title: "HunyuanVideo 13B", Source: "Tencent-Hunyuan/HunyuanVideo hyvideo/modules/models.py", Branches: 1, Default: Workload{Width: 1280, Height: 720, Frames: 129, Text: 256},
		family: video, width: d, inner: 4 * d, heads: 24, tail: final(d),
		runs: []run{{"double_blocks", double, 20}, {"single_blocks", single, 40}},
		head: slices.Concat([]layer{{in: 64, out: d, rows: onImg}, {in: 4096, out: d, rows: onText}},
			vector(256, d), vector(768, d), vector(256, d), vector(256, d), vector(4096, d), refine, refine),
	}
	return []Known{
		flux("flux1-dev", "FLUX.1 dev", true), flux("flux1-schnell", "FLUX.1 schnell", false), qwen,
		wanOf("wan2.1-14b", "WAN 2.1 14B", wan, 13824, 40, 40), wanOf("wan2.1-1.3b", "WAN 2.1 1.3B", 1536, 8960, 12, 30), hunyuan,
	}
}
