// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestJobs: the list that newer web frontends ask for, over prompts in all states.
func TestJobs(t *testing.T) {
	const ids = "00000000-0000-4000-8000-00000000000"
	g := newGate()
	b := newFake(t, 1, g.play)
	s, base := serve(t, Config{Backend: b})
	for i := range 5 {
		extra := fmt.Sprintf(`,"extra_data":{"extra_pnginfo":{"workflow":{"id":"w%d"}}}`, i%2)
		post(t, base+"/prompt", imagePrompt(ids+fmt.Sprint(i), extra), http.StatusOK)
	}
	<-g.began
	g.open <- nil // 0 is done
	waitRecord(t, s, ids+"0")
	<-g.began
	g.open <- &PromptError{Node: "2", NodeType: "PreviewImage", Type: "ValueError", Message: "bad"} // 1 failed
	waitRecord(t, s, ids+"1")
	<-g.began
	var cancelled struct{ Cancelled bool }
	cancel := func(body string, want bool) {
		t.Helper()
		if err := json.Unmarshal(post(t, base+"/api/jobs/"+body, nil, http.StatusOK), &cancelled); err != nil || cancelled.Cancelled != want {
			t.Errorf("cancel %s: %v, want %v (%v)", body, cancelled.Cancelled, want, err)
		}
	}
	cancel(ids+"2/cancel", true) // while it runs
	waitRecord(t, s, ids+"2")
	<-g.began // 3 runs, 4 waits
	cancel("unknown/cancel", false)
	cancel(ids+"0/cancel", false)

	type page struct {
		Jobs []struct {
			ID, Status string
			Outputs    int            `json:"outputs_count"`
			Previews   int            `json:"previewable_outputs_count"`
			Preview    map[string]any `json:"preview_output"`
			Workflow   string         `json:"workflow_id"`
			Error      map[string]any `json:"execution_error"`
		}
		Pagination struct {
			Offset, Total int
			Limit         *int
			HasMore       bool `json:"has_more"`
		}
	}
	list := func(query string) (states string, p page) {
		t.Helper()
		if err := json.Unmarshal(get(t, base+"/api/jobs"+query), &p); err != nil {
			t.Fatal(err)
		}
		for _, j := range p.Jobs {
			states += strings.TrimPrefix(j.ID, ids) + " " + j.Status + ", "
		}
		return states, p
	}
	for query, want := range map[string]string{
		"?sort_order=asc": "0 completed, 1 failed, 2 cancelled, 3 in_progress, 4 pending, ",
		"":                "4 pending, 3 in_progress, 2 cancelled, 1 failed, 0 completed, ",
		"?status=failed,%20Pending&sort_by=created_at": "4 pending, 1 failed, ",
		"?workflow_id=w1":   "3 in_progress, 1 failed, ",
		"?limit=2&offset=1": "3 in_progress, 2 cancelled, ",
		"?offset=9":         "",
	} {
		if got, _ := list(query); got != want {
			t.Errorf("jobs%s: %s, want %s", query, got, want)
		}
	}
	_, p := list("?sort_order=asc&limit=2")
	if p.Pagination.Total != 5 || !p.Pagination.HasMore || p.Pagination.Limit == nil || *p.Pagination.Limit != 2 {
		t.Errorf("pagination %+v", p.Pagination)
	}
	if j := p.Jobs[0]; j.Outputs != 1 || j.Previews != 1 || j.Preview["nodeId"] != "2" || j.Preview["mediaType"] != "images" || j.Workflow != "w0" {
		t.Errorf("job %+v", j)
	}
	if p.Jobs[1].Error["exception_type"] != "ValueError" {
		t.Errorf("job %+v", p.Jobs[1])
	}
	var one map[string]any
	if err := json.Unmarshal(get(t, base+"/api/jobs/"+ids+"0"), &one); err != nil || one["outputs"] == nil || one["workflow"] == nil || one["execution_status"] == nil {
		t.Errorf("job %v, %v", one, err)
	}
	if resp, err := http.Get(base + "/api/jobs/unknown"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("%v, %v", resp, err)
	}
	for _, q := range []string{"?status=odd", "?sort_by=x", "?sort_order=x", "?limit=0", "?limit=x", "?offset=x"} {
		if resp, err := http.Get(base + "/api/jobs" + q); err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %v, %v", q, resp, err)
		}
	}
	post(t, base+"/api/jobs/cancel", []byte(`{"job_ids":["x",5]}`), http.StatusBadRequest)
	post(t, base+"/api/jobs/cancel", []byte(`{"job_ids":"x"}`), http.StatusBadRequest)
	body := post(t, base+"/api/jobs/cancel", []byte(`{"job_ids":["`+ids+`4","`+ids+`3","`+ids+`9"]}`), http.StatusOK)
	if string(body) != `{"cancelled":true}` {
		t.Errorf("%s", body)
	}
	waitRecord(t, s, ids+"3")
	if n := s.remaining(); n != 0 {
		t.Errorf("%d prompts are left", n)
	}
}

// TestJobPreviews: which output stands for a job.
func TestJobPreviews(t *testing.T) {
	for _, tc := range []struct{ name, outputs, want string }{
		{"none", `{"1":{"animated":[true],"text":["words"]}}`, "0 0 "},
		{"a saved file before a temporary one", `{"1":{"images":[{"filename":"t.png","type":"temp"}]},"2":{"images":[{"filename":"o.png","type":"output"}]}}`, "2 2 o.png"},
		{"a picture before a text", `{"1":{"files":[{"filename":"t.txt","type":"output"}]},"2":{"images":[{"filename":"p.png","type":"temp"}]}}`, "2 2 p.png"},
		{"a video by its format", `{"1":{"gifs":[{"filename":"v","format":"video/h264","type":"output"},{"filename":"x.latent","type":"output"}]}}`, "2 1 v"},
	} {
		o, err := readObject(mustCompact(t, []byte(tc.outputs)))
		if err != nil {
			t.Fatal(err)
		}
		var j job
		j.summarise(o)
		name := ""
		if j.preview != nil {
			p, _ := readObject(j.preview)
			name, _ = asText(firstOf(p, "filename"))
		}
		if got := fmt.Sprint(j.outputs, j.previewable, " ", name); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// TestPreviewsForEachClient: a plain preview of a worker becomes one that says its
// node for a client that asked for that; a malformed one reaches no client.
func TestPreviewsForEachClient(t *testing.T) {
	s, base := serve(t, Config{Backend: newFake(t, 1, func(_ context.Context, p *Prompt, sink Sink, _ <-chan struct{}) error {
		say(sink, "progress_state", `{"prompt_id":%q,"nodes":{"7:3":{"node_id":"7:3","display_node_id":"7","parent_node_id":"6","real_node_id":"3"}}}`, p.ID)
		say(sink, "executing", `{"node":"7:3","display_node":"7","prompt_id":%q}`, p.ID)
		sink.Binary(append([]byte{0, 0, 0, 1, 0, 0, 0, 2}, emptyPicture("png", 1, 1, 2)...))
		sink.Binary([]byte{0, 0, 0, 4, 0, 0, 0xff, 0xff, '{'})
		sink.Binary([]byte{0, 0, 0})
		sink.Binary([]byte{0, 0, 0, 3, 0, 0, 0, 1, '7', 'h', 'i'})
		sink.Text(Message{"executed", []byte(`not JSON`)})
		say(sink, "executed", `{"node":"7:3","display_node":"7","output":{"text":["x"]},"prompt_id":%q}`, p.ID)
		return nil
	})})
	for _, describes := range []bool{true, false} {
		id := fmt.Sprint(describes)
		c := connect(t, base, id, describes)
		if c.next(); describes {
			c.next() // the server has understood
		}
		post(t, base+"/prompt", imagePrompt(id, `,"client_id":"`+id+`"`), http.StatusOK)
		var seen []string
		for {
			f, raw := c.next()
			o, _ := f.(map[string]any)
			if o["type"] == "executing" && strings.Contains(string(raw), "null") {
				break
			}
			if e, ok := o["binary_event"]; ok {
				meta, _ := json.Marshal(o["metadata"])
				seen = append(seen, fmt.Sprintf("%v %s", e, meta))
			}
		}
		want := []string{"1 null", "3 null"}
		if describes {
			want = []string{`4 {"display_node_id":"7","image_type":"image/png","node_id":"7:3","parent_node_id":"6","prompt_id":"true","real_node_id":"3"}`, "3 null"}
		}
		if d := cmp.Diff(want, seen); d != "" {
			t.Errorf("describes %v (-want +got):\n%s", describes, d)
		}
		r := waitRecord(t, s, id)
		if got, want := string(r.meta), `{"7:3":{"node_id":"7:3","display_node":"7","parent_node":"6","real_node_id":"3"}}`; got != want {
			t.Errorf("meta %s, want %s", got, want)
		}
		if !strings.Contains(string(r.status), "execution_success") {
			t.Errorf("a run that said nothing of its end: %s", r.status)
		}
	}
}

// TestRoutesOfAWorker: what is passed on and what is not.
func TestRoutesOfAWorker(t *testing.T) {
	b := newFake(t, 1, succeed)
	b.answers = map[string][]byte{"/models/vae": []byte(`["x"]`), "/assets/a.js": []byte("js"), "/manager/reboot": []byte("no"), "/api/x.json": []byte("no")}
	_, base := serve(t, Config{Backend: b})
	for at, want := range map[string]string{
		"/api/models/vae": `200 ["x"]`, "/assets/a.js": "200 js", "/manager/reboot": "404 ", "/manager/version": "404 ", "/api/x.json": "404 ",
		"/models": "200 []", "/api/i18n": "200 {}", "/models/loras": "404 ", "/assets/b.js": "404 ", "/global_subgraphs/x": "200 null",
		"/object_info/Primitive%20boolean%20%5BCrystools%5D": "200 {}", "/users": `200 {"storage":"server","migrated":true}`,
	} {
		resp, err := http.Get(base + at)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := fmt.Sprint(resp.StatusCode, " ", string(body)); got != want {
			t.Errorf("%s: %s, want %s", at, got, want)
		}
	}
	if got := string(get(t, base+"/")); !strings.Contains(got, "distorch comfy add") {
		t.Errorf("the page without a worker: %s", got)
	}
	post(t, base+"/users", []byte(`{"username":"x"}`), http.StatusBadRequest)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/prompt", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestLogs: what happens to prompts is told to those who ask.
func TestLogs(t *testing.T) {
	s, base := serve(t, Config{Backend: newFake(t, 1, succeed)})
	c := connect(t, base, "me", false)
	c.next()
	patch := func(body string, status int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, base+"/internal/logs/subscribe", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != status {
			t.Fatalf("%v, %v", resp, err)
		}
	}
	patch(`{"clientId":5}`, http.StatusInternalServerError)
	patch(`{"clientId":"me","enabled":true}`, http.StatusOK)
	s.note("hello %d", 1)
	if _, raw := c.next(); !strings.Contains(string(raw), `"m":"hello 1\n"`) {
		t.Errorf("%s", raw)
	}
	patch(`{"clientId":"me","enabled":false}`, http.StatusOK)
	for i := range 2 * keptLines {
		s.note("line %d", i)
	}
	lines := s.logs.all()
	if len(lines) != keptLines || lines[keptLines-1].Message != fmt.Sprintf("line %d\n", 2*keptLines-1) {
		t.Errorf("%d lines", len(lines))
	}
}

// TestAnswersWithoutTheLock: a client that reads its answer slowly holds up nobody.
func TestAnswersWithoutTheLock(t *testing.T) {
	s, err := New(Config{Backend: newFake(t, 0, nil), Dir: t.TempDir()}) // nothing else runs
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.root.Close() }()
	empty := (&object{}).value()
	s.history.add(&record{id: "p", item: []byte(`[0,"p",{},{},[]]`), outputs: empty, status: empty, meta: empty, job: job{id: "p", number: []byte("0")}})
	for _, tc := range []struct{ method, path, body string }{
		{http.MethodGet, "/api/jobs/p", ""},
		{http.MethodGet, "/api/jobs", ""},
		{http.MethodGet, "/history", ""},
		{http.MethodGet, "/history/p", ""},
		{http.MethodGet, "/queue", ""},
		{http.MethodPost, "/queue", `{"delete":["q"]}`},
		{http.MethodPost, "/history", `{"delete":["q"]}`},
	} {
		w := &underLock{ResponseRecorder: httptest.NewRecorder(), s: s}
		r := httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, strings.NewReader(tc.body))
		r.RemoteAddr = "127.0.0.1:1"
		s.handler().ServeHTTP(w, r)
		if w.Code != http.StatusOK || w.locked {
			t.Errorf("%s %s: status %d, answered under the lock: %v", tc.method, tc.path, w.Code, w.locked)
		}
	}
}

// underLock finds out whether the server's lock is held while it is written to.
type underLock struct {
	*httptest.ResponseRecorder
	s      *Server
	locked bool
}

func (a *underLock) WriteHeader(status int) {
	a.look()
	a.ResponseRecorder.WriteHeader(status)
}

func (a *underLock) Write(b []byte) (int, error) {
	a.look()
	return a.ResponseRecorder.Write(b)
}

func (a *underLock) look() {
	if !a.s.mu.TryLock() {
		a.locked = true
		return
	}
	a.s.mu.Unlock()
}
