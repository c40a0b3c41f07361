// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/coordinator/comfy"
	"github.com/distorch/distorch/internal/comfyworker"
)

func TestReserve(t *testing.T) {
	other := usual()
	other["UNETLoader.unet_name"] = []string{"wan.safetensors"}
	p := started(t, Config{},
		scripted(t, comfyworker.Config{}),
		scripted(t, comfyworker.Config{Files: other}),
		scripted(t, comfyworker.Config{Classes: map[string]json.RawMessage{"SaveImage": json.RawMessage("null")}}))
	held := map[string]comfy.Lease{}
	reserve := func(text string) (string, error) {
		pr := prompted(t, "p", text)
		l, err := p.Reserve(pr)
		if err == nil {
			held[l.Worker()] = l
			return l.Worker(), nil
		}
		if cerr := p.Check(pr); (cerr == nil) != errors.Is(err, comfy.ErrBusy) {
			t.Errorf("Reserve says %v, Check %v", err, cerr)
		}
		return "", err
	}
	wan := strings.ReplaceAll(basic, "flux.safetensors", "wan.safetensors")
	for _, step := range []struct {
		name, text, worker, missing string
		err                         error
	}{
		{name: "by its file", text: wan, worker: "b"},
		{name: "the other one", text: basic, worker: "a"},
		{name: "busy, though c is free", text: basic, err: comfy.ErrBusy},
		{name: "class that nobody has", text: strings.ReplaceAll(basic, "VAEDecode", "VAEDream"), missing: "VAEDream"},
		{name: "file that nobody has", text: strings.ReplaceAll(basic, "vae.safetensors", "x.safetensors"), missing: "VAELoader.vae_name=x.safetensors"},
		{name: "a preview", text: strings.NewReplacer("SaveImage", "PreviewImage", `, "filename_prefix": "golden/a"`, "").Replace(basic), worker: "c"},
		{name: "none is free", text: wan, err: comfy.ErrNoneFree},
	} {
		got, err := reserve(step.text)
		none, _ := errors.AsType[*comfy.NoWorkerError](err)
		switch {
		case step.missing != "":
			if none == nil || len(none.Classes) == 0 || !strings.Contains(strings.Join(none.Classes, " "), step.missing) {
				t.Errorf("%s: %v, want one that names %s", step.name, err, step.missing)
			}
		case !errors.Is(err, step.err) || got != step.worker:
			t.Errorf("%s: %s %v, want %s %v", step.name, got, err, step.worker, step.err)
		}
	}
	changed := p.Changed()
	held["a"].Release()
	held["a"].Release()
	select {
	case <-changed:
	default:
		t.Error("a worker that gets free is no change")
	}
	if got, err := reserve(basic); got != "a" || err != nil {
		t.Errorf("after its release: %s %v", got, err)
	}
}

// TestReserveLeastBusy: a worker that others use comes last.
func TestReserveLeastBusy(t *testing.T) {
	hold := comfyworker.Config{Node: func(ctx context.Context, _ comfyworker.Node, _ int) error { <-ctx.Done(); return nil }}
	a := scripted(t, hold)
	p := started(t, Config{}, a, scripted(t, comfyworker.Config{}))
	if _, err := p.living()[0].api.prompt(t.Context(), map[string]any{"prompt": json.RawMessage(basic)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, p, "the other's prompt shows", func() bool { return p.State()[0].Queued == 1 })
	for range 2 {
		l, err := p.Reserve(prompted(t, "p", basic))
		if err != nil {
			t.Fatal(err)
		}
		if l.Worker() != "b" {
			t.Errorf("%s was taken", l.Worker())
		}
		l.Release()
	}
}

func TestUnion(t *testing.T) {
	one, err := parseClasses([]byte(`{
 "Load": {"input": {"required": {"z": [["a"]], "name": [["x", "y"], {"tooltip": "t"}], "n": ["INT", {"default": 18446744073709551615}]}, "optional": {"m": ["COMBO", {"options": ["q"]}]}}, "output": ["MODEL"]},
 "Only": {"input": {}, "output": []}}`))
	if err != nil {
		t.Fatal(err)
	}
	two, err := parseClasses([]byte(`{
 "Load": {"input": {"required": {"z": [["a"]], "name": [["y", "w"], {}], "n": ["INT"]}, "optional": {"m": ["COMBO", {"options": ["r", "q"]}]}}, "output": ["MODEL", "CLIP"]},
 "Other": {"input": {}}}`))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, raw := range union([]map[string]class{one, two}) {
		got[name] = strings.ReplaceAll(string(raw), " ", "")
	}
	want := map[string]string{
		"Load": `{"input":{"required":{"z":[["a"]],"name":[["x","y","w"],{"tooltip":"t"}],"n":["INT",{"default":18446744073709551615}]},` +
			`"optional":{"m":["COMBO",{"options":["q","r"]}]}},"output":["MODEL"]}`,
		"Only":  `{"input":{},"output":[]}`,
		"Other": `{"input":{}}`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestObjectInfoChanges(t *testing.T) {
	a := scripted(t, comfyworker.Config{})
	p := started(t, Config{}, a)
	info, changed := p.ObjectInfo()
	if len(info) == 0 {
		t.Fatal("no classes")
	}
	select {
	case <-changed:
		t.Fatal("changed at once")
	default:
	}
	a.Kill()
	<-changed
	eventually(t, p, "no class is left", func() bool { info, _ := p.ObjectInfo(); return len(info) == 0 })
}

// ours is our pack's loader as a worker that is connected to the cluster lists it.
const ours = `{"input": {"required": {"model": [["flux-demo (deployment)", "flux.safetensors", "sd.safetensors", "q.gguf"], {"tooltip": "t"}], "dtype": [["default", "bf16"], {"default": "default"}],
 "virtual_vram_gb": ["FLOAT", {"default": 0.0}], "allocation": ["STRING", {"default": ""}]}, "optional": {"workload": ["DISTORCH_WORKLOAD"]}}, "output": ["MODEL"], "name": "DistorchLoadDiffusionModel", "output_node": false}`

func TestReplacedLoaders(t *testing.T) {
	without := usual()
	without["UNETLoader.unet_name"], without["CheckpointLoaderSimple.ckpt_name"] = nil, nil
	models := func() []Model {
		return []Model{{File: "flux.safetensors", Deployment: "flux-demo"}, {File: "sd.safetensors"}}
	}
	w := scripted(t, comfyworker.Config{Files: without, Classes: map[string]json.RawMessage{DefaultLoader: json.RawMessage(ours)}})
	p := started(t, Config{Models: models}, w)
	eventually(t, p, "the models show", func() bool {
		info, _ := p.ObjectInfo()
		return strings.Contains(string(info["UNETLoader"]), `["flux.safetensors","sd.safetensors"]`)
	})
	h, _, err := ran(t, p, prompted(t, "p", basic))
	if err != nil {
		t.Fatal(err)
	}
	var sent map[string]struct {
		Class  string         `json:"class_type"`
		Inputs map[string]any `json:"inputs"`
	}
	if err := json.Unmarshal(w.Prompts()[0], &sent); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]any{"model": "flux-demo (deployment)", "dtype": "default", "virtual_vram_gb": 0.0, "allocation": ""}, sent["4"].Inputs); d != "" || sent["4"].Class != DefaultLoader {
		t.Errorf("node 4 is %s: %s", sent["4"].Class, d)
	}
	for _, k := range h.kinds() {
		if strings.Contains(k, "_distorch") {
			t.Errorf("the client hears %s", k)
		}
	}
}

// checkpoint gives MODEL and CLIP from one node, and VAE where asked for.
const checkpoint = `{
 "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/sd.safetensors"}},
 "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "x", "clip": ["1", 1]}},
 "3": {"class_type": "KSampler", "inputs": {"steps": 1, "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["4", 0]}},
 "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
 "5": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
 "9": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "c"}}
}`

func TestReplacedCheckpoint(t *testing.T) {
	files := usual()
	files["CheckpointLoaderSimple.ckpt_name"] = []string{"sub/sd.safetensors"}
	fail := errors.New("cluster is not reachable")
	broken := false
	w := scripted(t, comfyworker.Config{
		Files: files, Classes: map[string]json.RawMessage{DefaultLoader: json.RawMessage(ours)},
		Node: func(_ context.Context, n comfyworker.Node, _ int) error {
			if broken && n.Class == DefaultLoader {
				return fail
			}
			return nil
		},
	})
	p := started(t, Config{Models: func() []Model { return []Model{{File: "sd.safetensors"}} }}, w)
	eventually(t, p, "the models are known", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.models) > 0 })
	h, _, err := ran(t, p, prompted(t, "p", checkpoint))
	if err != nil {
		t.Fatal(err)
	}
	var sent map[string]struct {
		Class  string         `json:"class_type"`
		Inputs map[string]any `json:"inputs"`
	}
	if err := json.Unmarshal(w.Prompts()[0], &sent); err != nil {
		t.Fatal(err)
	}
	if sent["1"].Class != "CheckpointLoaderSimple" || sent["1_distorch"].Class != DefaultLoader || sent["1_distorch"].Inputs["model"] != "sd.safetensors" {
		t.Errorf("loaders: %v, %v", sent["1"], sent["1_distorch"])
	}
	if d := cmp.Diff([]any{"1_distorch", 0.0}, sent["3"].Inputs["model"]); d != "" {
		t.Errorf("the sampler's model: %s", d)
	}
	if d := cmp.Diff([]any{"1", 1.0}, sent["2"].Inputs["clip"]); d != "" {
		t.Errorf("the text encoder: %s", d)
	}
	for _, m := range h.messages {
		if strings.Contains(string(m.Data), "_distorch") {
			t.Errorf("%s has a node that the client does not: %s", m.Type, m.Data)
		}
	}
	broken = true
	if _, _, err = ran(t, p, prompted(t, "p", strings.ReplaceAll(checkpoint, `"steps": 1`, `"steps": 2`))); err != nil {
		t.Fatalf("the loader is cached: %v", err)
	}
	w.Kill()
	again := scripted(t, comfyworker.Config{
		Files: files, Classes: map[string]json.RawMessage{DefaultLoader: json.RawMessage(ours)},
		Node: func(_ context.Context, n comfyworker.Node, _ int) error {
			if n.Class == DefaultLoader {
				return fail
			}
			return nil
		},
	})
	q := started(t, Config{Models: func() []Model { return []Model{{File: "sd.safetensors"}} }}, again)
	eventually(t, q, "the models are known", func() bool { q.mu.Lock(); defer q.mu.Unlock(); return len(q.models) > 0 })
	h, _, err = ran(t, q, prompted(t, "p", checkpoint))
	failed, ok := errors.AsType[*comfy.PromptError](err)
	if !ok || failed.Node != "1" || failed.NodeType != "CheckpointLoaderSimple" {
		t.Errorf("error of the loader in its place: %+v", failed)
	}
	if d := h.last("execution_error"); strings.Contains(string(d.raw()), "_distorch") {
		t.Errorf("the client hears %s", d.raw())
	}
}

// TestCheckpointThatOnlyTheClusterHas: its CLIP and VAE have to come from somewhere.
func TestCheckpointThatOnlyTheClusterHas(t *testing.T) {
	w := scripted(t, comfyworker.Config{Classes: map[string]json.RawMessage{DefaultLoader: json.RawMessage(ours)}})
	p := started(t, Config{Models: func() []Model { return []Model{{File: "sd.safetensors"}} }}, w)
	eventually(t, p, "the models are known", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.models) > 0 })
	if err := p.Check(prompted(t, "p", checkpoint)); !errors.As(err, new(*comfy.NoWorkerError)) {
		t.Errorf("with CLIP and VAE: %v", err)
	}
	alone := strings.NewReplacer(`["1", 1]`, `["5", 0]`, `["1", 2]`, `["5", 0]`).Replace(checkpoint)
	if err := p.Check(prompted(t, "p", alone)); err != nil {
		t.Errorf("with the MODEL alone: %v", err)
	}
}
