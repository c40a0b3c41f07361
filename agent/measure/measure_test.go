// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"testing"

	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/model/tensor"
)

func TestMeasureLeavesNothing(t *testing.T) {
	best := isa.Supported()
	e, err := native.New(native.Config{ISA: best[len(best)-1], Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(t.Context(), native.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before, _, _ := s.Account()
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
		all, err := Measure(t.Context(), s, d)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			for name, v := range map[string]float64{"linear": r.Linear, "attention": r.Attention, "elementwise": r.Elementwise, "expand": r.Expand} {
				if v < 1e6 || v > 1e15 {
					t.Errorf("%v %s rate at %d elements is %g per second", d, name, r.Elements, v)
				}
			}
			t.Logf("%+v", r)
		}
	}
	// What stays is the session's own memory to expand weights, grown once.
	after, _, _ := s.Account()
	if _, err := Measure(t.Context(), s, tensor.F32); err != nil {
		t.Fatal(err)
	}
	if again, _, _ := s.Account(); again != after || after-before > 1<<20 {
		t.Errorf("account holds %v before, %v after, %v after again", before, after, again)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Measure(ctx, s, tensor.F32); err == nil {
		t.Error("a cancelled measurement gave rates")
	}
}

// A device with memory and a clock of its own is measured like the CPU.
func TestMeasureOnPyTorch(t *testing.T) {
	s, err := torchtest.Streams(t, torch.Config{Threads: 1}).Open(t.Context(), torchtest.StreamsDevice)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := along(t.Context(), s, tensor.F32, []size{{64, 256}}, bound{rounds: 3, most: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Linear < 1e6 || r.Expand < 1e6 || r.Linear > 1e15 {
			t.Errorf("rates %+v", r)
		}
	}
	if used, _, _ := s.Account(); used != 0 {
		t.Errorf("%v in use", used)
	}
}
