// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// silu is y = silu(x) on n elements.
func silu(t *testing.T, n int64) *graph.Segment {
	var s sketch
	x := s.in("x", graph.Compute, 1, n)
	s.Outputs = append(s.Outputs, s.node(graph.OpSiLU, graph.Attrs{}, s.value("y", graph.Compute, 1, n), x))
	return s.segment(t, tensor.F32)
}

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

func TestAccount(t *testing.T) {
	e, err := native.New(native.Config{ISA: isa.Generic, Threads: 1, Memory: 10 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(t.Context(), native.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	check := func(wantUsed, wantPeak tensor.Bytes) {
		t.Helper()
		used, peak, limit := s.Account()
		if used != wantUsed || peak != wantPeak || limit != 10<<20 {
			t.Errorf("used %d, peak %d, limit %d; want %d, %d", used, peak, limit, wantUsed, wantPeak)
		}
	}
	a, err := s.Buffer(6 << 20) // from the kernel
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Buffer(1000) // from the heap
	if err != nil {
		t.Fatal(err)
	}
	check(6<<20+1000, 6<<20+1000)
	if _, err := s.Buffer(4 << 20); !errors.Is(err, engine.ErrNoMemory) || !strings.Contains(err.Error(), tensor.Bytes(4<<20).String()) {
		t.Errorf("beyond the limit: %v", err)
	}
	if _, err := s.Buffer(-1); err == nil {
		t.Error("a negative size was accepted")
	}
	a.Host()[6<<20-1] = 1
	a.Free()
	a.Free()
	check(1000, 6<<20+1000)
	if a.Host() != nil || a.Bytes() != 0 {
		t.Error("a freed buffer still shows memory")
	}
	b.Free()
	check(0, 6<<20+1000)
}

func TestWrongWorkIsAnErrorOfItsEvent(t *testing.T) {
	s, other := open(t, isa.Generic, 2), open(t, isa.Generic, 1)
	seg := silu(t, 100)
	p, err := s.Compile(t.Context(), seg)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Compile(t.Context(), seg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Buffer(1000)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	bound := func(name string, at tensor.Bytes) engine.Binding {
		return engine.Binding{Name: name, Buffer: b, Offset: at}
	}
	good := []engine.Binding{bound("x", 0), bound("y", 512)}
	for want, e := range map[string]engine.Event{
		"another session": s.Run(foreign, nil, 0, nil, good),
		"y is not bound":  s.Run(p, nil, 0, nil, good[:1]),
		"x: 400 B at 900": s.Run(p, nil, 0, nil, []engine.Binding{bound("x", 900), good[1]}),
		"at -8":           s.Run(p, nil, 0, nil, []engine.Binding{bound("x", -8), good[1]}),
		"copy to":         s.Copy(b, 999, b, 0, 2),
		"copy from":       s.Copy(b, 0, b, 999, 2),
		"takes 0 weights": s.Pack(p, b, 0, b, []engine.Weight{{Name: "w"}}),
	} {
		if err := s.Wait(t.Context(), e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
		// What depends on it fails for its reason, and is not done.
		b.Host()[0] = 7
		if err := s.Wait(t.Context(), s.Copy(b, 0, b, 1, 1, e)); err == nil || !strings.Contains(err.Error(), want) || b.Host()[0] != 7 {
			t.Errorf("after %q: %v", want, err)
		}
	}
	if err := s.Wait(t.Context(), s.Run(p, nil, 0, nil, good)); err != nil {
		t.Errorf("right work after wrong work: %v", err)
	}
	if err := s.Wait(t.Context(), 0); err != nil {
		t.Errorf("the zero event: %v", err)
	}
}

func TestCompileRefuses(t *testing.T) {
	s := open(t, isa.Generic, 1)
	seg := silu(t, 4)
	seg.Compute = tensor.F16
	if _, err := s.Compile(t.Context(), seg); err == nil || !strings.Contains(err.Error(), "F16") {
		t.Errorf("compute in F16: %v", err)
	}
	seg = silu(t, 4)
	seg.Steps[0].Op = graph.OpAllReduce
	if _, err := s.Compile(t.Context(), seg); err == nil || !strings.Contains(err.Error(), "all_reduce") || !strings.Contains(err.Error(), "blocks") {
		t.Errorf("an operation it lacks: %v", err)
	}
	var k sketch
	q := k.in("q", graph.Compute, 1, 1, 1, 1024)
	k.Outputs = append(k.Outputs, k.node(graph.OpAttention, graph.Attrs{Scale: 1}, k.value("y", graph.Compute, 1, 1, 1, 1024), q, q, q))
	if _, err := s.Compile(t.Context(), k.segment(t, tensor.F32)); err == nil || !strings.Contains(err.Error(), "1024") {
		t.Errorf("heads that are too large: %v", err)
	}
}

func TestCancelledWaitAndClose(t *testing.T) {
	e, err := native.New(native.Config{ISA: isa.Generic, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(t.Context(), native.CPU)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Buffer(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	cancel(why)
	var last engine.Event
	for range 20 {
		last = s.Copy(b, 0, b, 32<<20, 32<<20)
	}
	if err := s.Wait(ctx, last); !errors.Is(err, why) {
		t.Errorf("cancelled wait: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Wait(t.Context(), last); err == nil {
		t.Log("all copies were done before Close")
	}
	if err := s.Wait(t.Context(), s.Copy(b, 0, b, 0, 1)); err == nil {
		t.Error("work on a closed session was accepted")
	}
}
