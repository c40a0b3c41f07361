// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/distorch/distorch/bench/comfystack"
	"github.com/distorch/distorch/internal/comfyworker"
)

// comfyGraph is a picture as stock workflows make it; SEED and STEPS are put in.
const comfyGraph = `{
"4": {"class_type": "UNETLoader", "inputs": {"unet_name": "demo.safetensors", "weight_dtype": "default"}},
"5": {"class_type": "CLIPLoader", "inputs": {"clip_name": "clip.safetensors", "type": "sd3"}},
"6": {"class_type": "CLIPTextEncode", "inputs": {"text": "picture SEED", "clip": ["5", 0]}},
"8": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
"3": {"class_type": "KSampler", "inputs": {"seed": SEED, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
 "model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["8", 0]}},
"10": {"class_type": "VAELoader", "inputs": {"vae_name": "vae.safetensors"}},
"11": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["10", 0]}},
"9": {"class_type": "SaveImage", "inputs": {"images": ["11", 0], "filename_prefix": "bench"}}}`

func comfyFiles() map[string][]string {
	return map[string][]string{
		"UNETLoader.unet_name": {"demo.safetensors"}, "CLIPLoader.clip_name": {"clip.safetensors"}, "VAELoader.vae_name": {"vae.safetensors"},
	}
}

// comfyFigures are ComfyUI's API over scripted workers.
func comfyFigures(ctx context.Context, o *options, r *report) error {
	return errors.Join(comfyLoss(ctx, o, r), comfyOverlap(ctx, o, r))
}

// comfyClient is one client of the API, with a socket.
type comfyClient struct {
	url, id string
	conn    *websocket.Conn
}

func newComfyClient(ctx context.Context, url, id string) (*comfyClient, error) {
	conn, _, err := websocket.Dial(ctx, url+"/ws?clientId="+id, nil) //nolint:bodyclose // closed by the package
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(64 << 20)
	return &comfyClient{url, id, conn}, nil
}

func (c *comfyClient) call(ctx context.Context, method, path string, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %d %.300s", method, path, resp.StatusCode, out)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(out, answer)
}

// queue sends n prompts and returns their ids.
func (c *comfyClient) queue(ctx context.Context, n, steps int) (ids []string, err error) {
	for seed := range n {
		graph := strings.NewReplacer("SEED", fmt.Sprint(seed), "STEPS", fmt.Sprint(steps)).Replace(comfyGraph)
		var answer struct {
			ID string `json:"prompt_id"`
		}
		if err := c.call(ctx, http.MethodPost, "/prompt", map[string]any{"prompt": json.RawMessage(graph), "client_id": c.id}, &answer); err != nil {
			return nil, err
		}
		ids = append(ids, answer.ID)
	}
	return ids, nil
}

// heard counts what the socket said of one prompt.
type heard struct{ successes, ends, executed int }

// listen reads until n prompts have ended; each successful end calls on.
func (c *comfyClient) listen(ctx context.Context, n int, on func(done int)) (map[string]*heard, error) {
	all := map[string]*heard{}
	for done := 0; done < n; {
		kind, raw, err := c.conn.Read(ctx)
		if err != nil {
			return nil, fmt.Errorf("after %d ends: %w", done, err)
		}
		if kind == websocket.MessageBinary {
			continue
		}
		var m struct {
			Type string
			Data struct {
				ID   string `json:"prompt_id"`
				Node *string
			}
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, err
		}
		h := all[m.Data.ID]
		if h == nil {
			h = &heard{}
			all[m.Data.ID] = h
		}
		switch {
		case m.Type == "execution_success":
			h.successes++
		case m.Type == "executed":
			h.executed++
		case m.Type == "executing" && m.Data.Node == nil:
			h.ends++
			done++
			on(done)
		}
	}
	return all, nil
}

// comfyLoss runs 500 prompts over three workers, of which one is killed in the
// middle of a step.
func comfyLoss(ctx context.Context, o *options, r *report) error {
	const prompts, killAt = 500, 150
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp(o.dir, "comfy-")
	if err != nil {
		return err
	}
	kill, dying := make(chan struct{}), make(chan struct{})
	pause := func(ctx context.Context, n comfyworker.Node, _ int) error {
		if n.Class == "KSampler" {
			wait(ctx, 5*time.Millisecond)
		}
		return nil
	}
	doomed := func(ctx context.Context, n comfyworker.Node, step int) error {
		select {
		case <-kill:
			if n.Class == "KSampler" && step == 2 {
				close(dying)
				<-ctx.Done()
			}
		default:
		}
		return pause(ctx, n, step)
	}
	s, err := comfystack.Start(ctx, dir, nil,
		comfyworker.Config{Files: comfyFiles(), Node: doomed}, comfyworker.Config{Files: comfyFiles(), Node: pause}, comfyworker.Config{Files: comfyFiles(), Node: pause})
	if err != nil {
		return err
	}
	c, err := newComfyClient(ctx, s.URL, "bench")
	if err != nil {
		return errors.Join(err, s.Stop())
	}
	go func() {
		<-dying
		s.Workers[0].Kill()
	}()
	began := time.Now()
	ids, err := c.queue(ctx, prompts, 3)
	if err != nil {
		return errors.Join(err, s.Stop())
	}
	all, err := c.listen(ctx, prompts, func(done int) {
		if done == killAt {
			close(kill)
		}
	})
	took := time.Since(began)
	if err != nil {
		return errors.Join(err, s.Stop())
	}
	results, twice, err := c.results(ctx, ids, all)
	err = errors.Join(err, c.conn.CloseNow(), s.Stop())
	if err != nil {
		return err
	}
	var given, lost int64
	for _, w := range s.Pool.State() {
		given, lost = given+w.Prompts, lost+w.Lost
	}
	if lost != 1 {
		return fmt.Errorf("%d prompts were lost with the killed worker, want the one that it ran", lost)
	}
	r.figure("results of 500 prompts, one of 3 workers killed", float64(results)/prompts, target{want: 1}, "%d results, %d prompts given out, %s in all", results, given, seconds(took))
	r.figure("results that came twice", float64(twice), target{want: 0, below: true}, "ends, pictures and names of files of %d prompts", prompts)
	return nil
}

// results counts prompts whose history has one picture that is there, and those of
// which anything came more than once.
func (c *comfyClient) results(ctx context.Context, ids []string, all map[string]*heard) (results, twice int, err error) {
	var history map[string]struct {
		Status  struct{ Completed bool }
		Outputs map[string]struct {
			Images []struct{ Filename, Subfolder, Type string }
		}
	}
	if err := c.call(ctx, http.MethodGet, "/history", nil, &history); err != nil {
		return 0, 0, err
	}
	names := map[string]bool{}
	for _, id := range ids {
		e, h := history[id], all[id]
		if h == nil || h.successes > 1 || h.ends > 1 || h.executed > 1 {
			twice++
		}
		images := e.Outputs["9"].Images
		if !e.Status.Completed || len(images) != 1 || h == nil || h.successes == 0 {
			continue
		}
		name := images[0].Filename
		if names[name] {
			twice++
			continue
		}
		names[name] = true
		if err := c.call(ctx, http.MethodGet, "/view?type=output&filename="+name, nil, nil); err != nil {
			return 0, 0, err
		}
		results++
	}
	return results, twice, nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
