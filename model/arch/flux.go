// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"math"

	"github.com/distorch/distorch/model/graph"
)

// Flux holds the hyper-parameters of a FLUX.1 transformer (BFL src/flux,
// ComfyUI comfy/ldm/flux): double blocks over two streams, then single blocks
// over the joined one.
//
// A request brings x [B,Channels,h,w] and timestep [B] with every forward and,
// as conditioning, context [B,S_txt,Context], y [B,Vector], guidance [B] where
// the model takes one, and, f32 all of them:
//   - concat [B,Concat,h,w] for models with more input channels than output
//     ones: what stands behind x on the channel axis (Fill: the image's latent,
//     then the mask; Control: the control latent);
//   - ref.0 … ref.3 [B,Channels,h_k,w_k] for models without those: reference
//     latents, placed as the word ref_method says (FluxRefOffset, FluxRefIndex,
//     FluxRefUXO);
//   - attention_mask [B,S,S], if the word attention_mask is 1: added to the
//     scores of the joint sequence of text, image and reference tokens. It goes
//     with the state from stage to stage, in the compute dtype.
//
// References and mask are empty, and cost nothing, unless a request has them.
type Flux struct {
	Channels int64   `json:"channels"`       // of the latent that comes out, and of x
	Concat   int64   `json:"concat"`         // further channels of the latent that goes in
	Hidden   int64   `json:"hidden"`         // D
	Heads    int64   `json:"heads"`          //
	MLP      int64   `json:"mlp"`            // width of the feed-forward layers
	Context  int64   `json:"context"`        // width of the text features
	Vector   int64   `json:"vector"`         // width of the pooled text vector
	Double   int64   `json:"double_blocks"`  //
	Single   int64   `json:"single_blocks"`  //
	Axes     []int64 `json:"axes_dim"`       // RoPE dimensions of index, row, column; they add up to the head size
	Guidance bool    `json:"guidance_embed"` // has guidance_in (dev; schnell has not)
}

const (
	fluxPatch     = 2
	fluxSinusoid  = 256 // width of the timestep and guidance embedding
	fluxTheta     = 10000
	fluxPeriod    = 10000
	fluxEps       = 1e-6
	fluxTimeScale = 1000
	fluxPixels    = 8                       // pixels per latent cell and direction
	fluxMask      = fluxPixels * fluxPixels // channels of Fill's mask, one for each pixel of a cell
)

// FluxRefs is how many reference latents a request may bring.
const FluxRefs = 4

// How reference latents are placed (ComfyUI's ref_latents_method): the value of
// the word ref_method.
const (
	FluxRefOffset = iota // index 1, beside or below those before
	FluxRefIndex         // index 1, 2, …, from row and column 0
	FluxRefUXO           // index 0, behind the image and those before, diagonally ("uno")
)

// Arch is "flux".
func (f Flux) Arch() string { return "flux" }

// Head size of one attention head.
func (f Flux) headSize() int64 { return f.Hidden / f.Heads }

// fluxParts are what the graphs of one model share.
type fluxParts struct {
	Flux
	x, timestep, guidance, context, y, concat graph.Value
	refs                                      []graph.Value
	given, mask                               graph.Value // the attention mask as it comes and as blocks take it
	img, txt, joint, vec                      graph.Value
	cos, sin, freqs                           graph.Constant
}

func (f Flux) parts() fluxParts {
	b, d := graph.D("B"), graph.Int(f.Hidden)
	rope := func(name string, r graph.Recipe) graph.Constant {
		return graph.Constant{
			Name: name, Recipe: r, Theta: fluxTheta, Axes: f.Axes, RoundPositions: true,
			Shape: shape(graph.D("S"), graph.Int(f.headSize()/2)),
			Positions: append([]graph.Positions{
				{Grid: shape(graph.D("S_txt")), Axes: []int{-1, -1, -1}},
				{Grid: shape(graph.D("H2"), graph.D("W2")), Axes: []int{-1, 0, 1}},
			}, refPositions(f.references())...),
		}
	}
	joined := shape(graph.Product(b, graph.D("mask")), graph.D("S"), graph.D("S"))
	var refs []graph.Value
	for k := range f.references() {
		refs = append(refs, graph.Value{Name: fmt.Sprintf("ref.%d", k), Shape: shape(b, graph.Int(f.Channels), refDim(k, "h"), refDim(k, "w")), Kind: graph.F32})
	}
	return fluxParts{
		Flux:     f,
		refs:     refs,
		concat:   graph.Value{Name: "concat", Shape: shape(b, graph.Int(f.Concat), graph.D("h"), graph.D("w")), Kind: graph.F32},
		given:    graph.Value{Name: "attention_mask", Shape: joined, Kind: graph.F32},
		mask:     graph.Value{Name: "mask", Shape: joined, Kind: graph.Compute},
		x:        graph.Value{Name: "x", Shape: shape(b, graph.Int(f.Channels), graph.D("h"), graph.D("w")), Kind: graph.F32},
		timestep: graph.Value{Name: "timestep", Shape: shape(b), Kind: graph.F32},
		guidance: graph.Value{Name: "guidance", Shape: shape(b), Kind: graph.F32},
		context:  graph.Value{Name: "context", Shape: shape(b, graph.D("S_txt"), graph.Int(f.Context)), Kind: graph.F32},
		y:        graph.Value{Name: "y", Shape: shape(b, graph.Int(f.Vector)), Kind: graph.F32},
		img:      graph.Value{Name: "img", Shape: shape(b, graph.D("S_img"), d), Kind: graph.Compute},
		txt:      graph.Value{Name: "txt", Shape: shape(b, graph.D("S_txt"), d), Kind: graph.Compute},
		joint:    graph.Value{Name: "joint", Shape: shape(b, graph.D("S"), d), Kind: graph.Compute},
		vec:      graph.Value{Name: "vec", Shape: shape(b, d), Kind: graph.Compute},
		cos:      rope("rope.cos", graph.RopeCos),
		sin:      rope("rope.sin", graph.RopeSin),
		freqs: graph.Constant{
			Name: "sinusoid.freqs", Recipe: graph.Sinusoid, Period: fluxPeriod, Half: fluxSinusoid / 2,
			Shape: shape(graph.Int(fluxSinusoid / 2)),
		},
	}
}

// Build writes the model as a graph.
func (f Flux) Build(o Options) *graph.Model {
	p := f.parts()
	guidance := f.Guidance && !o.OmitGuidance
	inputs := []graph.Value{p.x, p.timestep, p.context, p.y}
	if guidance {
		inputs = append(inputs, p.guidance)
	}
	if f.Concat > 0 {
		inputs = append(inputs, p.concat)
	}
	inputs = append(append(inputs, p.refs...), p.given)
	return &graph.Model{
		Arch:      f.Arch(),
		OpSet:     graph.OpSet,
		Dims:      fluxDims(f.references()),
		Inputs:    inputs,
		Output:    graph.Value{Name: "out", Shape: p.x.Shape, Kind: graph.F32},
		Constants: []graph.Constant{p.cos, p.sin, p.freqs},
		Travel:    []graph.Value{p.vec, p.mask},
		Head:      p.head(guidance),
		Runs: []graph.Run{
			{Name: "double_blocks", Count: f.Double, Block: p.doubleBlock(), State: []graph.Value{p.img, p.txt}},
			{Name: "single_blocks", Count: f.Single, Entry: p.join(), Block: p.singleBlock(), State: []graph.Value{p.joint}},
		},
		Tail: p.tail(),
	}
}

// embed is MLPEmbedder: out_layer(silu(in_layer(x))).
func (b *builder) embed(name string, in, d int64, x val) val {
	h := b.linear(name+".in_layer", name+".in_layer", d, in, x)
	h = b.like(graph.OpSiLU, graph.Attrs{}, name+".silu", h)
	h = b.linear(name, name+".out_layer", d, d, h)
	b.tap(name, graph.TapAsIs, h)
	return h
}

// sinusoid embeds factor·v: the product is rounded to v's own kind, the
// embedding to the compute dtype.
func (b *builder) sinusoid(name string, v, freqs val) val {
	scaled := b.like(graph.OpScale, graph.Attrs{Factor: fluxTimeScale}, name+".scaled", v)
	batch := b.g.Values[v].Shape[0]
	e := b.node(graph.OpTimestepEmbedding, graph.Attrs{}, name+".f32", graph.F32, shape(batch, graph.Int(fluxSinusoid)), scaled, freqs)
	e = b.cast(name, graph.Compute, e)
	b.tap(name, graph.TapAsIs, e)
	return e
}

// head makes img, txt and vec. The timestep stays float32 until after its
// sinusoid; every other input is cast first, guidance before it is scaled.
func (p fluxParts) head(guidance bool) graph.Graph {
	b := &builder{}
	x, timestep, context, y := b.input(p.x), b.input(p.timestep), b.input(p.context), b.input(p.y)
	var g val
	if guidance {
		g = b.input(p.guidance)
	}
	freqs := b.constant(p.freqs)
	d := p.Hidden

	img := b.linear("img", "img_in", d, (p.Channels+p.Concat)*fluxPatch*fluxPatch, p.tokens(b, x))
	b.tap("img_in", graph.TapAsIs, img)
	txt := b.linear("txt", "txt_in", d, p.Context, b.cast("context.cast", graph.Compute, context))
	b.tap("txt_in", graph.TapAsIs, txt)

	vec := b.embed("time_in", fluxSinusoid, d, b.sinusoid("time_embedding", timestep, freqs))
	if guidance {
		e := b.sinusoid("guidance_embedding", b.cast("guidance.cast", graph.Compute, g), freqs)
		vec = b.like(graph.OpAdd, graph.Attrs{}, "vec.guided", vec, b.embed("guidance_in", fluxSinusoid, d, e))
	}
	pooled := b.embed("vector_in", p.Vector, d, b.cast("y.cast", graph.Compute, y))
	vec = b.like(graph.OpAdd, graph.Attrs{}, "vec", vec, pooled)
	b.tap("vec", graph.TapAsIs, vec)
	mask := b.cast("mask", graph.Compute, b.input(p.given))
	b.output(img, txt, vec, mask)
	return b.g
}

// tokens are the patches of x, with what is to stand behind its channels, and
// behind them those of the references, each of which is padded by itself.
func (p fluxParts) tokens(b *builder, x val) val {
	channels := p.Channels + p.Concat
	patches := func(name string, n graph.Expr, x val) val {
		return b.node(graph.OpPatchify, graph.Attrs{Patch: [2]int64{fluxPatch, fluxPatch}}, name, graph.Compute,
			shape(graph.D("B"), n, graph.Int(channels*fluxPatch*fluxPatch)), x)
	}
	x = b.cast("x.cast", graph.Compute, x)
	if p.Concat > 0 {
		x = b.concat("x.all", 1, graph.Int(channels), x, b.cast("concat.cast", graph.Compute, b.input(p.concat)))
	}
	if len(p.refs) == 0 {
		return patches("tokens", graph.D("S_img"), x)
	}
	all := []val{patches("x.tokens", graph.D("S_x"), x)}
	for k, r := range p.refs {
		ref := b.cast(r.Name+".cast", graph.Compute, b.input(r))
		all = append(all, patches(r.Name+".tokens", refTokens(k), ref))
	}
	return b.concat("tokens", 1, graph.D("S_img"), all...)
}

// modulation is chunks·D wide: Linear(silu(vec)), cut into chunks named after
// name.
func (b *builder) modulation(name, weight string, d int64, silu val, chunks ...string) []val {
	n := int64(len(chunks))
	m := b.linear(name, weight, n*d, d, silu)
	names := make([]string, n)
	extents := make([]graph.Expr, n)
	for i, c := range chunks {
		names[i], extents[i] = name+"."+c, graph.Int(d)
	}
	return b.split(m, 1, names, extents...)
}

// modulated is LN(x)·(1+scale)+shift.
func (b *builder) modulated(name string, x, scale, shift val) val {
	n := b.like(graph.OpLayerNorm, graph.Attrs{Eps: fluxEps}, name+".norm", x)
	return b.like(graph.OpModulate, graph.Attrs{}, name, n, scale, shift)
}

// heads cuts q, k and v (and what lies behind them, if there is a name for it)
// out of the last dimension of u and normalises q and k per head.
func (p fluxParts) heads(b *builder, name, norm string, tokens graph.Expr, u val, rest int64) (q, k, v, tail val) {
	d, hd := graph.Int(p.Hidden), p.headSize()
	names, extents := []string{name + ".q_flat", name + ".k_flat", name + ".v_flat"}, shape(d, d, d)
	if rest > 0 {
		names, extents = append(names, name+".rest"), append(extents, graph.Int(rest))
	}
	cut := b.split(u, 2, names, extents...)
	s := shape(graph.D("B"), tokens, graph.Int(p.Heads), graph.Int(hd))
	q = b.reshape(name+".q_raw", s, cut[0])
	k = b.reshape(name+".k_raw", s, cut[1])
	v = b.reshape(name+".v", s, cut[2])
	q = b.rmsNorm(name+".q", norm+".query_norm.scale", fluxEps, hd, q)
	k = b.rmsNorm(name+".k", norm+".key_norm.scale", fluxEps, hd, k)
	if rest > 0 {
		tail = cut[3]
	}
	return q, k, v, tail
}

// attend rotates q and k and gives softmax(q·kᵀ/√d + mask)·v as [B,S,D].
func (p fluxParts) attend(b *builder, q, k, v, mask, cos, sin val) val {
	q = b.like(graph.OpRoPE, graph.Attrs{}, "q.rotated", q, cos, sin)
	k = b.like(graph.OpRoPE, graph.Attrs{}, "k.rotated", k, cos, sin)
	scale := 1 / math.Sqrt(float64(p.headSize()))
	o := b.like(graph.OpAttention, graph.Attrs{Scale: scale}, "attn.heads", q, k, v, mask)
	return b.reshape("attn", shape(graph.D("B"), graph.D("S"), graph.Int(p.Hidden)), o)
}

// fluxStream is one stream of a double block between its two halves.
type fluxStream struct {
	name    string
	tokens  graph.Expr
	x       val
	mod     []val // shift1, scale1, gate1, shift2, scale2, gate2
	q, k, v val
}

func (p fluxParts) doubleBlock() graph.Graph {
	b := &builder{}
	img, txt, vec, mask := b.input(p.img), b.input(p.txt), b.input(p.vec), b.input(p.mask)
	cos, sin := b.constant(p.cos), b.constant(p.sin)
	b.tap("rope", graph.TapRotation, cos, sin)
	silu := b.like(graph.OpSiLU, graph.Attrs{}, "vec.silu", vec)
	streams := []*fluxStream{{name: "txt", tokens: graph.D("S_txt"), x: txt}, {name: "img", tokens: graph.D("S_img"), x: img}}
	for _, s := range streams {
		weights := "double_blocks.{i}." + s.name
		s.mod = b.modulation(s.name+"_mod", weights+"_mod.lin", p.Hidden, silu, "shift1", "scale1", "gate1", "shift2", "scale2", "gate2")
		a := b.modulated(s.name+"_mod1", s.x, s.mod[1], s.mod[0])
		qkv := b.linear(s.name+"_attn.qkv", weights+"_attn.qkv", 3*p.Hidden, p.Hidden, a)
		s.q, s.k, s.v, _ = p.heads(b, s.name+"_attn", weights+"_attn.norm", s.tokens, qkv, 0)
		if s.name == "img" {
			b.tap("double.{i}.img_attn.qkv", graph.TapAsIs, qkv)
			b.tap("double.{i}.img_attn.q", graph.TapHeadsFirst, s.q)
			b.tap("double.{i}.img_attn.k", graph.TapHeadsFirst, s.k)
		}
	}
	t, i := streams[0], streams[1]
	all := graph.D("S")
	q := b.concat("q", 1, all, t.q, i.q)
	k := b.concat("k", 1, all, t.k, i.k)
	v := b.concat("v", 1, all, t.v, i.v)
	o := b.split(p.attend(b, q, k, v, mask, cos, sin), 1, []string{"txt_attn.attn", "img_attn.attn"}, t.tokens, i.tokens)
	b.tap("double.{i}.img_attn.attn", graph.TapAsIs, o[1])
	txtOut := p.feedForward(b, t, o[0])
	imgOut := p.feedForward(b, i, o[1])
	b.tap("double.{i}.img", graph.TapAsIs, imgOut)
	b.tap("double.{i}.txt", graph.TapAsIs, txtOut)
	b.output(imgOut, txtOut)
	return b.g
}

// feedForward is the second half of a double block for one stream:
// x += gate1·proj(attn); x += gate2·mlp2(gelu(mlp0(LN(x)(1+scale2)+shift2))).
func (p fluxParts) feedForward(b *builder, s *fluxStream, attn val) val {
	weights := "double_blocks.{i}." + s.name
	y := b.linear(s.name+"_attn.proj", weights+"_attn.proj", p.Hidden, p.Hidden, attn)
	x := b.like(graph.OpGatedAdd, graph.Attrs{}, s.name+".attended", s.x, s.mod[2], y)
	h := b.modulated(s.name+"_mod2", x, s.mod[4], s.mod[3])
	h = b.linear(s.name+"_mlp.0", weights+"_mlp.0", p.MLP, p.Hidden, h)
	h = b.like(graph.OpGELUTanh, graph.Attrs{}, s.name+"_mlp.1", h)
	h = b.linear(s.name+"_mlp.2", weights+"_mlp.2", p.Hidden, p.MLP, h)
	return b.like(graph.OpGatedAdd, graph.Attrs{}, s.name+".out", x, s.mod[5], h)
}

// join makes the single blocks' stream: text first.
func (p fluxParts) join() *graph.Graph {
	b := &builder{}
	img, txt := b.input(p.img), b.input(p.txt)
	b.output(b.concat("joint", 1, graph.D("S"), txt, img))
	return &b.g
}

func (p fluxParts) singleBlock() graph.Graph {
	b := &builder{}
	x, vec, mask := b.input(p.joint), b.input(p.vec), b.input(p.mask)
	cos, sin := b.constant(p.cos), b.constant(p.sin)
	silu := b.like(graph.OpSiLU, graph.Attrs{}, "vec.silu", vec)
	const weights = "single_blocks.{i}."
	mod := b.modulation("modulation", weights+"modulation.lin", p.Hidden, silu, "shift", "scale", "gate")
	u := b.linear("linear1", weights+"linear1", 3*p.Hidden+p.MLP, p.Hidden, b.modulated("joint_mod", x, mod[1], mod[0]))
	b.tap("single.{i}.inner.linear1", graph.TapAsIs, u)
	q, k, v, mlp := p.heads(b, "attn", weights+"norm", graph.D("S"), u, p.MLP)
	o := p.attend(b, q, k, v, mask, cos, sin)
	mlp = b.like(graph.OpGELUTanh, graph.Attrs{}, "mlp.gelu", mlp)
	both := b.concat("linear2_in", 2, graph.Int(p.Hidden+p.MLP), o, mlp)
	b.tap("single.{i}.inner.linear2_in", graph.TapAsIs, both)
	y := b.linear("linear2", weights+"linear2", p.Hidden, p.Hidden+p.MLP, both)
	out := b.like(graph.OpGatedAdd, graph.Attrs{}, "joint.out", x, mod[2], y)
	b.tap("single.{i}", graph.TapAsIs, out)
	b.output(out)
	return b.g
}

// tail takes the image tokens through final_layer, leaves the references'
// behind and goes back to the latent.
func (p fluxParts) tail() graph.Graph {
	b := &builder{}
	x, vec := b.input(p.joint), b.input(p.vec)
	features := p.Channels * fluxPatch * fluxPatch
	img := b.split(x, 1, []string{"txt", "img"}, graph.D("S_txt"), graph.D("S_img"))[1]
	silu := b.like(graph.OpSiLU, graph.Attrs{}, "vec.silu", vec)
	mod := b.modulation("adaLN", "final_layer.adaLN_modulation.1", p.Hidden, silu, "shift", "scale")
	tokens := b.linear("final_layer", "final_layer.linear", features, p.Hidden, b.modulated("img_mod", img, mod[1], mod[0]))
	b.tap("final_layer", graph.TapAsIs, tokens)
	if len(p.refs) > 0 {
		names, extents := []string{"x.tokens"}, shape(graph.D("S_x"))
		for k, r := range p.refs {
			names, extents = append(names, r.Name), append(extents, refTokens(k))
		}
		tokens = b.split(tokens, 1, names, extents...)[0]
	}
	out := b.node(graph.OpUnpatchify, graph.Attrs{Patch: [2]int64{fluxPatch, fluxPatch}}, "out.compute", graph.Compute, p.x.Shape, tokens)
	out = b.cast("out", graph.F32, out)
	b.output(out)
	return b.g
}
