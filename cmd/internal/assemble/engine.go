// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime"

	"github.com/distorch/distorch/agent"
	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/multi"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/model/tensor"
)

// machine is what engines are made for.
type machine struct {
	config  *config.Config
	host    *engine.Account // of RAM
	threads int
	log     *slog.Logger
}

// engines are those that the configuration names, side by side, and the name of
// what computes on GPUs or, without, on the CPU. auto is native on the CPU and
// PyTorch on the GPUs that there are.
func (m machine) engines(ctx context.Context) (_ engine.Engine, name string, err error) {
	c := &m.config.Agent
	cpu, err := m.native()
	if err != nil {
		return nil, "", err
	}
	all, name := []engine.Engine{cpu}, "native"
	switch {
	case c.Engine == "torch":
		t, err := m.torch(ctx)
		if err != nil {
			return nil, "", fmt.Errorf("agent.engine is torch: %w", err)
		}
		all, name = []engine.Engine{t}, "torch"
	case c.Engine != "native" && hasGPU(ctx):
		t, err := m.torch(ctx)
		if err != nil {
			m.log.Warn("the GPUs of this machine are not used", "error", err)
			break
		}
		all, name = append(all, t), "torch"
	}
	gpus, err := m.simulated()
	if err != nil {
		return nil, "", err
	}
	if gpus != nil {
		all = append(all, gpus)
	}
	return multi.New(all...), name, nil
}

// hasGPU says whether looking for PyTorch is worth its seconds.
func hasGPU(ctx context.Context) bool {
	return runtime.GOOS == "darwin" || len(device.Discover(ctx, device.Options{}).GPUs) > 0
}

// TorchSearch is where the configuration lets look for a Python.
func TorchSearch(cfg *config.Config) torch.Search {
	return torch.Search{Python: cfg.Agent.Torch.Python, ComfyUI: cfg.Agent.Torch.ComfyUI, Models: cfg.Models.Dirs}
}

func (m machine) torch(ctx context.Context) (engine.Engine, error) {
	found, err := torch.First(ctx, TorchSearch(m.config))
	if err != nil {
		return nil, err
	}
	for _, d := range found.Devices {
		if d.Missing != nil {
			m.log.Warn("a GPU is not used", "device", string(d.ID), "error", d.Missing)
		}
	}
	limits := map[engine.DeviceID]tensor.Bytes{}
	for i := range m.config.Agent.Devices {
		if d := &m.config.Agent.Devices[i]; d.Memory > 0 && !d.Simulated() {
			limits[engine.DeviceID(d.Name)] = tensor.Bytes(d.Memory)
		}
	}
	return torch.New(torch.Config{
		Python: found.Python, Threads: m.threads, Host: m.host, Limits: limits, Attention: m.config.Agent.Torch.Attention, Log: m.log,
	})
}

func (m machine) native() (engine.Engine, error) {
	set, err := isa.Parse(m.config.Agent.CPUISA)
	if err != nil {
		return nil, fmt.Errorf("agent.%w", err)
	}
	_, _, memory := m.host.Use()
	return native.New(native.Config{ISA: set, Threads: m.threads, Memory: memory, Account: m.host})
}

// simulated are the devices that are made up; nil without.
func (m machine) simulated() (engine.Engine, error) {
	c := &m.config.Agent
	set, err := isa.Parse(c.CPUISA)
	if err != nil {
		return nil, fmt.Errorf("agent.%w", err)
	}
	var simulated []sim.Device
	for i := range c.Devices {
		if d := &c.Devices[i]; d.Simulated() && !d.Off {
			simulated = append(simulated, sim.Device{
				Name: engine.DeviceID(d.Name), Memory: tensor.Bytes(d.Memory), Threads: d.Threads,
				H2D: float64(d.H2D), D2H: float64(cmp.Or(d.D2H, d.H2D)), Peer: float64(cmp.Or(d.Peer, d.H2D)),
			})
		}
	}
	if len(simulated) == 0 {
		return nil, nil //nolint:nilnil // there need be none
	}
	gpus, err := sim.New(sim.Config{ISA: set, Devices: simulated, Host: m.host})
	if err != nil {
		return nil, fmt.Errorf("agent.devices: %w", err)
	}
	return gpus, nil
}

// limits are what the configuration says of devices.
func limits(devices []config.Device) (map[engine.DeviceID]agent.Limit, error) {
	out := map[engine.DeviceID]agent.Limit{}
	for i := range devices {
		d := &devices[i]
		if d.Simulated() && d.Off {
			continue // it is not made
		}
		l := agent.Limit{Off: d.Off, Memory: tensor.Bytes(d.Memory), Reserve: -1}
		kept, said, err := d.Kept()
		if err != nil {
			return nil, fmt.Errorf("agent.devices: %s: reserve: %w", d.Name, err)
		}
		if said {
			l.Reserve = tensor.Bytes(kept)
		}
		out[engine.DeviceID(d.Name)] = l
	}
	return out, nil
}
