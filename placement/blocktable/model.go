// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package blocktable

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
)

// Estimates, in activations (tokens x width) read and written or alive at once.
// Those of double and single blocks follow FLUX.1's graph; a cross block moves
// as much as a double one and keeps query, key, value and the inner layer.
func (b block) traffic() float64 { return [...]float64{double: 32.2, single: 23.2, cross: 32.2}[b] }

func (b block) arena() float64 { return [...]float64{double: 7, single: 14, cross: 7}[b] }

// reduces is how often a tensor-parallel group adds up partial sums of all
// tokens in one block: after attention and feed-forward; once where these lie
// side by side, and once more after attention to the text.
func (b block) reduces() int64 { return [...]int64{double: 2, single: 1, cross: 3}[b] }

// shape is a workload in tokens and elements.
type shape struct {
	img, text, batch int64 // img with the references' tokens
	latent           int64 // elements of one request's latent
	mask             int64 // bytes of an attention mask
	element          int64 // bytes of the compute dtype
}

// stream is the number of tokens that the blocks work on.
func (k Known) stream(s shape) int64 {
	if k.joint() {
		return s.img + s.text
	}
	return s.img
}

func (k Known) joint() bool { return k.runs[0].kind != cross }

// with fills in the model's own workload.
func (k Known) with(w Workload) Workload {
	def := func(v *int, own int) {
		if *v == 0 {
			*v = own
		}
	}
	if w.Width == 0 && w.Height == 0 {
		w.Width, w.Height = k.Default.Width, k.Default.Height
	}
	def(&w.Width, w.Height)
	def(&w.Height, w.Width)
	def(&w.Frames, max(k.Default.Frames, 1))
	def(&w.Text, k.Default.Text)
	def(&w.Batch, 1)
	if w.Compute == "" {
		w.Compute = "bf16"
	}
	if w.Stored == "" {
		w.Stored = w.Compute
	}
	return w
}

func (k Known) shape(w Workload) (shape, error) {
	bad := func(field, format string, args ...any) error {
		return &WorkloadError{k.Name, field, fmt.Sprintf(format, args...)}
	}
	for _, f := range []struct {
		name       string
		v, at, lim int
	}{{"width", w.Width, pixelsPerToken, maxSide}, {"height", w.Height, pixelsPerToken, maxSide}, {"frames", w.Frames, 1, maxFrames}, {"text", w.Text, 1, maxText}, {"batch", w.Batch, 1, maxBatch}} {
		if f.v < f.at || f.v > f.lim {
			return shape{}, bad(f.name, "%d: must be %d to %d", f.v, f.at, f.lim)
		}
	}
	frames := int64(1)
	switch {
	case k.family == image && w.Frames != 1:
		return shape{}, bad("frames", "%d: it makes pictures; leave frames out", w.Frames)
	case k.family == video && (w.Frames-1)%framesPerToken != 0:
		near := (w.Frames-1)/framesPerToken*framesPerToken + 1
		return shape{}, bad("frames", "%d: must be 1 more than a multiple of %d, such as %d", w.Frames, framesPerToken, near)
	case k.family == video:
		frames = int64(w.Frames-1)/framesPerToken + 1
	}
	element, ok := map[placement.DType]int64{"bf16": 2, "f16": 2, "f32": 4}[w.Compute]
	if !ok {
		return shape{}, bad("compute dtype", "%q: must be bf16, f16 or f32", w.Compute)
	}
	references, err := k.references(w)
	if err != nil {
		return shape{}, err
	}
	up := func(pixels int) int64 { return int64((pixels + pixelsPerToken - 1) / pixelsPerToken) }
	cells := func(pixels int) int64 { return int64(pixels+pixelsPerToken/2-1) / (pixelsPerToken / 2) }
	s := shape{
		img: frames*up(w.Width)*up(w.Height) + references, text: int64(w.Text), batch: int64(w.Batch),
		latent: latentChannels * frames * cells(w.Width) * cells(w.Height), element: element,
	}
	if w.Mask {
		s.mask = k.stream(s) * k.stream(s) * element * s.batch
	}
	return s, nil
}

// references is the number of tokens of a workload's reference images, which
// join those of the picture.
func (k Known) references(w Workload) (int64, error) {
	bad := func(field, format string, args ...any) (int64, error) {
		return 0, &WorkloadError{k.Name, field, fmt.Sprintf(format, args...)}
	}
	switch flux := strings.HasPrefix(k.Name, "flux1-"); {
	case w.Mask && !flux:
		return bad("mask", "it takes no attention mask; leave mask out")
	case len(w.References) > 0 && !flux:
		return bad("ref", "no reference latents are counted for it; leave ref out")
	case len(w.References) > maxReferences:
		return bad("ref", "%d reference latents: at most %d", len(w.References), maxReferences)
	}
	tokens := int64(0)
	for _, r := range w.References {
		if min(r.Width, r.Height) < pixelsPerToken || max(r.Width, r.Height) > maxSide {
			return bad("ref", "%dx%d: must be %d to %d on each side", r.Width, r.Height, pixelsPerToken, maxSide)
		}
		up := func(pixels int) int64 { return int64((pixels + pixelsPerToken - 1) / pixelsPerToken) }
		tokens += up(r.Width) * up(r.Height)
	}
	return tokens, nil
}

// stored are the bytes of parameters in a file, of which some are small and
// kept at a higher precision: two bytes beside float8, four beside GGUF types.
func stored(t placement.DType, params, small int64) (placement.Bytes, bool) {
	switch t {
	case "bf16", "f16":
		return placement.Bytes(2 * params), true
	case "f32":
		return placement.Bytes(4 * params), true
	case "f8_e4m3", "f8_e5m2":
		return placement.Bytes(params + small), true
	}
	d, err := tensor.ParseDType(strings.ToUpper(string(t)))
	if err != nil || !slices.Contains(StoredDTypes(), t) {
		return 0, false
	}
	elements, bytes := d.Block()
	return placement.Bytes((params-small)*int64(bytes)/int64(elements) + 4*small), true
}

// Model is the block table at a workload; its error is a *[WorkloadError].
// Weights that are stored smaller than they are computed with are staged and
// expanded in every pass; larger ones are converted when they are loaded. Head
// and tail are counted at the compute dtype: files keep them so. Scratch is the
// block's own peak and the stream six times: arriving, leaving, and the
// position tables.
func (k Known) Model(w Workload) (placement.Model, error) {
	w = k.with(w)
	s, err := k.shape(w)
	if err != nil {
		return placement.Model{}, err
	}
	if _, ok := stored(w.Stored, 0, 0); !ok {
		var names []string
		for _, t := range StoredDTypes() {
			names = append(names, string(t))
		}
		problem := fmt.Sprintf("%q: must be one of %s", w.Stored, strings.Join(names, ", "))
		if near := edits.Nearest(string(w.Stored), names); near != "" {
			problem += fmt.Sprintf("; did you mean %q?", near)
		}
		return placement.Model{}, &WorkloadError{k.Name, "stored dtype", problem}
	}
	tokens := k.stream(s) * s.batch
	activation := tokens * k.width * s.element
	m := placement.Model{
		Name: k.Name, ComputeDType: w.Compute, StoredDType: w.Stored, Tokens: float64(tokens), Heads: k.heads,
		Head: k.ends(k.head, s, 1, activation), Tail: k.ends(k.tail, s, 4, activation),
		Vec:   placement.Bytes(k.width*s.element*s.batch + s.mask),
		Input: placement.Bytes((s.latent*4 + 4) * s.batch), Output: placement.Bytes(s.latent * 4 * s.batch),
	}
	if !k.joint() {
		m.Vec = placement.Bytes(6 * k.width * 4 * s.batch) // the modulation of all blocks, in float32
	}
	for _, r := range k.runs {
		m.Runs = append(m.Runs, placement.Run{Name: r.name, Count: r.count, Boundary: placement.Bytes(activation), Block: k.block(r.kind, w, s, activation)})
	}
	return m, nil
}

// Around the blocks: what arrives and leaves, both in two regions, and the
// position tables in float32.
const regions = 4

func (k Known) scratch(s shape, arena float64, activation int64) placement.Bytes {
	positions := 2 * 4 * k.stream(s) * (k.width / int64(k.heads) / 2)
	return placement.Bytes(arena*float64(activation)) + placement.Bytes(regions*activation+positions)
}

func (k Known) block(b block, w Workload, s shape, activation int64) placement.Cost {
	d, f, n := float64(k.width), float64(k.inner), float64(k.stream(s))
	text, batch := float64(s.text), float64(s.batch)
	params, small := k.params(b)
	packed := placement.Bytes(params * s.element)
	file, _ := stored(w.Stored, params, small)
	c := placement.Cost{
		Weights: packed, Scratch: k.scratch(s, b.arena(), activation),
		Collective: placement.Bytes(b.reduces() * activation),
		Attention:  4 * n * n * d * batch,
	}
	modulation := 0.0 // parameters that multiply one row, so that reading them is all that they cost
	switch b {
	case double:
		modulation = 12 * d * d
		c.Linear = (8*d*d+4*d*f)*n*batch + 2*modulation*batch
	case single:
		modulation = 3 * d * d
		c.Linear = (8*d*d+4*d*f)*n*batch + 2*modulation*batch
	case cross:
		c.Linear = (12*d*d+4*d*f)*n*batch + 4*d*d*text*batch
		c.Attention += 4 * n * text * d * batch
	}
	c.Elementwise = placement.Bytes(b.traffic()*float64(activation)+modulation*float64(s.element)) + placement.Bytes(int64(k.heads)*s.mask)
	if file < packed {
		c.Weights, c.Staging, c.Expansion = file, packed, packed
	}
	return c
}

// ends is the head or the tail: its layers, and what it reads and writes beside
// them in activations.
func (k Known) ends(layers []layer, s shape, traffic, activation int64) placement.Cost {
	params, linear, moved := int64(0), 0.0, float64(traffic*activation)
	for _, l := range layers {
		params += l.params()
		n := float64(s.batch)
		switch l.rows {
		case onImg:
			n *= float64(s.img)
		case onText:
			n *= float64(s.text)
		case one:
			moved += float64(l.params() * s.element)
		}
		linear += 2 * float64(l.in) * float64(l.out) * n
	}
	return placement.Cost{
		Weights: placement.Bytes(params * s.element), Linear: linear, Elementwise: placement.Bytes(moved), Scratch: k.scratch(s, 1, activation),
	}
}
