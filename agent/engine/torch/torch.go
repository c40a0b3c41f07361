// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package torch is the engine that computes with PyTorch in a worker process:
// CUDA, ROCm, XPU, MPS and the CPU by the same code (docs/torch.md).
//
// Imported by the agent's assembly, by the verify and doctor commands and by
// benches. It must not import the wire, the store, the transport or placement.
// An Engine owns one worker process for all devices of the node, which it
// starts when it is first needed; sessions of a worker that died are lost for
// good, and Open starts a new worker. Close ends the process and joins all
// goroutines.
package torch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// Config of an Engine.
type Config struct {
	Python  string // the interpreter whose PyTorch is used; Find finds one
	Threads int    // of the CPU device; 0: all
	// Memory is what sessions may take of a device, HostMemory what they may
	// take of the host beside a device of its own memory; 0: no limit.
	Memory, HostMemory tensor.Bytes
	// Limits are instead of Memory on the devices that it names.
	Limits map[engine.DeviceID]tensor.Bytes
	// Host is instead of HostMemory, and is the CPU device's account: RAM that the
	// engine shares with others. May be nil.
	Host *engine.Account
	// Only names the one device to offer; "" offers all.
	Only engine.DeviceID
	// Attention pins the kernels of scaled dot products on a GPU: flash,
	// efficient, cudnn, math; "" or auto: what is fastest on these GPUs.
	Attention string
	Log       *slog.Logger // may be nil

	// Patience stretches every deadline on the worker; 0 is 1.
	Patience float64

	// More are modules of the worker that may use its own, for tests: the last
	// one's main is run.
	More []Module
}

// Module is a Python module.
type Module struct{ Name, Text string }

// Engine is PyTorch on this node.
type Engine struct {
	cfg  Config
	host *engine.Account

	mu     sync.Mutex
	worker *worker
	closed bool
}

var _ engine.Engine = (*Engine)(nil)

// attentions are the kernels that can be pinned.
func attentions() []string { return []string{"auto", "flash", "efficient", "cudnn", "math"} }

// New checks the configuration; the worker starts with the first call.
func New(cfg Config) (*Engine, error) {
	if cfg.Python == "" {
		return nil, errors.New("the torch engine needs a Python with PyTorch: set agent.torch.python")
	}
	if cfg.Threads <= 0 {
		cfg.Threads = runtime.GOMAXPROCS(0)
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 1
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Attention == "" {
		cfg.Attention = "auto"
	}
	known := false
	for _, a := range attentions() {
		known = known || a == cfg.Attention
	}
	if !known {
		return nil, fmt.Errorf("agent.torch.attention %q is unknown: one of %s", cfg.Attention, strings.Join(attentions(), ", "))
	}
	host := cfg.Host
	if host == nil {
		host = engine.NewAccount(cfg.HostMemory, "raise agent.memory or keep fewer blocks in host memory")
	}
	return &Engine{cfg: cfg, host: host}, nil
}

// Limited is the same worker with another Memory.
func (e *Engine) Limited(memory tensor.Bytes) engine.Engine { return &limited{e, memory} }

type limited struct {
	*Engine
	memory tensor.Bytes
}

func (l *limited) Open(ctx context.Context, id engine.DeviceID) (engine.Session, error) {
	return l.open(ctx, id, l.memory)
}

// startFor is how long a worker may take from its start to its hello: reading
// PyTorch's libraries from a slow disk takes most of it.
const startFor = 3 * time.Minute

// running is the worker that lives, started if there is none.
func (e *Engine) running(ctx context.Context) (*worker, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("the torch engine is closed")
	}
	if e.worker != nil && e.worker.lost() == nil {
		return e.worker, nil
	}
	if e.worker != nil {
		e.worker.end(errClosed)
		e.worker = nil
	}
	w, err := startWorker(ctx, e.cfg)
	if err != nil {
		return nil, err
	}
	e.worker = w
	e.cfg.Log.Info("torch worker started", "pid", w.cmd.Process.Pid, "python", e.cfg.Python, "torch", w.hello.Torch, "runtime", w.hello.Runtime)
	return w, nil
}

// Devices lists the GPUs that this PyTorch sees and has code for, then the CPU.
func (e *Engine) Devices(ctx context.Context) ([]engine.Device, error) {
	w, err := e.running(ctx)
	if err != nil {
		return nil, err
	}
	var out []engine.Device
	for _, d := range w.hello.Devices {
		if d.Lacks == "" && (e.cfg.Only == "" || string(e.cfg.Only) == d.ID) {
			out = append(out, e.device(w, d))
		}
	}
	slices.SortStableFunc(out, func(a, b engine.Device) int {
		switch {
		case a.Unified == b.Unified:
			return 0
		case a.Unified:
			return 1
		}
		return -1
	})
	return out, nil
}

// Lost is closed when the running worker has ended; nil when none runs.
func (e *Engine) Lost() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.worker == nil {
		return nil
	}
	return e.worker.gone
}

func (e *Engine) device(w *worker, d helloDevice) engine.Device {
	out := engine.Device{
		ID: engine.DeviceID(d.ID), UUID: d.UUID, Model: d.Name, Memory: tensor.Bytes(d.Memory), ISA: d.Arch, Kind: d.Kind,
		Unified: d.Kind == "cpu",
	}
	if d.Kind == "cpu" {
		out.Threads, out.Memory = e.cfg.Threads, e.cfg.Memory
	}
	for _, t := range []tensor.DType{tensor.F32, tensor.BF16} { // those that graphs are specialised for
		if d.DTypes[t.String()] != "" {
			out.DTypes = append(out.DTypes, t)
		}
	}
	out.Class = func(t tensor.DType) string {
		attention := d.DTypes[t.String()]
		if attention == "" {
			return ""
		}
		// torch/<version>+<runtime>/<device name>/<dtype>/<attention>
		c := fmt.Sprintf("torch/%s+%s/%s/%s/%s", w.hello.Torch, w.hello.Runtime, className(d), strings.ToLower(t.String()), attention)
		if d.Kind == "cpu" {
			c += fmt.Sprintf("/t%d", e.cfg.Threads)
		}
		return c
	}
	return out
}

// className is a device's name as a part of a class; a CPU's instruction set
// chooses its kernels and so belongs to it.
func className(d helloDevice) string {
	name := d.Name
	if d.Kind == "cpu" {
		name += " " + d.Arch
	}
	return strings.NewReplacer(" ", "-", "/", "-", ",", "").Replace(name)
}

// Open opens a device; its first session makes the worker take the memory that
// PyTorch's libraries keep.
func (e *Engine) Open(ctx context.Context, id engine.DeviceID) (engine.Session, error) {
	limit, named := e.cfg.Limits[id]
	if !named {
		limit = e.cfg.Memory
	}
	return e.open(ctx, id, limit)
}

func (e *Engine) open(ctx context.Context, id engine.DeviceID, limit tensor.Bytes) (engine.Session, error) {
	w, err := e.running(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range w.hello.Devices {
		switch {
		case d.ID != string(id):
		case d.Lacks != "":
			return nil, archError(e.cfg.Python, w.hello, d)
		default:
			return newSession(ctx, e, w, e.device(w, d), limit)
		}
	}
	return nil, fmt.Errorf("device %q is not there: PyTorch %s sees %s", id, w.hello.Torch, w.hello.names())
}

// Close ends the worker and all sessions with it.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.worker != nil {
		e.worker.end(errClosed)
		e.worker = nil
	}
	return nil
}
