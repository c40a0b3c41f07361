// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// SiLU is a segment: y = silu(x) on n elements.
func SiLU(t testing.TB, n int64) *graph.Segment {
	t.Helper()
	var s sketch
	x := s.in("x", graph.Compute, 1, n)
	s.Outputs = append(s.Outputs, s.node(graph.OpSiLU, graph.Attrs{}, s.value("y", graph.Compute, 1, n), x))
	return s.segment(t, tensor.F32)
}

// Matrix is a segment: y = x·Wᵀ for x [1,rows,k] and W [n,k].
func Matrix(t testing.TB, rows, n, k int64, compute tensor.DType) *graph.Segment {
	t.Helper()
	var s sketch
	x := s.in("x", graph.Compute, 1, rows, k)
	s.Outputs = append(s.Outputs, s.node(graph.OpLinear, graph.Attrs{}, s.value("y", graph.Compute, 1, rows, n), x))
	s.weighted(s.weight("matrix", n, k))
	return s.segment(t, compute)
}

// Heads is a segment: attention of one query of one head of dim elements.
func Heads(t testing.TB, dim int64, compute tensor.DType) *graph.Segment {
	t.Helper()
	var s sketch
	q := s.in("q", graph.Compute, 1, 1, 1, dim)
	s.Outputs = append(s.Outputs, s.node(graph.OpAttention, graph.Attrs{Scale: 1}, s.value("y", graph.Compute, 1, 1, 1, dim), q, q, q))
	return s.segment(t, compute)
}

// Sessions holds a device's sessions against their contract; open gives a
// session whose account has a limit.
func Sessions(t *testing.T, open func(t *testing.T, limit tensor.Bytes) engine.Session) {
	t.Run("account", func(t *testing.T) { account(t, open(t, 10<<20)) })
	t.Run("wrong work", func(t *testing.T) { wrongWork(t, open(t, 0), open(t, 0)) })
	t.Run("order", func(t *testing.T) { order(t, open(t, 0)) })
	t.Run("kept weights", func(t *testing.T) { kept(t, open(t, 0)) })
	t.Run("cancelled wait and close", func(t *testing.T) { cancelled(t, open(t, 0)) })
}

func account(t *testing.T, s engine.Session) {
	check := func(wantUsed, wantPeak tensor.Bytes) {
		t.Helper()
		used, peak, limit := s.Account()
		if used != wantUsed || peak != wantPeak || limit > 10<<20 || limit < 9<<20 {
			t.Errorf("used %d, peak %d, limit %d; want %d, %d", used, peak, limit, wantUsed, wantPeak)
		}
	}
	a, err := s.Buffer(6 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Buffer(1000)
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
	none, err := s.Buffer(0)
	if err != nil || none.Bytes() != 0 {
		t.Errorf("an empty buffer: %v", err)
	}
	none.Free()
	if h := a.Host(); h != nil {
		h[6<<20-1] = 1
	}
	a.Free()
	a.Free()
	check(1000, 6<<20+1000)
	if a.Host() != nil || a.Bytes() != 0 {
		t.Error("a freed buffer still shows memory")
	}
	b.Free()
	check(0, 6<<20+1000)
}

func compile(t *testing.T, s engine.Session, seg *graph.Segment) engine.Program {
	t.Helper()
	p, err := s.Compile(t.Context(), seg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func wrongWork(t *testing.T, s, other engine.Session) {
	seg := SiLU(t, 100)
	p, foreign := compile(t, s, seg), compile(t, other, seg)
	b, err := s.Buffer(1024)
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
		"x: 400 B at 960": s.Run(p, nil, 0, nil, []engine.Binding{bound("x", 960), good[1]}),
		"at -8":           s.Run(p, nil, 0, nil, []engine.Binding{bound("x", -8), good[1]}),
		"copy to":         s.Copy(b, 1023, b, 0, 2),
		"copy from":       s.Fetch(b, 0, b, 1023, 2),
		"takes 0 weights": s.Pack(p, b, 0, b, []engine.Weight{{Name: "w"}}),
	} {
		// What comes after it, on either queue, waited for or not, fails for its reason and is not done.
		put(t, s, b, []byte{7})
		for _, after := range []engine.Event{s.Copy(b, 0, b, 1, 1, e), s.Fetch(b, 0, b, 1, 1, e), e} {
			if err := s.Wait(t.Context(), after); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an error with %q", err, want)
			}
		}
		if err := s.Wait(t.Context(), s.Copy(b, 0, b, 1, 1, e)); err == nil || !strings.Contains(err.Error(), want) || take(t, s, b)[0] != 7 {
			t.Errorf("after %q has failed: %v", want, err)
		}
	}
	if err := s.Wait(t.Context(), s.Run(p, nil, 0, nil, good)); err != nil {
		t.Errorf("right work after wrong work: %v", err)
	}
	if err := s.Wait(t.Context(), 0); err != nil {
		t.Errorf("the zero event: %v", err)
	}
}

// order hands a byte from queue to queue.
func order(t *testing.T, s engine.Session) {
	b, err := s.Buffer(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	put(t, s, b, []byte{42})
	var last engine.Event
	const hops = 300
	for i := range tensor.Bytes(hops) {
		move := s.Copy
		if i%2 == 1 {
			move = s.Fetch
		}
		last = move(b, (i+1)*1000, b, i*1000, 1000, last)
	}
	if err := s.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if got := take(t, s, b)[hops*1000]; got != 42 {
		t.Errorf("the byte arrived as %d", got)
	}
}

// linears is a segment of so many linears of d columns and rows, with biases.
func linears(t *testing.T, n int, d int64) *graph.Segment {
	var s sketch
	y := s.in("x", graph.Compute, 1, 3, d)
	for i := range n {
		y = s.node(graph.OpLinear, graph.Attrs{}, s.value(fmt.Sprint("y", i), graph.Compute, 1, 3, d), y)
		s.weighted(s.weight(fmt.Sprint("matrix", i), d, d), s.weight(fmt.Sprint("bias", i), d))
	}
	s.Outputs = append(s.Outputs, y)
	return s.segment(t, tensor.BF16)
}

// kept takes the packed weights of one program over into those of a larger one,
// which packs the others beside them.
func kept(t *testing.T, s engine.Session) {
	first, both := compile(t, s, linears(t, 1, 33)), compile(t, s, linears(t, 2, 33))
	from, ok := first.(engine.Placer)
	to, ok2 := both.(engine.Placer)
	if !ok || !ok2 {
		t.Fatal("the programs do not say where their weights lie")
	}
	var src []byte
	var weights []engine.Weight
	for i, w := range both.Segment().Weights {
		n, err := w.Shape.Elements()
		if err != nil {
			t.Fatal(err)
		}
		v := make([]float32, n)
		for k := range v {
			v[k] = float32(i*1000+k) / 512
		}
		weights = append(weights, engine.Weight{Name: w.Name, DType: tensor.F32, Shape: w.Shape, Offset: tensor.Bytes(len(src))})
		src = append(src, encode(v, tensor.F32)...)
	}
	buffer := func(n tensor.Bytes, raw []byte) engine.Buffer {
		b, err := s.Buffer(n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Free)
		put(t, s, b, raw)
		return b
	}
	stored := buffer(tensor.Bytes(len(src)), src)
	small, want, got := buffer(first.PackedBytes(), nil), buffer(both.PackedBytes(), nil), buffer(both.PackedBytes(), bytes.Repeat([]byte{0xee}, int(both.PackedBytes())))
	e := s.Pack(both, want, 0, stored, weights, s.Pack(first, small, 0, stored, weights[:2]))
	for i := range 2 {
		at, n := from.Placed(i)
		there, m := to.Placed(i)
		if n != m {
			t.Fatalf("weight %d takes %d bytes in one program and %d in another", i, n, m)
		}
		e = s.Fetch(got, there, small, at, n, e)
		weights[i].Kept, weights[i].Offset = true, 1<<40
	}
	if err := s.Wait(t.Context(), s.Pack(both, got, 0, stored, weights, e)); err != nil {
		t.Fatal(err)
	}
	a, b := take(t, s, want), take(t, s, got)
	for i := range weights {
		at, n := to.Placed(i)
		if at+n > both.PackedBytes() || !bytes.Equal(a[at:at+n], b[at:at+n]) {
			t.Errorf("weight %d differs from a packed one", i)
		}
	}
}

func cancelled(t *testing.T, s engine.Session) {
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
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Wait(t.Context(), last); err == nil {
		t.Log("all copies were done before Close")
	}
	if err := s.Wait(t.Context(), s.Copy(b, 0, b, 0, 1)); err == nil {
		t.Error("work on a closed session was accepted")
	}
}
