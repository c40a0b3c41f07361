// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/coordinator/comfy"
	"github.com/distorch/distorch/internal/comfyworker"
)

// TestFramesThatNobodyTakes: what a worker says while a run copies a file is bounded
// in bytes.
func TestFramesThatNobodyTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lease{frames: make(chan frame, 8), taken: make(chan struct{}, 1), done: make(chan struct{})}
		half := frame{binary: true, body: make([]byte, maxFrame/2)}
		var handed atomic.Int64
		want := func(n int64, when string) {
			synctest.Wait()
			if got := handed.Load(); got != n {
				t.Fatalf("%s: %d frames were handed over, want %d", when, got, n)
			}
		}
		go func() {
			for range 5 {
				if l.hand(t.Context(), half) == nil {
					handed.Add(1)
				}
			}
		}()
		want(2, "nobody takes any")
		l.took(<-l.frames)
		want(3, "one was taken")
		close(l.done)
		want(5, "released")
	})
}

func TestRun(t *testing.T) {
	w := scripted(t, comfyworker.Config{})
	p := started(t, Config{}, w)
	h, _, err := ran(t, p, prompted(t, "their id", basic))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"execution_start", "execution_cached", "executing 8", "executing 4", "executing 5", "executing 6", "executing 3", "progress 3", "progress 3",
		"progress 3", "executing 10", "executing 11", "executing 9", "executed 9", "execution_success",
	}
	sorted := func(l []string) []string { // independent nodes come in any order
		out := append([]string{}, l...)
		for i := range out {
			if strings.HasPrefix(out[i], "executing") {
				out[i] = "executing"
			}
		}
		return out
	}
	if d := cmp.Diff(sorted(want), sorted(h.kinds())); d != "" {
		t.Error(d)
	}
	for _, m := range h.messages {
		if o, _ := asObject(m.Data); o.text("prompt_id") != "their id" {
			t.Errorf("%s is of prompt %q", m.Type, o.text("prompt_id"))
		}
		if bytes.Contains(m.Data, []byte("-4")) && m.Type == "progress_state" && !bytes.Contains(m.Data, []byte(`"prompt_id":"their id"`)) {
			t.Errorf("%s has the worker's id inside: %s", m.Type, m.Data)
		}
	}
	if len(h.binary) != 3 {
		t.Fatalf("%d previews, want 3", len(h.binary))
	}
	if b := h.binary[0]; binary.BigEndian.Uint32(b) != eventPreviewMetadata || !bytes.Contains(b, []byte(`"prompt_id":"their id"`)) || !bytes.Contains(b, []byte{0xff, 0xd8, 0xff}) {
		t.Errorf("preview %.200q", b)
	}
	// What was sent: exact numbers, the ids of the client's nodes, its extra data.
	if sent := string(w.Prompts()[0]); !strings.Contains(sent, "18446744073709551615") || !strings.Contains(sent, `"cfg":4.0`) && !strings.Contains(sent, `"cfg": 4.0`) {
		t.Errorf("prompt that the worker got: %s", sent)
	}
	// The picture outlives the worker.
	w.Kill()
	if status, body := viewed(t, p, comfy.View{File: h.image()}); status != 200 || !strings.HasPrefix(body, "\x89PNG") {
		t.Errorf("picture after the worker's end: %d %.20q", status, body)
	}
	if status, body := viewed(t, p, comfy.View{File: h.image(), Range: "bytes=1-3"}); status != 206 || body != "PNG" {
		t.Errorf("range of it: %d %q", status, body)
	}
	if status, _ := viewed(t, p, comfy.View{File: h.image(), Range: "bytes=99999-"}); status != 416 {
		t.Errorf("range behind its end: %d", status)
	}
	if status, _ := viewed(t, p, comfy.View{File: comfy.FileRef{Name: "none.png", Type: "output"}}); status != 404 {
		t.Errorf("unknown file: %d", status)
	}
}

func TestNamesOfOutputs(t *testing.T) {
	a, b := scripted(t, comfyworker.Config{}), scripted(t, comfyworker.Config{})
	p := started(t, Config{}, a, b)
	first, one, err := ran(t, p, prompted(t, "1", basic))
	if err != nil {
		t.Fatal(err)
	}
	second, two, err := ran(t, p, prompted(t, "2", seeded(2)))
	if err != nil {
		t.Fatal(err)
	}
	if one == two {
		t.Fatalf("both ran on %s, the busiest", one)
	}
	if x, y := first.image(), second.image(); x.Name != "a_00001_.png" || y.Name != "a_00002_.png" || x.Subfolder != "golden" {
		t.Errorf("names %v and %v; both workers said a_00001_.png", x, y)
	}
	_, body1 := viewed(t, p, comfy.View{File: first.image()})
	_, body2 := viewed(t, p, comfy.View{File: second.image()})
	if body1 == body2 {
		t.Error("the two pictures are one")
	}
	// Cached nodes name the same file again; which worker is next is known.
	third, three, err := ran(t, p, prompted(t, "3", basic))
	if err != nil {
		t.Fatal(err)
	}
	if three != one || third.image() != first.image() {
		t.Errorf("%s cached %v; the first was %v on %s", three, third.image(), first.image(), one)
	}
	if d := cmp.Diff([]string{"execution_start", "execution_cached", "executed 9", "execution_success"}, third.kinds()); d != "" {
		t.Error(d)
	}
}

func TestPromptThatFails(t *testing.T) {
	w := scripted(t, comfyworker.Config{Node: func(_ context.Context, n comfyworker.Node, _ int) error {
		if n.Class == "KSampler" {
			return errors.New("tuple index out of range")
		}
		return nil
	}})
	p := started(t, Config{}, w)
	h, _, err := ran(t, p, prompted(t, "p", basic))
	failed, ok := errors.AsType[*comfy.PromptError](err)
	if !ok {
		t.Fatalf("error %v", err)
	}
	if failed.Node != "3" || failed.NodeType != "KSampler" || failed.Message != "tuple index out of range\n" || len(failed.Traceback) != 1 {
		t.Errorf("%+v", failed)
	}
	if got := h.kinds(); got[len(got)-1] != "execution_error 3" {
		t.Errorf("messages %v", got)
	}
	if _, err := p.Reserve(prompted(t, "q", basic)); err != nil {
		t.Errorf("the worker is not free again: %v", err)
	}
}

func TestPromptThatTheWorkerRefuses(t *testing.T) {
	p := started(t, Config{}, scripted(t, comfyworker.Config{}))
	pr := prompted(t, "p", basic)
	pr.Graph = json.RawMessage(strings.ReplaceAll(basic, "vae.safetensors", "gone.safetensors"))
	_, _, err := ran(t, p, pr)
	failed, ok := errors.AsType[*comfy.PromptError](err)
	if !ok || failed.Node != "10" || failed.NodeType != "VAELoader" || failed.Type != "value_not_in_list" {
		t.Errorf("%v: %+v", err, failed)
	}
}

func TestInterrupt(t *testing.T) {
	inStep := make(chan struct{}, 100)
	w := scripted(t, comfyworker.Config{Node: func(ctx context.Context, n comfyworker.Node, step int) error {
		if n.Class == "KSampler" && step == 2 {
			inStep <- struct{}{}
			<-ctx.Done()
		}
		return nil
	}})
	p := started(t, Config{}, w)
	l, err := p.Reserve(prompted(t, "p", basic))
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-inStep; l.Interrupt() }()
	h := &heard{}
	if err := runOf(t, l, h); !errors.Is(err, comfy.ErrInterrupted) {
		t.Errorf("in a step: %v", err)
	}
	if got := h.kinds(); got[len(got)-1] != "execution_interrupted 3" {
		t.Errorf("messages %v", got)
	}
	l.Release()

	l, err = p.Reserve(prompted(t, "p", seeded(1)))
	if err != nil {
		t.Fatal(err)
	}
	l.Interrupt()
	if err := runOf(t, l, &heard{}); !errors.Is(err, comfy.ErrInterrupted) {
		t.Errorf("before it ran: %v", err)
	}
	l.Release()
	if n := len(w.Prompts()); n != 1 {
		t.Errorf("the worker got %d prompts", n)
	}

	// In the worker's own queue, behind a prompt of somebody else.
	if _, err := p.living()[0].api.prompt(t.Context(), map[string]any{"prompt": json.RawMessage(seeded(2))}); err != nil {
		t.Fatal(err)
	}
	<-inStep
	l, err = p.Reserve(prompted(t, "p", seeded(3)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	go func() {
		eventually(t, p, "the prompt is queued", func() bool { return len(w.Prompts()) == 3 })
		l.Interrupt()
	}()
	if err := runOf(t, l, &heard{}); !errors.Is(err, comfy.ErrInterrupted) {
		t.Errorf("in the worker's queue: %v", err)
	}
}

// stuck is a way to a worker that takes requests of one route and brings nothing back.
type stuck struct {
	http.RoundTripper
	route   string
	reached chan struct{}
}

func (s stuck) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != s.route {
		return s.RoundTripper.RoundTrip(r)
	}
	s.reached <- struct{}{}
	<-r.Context().Done()
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return nil, r.Context().Err()
}

// TestFilesThatStick: a file that does not get through, from the worker or to it, holds
// a prompt neither for ever nor against an interrupt.
func TestFilesThatStick(t *testing.T) {
	for _, route := range []string{"/view", "/upload/image"} {
		for _, tc := range []struct {
			name          string
			silence, halt time.Duration
			interrupt     bool
			want          error
		}{
			{"silence", 50 * time.Millisecond, time.Hour, false, comfy.ErrWorkerLost},
			{"interrupt", time.Hour, time.Millisecond, true, comfy.ErrInterrupted},
		} {
			t.Run(tc.name+strings.ReplaceAll(route, "/", " "), func(t *testing.T) {
				w := scripted(t, comfyworker.Config{})
				way := stuck{newTransport(), route, make(chan struct{}, 10)}
				p := started(t, Config{Silence: tc.silence, Halt: tc.halt, Transport: way}, w)
				graph := basic
				if route == "/upload/image" {
					uploaded(t, p, file{Type: "input", Name: "cat.png"}, false, "cat")
					uploaded(t, p, file{Type: "input", Subfolder: "sub", Name: "dog.png"}, false, "dog")
					graph = withImage
				}
				l, err := p.Reserve(prompted(t, "p", graph))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Release()
				if tc.interrupt {
					go func() { <-way.reached; l.Interrupt() }()
				}
				err = runOf(t, l, &heard{})
				if route == "/view" && tc.interrupt && err == nil {
					return // the picture was the last that the prompt made
				}
				if !errors.Is(err, tc.want) {
					t.Errorf("%v, want %v", err, tc.want)
				}
			})
		}
	}
}

// TestWorkerLost: every way in which a worker goes in the middle.
func TestWorkerLost(t *testing.T) {
	hold := make(chan struct{})
	reached := make(chan struct{}, 10)
	node := func(ctx context.Context, n comfyworker.Node, step int) error {
		if n.Class != "KSampler" || step != 2 {
			return nil
		}
		reached <- struct{}{}
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return nil
	}
	w := scripted(t, comfyworker.Config{Node: node})
	p := started(t, Config{}, w)
	l, err := p.Reserve(prompted(t, "p", basic))
	if err != nil {
		t.Fatal(err)
	}
	go func() { <-reached; w.Kill() }()
	h := &heard{}
	began := time.Now()
	if err := runOf(t, l, h); !errors.Is(err, comfy.ErrWorkerLost) {
		t.Fatalf("killed: %v", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("a process that ended was noticed after %v", d)
	}
	l.Release()
	if _, err := p.Reserve(prompted(t, "p", basic)); err == nil || !errors.As(err, new(*comfy.NoWorkerError)) {
		t.Errorf("with no worker left: %v", err)
	}
	// A new process on the same address is used again.
	again, err := comfyworker.Restart(comfyworker.Config{Files: usual()}, w.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Kill)
	eventually(t, p, "the worker is back", func() bool { return len(p.living()) == 1 })
	if _, _, err := ran(t, p, prompted(t, "p", basic)); err != nil {
		t.Error(err)
	}
}

// TestWorkerRemoved: a worker that is taken off the list stops the prompt that another
// is to run.
func TestWorkerRemoved(t *testing.T) {
	reached, ended := make(chan struct{}), make(chan struct{})
	w := scripted(t, comfyworker.Config{Node: func(ctx context.Context, n comfyworker.Node, step int) error {
		if n.Class == "KSampler" && step == 1 {
			close(reached)
			<-ctx.Done()
			close(ended)
		}
		return nil
	}})
	remove := make(chan struct{})
	p := started(t, Config{Workers: func(ctx context.Context, fn func([]Registration)) error {
		fn([]Registration{{Name: "a", URL: w.URL()}})
		<-remove
		fn(nil)
		<-ctx.Done()
		return nil
	}}, w)
	l, err := p.Reserve(prompted(t, "p", basic))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	go func() { <-reached; close(remove) }()
	if err := runOf(t, l, &heard{}); !errors.Is(err, comfy.ErrWorkerLost) {
		t.Errorf("%v, want %v", err, comfy.ErrWorkerLost)
	}
	select {
	case <-ended:
	case <-time.After(limit):
		t.Error("the worker that was removed still runs the prompt")
	}
}

// TestSocketLost: the worker runs on while its socket is gone; nothing is lost, and
// nothing comes twice.
func TestSocketLost(t *testing.T) {
	for _, when := range []string{"in a step", "while the picture is saved"} {
		t.Run(when, func(t *testing.T) {
			reached, hold := make(chan struct{}), make(chan struct{})
			w := scripted(t, comfyworker.Config{Node: func(ctx context.Context, n comfyworker.Node, step int) error {
				if n.Class == "KSampler" && step == 2 && when == "in a step" || n.Class == "SaveImage" && when != "in a step" {
					close(reached)
					select {
					case <-hold:
					case <-ctx.Done():
					}
				}
				return nil
			}})
			p := started(t, Config{}, w)
			l, err := p.Reserve(prompted(t, "p", basic))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			h := &heard{}
			done := make(chan error, 1)
			go func() { done <- runOf(t, l, h) }()
			<-reached
			w.BreakSockets()
			if when == "in a step" {
				eventually(t, p, "the socket is back", func() bool { return p.State()[0].Live && p.session("a") > 1 })
			}
			close(hold)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			executed, ends := 0, 0
			for _, k := range h.kinds() {
				switch k {
				case "executed 9":
					executed++
				case "execution_success":
					ends++
				}
			}
			if executed != 1 || ends != 1 {
				t.Errorf("executed %d times, ended %d times: %v", executed, ends, h.kinds())
			}
			if status, _ := viewed(t, p, comfy.View{File: h.image()}); status != 200 {
				t.Errorf("picture: %d", status)
			}
		})
	}
}

func (p *Pool) session(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers[name].session
}

// TestRunCanceled: a coordinator that stops takes its prompts off the workers.
func TestRunCanceled(t *testing.T) {
	reached, ended := make(chan struct{}), make(chan struct{})
	w := scripted(t, comfyworker.Config{Node: func(ctx context.Context, n comfyworker.Node, step int) error {
		if n.Class == "KSampler" && step == 1 {
			close(reached)
			<-ctx.Done()
			close(ended)
		}
		return nil
	}})
	p := started(t, Config{}, w)
	l, err := p.Reserve(prompted(t, "p", basic))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	if err := l.Run(ctx, &heard{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	select {
	case <-ended:
	case <-time.After(limit):
		t.Error("the worker runs it still")
	}
}
