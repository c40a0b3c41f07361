// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native_test

import (
	"fmt"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/enginetest"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/tensor"
)

// open starts a session that the test closes, with everything freed.
func open(t *testing.T, set isa.ISA, threads int, limit tensor.Bytes) engine.Session {
	t.Helper()
	e, err := native.New(native.Config{ISA: set, Threads: threads, Memory: limit})
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(t.Context(), native.CPU)
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

// Every operation, on views, against float64.
func TestOperationsAgainstReference(t *testing.T) {
	sets := isa.Supported()
	s := open(t, sets[len(sets)-1], 2, 0)
	enginetest.Operations(t, s, map[tensor.DType]float64{tensor.F32: 2e-6, tensor.BF16: 1.2e-2})
}

// Every instruction set and number of threads gives the same bytes.
func TestOperationsSameBits(t *testing.T) {
	sessions := map[string]engine.Session{}
	for _, set := range isa.Supported() {
		for threads := 1; threads <= 3; threads++ {
			sessions[fmt.Sprintf("%s on %d threads", set, threads)] = open(t, set, threads, 0)
		}
	}
	enginetest.SameBits(t, open(t, isa.Generic, 1, 0), sessions)
}

func TestSessions(t *testing.T) {
	enginetest.Sessions(t, func(t *testing.T, limit tensor.Bytes) engine.Session { return open(t, isa.Generic, 2, limit) })
}
