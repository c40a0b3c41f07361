// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Command comfyclients runs other programs' ComfyUI clients, unmodified, from npm
// and PyPI, against the coordinator's ComfyUI API with two scripted workers behind
// it: `make test-comfy-clients`, which installs them.
//
// Nothing imports it. It may import all of distorch.
package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/distorch/distorch/bench/comfystack"
	"github.com/distorch/distorch/internal/comfyworker"
)

//go:embed *.mjs *.py graph.json
var scripts embed.FS

const (
	clientLimit = 2 * time.Minute
	stepTime    = 20 * time.Millisecond
	beginTime   = 100 * time.Millisecond
)

// client is a program with the checks that it must pass.
type client struct {
	name   string
	args   []string
	checks []string
}

func clients() []client {
	most := []string{"success", "cached", "400", "execution_error", "interrupt", "queue delete", "reconnect in the middle", "two clients in parallel"}
	return []client{
		{"ws 8", []string{"node", "raw.mjs"}, append([]string{"previews with metadata"}, most...)},
		{"@saintno/comfyui-sdk 0.3.1", []string{"node", "saintno.mjs"}, most},
		{"@stable-canvas/comfyui-client 1.5.9", []string{"node", "stable.mjs"}, append([]string{"polling"}, most...)},
		{"comfy-ui-client 0.1.2", []string{"node", "simple.mjs"}, []string{"success", "cached", "400", "interrupt", "files", "two clients in parallel"}},
		{"websocket-client", []string{"venv/bin/python", "wsclient.py"}, []string{"success", "interrupt"}},
	}
}

func main() {
	dir := flag.String("dir", filepath.FromSlash(".cache/comfy-clients"), "`folder` that has the clients installed")
	verbose := flag.Bool("v", false, "show the server's log")
	worker := flag.String("worker", "", "run against the real ComfyUI at this `URL` instead")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *dir, *worker, *verbose)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "comfyclients:", err)
		os.Exit(1)
	}
}

// node is what the workers do: a step takes its time, and text that says so fails.
func node(ctx context.Context, n comfyworker.Node, step int) error {
	var text string
	if json.Unmarshal(n.Inputs["text"], &text) == nil && text == "raise" {
		return errors.New("raised as asked")
	}
	if step == 0 {
		return nil
	}
	t := time.NewTimer(stepTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return nil
}

func run(ctx context.Context, dir, worker string, verbose bool) error {
	files := map[string][]string{
		"UNETLoader.unet_name": {"flux.safetensors"}, "CLIPLoader.clip_name": {"clip.safetensors"}, "VAELoader.vae_name": {"vae.safetensors"},
	}
	for _, needed := range []string{"node_modules", "venv"} {
		if _, err := os.Stat(filepath.Join(dir, needed)); err != nil {
			return fmt.Errorf("the clients are not installed: %w; `make test-comfy-clients` installs them", err)
		}
	}
	if err := unpack(dir); err != nil {
		return err
	}
	if worker != "" {
		return realWorker(ctx, dir, worker)
	}
	var failed []error
	for _, c := range clients() {
		err := func() error {
			data, err := os.MkdirTemp("", "comfy-clients-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(data)
			log := os.Stderr
			if !verbose {
				log = nil
			}
			cfg := comfyworker.Config{Files: files, Node: node, Begin: beginTime}
			s, err := start(ctx, data, log, cfg)
			if err != nil {
				return err
			}
			return errors.Join(c.run(ctx, dir, s.URL), s.Stop())
		}()
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(append(failed, cli(ctx, dir, files))...)
}

// realWorker runs the checks that need no model against a ComfyUI that runs.
func realWorker(ctx context.Context, dir, worker string) error {
	data, err := os.MkdirTemp("", "comfy-clients-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	s, err := comfystack.Over(ctx, data, nil, worker)
	if err != nil {
		return fmt.Errorf("ComfyUI at %s: %w", worker, err)
	}
	c := client{"ComfyUI " + s.Pool.Stats().System.ComfyUIVersion, []string{"node", "real.mjs"}, []string{"success", "cached", "upload", "pictures over the socket", "execution_error", "400", "lists"}}
	return errors.Join(c.run(ctx, dir, s.URL), s.Stop())
}

func start(ctx context.Context, dir string, log *os.File, cfg comfyworker.Config) (*comfystack.Stack, error) {
	if log == nil {
		return comfystack.Start(ctx, dir, nil, cfg, cfg)
	}
	return comfystack.Start(ctx, dir, log, cfg, cfg)
}

// unpack puts the scripts beside the modules that they import.
func unpack(dir string) error {
	names, err := fs.Glob(scripts, "*")
	if err != nil {
		return err
	}
	for _, name := range names {
		raw, err := scripts.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// run runs the program and compares what it says with its checks.
func (c client) run(ctx context.Context, dir, server string) error {
	ctx, cancel := context.WithTimeout(ctx, clientLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.args[0], append(append([]string{}, c.args[1:]...), server, "graph.json")...)
	if strings.HasPrefix(c.args[0], "venv") {
		abs, err := filepath.Abs(filepath.Join(dir, c.args[0]))
		if err != nil {
			return err
		}
		cmd.Path, cmd.Err = abs, nil
	}
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	ok := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "ok "); found {
			ok[name] = true
		}
	}
	var missing []string
	for _, name := range c.checks {
		if !ok[name] {
			missing = append(missing, name)
		}
	}
	fmt.Printf("%-38s %d of %d: %s\n", c.name, len(c.checks)-len(missing), len(c.checks), strings.Join(c.checks, ", "))
	if err != nil || len(missing) > 0 {
		return fmt.Errorf("%w; not passed: %s\n%s", errors.Join(err, errors.New("a check failed")), strings.Join(missing, ", "), out)
	}
	return nil
}

// cli runs `comfy run` of comfy-cli: a picture, and a node that fails.
func cli(ctx context.Context, dir string, files map[string][]string) error {
	data, err := os.MkdirTemp("", "comfy-clients-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	s, err := start(ctx, data, nil, comfyworker.Config{Files: files, Node: node})
	if err != nil {
		return err
	}
	defer s.Stop() //nolint:errcheck // the program ends
	u, err := url.Parse(s.URL)
	if err != nil {
		return err
	}
	graph, err := scripts.ReadFile("graph.json")
	if err != nil {
		return err
	}
	raising := bytes.ReplaceAll(graph, []byte("a red circle"), []byte("raise"))
	if err := os.WriteFile(filepath.Join(data, "raise.json"), raising, 0o600); err != nil {
		return err
	}
	good, err := filepath.Abs(filepath.Join(dir, "graph.json"))
	if err != nil {
		return err
	}
	program, err := filepath.Abs(filepath.Join(dir, "venv/bin/comfy"))
	if err != nil {
		return err
	}
	for _, t := range []struct {
		workflow, says string
		fails          bool
	}{{good, "_00001_.png", false}, {filepath.Join(data, "raise.json"), "raised as asked", true}} {
		cctx, cancel := context.WithTimeout(ctx, clientLimit)
		cmd := exec.CommandContext(cctx, program, "--skip-prompt", "run", "--wait", "--workflow", t.workflow, "--host", u.Hostname(), "--port", u.Port())
		cmd.Env = append(os.Environ(), "HOME="+data, "DO_NOT_TRACK=1", "COLUMNS=200")
		out, err := cmd.CombinedOutput()
		cancel()
		if (err != nil) != t.fails || !strings.Contains(string(out), t.says) {
			return fmt.Errorf("comfy-cli, %s: %w\n%s", filepath.Base(t.workflow), errors.Join(err, fmt.Errorf("it does not say %q", t.says)), out)
		}
	}
	fmt.Printf("%-38s 2 of 2: success, execution_error\n", "comfy-cli, comfy run")
	return nil
}
