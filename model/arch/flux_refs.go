// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"

	"github.com/distorch/distorch/model/graph"
)

// references is how many reference latents the model's graph takes: none behind
// further input channels, which references do not have.
func (f Flux) references() int {
	if f.Concat > 0 {
		return 0
	}
	return FluxRefs
}

func refDim(k int, name string) graph.Expr { return graph.D(fmt.Sprintf("ref%d_%s", k, name)) }

// refTokens is the number of tokens of reference k.
func refTokens(k int) graph.Expr { return graph.Product(refDim(k, "H2"), refDim(k, "W2")) }

// fluxDims are the dimensions of FLUX.1. H2 and W2 are rows and columns of
// tokens; S_x counts the image's tokens, S_img those of the references too.
//
// Under the method offset a reference stands beside all before it, or below if
// that keeps the whole lower: ref<k>_down and ref<k>_right are where it begins,
// in cells of the latent, and reach<k>_h, reach<k>_w how far those before it
// go (ComfyUI comfy/ldm/flux/model.py).
func fluxDims(refs int) []graph.Dim {
	two := graph.Int(fluxPatch)
	derived := func(name string, e graph.Expr) graph.Dim { return graph.Dim{Name: name, Derived: &e} }
	dims := []graph.Dim{
		{Name: "B", Min: 1, Max: 16, Request: "batch", Unit: 1},
		{Name: "S_txt", Min: 1, Max: 8192, Request: "text_tokens", Unit: 1},
		{Name: "h", Min: fluxPatch, Max: 1024, Request: "height", Unit: fluxPixels},
		{Name: "w", Min: fluxPatch, Max: 1024, Request: "width", Unit: fluxPixels},
		{Name: "mask", Max: 1, Request: "attention_mask", Unit: 1},
	}
	if refs > 0 {
		dims = append(dims, graph.Dim{Name: "ref_method", Max: FluxRefUXO, Request: "ref_method", Unit: 1, Choice: true})
	}
	tokens := []graph.Expr{graph.D("S_x")}
	for k := range refs {
		ref := func(name string) string { return fmt.Sprintf("ref%d_%s", k, name) }
		h, w := refDim(k, "h"), refDim(k, "w")
		dims = append(dims,
			graph.Dim{Name: ref("h"), Max: 512, Request: ref("height"), Unit: fluxPixels},
			graph.Dim{Name: ref("w"), Max: 512, Request: ref("width"), Unit: fluxPixels},
			derived(ref("H2"), graph.CeilDiv(h, two)),
			derived(ref("W2"), graph.CeilDiv(w, two)),
		)
		tokens = append(tokens, refTokens(k))
	}
	for k := 1; k < refs; k++ {
		name := func(format string) string { return fmt.Sprintf(format, k) }
		before := func(format string) graph.Expr { return graph.D(fmt.Sprintf(format, k-1)) }
		reachH, reachW := refDim(0, "h"), refDim(0, "w") // of the first, which begins at 0
		if k > 1 {
			reachH = graph.Max(before("reach%d_h"), graph.Sum(before("ref%d_down"), refDim(k-1, "h")))
			reachW = graph.Max(before("reach%d_w"), graph.Sum(before("ref%d_right"), refDim(k-1, "w")))
		}
		dims = append(dims, derived(name("reach%d_h"), reachH), derived(name("reach%d_w"), reachW))
		h, w := graph.D(name("reach%d_h")), graph.D(name("reach%d_w"))
		high, wide := graph.Sum(refDim(k, "h"), h), graph.Sum(refDim(k, "w"), w)
		dims = append(dims,
			derived(name("ref%d_down"), graph.IfGreater(high, wide, graph.Int(0), h)),
			derived(name("ref%d_right"), graph.IfGreater(high, wide, w, graph.Int(0))),
		)
	}
	return append(dims,
		derived("H2", graph.CeilDiv(graph.D("h"), two)),
		derived("W2", graph.CeilDiv(graph.D("w"), two)),
		derived("S_x", graph.Product(graph.D("H2"), graph.D("W2"))),
		derived("S_img", graph.Sum(tokens...)),
		derived("S", graph.Sum(graph.D("S_txt"), graph.D("S_img"))),
	)
}

// refPositions are the rotary positions of the references' tokens: index, row
// and column, by the method that the request chose. Offsets in cells of the
// latent become rows and columns of tokens, rounded up.
func refPositions(refs int) []graph.Positions {
	method := graph.D("ref_method")
	choose := func(offset, index, uxo graph.Expr) graph.Expr {
		return graph.IfGreater(method, graph.Int(FluxRefIndex), uxo, graph.IfGreater(method, graph.Int(FluxRefOffset), index, offset))
	}
	zero, two := graph.Int(0), graph.Int(fluxPatch)
	behind := func(tokens, side string, k int) graph.Expr {
		sum := []graph.Expr{graph.Product(two, graph.D(tokens))}
		for i := range k {
			sum = append(sum, refDim(i, side))
		}
		return graph.CeilDiv(graph.Sum(sum...), two)
	}
	var out []graph.Positions
	for k := range refs {
		down, right := zero, zero
		if k > 0 {
			down, right = graph.CeilDiv(refDim(k, "down"), two), graph.CeilDiv(refDim(k, "right"), two)
		}
		out = append(out, graph.Positions{
			Grid: shape(refDim(k, "H2"), refDim(k, "W2")),
			Axes: []int{-1, 0, 1},
			Start: shape(
				choose(graph.Int(1), graph.Int(int64(k)+1), zero),
				choose(down, zero, behind("H2", "h", k)),
				choose(right, zero, behind("W2", "w", k)),
			),
		})
	}
	return out
}
