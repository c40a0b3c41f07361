// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native_test

import (
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/distorch/distorch/agent/engine/enginetest"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDevices(t *testing.T) {
	e, err := native.New(native.Config{ISA: isa.Generic, Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.Devices(t.Context())
	if err != nil || len(d) != 1 || d[0].Threads != runtime.GOMAXPROCS(0) || d[0].ISA != "generic" || d[0].Memory != 1<<20 || d[0].Class(tensor.BF16) != "native/1/bf16" || d[0].Class(tensor.F16) != "" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := e.Open(t.Context(), "cuda:0"); err == nil || !strings.Contains(err.Error(), "cuda:0") {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestCompileRefuses(t *testing.T) {
	s := open(t, isa.Generic, 1, 0)
	seg := enginetest.SiLU(t, 4)
	seg.Compute = tensor.F16
	if _, err := s.Compile(t.Context(), seg); err == nil || !strings.Contains(err.Error(), "F16") {
		t.Errorf("compute in F16: %v", err)
	}
	seg = enginetest.SiLU(t, 4)
	seg.Steps[0].Op = graph.OpAllReduce
	if _, err := s.Compile(t.Context(), seg); err == nil || !strings.Contains(err.Error(), "all_reduce") || !strings.Contains(err.Error(), "blocks") {
		t.Errorf("an operation it lacks: %v", err)
	}
	if _, err := s.Compile(t.Context(), enginetest.Heads(t, 1024, tensor.F32)); err == nil || !strings.Contains(err.Error(), "1024") {
		t.Errorf("heads that are too large: %v", err)
	}
}
