// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// imagePrompt is the body of a prompt without a model; extra goes into the body.
func imagePrompt(id, extra string) []byte {
	return fmt.Appendf(nil, `{"prompt":{"1":{"class_type":"EmptyImage","inputs":{"width":8,"height":8,"batch_size":1,"color":1}},"2":{"class_type":"PreviewImage","inputs":{"images":["1",0]}}},"prompt_id":%q%s}`, id, extra)
}

// gate lets runs go on one by one.
type gate struct {
	began chan string
	open  chan error
}

func newGate() *gate { return &gate{make(chan string, 1000), make(chan error)} }

func (g *gate) play(ctx context.Context, p *Prompt, sink Sink, asked <-chan struct{}) error {
	g.began <- p.ID
	select {
	case err := <-g.open:
		if err == nil {
			return succeed(ctx, p, sink, asked)
		}
		return err
	case <-asked:
		return ErrInterrupted
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestLostWorkersPromptKeepsItsPlace: it goes before what was queued after it, and
// its client sees it run again.
func TestLostWorkersPromptKeepsItsPlace(t *testing.T) {
	g := newGate()
	b := newFake(t, 1, g.play)
	s, base := serve(t, Config{Backend: b})
	c := connect(t, base, "me", false)
	for _, id := range []string{"a", "b", "c"} {
		post(t, base+"/prompt", imagePrompt(id, `,"client_id":"me","number":7`), http.StatusOK)
	}
	var order []string
	for range 2 {
		order = append(order, <-g.began)
		g.open <- fmt.Errorf("connection reset: %w", ErrWorkerLost)
	}
	for range 3 {
		order = append(order, <-g.began)
		g.open <- nil
	}
	waitRecord(t, s, "c")
	if d := cmp.Diff([]string{"a", "a", "a", "b", "c"}, order); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
	ends, starts := 0, 0
	for ends < 3 {
		_, raw := c.next()
		switch f := string(raw); {
		case strings.HasPrefix(f, `{"type":"execution_start"`):
			starts++
		case strings.HasPrefix(f, `{"type":"executing","data":{"node":null`):
			ends++
		}
	}
	if starts != 3 {
		t.Errorf("%d runs were begun before the client, want 3", starts)
	}
}

// TestWorkersLostTooOften: the prompt ends as an error that says so, and the next one runs.
func TestWorkersLostTooOften(t *testing.T) {
	g := newGate()
	s, base := serve(t, Config{Backend: newFake(t, 1, g.play), Attempts: 2})
	c := connect(t, base, "me", false)
	post(t, base+"/prompt", imagePrompt("a", `,"client_id":"me"`), http.StatusOK)
	post(t, base+"/prompt", imagePrompt("b", ""), http.StatusOK)
	for range 2 {
		<-g.began
		g.open <- ErrWorkerLost
	}
	r := waitRecord(t, s, "a")
	for _, want := range []string{`"status_str":"error"`, `"completed":false`, "2 workers were lost while they ran this prompt, the last of them fake"} {
		if !strings.Contains(string(r.status), want) {
			t.Errorf("status %s lacks %s", r.status, want)
		}
	}
	for {
		_, raw := c.next()
		if strings.HasPrefix(string(raw), `{"type":"execution_error"`) {
			break
		}
	}
	if id := <-g.began; id != "b" {
		t.Errorf("%s runs next", id)
	}
	g.open <- nil
	waitRecord(t, s, "b")
}

// TestInterruptOfALostWorkersPrompt: it is not run again.
func TestInterruptOfALostWorkersPrompt(t *testing.T) {
	began := make(chan struct{})
	s, base := serve(t, Config{Backend: newFake(t, 1, func(_ context.Context, _ *Prompt, _ Sink, asked <-chan struct{}) error {
		close(began)
		<-asked
		return ErrWorkerLost
	})})
	post(t, base+"/prompt", imagePrompt("a", ""), http.StatusOK)
	<-began
	post(t, base+"/interrupt", []byte(`{"prompt_id":"a"}`), http.StatusOK)
	if r := waitRecord(t, s, "a"); !strings.Contains(string(r.status), "execution_interrupted") || r.job.status != jobCancelled {
		t.Errorf("status %s, job %s", r.status, r.job.status)
	}
}

// TestSeveralWorkers run as many prompts at once, in the order of the numbers, front
// first; interrupt stops the one that is named.
func TestSeveralWorkers(t *testing.T) {
	g := newGate()
	b := newFake(t, 0, g.play)
	s, base := serve(t, Config{Backend: b})
	for id, extra := range map[string]string{"late": `,"number":50`, "early": `,"number":"-2.5"`} {
		post(t, base+"/prompt", imagePrompt(id, extra), http.StatusOK)
	}
	for _, id := range []string{"first", "second"} {
		post(t, base+"/prompt", imagePrompt(id, ""), http.StatusOK)
	}
	post(t, base+"/prompt", imagePrompt("front", `,"front":true`), http.StatusOK)
	b.change(func() { b.free = 3 })
	began := []string{<-g.began, <-g.began, <-g.began}
	slices.Sort(began)
	if d := cmp.Diff([]string{"early", "first", "front"}, began); d != "" {
		t.Errorf("running (-want +got):\n%s", d)
	}
	post(t, base+"/interrupt", []byte(`{"prompt_id":"first"}`), http.StatusOK)
	if r := waitRecord(t, s, "first"); !strings.Contains(string(r.status), `"error"`) {
		t.Errorf("status %s", r.status)
	}
	if next := <-g.began; next != "second" {
		t.Errorf("%s runs next", next)
	}
	for range 3 {
		g.open <- nil
	}
	if last := <-g.began; last != "late" {
		t.Errorf("%s runs last", last)
	}
	g.open <- nil
	for _, id := range []string{"early", "front", "second", "late"} {
		if r := waitRecord(t, s, id); !strings.Contains(string(r.status), `"success"`) {
			t.Errorf("%s: %s", id, r.status)
		}
	}
}

// TestPromptWithoutItsWorkerHoldsNoOtherUp: what no free worker can run waits, and
// runs when one comes.
func TestPromptWithoutItsWorkerHoldsNoOtherUp(t *testing.T) {
	b := newFake(t, 2, succeed)
	b.has = func(p *Prompt) bool { return !slices.Contains(p.Classes, "ImageInvert") }
	s, base := serve(t, Config{Backend: b})
	inverted := strings.Replace(string(imagePrompt("waits", "")), `"images":["1",0]`, `"images":["3",0]`, 1)
	inverted = strings.Replace(inverted, `{"1":`, `{"3":{"class_type":"ImageInvert","inputs":{"image":["1",0]}},"1":`, 1)
	post(t, base+"/prompt", []byte(inverted), http.StatusOK)
	for i := range 5 {
		id := fmt.Sprint(i)
		post(t, base+"/prompt", imagePrompt(id, ""), http.StatusOK)
		waitRecord(t, s, id)
	}
	if q := string(get(t, base+"/queue")); !strings.Contains(q, `"waits"`) {
		t.Errorf("queue %s", q)
	}
	b.change(func() { b.has = nil })
	waitRecord(t, s, "waits")
}

// TestPromptIsAlwaysSomewhere: from the answer of its POST a prompt is in the queue
// until it is in history. Clients give up a prompt that is in neither.
func TestPromptIsAlwaysSomewhere(t *testing.T) {
	s, base := serve(t, Config{Backend: newFake(t, 2, succeed)})
	var clients, watch sync.WaitGroup
	var looks atomic.Int64
	var accepted sync.Map
	ctx, cancel := context.WithCancel(t.Context())
	watch.Go(func() { // looks between any two changes
		for ctx.Err() == nil {
			accepted.Range(func(id, _ any) bool {
				name, _ := id.(string)
				s.mu.Lock()
				queued, done := s.queue.byID[name] != nil, s.history.at(name) != nil
				s.mu.Unlock()
				if done {
					accepted.Delete(id)
				} else if !queued {
					t.Errorf("prompt %s was in neither", name)
					return false
				}
				return true
			})
		}
	})
	for c := range 4 {
		clients.Go(func() {
			for i := range 25 {
				id := fmt.Sprintf("%d-%d", c, i)
				post(t, base+"/prompt", imagePrompt(id, ""), http.StatusOK)
				accepted.Store(id, true)
				for {
					looks.Add(1)
					queued := strings.Contains(string(get(t, base+"/queue")), `"`+id+`"`)
					done := string(get(t, base+"/history/"+id)) != "{}"
					if done {
						break
					}
					if !queued {
						t.Errorf("prompt %s was in neither", id)
						return
					}
				}
			}
		})
	}
	clients.Wait()
	cancel()
	watch.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.queue.remaining(); n != 0 || s.history.order.Len() != 100 || s.queue.bytes != 0 {
		t.Errorf("%d prompts left, %d done", n, s.history.order.Len())
	}
	t.Logf("%d looks", looks.Load())
}

// TestFullQueue: no room by number or by bytes.
func TestFullQueue(t *testing.T) {
	for name, cfg := range map[string]Config{"number": {MaxPending: 2}, "bytes": {MaxQueueBytes: 3000}} {
		cfg.Backend = newFake(t, 0, succeed)
		_, base := serve(t, cfg)
		post(t, base+"/prompt", imagePrompt("a", ""), http.StatusOK)
		post(t, base+"/prompt", imagePrompt("b", ""), http.StatusOK)
		var refused struct {
			Error struct{ Type, Details string }
		}
		if err := json.Unmarshal(post(t, base+"/prompt", imagePrompt("c", ""), http.StatusTooManyRequests), &refused); err != nil || refused.Error.Type != "queue_full" || !strings.Contains(refused.Error.Details, "2 prompts") {
			t.Errorf("%s: %v, %v", name, refused, err)
		}
		post(t, base+"/queue", []byte(`{"delete":["a"]}`), http.StatusOK)
		post(t, base+"/prompt", imagePrompt("c", ""), http.StatusOK)
	}
}

// TestOneIDTwice: prompts with the same id of a client run one after the other, and
// history has the last.
func TestOneIDTwice(t *testing.T) {
	g := newGate()
	s, base := serve(t, Config{Backend: newFake(t, 1, g.play)})
	post(t, base+"/prompt", imagePrompt("same", `,"extra_data":{"n":1}`), http.StatusOK)
	post(t, base+"/prompt", imagePrompt("same", `,"extra_data":{"n":2}`), http.StatusOK)
	for range 2 {
		<-g.began
		g.open <- nil
	}
	for !strings.Contains(string(waitRecord(t, s, "same").item), `{"n":2}`) {
	}
	if o, err := readObject(mustCompact(t, get(t, base+"/history"))); err != nil || len(o.members) != 1 {
		t.Errorf("%v: %v", o, err)
	}
}

// TestWhatAWorkerGets: the graph with values converted, the outputs that are valid,
// and secrets, which no one is shown.
func TestWhatAWorkerGets(t *testing.T) {
	got := make(chan *Prompt, 1)
	g := newGate()
	s, base := serve(t, Config{Backend: newFake(t, 1, func(ctx context.Context, p *Prompt, sink Sink, asked <-chan struct{}) error {
		got <- p
		return g.play(ctx, p, sink, asked)
	})})
	body := `{"prompt":{"9":{"class_type":"SaveImage","inputs":{"images":["1",0],"filename_prefix":5}},"1":{"class_type":"EmptyImage","_meta":{"title":"t"},"inputs":{"width":"8","height":8,"batch_size":1,"color":0,"seed":18446744073709551615}},"3":{"class_type":"LoadImage","inputs":{"image":"no"}},"4":{"class_type":"PreviewImage","inputs":{"images":["3",0]}}},"prompt_id":"a","extra_data":{"api_key_comfy_org":"key","auth_token_comfy_org":"token","mine":1.50},"client_id":"me"}`
	post(t, base+"/prompt", []byte(body), http.StatusOK)
	p := <-got
	want := Prompt{
		ID:        "a",
		Graph:     json.RawMessage(`{"9":{"class_type":"SaveImage","inputs":{"images":["1",0],"filename_prefix":"5"}},"1":{"class_type":"EmptyImage","_meta":{"title":"t"},"inputs":{"width":8,"height":8,"batch_size":1,"color":0,"seed":18446744073709551615}},"3":{"class_type":"LoadImage","inputs":{"image":"no"}},"4":{"class_type":"PreviewImage","inputs":{"images":["3",0]}}}`),
		Classes:   []string{"EmptyImage", "LoadImage", "PreviewImage", "SaveImage"},
		Outputs:   []string{"9"},
		ExtraData: json.RawMessage(`{"api_key_comfy_org":"key","auth_token_comfy_org":"token","mine":1.50,"client_id":"me"}`),
	}
	if d := cmp.Diff(want, *p); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	shown := string(get(t, base+"/queue"))
	<-g.began
	g.open <- nil
	waitRecord(t, s, "a")
	for _, at := range []string{shown, string(get(t, base+"/history")), string(get(t, base+"/api/jobs/a")), string(get(t, base+"/internal/logs"))} {
		if strings.Contains(at, "key") || strings.Contains(at, "token") {
			t.Errorf("secrets are shown: %s", at)
		}
	}
}

// TestServerEndsWithPromptsRunning: Run returns, with runs and sockets open.
func TestServerEndsWithPromptsRunning(t *testing.T) {
	g := newGate()
	_, base := serve(t, Config{Backend: newFake(t, 1, g.play)})
	connect(t, base, "me", false).next()
	post(t, base+"/prompt", imagePrompt("a", ""), http.StatusOK)
	<-g.began // the cleanup of serve ends it
}
