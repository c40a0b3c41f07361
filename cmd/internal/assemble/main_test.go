// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/distorch/distorch/agent/engine/torch/torchtest"
)

// suite is PyTorch's worker, where it was chosen.
var suite torchtest.Suite

// closing ends the worker after the tests.
type closing struct{ m *testing.M }

func (c closing) Run() int {
	defer suite.Close()
	return c.m.Run()
}

func TestMain(m *testing.M) {
	if childMain() {
		return
	}
	// memberlist's Shutdown does not wait for a probe that waits for its answer.
	goleak.VerifyTestMain(closing{m}, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probe"))
}
