// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/distorch/distorch/agent/calibration"
	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/model/tensor"
)

// Limit is what may be used of a device.
type Limit struct {
	Off     bool         // not used at all
	Memory  tensor.Bytes // at most; 0: all that is free
	Reserve tensor.Bytes // of that, kept free; below 0: as the device asks
}

// unit is a device of this node with its session: stages run on it, or it keeps
// blocks for those of others.
type unit struct {
	device      engine.Device
	total       tensor.Bytes // of the device, as it may be used
	reserve     tensor.Bytes // of total, kept free
	calibration *calibration.Calibration
	bus         measure.Bus
	peers       map[engine.DeviceID]float64 // bytes/s from those devices
	learner     *learner                    // set before stages are served

	mu      sync.Mutex
	session engine.Session
	lost    error // why the session is of no use; nil while it is
}

// open is the session, or why there is none.
func (u *unit) open() (engine.Session, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.lost != nil {
		return nil, u.fault(u.lost)
	}
	return u.session, nil
}

// deviceError is about one device of this node.
type deviceError struct {
	device engine.DeviceID
	err    error
}

func (e *deviceError) Error() string { return fmt.Sprintf("device %s: %v", e.device, e.err) }

func (e *deviceError) Unwrap() error { return e.err }

func (u *unit) fault(err error) error { return &deviceError{u.device.ID, err} }

// displayReserve is left to a desktop or a ComfyUI that shares a card.
const displayReserve = 2 * tensor.GiB

// openDevices opens a session on every device that is not off, and finds how
// much of each may be used.
func (a *Agent) openDevices(ctx context.Context) error {
	all, err := a.cfg.Engine.Devices(ctx)
	if err != nil {
		return fmt.Errorf("find devices: %w", err)
	}
	known := map[engine.DeviceID]bool{}
	var names []string
	for _, d := range all {
		known[d.ID] = true
		names = append(names, string(d.ID))
	}
	for id := range a.cfg.Devices {
		if !known[id] {
			return fmt.Errorf("agent.devices names %q, which is not there; there are %s", id, strings.Join(names, ", "))
		}
	}
	var cards []device.GPU
	for _, d := range all {
		if d.Kind != "" && !d.Unified && !d.Simulated {
			cards = device.Discover(ctx, device.Options{Processes: true}).GPUs
			break
		}
	}
	for _, d := range all {
		l, named := a.cfg.Devices[d.ID]
		if !named {
			l.Reserve = -1
		}
		if l.Off {
			continue
		}
		u := &unit{device: d, peers: map[engine.DeviceID]float64{}}
		if u.total, u.reserve, err = a.share(d, l, cards); err != nil {
			return err
		}
		if u.session, err = a.cfg.Engine.Open(ctx, d.ID); err != nil && !d.Unified && !named && ctx.Err() == nil {
			a.log.Warn("device not used: it cannot be opened", "device", string(d.ID), "reason", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", d.ID, err)
		}
		a.units = append(a.units, u)
	}
	if len(a.units) == 0 {
		return fmt.Errorf("no device is left to use: agent.devices turns off %s", strings.Join(names, ", "))
	}
	return nil
}

// share is how much of a device's memory there is for distorch and how much of
// that it leaves free.
func (a *Agent) share(d engine.Device, l Limit, cards []device.GPU) (total, reserve tensor.Bytes, err error) {
	if d.Unified {
		return a.cfg.Memory + a.cfg.Reserve, a.cfg.Reserve, nil
	}
	total, reserve = d.Memory, 0
	if i := slices.IndexFunc(cards, func(g device.GPU) bool { return g.UUID != "" && g.UUID == d.UUID }); i >= 0 {
		if free := cards[i].MemoryFree; free > 0 {
			total = min(total, free)
		}
		if shared(cards[i], ownChild) {
			reserve = displayReserve
		}
	}
	if l.Memory > 0 {
		total = min(total, l.Memory)
	}
	if l.Reserve >= 0 {
		reserve = l.Reserve
	}
	if reserve >= total {
		return 0, 0, fmt.Errorf("device %s: %v is kept free of %v; nothing is left, lower agent.devices' reserve for it or turn it off", d.ID, reserve, total)
	}
	return total, reserve, nil
}

// shared says whether a desktop or a ComfyUI uses the card too. A ComfyUI's
// process is a Python that this agent has not started.
func shared(g device.GPU, own func(pid int) bool) bool {
	for _, p := range g.Processes {
		name := strings.ToLower(p.Name)
		for _, other := range []string{"comfyui", "xorg", "xwayland", "gnome-shell", "kwin", "mutter", "plasmashell", "hyprland", "sway", "dwm.exe"} {
			if strings.Contains(name, other) {
				return true
			}
		}
		if strings.HasPrefix(path.Base(name), "python") && !own(p.PID) {
			return true
		}
	}
	return false
}

// ownChild says whether this process started another; true where the system does
// not tell, so that no memory is kept free for the agent's own worker.
func ownChild(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	return strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid()))
}

// unit is one of this node's devices.
func (a *Agent) unit(name string) (*unit, error) {
	var names []string
	for _, u := range a.units {
		if string(u.device.ID) == name {
			return u, nil
		}
		names = append(names, string(u.device.ID))
	}
	return nil, fmt.Errorf("device %q is not one of this node (%s)", name, strings.Join(names, ", "))
}

// host is the device whose session stands for the node's RAM.
func (a *Agent) host() *unit {
	for _, u := range a.units {
		if u.device.Unified {
			return u
		}
	}
	return a.units[0]
}

// closeDevices closes every session.
func (a *Agent) closeDevices() error {
	var errs []error
	for _, u := range a.units {
		u.mu.Lock()
		s := u.session
		u.session = nil
		u.mu.Unlock()
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
