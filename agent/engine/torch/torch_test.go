// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch_test

import (
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/enginetest"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/model/tensor"
)

const cpu engine.DeviceID = "cpu"

func open(t *testing.T, e *torch.Engine) engine.Session {
	t.Helper()
	return openDevice(t, e, cpu)
}

func openDevice(t *testing.T, e *torch.Engine, id engine.DeviceID) engine.Session {
	t.Helper()
	s, err := e.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if used, _, _ := s.Account(); used != 0 {
			t.Errorf("%v were never freed", used)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestOperationsAgainstReference(t *testing.T) {
	s := open(t, torchtest.Engine(t, torch.Config{Threads: 2}))
	enginetest.Operations(t, s, map[tensor.DType]float64{tensor.F32: 2e-6, tensor.BF16: 1.2e-2})
}

func TestSessions(t *testing.T) {
	free := torchtest.Engine(t, torch.Config{Threads: 1})
	enginetest.Sessions(t, func(t *testing.T, limit tensor.Bytes) engine.Session {
		if limit == 0 {
			return open(t, free)
		}
		return open(t, torchtest.Engine(t, torch.Config{Threads: 1, Memory: limit}))
	})
}
