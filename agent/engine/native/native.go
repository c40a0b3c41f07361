// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package native is the engine that computes on the CPU in Go and assembly:
// numerics class native/1, the same bits on every instruction set and for any
// number of threads (docs/numerics.md).
//
// Imported by the agent, by the verify command and by benches. It must not
// import the wire, the store, the transport or placement. A Session owns its
// worker goroutines, its compute queue and all memory it hands out; Close
// joins and frees them.
package native

import (
	"context"
	"fmt"
	"runtime"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/attention"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/agent/engine/native/vector"
	"github.com/distorch/distorch/model/tensor"
)

// CPU is the id of the engine's only device.
const CPU engine.DeviceID = "cpu"

// Config of an Engine.
type Config struct {
	ISA     isa.ISA
	Threads int          // of the compute queue; 0: all
	Copiers int          // of the copy queue; 0: as many
	Memory  tensor.Bytes // what sessions may take; 0: no limit
	// Mend ends the error about Memory; "" says to raise agent.memory.
	Mend string
	// Account is shared by all sessions, and with devices that copy from this
	// memory; nil: one of Memory for each session.
	Account *engine.Account
	// Begin is called on each queue's goroutine before its first work, so that a
	// bench can pin it to a core; may be nil.
	Begin func(Queue)
}

// Engine is the native engine with one instruction set.
type Engine struct {
	cfg       Config
	matmul    *matmul.Kernels
	attention *attention.Kernels
	vector    *vector.Kernels
}

// Class is the numerics class of a compute dtype.
func Class(d tensor.DType) string {
	switch d {
	case tensor.BF16:
		return "native/1/bf16"
	case tensor.F32:
		return "native/1/f32"
	}
	return ""
}

// New picks the kernels and runs their self-test, which refuses an
// instruction set whose rounding differs from the class.
func New(cfg Config) (*Engine, error) {
	if cfg.Threads <= 0 {
		cfg.Threads = runtime.GOMAXPROCS(0)
	}
	if cfg.Copiers <= 0 {
		cfg.Copiers = cfg.Threads
	}
	m, err := matmul.New(cfg.ISA)
	if err != nil {
		return nil, err
	}
	if err := matmul.SelfTest(cfg.ISA); err != nil {
		return nil, fmt.Errorf("cpu_isa %s does not round as native/1 asks; force a lower one with agent.cpu_isa: %w", cfg.ISA, err)
	}
	v, err := vector.New(cfg.ISA)
	if err != nil {
		return nil, err
	}
	a, err := attention.New(cfg.ISA)
	if err != nil {
		return nil, err
	}
	return &Engine{cfg: cfg, matmul: m, vector: v, attention: a}, nil
}

// Devices is the CPU.
func (e *Engine) Devices(context.Context) ([]engine.Device, error) {
	return []engine.Device{e.device()}, nil
}

func (e *Engine) device() engine.Device {
	return engine.Device{
		ID: CPU, UUID: "cpu", Model: runtime.GOARCH, Memory: e.cfg.Memory, Threads: e.cfg.Threads, ISA: e.cfg.ISA.String(),
		Kind: "cpu", Unified: true, DTypes: []tensor.DType{tensor.F32, tensor.BF16}, Class: Class,
	}
}

// Open starts a session's workers.
func (e *Engine) Open(_ context.Context, id engine.DeviceID) (engine.Session, error) {
	if id != CPU {
		return nil, fmt.Errorf("device %q is not there: the native engine has only %q", id, CPU)
	}
	return newSession(e), nil
}

// Session is an open device whose queues take the work of an engine that is
// built on this one.
func (e *Engine) Session() Queued { return newSession(e) }
