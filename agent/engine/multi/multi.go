// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package multi makes one engine of several: the CPU's, PyTorch's, the
// simulated devices'. Each device belongs to the engine that names it.
//
// Imported by the commands and by tests. It must not import an engine's
// implementation.
package multi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/distorch/distorch/agent/engine"
)

// Engine is engines side by side.
type Engine struct{ engines []engine.Engine }

// New puts engines side by side. Of a device that several name the first one
// counts.
func New(engines ...engine.Engine) *Engine { return &Engine{engines} }

// Devices lists those of all engines, in their order.
func (e *Engine) Devices(ctx context.Context) ([]engine.Device, error) {
	var out []engine.Device
	known := map[engine.DeviceID]bool{}
	for _, one := range e.engines {
		devices, err := one.Devices(ctx)
		if err != nil {
			return nil, err
		}
		for _, d := range devices {
			if !known[d.ID] {
				known[d.ID] = true
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// Open asks the engine that has the device.
func (e *Engine) Open(ctx context.Context, id engine.DeviceID) (engine.Session, error) {
	var names []string
	var failed []error // an engine that is broken keeps no device of another
	for _, one := range e.engines {
		devices, err := one.Devices(ctx)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for _, d := range devices {
			if d.ID == id {
				return one.Open(ctx, id)
			}
			names = append(names, string(d.ID))
		}
	}
	if len(failed) > 0 {
		return nil, errors.Join(failed...)
	}
	return nil, fmt.Errorf("device %q is not there; there are %s", id, strings.Join(names, ", "))
}

// Close ends what engines have started.
func (e *Engine) Close() error {
	var errs []error
	for _, one := range e.engines {
		if c, ok := one.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
