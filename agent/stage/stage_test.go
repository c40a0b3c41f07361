// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// source is a file in memory that remembers what was read and can break.
type source struct {
	*bytes.Reader
	mu    sync.Mutex
	read  []bool // by byte
	total int64
	left  int // reads until one fails; negative: never
}

func newSource(raw []byte) *source {
	return &source{Reader: bytes.NewReader(raw), read: make([]bool, len(raw)), left: -1}
}

func (s *source) ReadAt(p []byte, at int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return 0, io.ErrClosedPipe
	}
	s.left--
	n, err := s.Reader.ReadAt(p, at)
	s.total += int64(n)
	for i := range n {
		s.read[at+int64(i)] = true
	}
	return n, err
}

func (s *source) forget() { clear(s.read); s.total = 0 }

// model is the golden FLUX model, 2 double and 3 single blocks.
type model struct {
	raw     []byte
	program *graph.Program
}

func golden(t *testing.T) model {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "model", "arch", "testdata", "golden", "flux", "dev", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	f := parse(t, newSource(raw))
	tensors := map[string]arch.Tensor{}
	for _, x := range f.Tensors() {
		tensors[x.Name] = arch.Tensor{Shape: x.Shape, DType: x.DType}
	}
	r, err := arch.Recognise(tensors, f.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	p, err := graph.Specialise(r.Params.Build(arch.Options{}), workload(), tensor.F32)
	if err != nil {
		t.Fatal(err)
	}
	return model{raw, p}
}

func workload() graph.Dims { return graph.Dims{"B": 2, "h": 8, "w": 12, "S_txt": 10} }

func parse(t *testing.T, s safetensors.Source) *safetensors.File {
	t.Helper()
	f, err := safetensors.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// suite is PyTorch's worker, where it was chosen.
var suite torchtest.Suite

func TestMain(m *testing.M) {
	m.Run()
	suite.Close()
}

// cpu is the engine that the tests run with.
func cpu(t *testing.T, memory tensor.Bytes) engine.Engine {
	t.Helper()
	if torchtest.Chosen() {
		return suite.Engine(t, memory)
	}
	return plainNative(t, memory)
}

func plainNative(t *testing.T, memory tensor.Bytes) engine.Engine {
	t.Helper()
	all := isa.Supported()
	e, err := native.New(native.Config{ISA: all[len(all)-1], Threads: 2, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func session(t *testing.T, memory tensor.Bytes) engine.Session {
	t.Helper()
	return opened(t, cpu(t, memory), native.CPU)
}

func opened(t *testing.T, e engine.Engine, id engine.DeviceID) engine.Session {
	t.Helper()
	s, err := e.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func used(s engine.Session) tensor.Bytes {
	n, _, _ := s.Account()
	return n
}

// part is a stage's range of blocks.
func part(s engine.Session, f *safetensors.File, p *graph.Program, first, blocks int) stage.Config {
	return stage.Config{
		Session: s, Checkpoint: stage.Checkpoint{File: checkpoint.Safetensors(f)}, Program: p, FirstBlock: first, Blocks: blocks,
		Head: first == 0, Tail: first+blocks == p.Model.Blocks(),
	}
}

// A stage reads the bytes of its blocks, each once, and no others.
func TestLoadReadsItsBytesAlone(t *testing.T) {
	m := golden(t)
	for _, stored := range []bool{false, true} {
		for first := range 5 {
			for blocks := 1; first+blocks <= 5; blocks++ {
				src := newSource(m.raw)
				f := parse(t, src)
				src.forget()
				s := session(t, 0)
				cfg := part(s, f, m.program, first, blocks)
				cfg.Stored = stored
				var done, total tensor.Bytes
				cfg.Progress = func(d, n tensor.Bytes) { done, total = d, n }
				st, err := stage.Load(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				st.Close()
				want := make([]bool, len(m.raw))
				wanted := int64(0)
				for _, x := range f.Tensors() {
					if belongs(x.Name, first, blocks, cfg.Head, cfg.Tail) {
						wanted += int64(x.Size)
						for i := range int64(x.Size) {
							want[x.Offset+i] = true
						}
					}
				}
				if src.total != wanted || !slices.Equal(src.read, want) {
					t.Errorf("blocks %d to %d: %d bytes read, %d are the stage's", first, first+blocks-1, src.total, wanted)
				}
				if done != total || done < tensor.Bytes(wanted) {
					t.Errorf("progress ended at %v of %v for %d bytes", done, total, wanted)
				}
				if n := used(s); n != 0 {
					t.Errorf("%v in use after Close", n)
				}
			}
		}
	}
}

func belongs(name string, first, blocks int, head, tail bool) bool {
	for b := first; b < first+blocks; b++ {
		prefix := "double_blocks." + string(rune('0'+b)) + "."
		if b >= 2 {
			prefix = "single_blocks." + string(rune('0'+b-2)) + "."
		}
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	if strings.HasPrefix(name, "final_layer.") {
		return tail
	}
	return head && !strings.Contains(name, "_blocks.")
}

// Whatever fails on the way, nothing stays allocated.
func TestFailedLoadLeavesNothing(t *testing.T) {
	m := golden(t)
	for _, stored := range []bool{false, true} {
		reads := 0
		for loaded := false; !loaded; reads++ {
			src := newSource(m.raw)
			f := parse(t, src)
			src.left = reads
			s := session(t, 0)
			cfg := part(s, f, m.program, 0, 5)
			cfg.Stored = stored
			st, err := stage.Load(t.Context(), cfg)
			if loaded = err == nil; loaded {
				st.Close()
			} else if !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("read %d fails: %v", reads, err)
			}
			if n := used(s); n != 0 {
				t.Fatalf("read %d fails: %v still in use", reads, n)
			}
		}
		if reads < 5 {
			t.Errorf("only %d reads were failed", reads)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("undeployed"))
	s := session(t, 0)
	if _, err := stage.Load(ctx, part(s, parse(t, newSource(m.raw)), m.program, 0, 5)); err == nil || !strings.Contains(err.Error(), "undeployed") || used(s) != 0 {
		t.Errorf("cancelled load: %v, %v in use", err, used(s))
	}
}

func TestMemoryLimit(t *testing.T) {
	m := golden(t)
	free := session(t, 0)
	st, err := stage.Load(t.Context(), part(free, parse(t, newSource(m.raw)), m.program, 0, 5))
	if err != nil {
		t.Fatal(err)
	}
	need := st.Need().Device
	st.Close()
	strict := func(s engine.Session) stage.Config {
		cfg := part(s, parse(t, newSource(m.raw)), m.program, 0, 5)
		cfg.Fit = offload.Strict
		return cfg
	}
	for share := range tensor.Bytes(20) {
		limit := 1 + (need-2)*share/19 // up to a byte less than is needed
		s := session(t, limit)
		_, err := stage.Load(t.Context(), strict(s))
		if !errors.Is(err, engine.ErrNoMemory) || !strings.Contains(err.Error(), limit.String()) || !strings.Contains(err.Error(), "strict") {
			t.Errorf("limit %v: %v", limit, err)
		}
		if used(s) != 0 {
			t.Errorf("limit %v: %v in use after the refusal", limit, used(s))
		}
	}
	enough := session(t, need)
	if st, err = stage.Load(t.Context(), strict(enough)); err != nil {
		t.Fatalf("limit of exactly %v: %v", need, err)
	}
	defer st.Close()
	r, err := st.NewRun(t.Context(), workload())
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

func TestOtherFilesAreRefusedByName(t *testing.T) {
	m := golden(t)
	f := parse(t, newSource(m.raw))
	const victim = "single_blocks.1.linear2.weight"
	rewrite := func(change func([]safetensors.Data) []safetensors.Data) *safetensors.File {
		var all []safetensors.Data
		for _, x := range f.Tensors() {
			v, shape, err := f.Float32s(x.Name)
			if err != nil {
				t.Fatal(err)
			}
			if d := safetensors.FromFloat32s(x.Name, shape, v); x.Name != victim {
				all = append(all, d)
			}
		}
		var out bytes.Buffer
		if err := safetensors.Encode(&out, change(all), nil); err != nil {
			t.Fatal(err)
		}
		return parse(t, newSource(out.Bytes()))
	}
	s := session(t, 0)
	missing := rewrite(func(d []safetensors.Data) []safetensors.Data { return d })
	_, err := stage.Load(t.Context(), part(s, missing, m.program, 2, 3))
	if err == nil || !strings.Contains(err.Error(), victim) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("missing tensor: %v", err)
	}
	other := rewrite(func(d []safetensors.Data) []safetensors.Data {
		return append(d, safetensors.FromFloat32s(victim, tensor.Shape{2, 3}, make([]float32, 6)))
	})
	_, err = stage.Load(t.Context(), part(s, other, m.program, 2, 3))
	if err == nil || !strings.Contains(err.Error(), victim) || !strings.Contains(err.Error(), "[2,3]") {
		t.Errorf("tensor of another shape: %v", err)
	}
	if used(s) != 0 {
		t.Errorf("%v in use", used(s))
	}
	st, err := stage.Load(t.Context(), part(s, missing, m.program, 0, 2)) // has no part in the fault
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
}

func TestLoadAndUnloadKeepsThePeak(t *testing.T) {
	m := golden(t)
	f := parse(t, newSource(m.raw))
	s := session(t, 0)
	var first tensor.Bytes
	for i := range 100 {
		cfg := part(s, f, m.program, 1, 3)
		cfg.Stored = i%2 == 1
		st, err := stage.Load(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		r, err := st.NewRun(t.Context(), workload())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Do(t.Context(), stage.Forward{}); err != nil {
			t.Fatal(err)
		}
		r.Close()
		st.Close()
		now, peak, _ := s.Account()
		if i == 1 {
			first = peak
		}
		if now != 0 || i > 1 && peak != first {
			t.Fatalf("cycle %d: %v in use, peak %v after %v", i, now, peak, first)
		}
	}
}

// loaded is the whole model on one stage with a run and its inputs.
func loaded(t *testing.T) (*stage.Stage, *stage.Run, stage.Forward, engine.Session) {
	t.Helper()
	return loadedOn(t, session(t, 0))
}

func loadedOn(t *testing.T, s engine.Session) (*stage.Stage, *stage.Run, stage.Forward, engine.Session) {
	t.Helper()
	m := golden(t)
	st, err := stage.Load(t.Context(), part(s, parse(t, newSource(m.raw)), m.program, 0, 5))
	if err != nil {
		t.Fatal(err)
	}
	r, err := st.NewRun(t.Context(), workload())
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Buffer(graph.ConditioningLayout(r.Program()).Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range [][]byte{st.Inputs[0].Host(), c.Host()} {
		v := make([]float32, len(b)/4)
		for k := range v {
			v[k] = float32((k*7+i)%13)/13 - 0.4
		}
		tensor.PutF32(b, v)
	}
	return st, r, stage.Forward{Conditioning: c}, s
}

func TestForwardEndsBetweenSegments(t *testing.T) {
	st, r, f, s := loaded(t)
	whole, err := r.Do(t.Context(), f)
	if err != nil || whole.Blocks != 5 {
		t.Fatal(whole, err)
	}
	want := bytes.Clone(st.Outputs[0].Host())
	// head, two double blocks, entry, three single blocks, tail
	for after, blocks := range []uint64{0, 0, 1, 2, 2, 3, 4, 5} {
		clear(st.Outputs[0].Host())
		asked := 0
		f.Stop = func() bool { asked++; return asked > after }
		if res, err := r.Do(t.Context(), f); !errors.Is(err, stage.ErrStopped) || res.Blocks != blocks {
			t.Errorf("stopped after %d segments: %d blocks, %v", after, res.Blocks, err)
		}
	}
	f.Stop = nil
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("cancelled by the caller")
	f.Tap = func(graph.Launch, stage.Value) error { cancel(stopped); return nil }
	if _, err := r.Do(ctx, f); !errors.Is(err, stopped) {
		t.Errorf("cancelled forward: %v", err)
	}
	f.Tap = nil
	if _, err := r.Do(t.Context(), f); err != nil || !bytes.Equal(st.Outputs[0].Host(), want) {
		t.Errorf("after cancelled forwards the output differs (%v)", err)
	}
	r.Close()
	f.Conditioning.Free()
	st.Close()
	if used(s) != 0 {
		t.Errorf("%v in use", used(s))
	}
}

// impatient is a session whose waits end at once when their context can end,
// as if the caller had been cancelled while a segment runs. It fails the test
// when memory is freed that a segment may still use.
type impatient struct {
	engine.Session
	t              *testing.T
	issued, passed engine.Event
}

type watched struct {
	engine.Buffer
	of *impatient
}

// Unwrap is the session's own buffer.
func (b watched) Unwrap() engine.Buffer { return b.Buffer }

func (b watched) Free() {
	if b.of.issued > b.of.passed {
		b.of.t.Errorf("freed while event %d of %d has passed", b.of.passed, b.of.issued)
	}
	b.Buffer.Free()
}

func (s *impatient) Buffer(n tensor.Bytes) (engine.Buffer, error) {
	b, err := s.Session.Buffer(n)
	return watched{b, s}, err
}

func (s *impatient) Run(p engine.Program, w engine.Buffer, at tensor.Bytes, scratch engine.Buffer, b []engine.Binding, after ...engine.Event) engine.Event {
	s.issued = s.Session.Run(p, w, at, scratch, b, after...)
	return s.issued
}

var errGone = errors.New("the caller is gone")

func (s *impatient) Wait(ctx context.Context, e engine.Event) error {
	if s.issued != 0 && ctx.Done() != nil {
		return errGone
	}
	err := s.Session.Wait(ctx, e)
	s.passed = max(s.passed, e)
	return err
}

// A caller that leaves in the middle of a segment frees nothing under it.
func TestCloseWaitsForTheRunningSegment(t *testing.T) {
	m := golden(t)
	s := &impatient{Session: session(t, 0), t: t}
	for _, runFirst := range []bool{true, false} {
		s.issued, s.passed = 0, 0
		st, err := stage.Load(t.Context(), part(s, parse(t, newSource(m.raw)), m.program, 1, 3))
		if err != nil {
			t.Fatal(err)
		}
		r, err := st.NewRun(t.Context(), workload())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Do(t.Context(), stage.Forward{}); !errors.Is(err, errGone) {
			t.Fatal(err)
		}
		if runFirst {
			r.Close()
			st.Close()
		} else {
			st.Close()
			r.Close()
		}
	}
	if n := used(s.Session); n != 0 {
		t.Errorf("%v in use", n)
	}
}

// A request larger than the workload is refused with the word the user knows;
// a smaller one runs.
func TestRequestsWithinTheWorkload(t *testing.T) {
	st, r, f, s := loaded(t)
	defer func() {
		r.Close()
		f.Conditioning.Free()
		st.Close()
		if used(s) != 0 {
			t.Errorf("%v in use", used(s))
		}
	}()
	before := used(s)
	for dim, word := range map[string]string{"B": "batch", "h": "height", "w": "width", "S_txt": "text_tokens"} {
		d := maps.Clone(workload())
		d[dim]++
		if _, err := st.NewRun(t.Context(), d); !errors.Is(err, graph.ErrTooLarge) || !strings.Contains(err.Error(), word) {
			t.Errorf("one more in %s: %v", dim, err)
		}
		d[dim] -= 2
		if d[dim] == 0 {
			continue
		}
		small, err := st.NewRun(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := small.Do(t.Context(), f); err != nil {
			t.Errorf("one less in %s: %v", dim, err)
		}
		small.Close()
	}
	if used(s) != before {
		t.Errorf("%v in use, %v before", used(s), before)
	}
}
