// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// Search says where a Python with PyTorch may be.
type Search struct {
	Python  string   // agent.torch.python: this one and no other
	ComfyUI string   // agent.torch.comfyui: a ComfyUI's folder, or the one around it
	Models  []string // models.dirs: one inside a ComfyUI shows where that is
}

// Candidate is a Python to try.
type Candidate struct {
	Python string // path
	From   string // why: "agent.torch.python", "ComfyUI in DIR", "python3 on PATH"
}

// Find lists Pythons in the order in which they are tried: the one that is
// named, else those of ComfyUIs, else the one on PATH. It looks for files and
// runs nothing.
func Find(s Search) []Candidate {
	if s.Python != "" {
		return []Candidate{{s.Python, "agent.torch.python"}}
	}
	var out []Candidate
	add := func(path, from string) {
		info, err := os.Stat(path)
		known := slices.ContainsFunc(out, func(c Candidate) bool { return c.Python == path })
		if err == nil && !info.IsDir() && !known {
			out = append(out, Candidate{path, from})
		}
	}
	for _, root := range comfyRoots(s) {
		for _, env := range environments(root) {
			add(env, "ComfyUI in "+root)
		}
	}
	for _, name := range []string{"python3", "python"} {
		if path, err := exec.LookPath(name); err == nil {
			add(path, name+" on PATH")
			break
		}
	}
	return out
}

// above is how many folders lie between a folder of models and its ComfyUI.
const above = 4

// comfyRoots are the ComfyUI folders that the search knows of.
func comfyRoots(s Search) (roots []string) {
	add := func(dir string) bool {
		if !isComfyUI(dir) {
			return false
		}
		if !slices.Contains(roots, dir) {
			roots = append(roots, dir)
		}
		return true
	}
	if s.ComfyUI != "" && !add(filepath.Clean(s.ComfyUI)) && !add(filepath.Join(s.ComfyUI, "ComfyUI")) {
		roots = append(roots, filepath.Clean(s.ComfyUI)) // of a build that keeps its code elsewhere
	}
	for _, dir := range s.Models {
		dir, err := filepath.Abs(dir)
		for range above {
			if err != nil || add(dir) || add(filepath.Join(dir, "ComfyUI")) {
				break
			}
			dir = filepath.Dir(dir)
		}
	}
	return roots
}

func isComfyUI(dir string) bool {
	_, err1 := os.Stat(filepath.Join(dir, "main.py"))
	info, err2 := os.Stat(filepath.Join(dir, "comfy"))
	return err1 == nil && err2 == nil && info.IsDir()
}

// portable is the folder of Python in ComfyUI's portable build, as it spells it.
const portable = "python_embeded" //nolint:misspell // theirs

// environments are where a ComfyUI's Python can be: the portable build's beside
// it, virtual environments in it or beside it.
func environments(root string) []string {
	bin := filepath.Join("bin", "python")
	if runtime.GOOS == "windows" {
		bin = filepath.Join("Scripts", "python.exe")
	}
	var out []string
	for _, dir := range []string{root, filepath.Dir(root)} {
		out = append(out, filepath.Join(dir, portable, "python.exe"))
		for _, env := range []string{"venv", ".venv"} {
			out = append(out, filepath.Join(dir, env, bin))
		}
	}
	return out
}

// Info is what a Python's PyTorch can do.
type Info struct {
	Python  string // path
	Version string // of PyTorch, "2.9.1"
	Runtime string // "cu130", "rocm6.4", "xpu", "cpu"
	Archs   []string
	Devices []Found
}

// Found is a device as PyTorch sees it.
type Found struct {
	ID     engine.DeviceID
	Kind   string
	Model  string
	UUID   string // the driver's own: "GPU-…"
	Memory tensor.Bytes
	Arch   string
	// Missing says why it cannot be used: its architecture is not in this build
	// of PyTorch (ErrArch). nil where it can.
	Missing error
}

// Probe starts a worker of a Python, asks what it sees and ends it: ErrAbsent,
// ErrBroken, ErrTooOld or ErrWorkerLost says why it cannot serve.
func Probe(ctx context.Context, python string) (Info, error) {
	e, err := New(Config{Python: python})
	if err != nil {
		return Info{}, err
	}
	defer e.Close() //nolint:errcheck // ends a process
	w, err := e.running(ctx)
	if err != nil {
		return Info{}, err
	}
	h := w.hello
	out := Info{Python: python, Version: h.Torch, Runtime: h.Runtime, Archs: h.Archs}
	for _, d := range h.Devices {
		f := Found{ID: engine.DeviceID(d.ID), Kind: d.Kind, Model: d.Name, UUID: d.UUID, Memory: tensor.Bytes(d.Memory), Arch: d.Arch}
		if d.Lacks != "" {
			f.Missing = archError(python, h, d)
		}
		out.Devices = append(out.Devices, f)
	}
	return out, nil
}

// First probes candidates until one can serve. The error says of each why not.
func First(ctx context.Context, s Search) (Info, error) {
	candidates := Find(s)
	if len(candidates) == 0 {
		return Info{}, fmt.Errorf("%w: there is no python3 on PATH and no ComfyUI in models.dirs; install Python and PyTorch, or set agent.torch.python", ErrAbsent)
	}
	var errs []error
	for _, c := range candidates {
		info, err := Probe(ctx, c.Python)
		if err == nil {
			return info, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.From, err))
		if ctx.Err() != nil {
			break
		}
	}
	return Info{}, errors.Join(errs...)
}
