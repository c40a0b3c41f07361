// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"cmp"
	"fmt"

	"github.com/distorch/distorch/agent"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/multi"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/model/tensor"
)

// engines are those that the configuration names, side by side. host is the
// account of the machine's RAM.
func engines(c *config.Agent, host *engine.Account, threads int) (engine.Engine, error) {
	if c.Engine != "" && c.Engine != "native" {
		return nil, fmt.Errorf("agent.engine %q is unknown: this build has native", c.Engine)
	}
	set, err := isa.Parse(c.CPUISA)
	if err != nil {
		return nil, fmt.Errorf("agent.%w", err)
	}
	_, _, memory := host.Use()
	cpu, err := native.New(native.Config{ISA: set, Threads: threads, Memory: memory, Account: host})
	if err != nil {
		return nil, err
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
		return cpu, nil
	}
	gpus, err := sim.New(sim.Config{ISA: set, Devices: simulated, Host: host})
	if err != nil {
		return nil, fmt.Errorf("agent.devices: %w", err)
	}
	return multi.New(cpu, gpus), nil
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
