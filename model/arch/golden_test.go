// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/refexec"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

var goldenDirs = flag.String("golden", "", "comma-separated folders of further golden cases to run")

// checkpoint is an open model file and what was recognised in it.
type checkpoint struct {
	*safetensors.File
	*arch.Recognised
}

func openModel(t *testing.T, path string) (*safetensors.File, map[string]arch.Tensor) {
	t.Helper()
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	tensors := map[string]arch.Tensor{}
	for _, x := range f.Tensors() {
		tensors[x.Name] = arch.Tensor{Shape: x.Shape, DType: x.DType}
	}
	return f, tensors
}

func recognise(t *testing.T, path string) checkpoint {
	t.Helper()
	f, tensors := openModel(t, path)
	r, err := arch.Recognise(tensors, f.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	return checkpoint{f, r}
}

func (c checkpoint) weight(name string) ([]float32, error) {
	src := c.Source(name)
	var out []float32
	for _, s := range src.Slices {
		v, shape, err := c.Float32s(s.Tensor)
		if err != nil {
			return nil, err
		}
		row := int64(len(v)) / shape[0]
		rows := s.Rows
		if rows == 0 {
			rows = shape[0] - s.First
		}
		out = append(out, v[s.First*row:(s.First+rows)*row]...)
	}
	if src.Scale == "" {
		return out, nil
	}
	by, _, err := c.Float32s(src.Scale)
	if err != nil {
		return nil, err
	}
	for i := range out {
		out[i] *= by[0]
	}
	return out, nil
}

type goldenCase struct {
	Model     string
	Tolerance map[string]float64
	Hyper     struct {
		Axes []int64 `json:"axes_dim"`
	} `json:"hyper_parameters"`
	Options struct {
		RefMethod string `json:"ref_latents_method"`
	}
}

// tolerance is that of the longest prefix that names the tensor.
func (c goldenCase) tolerance(name string) (float64, bool) {
	best, tol := -1, 0.0
	for p, v := range c.Tolerance {
		if (name == p || strings.HasPrefix(name, p+".")) && len(p) > best {
			best, tol = len(p), v
		}
	}
	if best < 0 && strings.HasPrefix(name, "tap_bf16.") { // the taps of the bf16 run
		tol, best = c.Tolerance["out.bf16"], 0
	}
	return tol, best >= 0 && tol > 0
}

func worst(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	diff, top := 0.0, 0.0
	for i := range got {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if !(d <= diff) { // NaN counts
			diff = d
		}
		top = max(top, math.Abs(float64(want[i])))
	}
	if math.IsNaN(diff) {
		return math.Inf(1)
	}
	return diff / top
}

func TestGoldenForwards(t *testing.T) {
	dirs := []string{}
	for _, name := range []string{
		"dev", "dev-no-guidance", "schnell", "dev-bf16", "fp8-e5m2",
		"kontext-offset", "kontext-index", "kontext-uxo", "fill", "control", "masked", "diffusers",
	} {
		dirs = append(dirs, filepath.Join("testdata", "golden", "flux", name))
	}
	if *goldenDirs != "" {
		dirs = append(dirs, strings.Split(*goldenDirs, ",")...)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			runGolden(t, dir)
		})
	}
}

func runGolden(t *testing.T, dir string) {
	text, err := os.ReadFile(filepath.Join(dir, "case.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c goldenCase
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	model := recognise(t, filepath.Join(dir, c.Model))
	if got := model.Params.(arch.Flux).Axes; !slices.Equal(got, c.Hyper.Axes) {
		t.Errorf("axes %v, want %v", got, c.Hyper.Axes)
	}
	io, err := safetensors.Open(filepath.Join(dir, "io.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { io.Close() })
	checked := 0
	for _, out := range []struct {
		name, taps string
		compute    tensor.DType
	}{
		{"out", "tap.", tensor.F32},
		{"out.f32", "tap.", tensor.F32},
		{"out.bf16", "tap_bf16.", tensor.BF16},
	} {
		if _, ok := io.Lookup(out.name); !ok {
			continue
		}
		checked += forward(t, c, model, io, out.name, out.taps, out.compute)
	}
	if checked == 0 {
		t.Error("nothing was compared")
	}
}

// forward runs one forward and compares its taps and output; it returns how
// many tensors it compared.
func forward(t *testing.T, c goldenCase, model checkpoint, io *safetensors.File, name, taps string, compute tensor.DType) int {
	t.Helper()
	in, dims := inputs(t, io, model.Params.(arch.Flux))
	if m := c.Options.RefMethod; m != "" {
		dims["ref_method"] = int64(slices.Index([]string{"offset", "index", "uxo"}, m))
	}
	_, guided := in["guidance"]
	m := model.Params.Build(arch.Options{OmitGuidance: !guided})
	if err := graph.Validate(m); err != nil {
		t.Fatal(err)
	}
	p, err := graph.Specialise(m, dims, compute)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	machine := &refexec.Machine{Program: p, Weight: model.weight}
	compare := func(golden string, v []float32) {
		want, _, err := io.Float32s(golden)
		if err != nil {
			t.Fatal(err)
		}
		tol, ok := c.tolerance(golden)
		if !ok {
			t.Fatalf("%s has no tolerance", golden)
		}
		seen[golden] = true
		if e := worst(v, want); e > tol {
			t.Errorf("%s: error %.3g, tolerance %g", golden, e, tol)
		} else {
			t.Logf("%s: error %.3g", golden, e)
		}
	}
	machine.Tap = func(tap string, v []float32) {
		if _, ok := io.Lookup(taps + tap); ok {
			compare(taps+tap, v)
		}
	}
	out, err := machine.Forward(in)
	if err != nil {
		t.Fatal(err)
	}
	compare(name, out)
	for _, x := range io.Tensors() {
		if strings.HasPrefix(x.Name, taps) && !seen[x.Name] {
			t.Errorf("%s was never seen", x.Name)
		}
	}
	return len(seen)
}

func inputs(t *testing.T, io *safetensors.File, f arch.Flux) (refexec.Values, graph.Dims) {
	t.Helper()
	in, dims := refexec.Values{}, graph.Dims{}
	for _, x := range io.Tensors() {
		name, ok := strings.CutPrefix(x.Name, "in.")
		if !ok {
			continue
		}
		v, _, err := io.Float32s(x.Name)
		if err != nil {
			t.Fatal(err)
		}
		in[name] = v
		switch name {
		case "x":
			dims["B"], dims["h"], dims["w"] = x.Shape[0], x.Shape[2], x.Shape[3]
			if per := int(x.Shape[1] * x.Shape[2] * x.Shape[3]); f.Concat > 0 {
				in["x"], in["concat"] = nil, nil
				own := per / int(x.Shape[1]) * int(f.Channels)
				for ; len(v) > 0; v = v[per:] {
					in["x"], in["concat"] = append(in["x"], v[:own]...), append(in["concat"], v[own:per]...)
				}
			}
		case "context":
			dims["S_txt"] = x.Shape[1]
		case "attention_mask":
			dims["mask"] = 1
		case "ref.0", "ref.1":
			k := name[len("ref."):]
			dims["ref"+k+"_h"], dims["ref"+k+"_w"] = x.Shape[2], x.Shape[3]
		}
	}
	return in, dims
}

// A program for a smaller request, laid out within a larger workload, computes
// the same bits.
func TestWithinWorkloadSameBits(t *testing.T) {
	dir := filepath.Join("testdata", "golden", "flux", "schnell")
	model := recognise(t, filepath.Join(dir, "model.safetensors"))
	io, err := safetensors.Open(filepath.Join(dir, "io.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { io.Close() })
	in, dims := inputs(t, io, model.Params.(arch.Flux))
	m := model.Params.Build(arch.Options{})
	direct, err := graph.Specialise(m, dims, tensor.BF16)
	if err != nil {
		t.Fatal(err)
	}
	workload, err := graph.Specialise(m, graph.Dims{"B": 2, "h": 40, "w": 31, "S_txt": 77}, tensor.BF16)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := workload.Within(dims)
	if err != nil {
		t.Fatal(err)
	}
	var outs []string
	for _, p := range []*graph.Program{direct, inside} {
		out, err := (&refexec.Machine{Program: p, Weight: model.weight}).Forward(in)
		if err != nil {
			t.Fatal(err)
		}
		outs = append(outs, fmt.Sprint(out))
	}
	if outs[0] != outs[1] {
		t.Error("another layout gives another output")
	}
}
