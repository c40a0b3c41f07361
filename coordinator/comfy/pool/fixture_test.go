// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distorch/distorch/coordinator/comfy"
	"github.com/distorch/distorch/internal/comfyworker"
)

// limit is how long a test waits for what must come.
const limit = 20 * time.Second

// usual are the files that a worker of a test has.
func usual() map[string][]string {
	return map[string][]string{
		"UNETLoader.unet_name": {"flux.safetensors"}, "CLIPLoader.clip_name": {"clip.safetensors"}, "VAELoader.vae_name": {"vae.safetensors"},
		"CheckpointLoaderSimple.ckpt_name": {"sd.safetensors"}, "LoadImage.image": {"example.png"},
	}
}

func scripted(t *testing.T, cfg comfyworker.Config) *comfyworker.Worker {
	t.Helper()
	if cfg.Files == nil {
		cfg.Files = usual()
	}
	w, err := comfyworker.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Kill)
	return w
}

// started is a pool of workers named a, b, ... that all answer.
func started(t *testing.T, cfg Config, workers ...*comfyworker.Worker) *Pool {
	t.Helper()
	var all []Registration
	for i, w := range workers {
		all = append(all, Registration{Name: string(rune('a' + i)), URL: w.URL()})
	}
	if cfg.Workers == nil {
		cfg.Workers = func(ctx context.Context, fn func([]Registration)) error {
			fn(all)
			<-ctx.Done()
			return nil
		}
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Poll == 0 {
		cfg.Poll = 20 * time.Millisecond
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, p, "all workers answer", func() bool { return len(p.living()) == len(workers) })
	return p
}

// eventually waits for something that a change of the pool's brings about.
func eventually(t *testing.T, p *Pool, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(limit)
	for {
		changed := p.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: not so after %v: %+v", what, limit, p.State())
		}
	}
}

const basic = `{
 "4": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors", "weight_dtype": "default"}},
 "5": {"class_type": "CLIPLoader", "inputs": {"clip_name": "clip.safetensors", "type": "sd3"}},
 "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red circle", "clip": ["5", 0]}, "_meta": {"title": "Positive"}},
 "8": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
 "3": {"class_type": "KSampler", "inputs": {"seed": 18446744073709551615, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
   "model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["8", 0]}},
 "10": {"class_type": "VAELoader", "inputs": {"vae_name": "vae.safetensors"}},
 "11": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["10", 0]}},
 "9": {"class_type": "SaveImage", "inputs": {"images": ["11", 0], "filename_prefix": "golden/a"}}
}`

// prompted is a prompt as the front hands it over.
func prompted(t *testing.T, id, text string) *comfy.Prompt {
	t.Helper()
	g, err := parseGraph([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p := &comfy.Prompt{ID: id, Graph: json.RawMessage(text), ExtraData: json.RawMessage(`{"client_id":"theirs"}`)}
	classes := map[string]bool{}
	for _, id := range g.ids {
		n := g.nodes[id]
		classes[n.class] = true
		for _, m := range n.inputs {
			if v, ok := asText(m.value); ok && (strings.HasSuffix(m.name, "_name") || m.name == "image") {
				p.Choices = append(p.Choices, comfy.Choice{Node: id, Class: n.class, Input: m.name, Value: v})
			}
		}
		if strings.HasPrefix(n.class, "Save") || strings.HasPrefix(n.class, "Preview") {
			p.Outputs = append(p.Outputs, id)
		}
	}
	p.Classes = slices.Sorted(maps.Keys(classes))
	return p
}

// heard is a sink that keeps what it gets.
type heard struct {
	mu       sync.Mutex
	messages []comfy.Message
	binary   [][]byte
	on       func(m comfy.Message)
}

func (h *heard) Text(m comfy.Message) {
	h.mu.Lock()
	h.messages = append(h.messages, m)
	h.mu.Unlock()
	if h.on != nil {
		h.on(m)
	}
}

func (h *heard) Binary(f []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.binary = append(h.binary, f)
}

// kinds are the messages' types with their nodes, those of progress_state left out.
func (h *heard) kinds() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.messages {
		if m.Type == "progress_state" {
			continue
		}
		o, _ := asObject(m.Data)
		node := o.text("node") + o.text("node_id")
		if node != "" {
			node = " " + node
		}
		out = append(out, m.Type+node)
	}
	return out
}

func (h *heard) last(kind string) (out object) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.messages {
		if m.Type == kind {
			out, _ = asObject(m.Data)
		}
	}
	return out
}

// image is the first picture of the last executed message.
func (h *heard) image() comfy.FileRef {
	raw, _ := h.last("executed").at("output")
	var out struct {
		Images []struct{ Filename, Subfolder, Type string } `json:"images"`
	}
	if json.Unmarshal(raw, &out) != nil || len(out.Images) == 0 {
		return comfy.FileRef{}
	}
	return comfy.FileRef{Name: out.Images[0].Filename, Subfolder: out.Images[0].Subfolder, Type: out.Images[0].Type}
}

// carried out runs a prompt on whatever worker is free.
func ran(t *testing.T, p *Pool, pr *comfy.Prompt) (*heard, string, error) {
	t.Helper()
	l, err := p.Reserve(pr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	h := &heard{}
	return h, l.Worker(), runOf(t, l, h)
}

func runOf(t *testing.T, l comfy.Lease, h *heard) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return l.Run(ctx, h)
}

func viewed(t *testing.T, p *Pool, v comfy.View) (int, string) {
	t.Helper()
	resp, err := p.View(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// seeded is basic with another seed, so that no worker has it cached.
func seeded(seed int) string {
	return strings.ReplaceAll(basic, "18446744073709551615", fmt.Sprint(seed))
}
