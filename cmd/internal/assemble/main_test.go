// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"strings"
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

// plainClass is the numerics class of the tests' engine on one thread, without
// the dtype, bf16.
func plainClass(t testing.TB) string {
	t.Helper()
	if !torchtest.Chosen() {
		return "native/1"
	}
	return strings.Replace(strings.Replace(class(t, suite.Engine(t, 0), "bf16"), "/bf16", "", 1), "/t2", "/t1", 1)
}
