// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// The Python sides travel in the binary: a machine with a GPU needs nothing
// else.
//
//go:embed python/*.py
var pythonSides embed.FS

// unpack writes the Python sides into a folder.
func unpack(dir string) error {
	for _, name := range []string{"forward.py", "rivals.py"} {
		text, err := pythonSides.ReadFile("python/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eager is a forward in eager PyTorch in a process of its own.
type eager struct {
	*torch
	dir       string
	attention string // that PyTorch chose
}

// size is a model's and a request's.
type size struct {
	hidden, heads, double, single int64
	text, wide, high              int64 // tokens, pixels
}

func (z size) model() *graph.Model { return modelOf(z.hidden, z.heads, z.double, z.single) }

// startEager loads the model on a device.
func startEager(ctx context.Context, o *options, z size, device string, compute tensor.DType) (_ *eager, err error) {
	cmd := exec.CommandContext(ctx, o.python, filepath.Join(o.dir, "forward.py"), strconv.Itoa(o.threads))
	cmd.Env = append(os.Environ(), "OMP_NUM_THREADS="+strconv.Itoa(o.threads), "MKL_NUM_THREADS="+strconv.Itoa(o.threads))
	t, err := startPython(cmd)
	if err != nil {
		return nil, err
	}
	e := &eager{torch: t, dir: o.dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	var loaded struct {
		Attention string `json:"attention"`
	}
	err = t.ask(map[string]any{
		"op": "load", "device": device, "dtype": map[tensor.DType]string{tensor.F32: "f32", tensor.BF16: "bf16"}[compute],
		"hidden": z.hidden, "heads": z.heads, "double": z.double, "single": z.single, "text": z.text,
		"rows": z.high / 16, "cols": z.wide / 16, "base": filepath.Join(o.dir, "base.bin"),
	}, &loaded)
	e.attention = loaded.Attention
	return e, err
}

// give hands over the inputs that are laid out in parts of memory.
func (e *eager) give(parts ...func() (graph.Layout, []byte)) error {
	for _, p := range parts {
		l, mem := p()
		for _, v := range l.Values {
			if err := os.WriteFile(filepath.Join(e.dir, v.Name+".bin"), mem[v.Place.Offset:v.Place.Offset+v.Bytes], 0o600); err != nil {
				return err
			}
		}
	}
	return e.ask(map[string]any{"op": "inputs", "dir": e.dir}, nil)
}

// output is the last forward's.
func (e *eager) output() ([]float32, error) {
	path := filepath.Join(e.dir, "out.bin")
	if err := e.ask(map[string]any{"op": "output", "file": path}, nil); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	v := make([]float32, len(raw)/4)
	return v, tensor.ToF32(v, raw, tensor.F32)
}

// rival is what rivals.py says of one way to offload.
type rival struct {
	Seconds  []float64         `json:"seconds"`
	Load     float64           `json:"load"`
	Peak     int64             `json:"peak"`
	Versions map[string]string `json:"versions"`
	Error    string            `json:"error"`
}

// runRival runs one way to offload; steps are measured after a warming one.
func runRival(ctx context.Context, o *options, how string, cap tensor.Bytes, steps int, more ...string) (rival, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	args := append([]string{filepath.Join(o.dir, "rivals.py"), how, fmt.Sprint(float64(cap) / 1e9), strconv.Itoa(steps), filepath.Join(o.dir, "base.bin")}, more...)
	cmd := exec.CommandContext(ctx, o.python, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return rival{}, fmt.Errorf("%s: %w", how, err)
	}
	var r rival
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("%s said %q: %w", how, out, err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("%s: %s", how, r.Error)
	}
	return r, nil
}
