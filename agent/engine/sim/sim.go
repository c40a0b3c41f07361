// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package sim is the engine of simulated devices: what a machine without a GPU
// has to show how one with GPUs behaves. A device is an arena with a capacity,
// which the host cannot see, real copies at a configured rate on a queue of
// their own, and the native engine's kernels; so running out of memory,
// streaming and overlap are real, and the bits are native's.
//
// Imported by the agent, by benches and by tests. Like every engine it must not
// import the wire, the store, the transport or placement. A Session owns its
// queues and all memory it hands out.
package sim

import (
	"context"
	"errors"
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/tensor"
)

// Device is a simulated device. Rates are bytes per second; 0 is as fast as the
// machine copies.
type Device struct {
	Name    engine.DeviceID
	Memory  tensor.Bytes // of the arena
	H2D     float64      // from host memory
	D2H     float64      // to host memory
	Peer    float64      // from another simulated device; the slower of the two counts
	Threads int          // that compute; 0: 1
}

// Config of an Engine.
type Config struct {
	ISA     isa.ISA
	Devices []Device
	// Host is the account of the memory that the devices copy from.
	Host *engine.Account
	// Begin is native.Config's, for every device; may be nil.
	Begin func(native.Queue)
}

// Engine has the simulated devices of a machine.
type Engine struct {
	host    *engine.Account
	devices []Device
	native  map[engine.DeviceID]*native.Engine
}

// New checks the devices and gives each its kernels.
func New(cfg Config) (*Engine, error) {
	if cfg.Host == nil {
		return nil, errors.New("simulated devices: the host's account is needed")
	}
	e := &Engine{host: cfg.Host, native: map[engine.DeviceID]*native.Engine{}}
	for _, d := range cfg.Devices {
		switch {
		case d.Name == "" || d.Name == native.CPU:
			return nil, fmt.Errorf("simulated device %q: a name such as sim:0 is needed", d.Name)
		case e.native[d.Name] != nil:
			return nil, fmt.Errorf("simulated device %s: the name is used twice", d.Name)
		case d.Memory <= 0:
			return nil, fmt.Errorf("simulated device %s: memory %v must be above 0", d.Name, d.Memory)
		case !(d.H2D >= 0 && d.D2H >= 0 && d.Peer >= 0):
			return nil, fmt.Errorf("simulated device %s: rates must be 0 (no limit) or above", d.Name)
		}
		d.Threads = max(d.Threads, 1)
		n, err := native.New(native.Config{ISA: cfg.ISA, Threads: d.Threads, Copiers: 1, Memory: d.Memory, Mend: mend, Begin: cfg.Begin})
		if err != nil {
			return nil, fmt.Errorf("simulated device %s: %w", d.Name, err)
		}
		e.devices, e.native[d.Name] = append(e.devices, d), n
	}
	return e, nil
}

// mend ends the error about a device's memory.
const mend = "raise its memory in agent.devices or place fewer blocks there"

// Devices lists them, marked as simulated.
func (e *Engine) Devices(ctx context.Context) ([]engine.Device, error) {
	var out []engine.Device
	for _, d := range e.devices {
		of, err := e.native[d.Name].Devices(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, describe(d, of[0]))
	}
	return out, nil
}

func describe(d Device, of engine.Device) engine.Device {
	of.ID, of.UUID, of.Model, of.Memory, of.Kind = d.Name, string(d.Name), "simulated device", d.Memory, "sim"
	of.Unified, of.Simulated = false, true
	return of
}

// Open starts a session on a device.
func (e *Engine) Open(_ context.Context, id engine.DeviceID) (engine.Session, error) {
	for _, d := range e.devices {
		if d.Name == id {
			return newSession(e, d), nil
		}
	}
	return nil, fmt.Errorf("device %q is not there: it is not one of the simulated devices", id)
}
