// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch_test

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/refexec"
	"github.com/distorch/distorch/model/tensor"
)

func tiny() arch.Flux {
	return arch.Flux{
		Channels: 2, Hidden: 16, Heads: 2, MLP: 24, Context: 4, Vector: 4, Double: 1, Single: 1, Axes: []int64{2, 2, 4}, Guidance: true,
	}
}

// position is a token's index, row and column.
type position [3]int64

// placed walks over the references as ComfyUI does, method by method.
func placed(method int64, h, w int64, refs [][2]int64) (out []position) {
	grid := func(index, row, column, h, w int64) {
		for r := range (h + 1) / 2 {
			for c := range (w + 1) / 2 {
				out = append(out, position{index, row + r, column + c})
			}
		}
	}
	grid(0, 0, 0, h, w)
	index, reachH, reachW := int64(0), int64(0), int64(0)
	for _, ref := range refs {
		down, right := int64(0), int64(0)
		switch method {
		case arch.FluxRefIndex:
			index++
		case arch.FluxRefUXO:
			down, right = (h+1)/2*2+reachH, (w+1)/2*2+reachW
			reachH, reachW = reachH+ref[0], reachW+ref[1]
		default:
			index = 1
			if ref[0]+reachH > ref[1]+reachW {
				right = reachW
			} else {
				down = reachH
			}
			reachH, reachW = max(reachH, ref[0]+down), max(reachW, ref[1]+right)
		}
		grid(index, (down+1)/2, (right+1)/2, ref[0], ref[1])
	}
	return out
}

func TestReferencesArePlacedAsComfyUIDoes(t *testing.T) {
	f := tiny()
	m := f.Build(arch.Options{})
	if err := graph.Validate(m); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		cells := rapid.Int64Range(2, 40)
		dims := graph.Dims{"B": 1, "S_txt": rapid.Int64Range(1, 9).Draw(t, "text"), "h": cells.Draw(t, "h"), "w": cells.Draw(t, "w")}
		dims["ref_method"] = rapid.Int64Range(0, 2).Draw(t, "method")
		var refs [][2]int64
		for k := range rapid.IntRange(0, arch.FluxRefs).Draw(t, "references") {
			ref := [2]int64{cells.Draw(t, "height"), cells.Draw(t, "width")}
			dims[fmt.Sprintf("ref%d_h", k)], dims[fmt.Sprintf("ref%d_w", k)] = ref[0], ref[1]
			refs = append(refs, ref)
		}
		p, err := graph.Specialise(m, dims, tensor.F32)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Constant("rope.cos")
		if err != nil {
			t.Fatal(err)
		}
		want := make([]position, dims["S_txt"])
		want = append(want, placed(dims["ref_method"], dims["h"], dims["w"], refs)...)
		const angles = 4 // of axes 2, 2, 4
		if len(got) != angles*len(want) {
			t.Fatalf("%d tokens, want %d", len(got)/angles, len(want))
		}
		for i, at := range want {
			for k, angle := range []float64{float64(at[0]), float64(at[1]), float64(at[2]), float64(at[2]) / 100} {
				if d := math.Abs(float64(got[i*angles+k]) - math.Cos(angle)); d > 1e-6 {
					t.Fatalf("token %d of %v, angle %d is off by %g: not at %v", i, dims, k, d, at)
				}
			}
		}
	})
}

// numbers are the elements of a tensor of that name, the same in every run.
func numbers(name string, n int64) []float32 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // a hash does not fail
	r := rand.New(rand.NewPCG(h.Sum64(), 1))
	out := make([]float32, n)
	for i := range out {
		out[i] = r.Float32() - 0.5
	}
	return out
}

// weighted runs a model on made-up weights and inputs.
func weighted(t *rapid.T, p *graph.Program, in refexec.Values) []float32 {
	shapes := p.Model.Weights()
	out, err := (&refexec.Machine{Program: p, Weight: func(name string) ([]float32, error) {
		n, err := shapes[name].Elements()
		return numbers(name, n), err
	}}).Forward(in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func inputsOf(t *rapid.T, p *graph.Program) refexec.Values {
	in := refexec.Values{}
	for _, v := range p.Inputs {
		n, err := v.Shape.Elements()
		if err != nil {
			t.Fatal(err)
		}
		in[v.Name] = numbers(v.Name, n)
	}
	return in
}

// A request with any references and any mask, laid out within a larger
// workload, computes what it computes alone; a mask of zeros changes nothing; one
// that hides the references makes them count for nothing.
func TestReferencesAndMasksWithinAWorkload(t *testing.T) {
	f := tiny()
	m := f.Build(arch.Options{})
	rapid.Check(t, func(t *rapid.T) {
		cells := rapid.Int64Range(2, 4)
		dims := graph.Dims{"B": rapid.Int64Range(1, 2).Draw(t, "batch"), "S_txt": rapid.Int64Range(1, 4).Draw(t, "text"), "h": cells.Draw(t, "h"), "w": cells.Draw(t, "w")}
		dims["ref_method"] = rapid.Int64Range(0, 2).Draw(t, "method")
		workload := graph.Dims{"B": 2, "S_txt": 4, "h": 4, "w": 5, "mask": 1}
		for k := range arch.FluxRefs {
			h, w := fmt.Sprintf("ref%d_h", k), fmt.Sprintf("ref%d_w", k)
			workload[h], workload[w] = 4, 4
			if rapid.IntRange(0, 2).Draw(t, "reference") == 0 {
				dims[h], dims[w] = cells.Draw(t, "height"), cells.Draw(t, "width")
			}
		}
		large, err := graph.Specialise(m, workload, tensor.F32)
		if err != nil {
			t.Fatal(err)
		}
		run := func(within bool, dims graph.Dims, change func(*graph.Program, refexec.Values)) []float32 {
			alone, err := graph.Specialise(m, dims, tensor.F32)
			if err != nil {
				t.Fatal(err)
			}
			in := inputsOf(t, alone)
			change(alone, in)
			want := weighted(t, alone, in)
			if !within {
				return want
			}
			inside, err := large.Within(dims)
			if err != nil {
				t.Fatal(err)
			}
			for i, got := range weighted(t, inside, in) {
				if got != want[i] {
					t.Fatalf("%v: element %d is %g within the workload, %g alone", dims, i, got, want[i])
				}
			}
			return want
		}
		plain := run(false, dims, func(*graph.Program, refexec.Values) {})
		dims["mask"] = 1
		zeros := run(false, dims, func(p *graph.Program, in refexec.Values) { clear(in["attention_mask"]) })
		near(t, zeros, plain, "a mask of zeros")
		hidden := run(true, dims, func(p *graph.Program, in refexec.Values) {
			s, own := p.Dims["S"], p.Dims["S_txt"]+p.Dims["S_x"]
			for i := range in["attention_mask"] {
				in["attention_mask"][i] = 0
				if row, key := int64(i)/s%s, int64(i)%s; key >= own && row < own {
					in["attention_mask"][i] = float32(math.Inf(-1))
				}
			}
		})
		for k := range arch.FluxRefs {
			delete(dims, fmt.Sprintf("ref%d_h", k))
			delete(dims, fmt.Sprintf("ref%d_w", k))
		}
		delete(dims, "mask")
		near(t, hidden, run(false, dims, func(*graph.Program, refexec.Values) {}), "references that are hidden")
	})
}

func near(t *rapid.T, got, want []float32, what string) {
	for i := range want {
		if d := math.Abs(float64(got[i] - want[i])); !(d <= 1e-5) {
			t.Fatalf("%s: element %d is %g, without %g", what, i, got[i], want[i])
		}
	}
}
