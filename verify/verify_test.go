// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/verify"
)

var (
	goldenRoot = filepath.Join("..", "model", "arch", "testdata", "golden")
	fluxRoot   = filepath.Join(goldenRoot, "flux")
)

// suite is PyTorch's worker, where it was chosen.
var suite torchtest.Suite

func TestMain(m *testing.M) {
	m.Run()
	suite.Close()
}

// on is the engine that the tests run with. PyTorch has no instruction sets to
// force, and promises its bits at equal threads.
func on(t *testing.T, set isa.ISA, threads int) engine.Engine {
	t.Helper()
	if torchtest.Chosen() {
		return suite.Engine(t, 0)
	}
	e, err := native.New(native.Config{ISA: set, Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sets are the instruction sets to run with.
func sets() []isa.ISA {
	if torchtest.Chosen() {
		return []isa.ISA{isa.Generic} // of no meaning to PyTorch
	}
	return isa.Supported()
}

func best() isa.ISA {
	all := isa.Supported()
	return all[len(all)-1]
}

func run(t *testing.T, l verify.Layout, dirs ...string) []verify.Record {
	t.Helper()
	var records []verify.Record
	if err := verify.Run(t.Context(), l, dirs, func(r verify.Record) { records = append(records, r) }); err != nil {
		t.Fatal(err)
	}
	return records
}

func plain(t *testing.T) verify.Layout {
	return verify.Layout{Engines: []engine.Engine{on(t, best(), 2)}}
}

func TestGoldenCases(t *testing.T) {
	outputs := map[string]int{}
	worst := map[string]float64{}
	for _, r := range run(t, plain(t), goldenRoot, filepath.Join("..", "model", "arch", "testdata", "bad"), filepath.Join("..", "model", "safetensors", "testdata"), filepath.Join("..", "model", "gguf", "testdata")) {
		if !r.OK() {
			t.Errorf("%+v", r)
		}
		if !strings.HasPrefix(r.Case, "bad/") && len(r.Digest) != 64 {
			t.Errorf("%s %s: digest %q", r.Case, r.Output, r.Digest)
		}
		outputs[r.Case]++
		worst[r.Case+" "+r.DType] = max(worst[r.Case+" "+r.DType], r.Error)
	}
	for _, key := range slices.Sorted(maps.Keys(worst)) {
		t.Logf("%s: worst error %.2g", key, worst[key])
	}
	want := map[string]int{
		"flux/dev": 24, "flux/dev-bf16": 35, "flux/dev-no-guidance": 16, "flux/schnell": 13,
		"flux/head128": 27, "flux/head128-fp8": 12, "flux/prefixed": 14, "flux/fp8-e4m3": 15, "flux/fp8-e5m2": 15,
		"flux/sampling": 40, "flux/sampling-bf16": 20, "flux/schedules": 52, "tables": 28,
		"flux/kontext-offset": 15, "flux/kontext-index": 15, "flux/kontext-uxo": 15, "flux/fill": 15, "flux/control": 14, "flux/masked": 14, "flux/diffusers": 18,
		"flux/lora-kohya": 7, "flux/lora-peft": 7, "flux/lora-native": 7, "flux/lora-bfl-control": 6, "flux/lora-bf16": 5, "flux/lora-unknown-key": 5, "flux/lora-wrong-rank": 5,
		"bad/model": 12, "bad/gguf": 32, "testdata": 25, "flux/fp8-scaled": 15, "gguf/flux-k": 18,
		"gguf/types": 20, "gguf/metadata": 3, "gguf/five-dimensions": 7, "gguf/orig-shape": 3,
	}
	if !maps.Equal(outputs, want) {
		t.Errorf("outputs by case\n got %v\nwant %v", outputs, want)
	}
}

// Every cut, instruction set, number of threads and form of the weights gives
// the same bytes.
func TestSameBits(t *testing.T) {
	var dirs []string
	for _, name := range []string{"dev-bf16", "schnell", "fp8-e4m3", "fp8-scaled", "kontext-index", "control", "masked", "lora-bf16", "lora-bfl-control"} {
		dirs = append(dirs, filepath.Join(fluxRoot, name))
	}
	dirs = append(dirs, filepath.Join(goldenRoot, "gguf", "flux-k"))
	digests := func(l verify.Layout) map[string]string {
		m := map[string]string{}
		for _, r := range run(t, l, dirs...) {
			if !r.OK() {
				t.Errorf("%+v", r)
			}
			m[r.Case+" "+r.Output] = r.Digest
		}
		return m
	}
	want := digests(verify.Layout{Engines: []engine.Engine{on(t, isa.Generic, 1)}})
	if len(want) == 0 {
		t.Fatal("nothing to compare")
	}
	check := func(name string, l verify.Layout) {
		for key, got := range digests(l) {
			if got != want[key] {
				t.Errorf("%s: %s has digest %s, with generic %s", name, key, got, want[key])
			}
		}
	}
	for _, set := range sets() {
		for stages := 1; stages <= 4; stages++ {
			threads := 1 + (stages+int(set))%3
			l := verify.Layout{Engines: []engine.Engine{on(t, set, threads)}, Stages: stages, Stored: stages%2 == 0}
			check(fmt.Sprintf("%s, %d stages, %d threads", set, stages, threads), l)
		}
	}
	var mixed []engine.Engine
	for i, set := range sets() {
		mixed = append(mixed, on(t, set, 1+i%3))
	}
	check("a set per stage", verify.Layout{Engines: mixed, Stages: 4})
}

// A device with memory of its own gives the bits of one that computes in the
// host's: empty values, references and the mask cross to it and back.
func TestSameBitsOnADeviceOfItsOwn(t *testing.T) {
	if torchtest.Chosen() {
		return // simulated devices are native's; agent/engine/torch has its own such test
	}
	e, err := sim.New(sim.Config{ISA: best(), Host: engine.NewAccount(tensor.GiB, ""), Devices: []sim.Device{{Name: "sim:0", Memory: tensor.GiB, Threads: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{filepath.Join(fluxRoot, "kontext-uxo"), filepath.Join(fluxRoot, "fill"), filepath.Join(fluxRoot, "masked"), filepath.Join(fluxRoot, "dev-bf16")}
	want := map[string]string{}
	for _, r := range run(t, plain(t), dirs...) {
		want[r.Case+r.Output] = r.Digest
	}
	for stages := 1; stages <= 2; stages++ {
		for _, r := range run(t, verify.Layout{Engines: []engine.Engine{e}, Stages: stages, Stored: stages == 2}, dirs...) {
			if !r.OK() || r.Digest != want[r.Case+r.Output] {
				t.Errorf("%d stages: %+v, want digest %s", stages, r, want[r.Case+r.Output])
			}
		}
	}
}

// pipeline loads a case's model and inputs.
func pipeline(t *testing.T, l verify.Layout, dir string, compute tensor.DType) (*verify.Pipeline, verify.Tensors, graph.Dims) {
	t.Helper()
	open := func(name string) *safetensors.File {
		f, err := safetensors.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	model, io := open("model.safetensors"), open("io.safetensors")
	tensors := map[string]arch.Tensor{}
	for _, x := range model.Tensors() {
		tensors[x.Name] = arch.Tensor{Shape: x.Shape, DType: x.DType}
	}
	r, err := arch.Recognise(tensors, model.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	in, dims := verify.Tensors{}, graph.Dims{}
	for _, x := range io.Tensors() {
		name, ok := strings.CutPrefix(x.Name, "in.")
		if !ok {
			continue
		}
		if in[name], _, err = io.Float32s(x.Name); err != nil {
			t.Fatal(err)
		}
		switch name {
		case "x":
			dims["B"], dims["h"], dims["w"] = x.Shape[0], x.Shape[2], x.Shape[3]
		case "context":
			dims["S_txt"] = x.Shape[1]
		}
	}
	p, err := graph.Specialise(r.Params.Build(arch.Options{}), dims, compute)
	if err != nil {
		t.Fatal(err)
	}
	pl, err := verify.NewPipeline(t.Context(), l, stage.Checkpoint{File: checkpoint.Safetensors(model), Source: r.Source}, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pl.Close(); err != nil {
			t.Error(err)
		}
	})
	return pl, in, dims
}

// An item of a batch has the bits it has alone, in a workload of the batch.
func TestBatchItemAlone(t *testing.T) {
	if torchtest.Chosen() {
		return // native's promise; PyTorch's bits are those of a batch
	}
	for _, compute := range []tensor.DType{tensor.F32, tensor.BF16} {
		for _, set := range sets() {
			l := verify.Layout{Engines: []engine.Engine{on(t, set, 3)}, Stages: 2}
			pl, in, dims := pipeline(t, l, filepath.Join(fluxRoot, "dev"), compute)
			both, err := pl.Forward(t.Context(), dims, in, nil)
			if err != nil {
				t.Fatal(err)
			}
			one := maps.Clone(dims)
			one["B"] = 1
			for item := range 2 {
				part := verify.Tensors{}
				for name, v := range in {
					part[name] = v[item*len(v)/2 : (item+1)*len(v)/2]
				}
				alone, err := pl.Forward(t.Context(), one, part, nil)
				if err != nil {
					t.Fatal(err)
				}
				if half := len(both) / 2; !bytes.Equal(alone, both[item*half:(item+1)*half]) {
					t.Errorf("%v, %s: item %d of a batch of two differs from the item alone", compute, set, item)
				}
			}
		}
	}
}

// copyCase copies a case so that a test can damage it.
func copyCase(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(fluxRoot, name))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// flip inverts a bit of a tensor's first element in a file.
func flip(t *testing.T, path, name string, bit int) {
	t.Helper()
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	x, ok := f.Lookup(name)
	if err := f.Close(); err != nil || !ok {
		t.Fatal(ok, err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[x.Offset+int64(bit/8)] ^= 1 << (bit % 8)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// One bit of one weight has to show, and where it begins to matter.
func TestFlippedBitFails(t *testing.T) {
	const exponent = 23 // its lowest bit: twice or half the value
	for weight, tap := range map[string]string{
		"img_in.weight":                    "tap.img_in",
		"double_blocks.1.txt_mlp.0.weight": "tap.double.1.txt",
		"single_blocks.2.linear1.weight":   "tap.single.2",
		"final_layer.linear.weight":        "tap.final_layer",
	} {
		dir := copyCase(t, "dev")
		flip(t, filepath.Join(dir, "model.safetensors"), weight, exponent)
		out := run(t, plain(t), dir)[0]
		if out.Output != "out" || out.OK() || out.FirstTapOff != tap || out.Error <= out.Tolerance {
			t.Errorf("%s with a flipped bit: %+v, want it off from %s on", weight, out, tap)
		}
	}
	dir := copyCase(t, "schnell")
	flip(t, filepath.Join(dir, "io.safetensors"), "out", 30) // a huge value
	if out := run(t, plain(t), dir)[0]; out.OK() || out.FirstTapOff != "" {
		t.Errorf("another expected output: %+v", out)
	}
}

// edit changes a case.json.
func edit(t *testing.T, dir string, change func(map[string]any)) {
	t.Helper()
	path := filepath.Join(dir, "case.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	change(c)
	if text, err = json.Marshal(c); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWhatCannotRunFailsByName(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(map[string]any)
		damage func(dir string) error
		want   string
	}{
		"option":       {change: func(c map[string]any) { c["options"] = map[string]any{"steps": 3} }, want: "option steps"},
		"method":       {change: func(c map[string]any) { c["options"] = map[string]any{"ref_latents_method": "spiral"} }, want: `ref_latents_method is "spiral", known are [offset index uxo]`},
		"lora":         {change: func(c map[string]any) { c["lora"] = "lora.safetensors" }, want: "LoRA"},
		"architecture": {change: func(c map[string]any) { c["architecture"] = "wan" }, want: `architecture "wan"`},
		"other file":   {change: func(c map[string]any) { c["model"] = "io.safetensors" }, want: "io.safetensors: not supported"},
		"no model":     {damage: func(dir string) error { return os.Remove(filepath.Join(dir, "model.safetensors")) }, want: "model.safetensors"},
		"no values":    {damage: func(dir string) error { return os.Remove(filepath.Join(dir, "io.safetensors")) }, want: "io.safetensors"},
		"no json":      {damage: func(dir string) error { return os.WriteFile(filepath.Join(dir, "case.json"), []byte("{"), 0o600) }, want: "case.json"},
		"tolerances":   {change: func(c map[string]any) { c["tolerance"] = "small" }, want: "no tolerances"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyCase(t, "schnell")
			if tc.change != nil {
				edit(t, dir, tc.change)
			}
			if tc.damage != nil {
				if err := tc.damage(dir); err != nil {
					t.Fatal(err)
				}
			}
			got := run(t, plain(t), dir)
			if len(got) != 1 || got[0].OK() || !strings.Contains(got[0].Failure, tc.want) {
				t.Errorf("got %+v, want a failure that names %q", got, tc.want)
			}
		})
	}
	if err := verify.Run(t.Context(), plain(t), []string{t.TempDir()}, func(verify.Record) {}); err == nil {
		t.Error("a folder without a case was accepted")
	}
	if err := verify.Run(t.Context(), plain(t), []string{filepath.Join(fluxRoot, "dev", "case.json")}, func(verify.Record) {}); err == nil {
		t.Error("a file was accepted for a folder")
	}
}

// Sound files in a folder of bad ones are found; so are values that are wrong.
func TestFileFolders(t *testing.T) {
	root := t.TempDir()
	bad := filepath.Join(root, "bad", "safetensors")
	if err := os.CopyFS(bad, os.DirFS(filepath.Join("..", "model", "safetensors", "testdata", "bad"))); err != nil {
		t.Fatal(err)
	}
	for _, r := range run(t, plain(t), root) {
		if !r.OK() || r.Note == "" {
			t.Errorf("%+v", r)
		}
	}
	sound := copyCase(t, "schnell")
	for _, folder := range []string{"safetensors", "model"} {
		dir := filepath.Join(root, "sound", "bad", folder)
		if err := os.CopyFS(dir, os.DirFS(sound)); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "case.json")); err != nil {
			t.Fatal(err)
		}
	}
	failed := map[string]bool{}
	for _, r := range run(t, plain(t), filepath.Join(root, "sound")) {
		failed[r.Case+" "+r.Output] = !r.OK()
	}
	want := map[string]bool{ // io.safetensors is no model, and has to be refused as one
		"bad/safetensors model.safetensors": true, "bad/safetensors io.safetensors": true,
		"bad/model model.safetensors": true, "bad/model io.safetensors": false,
	}
	if !maps.Equal(failed, want) {
		t.Errorf("failed: %v, want %v", failed, want)
	}
	values := filepath.Join(root, "values")
	if err := os.CopyFS(values, os.DirFS(filepath.Join("..", "model", "safetensors", "testdata"))); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(values, "dtypes.safetensors"), "f16", 3)
	flip(t, filepath.Join(values, "unusual.safetensors"), "odd", 0)
	var off []string
	for _, r := range run(t, plain(t), values) {
		if !r.OK() {
			off = append(off, r.Output)
		}
	}
	if !slices.Equal(off, []string{"f16", "unusual.odd"}) {
		t.Errorf("off are %v", off)
	}
}

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		blocks, n int
		want      []int
	}{{5, 1, []int{5}}, {5, 2, []int{3, 2}}, {5, 4, []int{2, 1, 1, 1}}, {2, 4, []int{1, 1}}, {5, 0, []int{5}}} {
		if got := verify.Cut(tc.blocks, tc.n); !slices.Equal(got, tc.want) {
			t.Errorf("%d blocks in %d: %v, want %v", tc.blocks, tc.n, got, tc.want)
		}
	}
}

func TestRecordJSON(t *testing.T) {
	text, err := json.Marshal([]verify.Record{
		{Case: "c", Output: "out", DType: "f32", Error: 1e-7, Tolerance: 1e-5, Digest: "ab"},
		{Case: "c", Failure: "no"},
	})
	want := `[{"case":"c","output":"out","dtype":"f32","error":1e-7,"tolerance":0.00001,"first_tap_off":"","digest":"ab","ok":true},` +
		`{"case":"c","output":"","dtype":"","error":null,"tolerance":0,"first_tap_off":"","digest":"","ok":false,"failure":"no"}]`
	if err != nil || string(text) != want {
		t.Errorf("got  %s, %v\nwant %s", text, err, want)
	}
}
