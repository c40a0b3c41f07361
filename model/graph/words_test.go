// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

var wordsModel = arch.Flux{Channels: 4, Hidden: 64, Heads: 2, MLP: 128, Context: 8, Vector: 6, Double: 1, Single: 1, Axes: []int64{8, 12, 12}, Guidance: true}

// TestWordsInvertRequest: the shapes of a request's inputs say the request, but
// for what no shape tells.
func TestWordsInvertRequest(t *testing.T) {
	m := wordsModel.Build(arch.Options{})
	rapid.Check(t, func(t *rapid.T) {
		cells := func(name string, low int) int64 { return int64(rapid.IntRange(low, 8).Draw(t, name)) * 8 }
		words := map[string]int64{
			"width": cells("width", 2), "height": cells("height", 2), "batch": int64(rapid.IntRange(1, 3).Draw(t, "batch")),
			"text_tokens": int64(rapid.IntRange(1, 20).Draw(t, "tokens")),
		}
		if rapid.Bool().Draw(t, "mask") {
			words["attention_mask"] = 1
		}
		if rapid.Bool().Draw(t, "ref") {
			words["ref0_width"], words["ref0_height"] = cells("ref0_width", 2), cells("ref0_height", 2)
		}
		dims, err := m.Request(words)
		if err != nil {
			t.Fatal(err)
		}
		p, err := graph.Specialise(m, dims, tensor.F32)
		if err != nil {
			t.Fatal(err)
		}
		shapes := map[string]tensor.Shape{}
		for _, in := range p.Inputs {
			if in.Bytes > 0 {
				shapes[in.Name] = in.Shape
			}
		}
		got, err := m.Words(shapes)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(words, got); d != "" {
			t.Error(d)
		}
	})
}

func TestWordsRefuse(t *testing.T) {
	m := wordsModel.Build(arch.Options{})
	for name, c := range map[string]struct {
		shapes map[string]tensor.Shape
		want   string
	}{
		"unknown":  {map[string]tensor.Shape{"clip": {1}}, `tensor "clip" is not an input of this model; it takes [x timestep`},
		"rank":     {map[string]tensor.Shape{"x": {1, 4, 8}}, `tensor "x" has 3 dimensions, want 4`},
		"disagree": {map[string]tensor.Shape{"x": {1, 4, 8, 8}, "y": {2, 6}}, `tensor "x" says batch 1, tensor "y" says 2`},
	} {
		if _, err := m.Words(c.shapes); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
