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

func streams(t *testing.T, cfg torch.Config) *torch.Engine {
	t.Helper()
	return torchtest.Streams(t, cfg)
}

func openStreams(t *testing.T, e *torch.Engine) engine.Session {
	t.Helper()
	return openDevice(t, e, torchtest.StreamsDevice)
}

// The queues of a device with streams: everything that runs on a GPU but the
// GPU itself.
func TestStreamsAgainstReference(t *testing.T) {
	s := openStreams(t, streams(t, torch.Config{Threads: 2}))
	enginetest.Operations(t, s, map[tensor.DType]float64{tensor.F32: 2e-6, tensor.BF16: 1.2e-2})
}

func TestStreamsSessions(t *testing.T) {
	free := streams(t, torch.Config{Threads: 1})
	enginetest.Sessions(t, func(t *testing.T, limit tensor.Bytes) engine.Session {
		if limit == 0 {
			return openStreams(t, free)
		}
		return openStreams(t, streams(t, torch.Config{Threads: 1, Memory: limit}))
	})
}
