// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"context"
	"time"

	"github.com/distorch/distorch/agent/engine"
)

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
