// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"context"
	"time"

	"github.com/distorch/distorch/agent/engine"
)

// WithModule gives cfg another last module of the worker, which may use the
// embedded ones.
func WithModule(cfg Config, name, text string) Config {
	cfg.modules, _ = embedded()
	cfg.modules = append(cfg.modules, module{name, text})
	return cfg
}

// InsteadOf gives cfg a worker that is text alone.
func InsteadOf(cfg Config, text string) Config {
	cfg.modules = []module{{"fake", text}}
	return cfg
}

// Took is how long an event kept a session's device.
func Took(s engine.Session, e engine.Event) (time.Duration, bool) { return s.(*session).Took(e) }

// Measured is what PyTorch says of a session's device.
func Measured(ctx context.Context, s engine.Session) (Memory, error) {
	return s.(*session).Measured(ctx)
}

// PID is the process of the worker that an engine runs.
func PID(ctx context.Context, e *Engine) (int, error) {
	w, err := e.running(ctx)
	if err != nil {
		return 0, err
	}
	return w.cmd.Process.Pid, nil
}
