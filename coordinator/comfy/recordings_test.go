// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// deviations are the recorded items that are compared but for one part, with why.
var deviations = map[string]string{
	"prompt-errors/unknown_class": "error.details goes on with the worker to add",
}

// replay sends a recorded request and holds the answer against the recorded one.
func replay(t *testing.T, base string, item recorded, m *marks) (body []byte) {
	t.Helper()
	var payload io.Reader
	if raw := item.Request.Body; raw != nil {
		payload = bytes.NewReader(requestBody(t, item, m))
	}
	req, err := http.NewRequestWithContext(t.Context(), item.Request.Method, base+escaped(m.inText(item.Request.Path)), payload)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range item.Request.Headers {
		req.Header.Set(k, v)
	}
	return compareAnswer(t, req, item, m)
}

// escaped writes what the recordings leave as it is.
func escaped(p string) string {
	return strings.NewReplacer(" ", "%20", "<", "%3C", ">", "%3E").Replace(p)
}

// requestBody is the body as it was on the wire: a JSON document, but for the few
// that are no JSON.
func requestBody(t *testing.T, item recorded, m *marks) []byte {
	t.Helper()
	var s string
	if json.Unmarshal(item.Request.Body, &s) == nil && item.Name != "settings_set" {
		return []byte(s)
	}
	return m.fill(item.Request.Body)
}

func compareAnswer(t *testing.T, req *http.Request, item recorded, m *marks) (body []byte) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != item.Response.Status {
		t.Fatalf("status %d, want %d: %s", resp.StatusCode, item.Response.Status, body)
	}
	for k, v := range item.Response.Headers {
		if d := m.differText(v, resp.Header.Get(k), "header "+k); d != "" {
			t.Error(d)
		}
	}
	var want, got any
	if want, err = decodeAny(item.Response.Body); err != nil {
		t.Fatal(err)
	}
	kind := resp.Header.Get("Content-Type")
	switch {
	case strings.HasPrefix(kind, "image/"):
		got = describe(body)
	case strings.HasPrefix(kind, "application/json"):
		if got, err = decodeAny(body); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	default:
		got = string(body)
	}
	if item.Response.Status == http.StatusInternalServerError {
		if s, _ := got.(string); !strings.HasPrefix(s, "500 Internal Server Error\n\nServer got itself in trouble: ") {
			t.Errorf("a 500 that does not say why: %s", body)
		}
		return body // the text is free
	}
	if d := m.differ(want, got, "body"); d != "" {
		t.Errorf("%s\nin %s", d, body)
	}
	return body
}

// notCompared are the recorded items that cannot be, with why.
var notCompared = map[string]string{}

// ledger says which recorded items were held against the server.
type ledger map[string]bool

// each runs f for the items of one recording and marks them.
func (l ledger) each(t *testing.T, file string, f func(t *testing.T, item recorded)) {
	t.Helper()
	for _, item := range recording(t, file) {
		t.Run(item.Name, func(t *testing.T) { f(t, item) })
		l[file+"/"+item.Name] = true
	}
}

// TestRecordings replays every recorded item of a real ComfyUI, in order.
func TestRecordings(t *testing.T) {
	l := ledger{}
	files := map[string]func(*testing.T, ledger){
		"http-reading": replayReading, "object-info": replayObjectInfo, "prompt-accepted": replayAccepted, "prompt-errors": replayErrors,
		"files": replayFiles, "queue": replayQueue, "history": replayHistory, "ws": replaySockets,
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		t.Run(name, func(t *testing.T) { files[name](t, l) })
	}
	total := 0
	for name := range files {
		for _, item := range recording(t, name) {
			key := name + "/" + item.Name
			total++
			if why := notCompared[key]; l[key] == (why != "") {
				t.Errorf("%s: compared %v, reason not to %q", key, l[key], why)
			}
		}
	}
	entries, err := os.ReadDir("testdata/recordings")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".json")
		if files[name] == nil && name != "frontend-load" {
			t.Errorf("%s is replayed by no test", e.Name())
		}
	}
	t.Logf("%d items: %d compared key for key, %d of them but for one part, %d not", total, len(l), len(deviations), len(notCompared))
}

func replayErrors(t *testing.T, l ledger) {
	_, base := serve(t, Config{Backend: newFake(t, 0, succeed)})
	l.each(t, "prompt-errors", func(t *testing.T, item recorded) {
		if deviations["prompt-errors/"+item.Name] != "" {
			item.Response.Body = bytes.Replace(item.Response.Body, []byte("Node ID '#7'"),
				[]byte("Node ID '#7': no ComfyUI worker has NoSuchNode; add one that does with `distorch comfy add URL`"), 1)
		}
		replay(t, base, item, &marks{map[string]string{"<seed>": "1"}})
	})
}

func replayReading(t *testing.T, l ledger) {
	b := newFake(t, 1, succeed)
	paths := `{"checkpoints":["/m/checkpoints"]`
	for _, folder := range []string{"configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models", "embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "custom_nodes", "hypernetworks", "photomaker", "classifiers", "model_patches", "audio_encoders"} {
		paths += fmt.Sprintf(`,%q:["/m/%s"]`, folder, folder)
	}
	folders, _ := readObject(jsontext.Value(paths + "}"))
	var names []string
	for _, m := range folders.members {
		names = append(names, m.name)
	}
	b.answers = map[string][]byte{
		"/": []byte("<html>"), "/embeddings": []byte("[]"), "/models": encode(names), "/models/loras": []byte(`["a.safetensors"]`),
		"/models/nothing": nil, "/experiment/models": []byte(`[{"name":"checkpoints","folders":["/m/checkpoints"]}]`),
		"/view_metadata/loras": nil, "/extensions": []byte(`["/extensions/core/a.js"]`), "/workflow_templates": []byte("{}"),
		"/i18n": []byte("{}"), "/internal/folder_paths": folders.value(), "/internal/files/output": []byte(`["a.png"]`),
	}
	_, base := serve(t, Config{Backend: b})
	l.each(t, "http-reading", func(t *testing.T, item recorded) { replay(t, base, item, &marks{}) })
}

func replayObjectInfo(t *testing.T, l ledger) {
	b := newFake(t, 1, succeed)
	_, base := serve(t, Config{Backend: b})
	l.each(t, "object-info", func(t *testing.T, item recorded) {
		if item.Name != "all" {
			replay(t, base, item, &marks{})
			return
		}
		item.Response.Body, _ = json.Marshal(b.classes) // "each class as below"
		replay(t, base, item, &marks{})
	})
}

func replayAccepted(t *testing.T, l ledger) {
	s, base := serve(t, Config{Backend: newFake(t, 1, succeed)})
	m := &marks{map[string]string{"<prompt:1>": `"an id of the client's"`, "<seed>": "5"}}
	var last jsontext.Value // the answer before
	// entry is what history has of the last prompt, once it is done.
	entry := func(t *testing.T) *object {
		o, _ := readObject(last)
		id, _ := asText(firstOf(o, "prompt_id"))
		parts, err := elements(waitRecord(t, s, id).item)
		if err != nil || len(parts) != 5 {
			t.Fatalf("history item: %v", err)
		}
		graph, err := readObject(parts[2])
		if err != nil {
			t.Fatal(err)
		}
		out := fields("number", parts[0], "prompt", parts[2], "extra_data", parts[3], "outputs", parts[4])
		for _, n := range graph.members {
			o, _ := readObject(n.value)
			out.set("inputs of "+n.name, firstOf(o, "inputs"))
		}
		return out
	}
	value := func(t *testing.T, item recorded, got jsontext.Value) {
		t.Helper()
		want, _ := decodeAny(item.Value)
		have, err := decodeAny(got)
		if err != nil {
			t.Fatal(err)
		}
		if d := m.differ(want, have, "value"); d != "" {
			t.Error(d)
		}
	}
	l.each(t, "prompt-accepted", func(t *testing.T, item recorded) {
		switch item.Name {
		case "own_number_history_prompt_0":
			value(t, item, firstOf(entry(t), "number"))
		case "front_number_is_negative":
			o, _ := readObject(last)
			value(t, item, encode(numberOrder(firstOf(o, "number")) < 0))
		case "extra_data_in_history":
			value(t, item, firstOf(entry(t), "extra_data"))
		case "numbers_as_text_in_history":
			value(t, item, firstOf(entry(t), "inputs of 1"))
		case "big_seed_in_history":
			inputs, _ := readObject(firstOf(entry(t), "inputs of 3"))
			value(t, item, firstOf(inputs, "seed"))
			if string(firstOf(inputs, "seed")) != string(item.Value) {
				t.Errorf("seed %s, want %s to the digit", firstOf(inputs, "seed"), item.Value)
			}
		case "partial_outputs":
			value(t, item, firstOf(entry(t), "outputs"))
		default:
			last = replay(t, base, item, m)
		}
	})
}

// waitRecord waits for a prompt to be in history.
func waitRecord(t testing.TB, s *Server, id string) *record {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); runtime.Gosched() {
		s.mu.Lock()
		r := s.history.at(id)
		s.mu.Unlock()
		if r != nil {
			return r
		}
	}
	t.Fatalf("prompt %s is not done", id)
	return nil
}

// replayFiles sends the uploads with pictures of our own.
func replayFiles(t *testing.T, l ledger) {
	_, base := serve(t, Config{Backend: newFake(t, 1, succeed)})
	m := &marks{map[string]string{"<name>": `"picture"`}}
	l.each(t, "files", func(t *testing.T, item recorded) {
		var body struct{ Multipart map[string]string }
		if item.Request.Body == nil || json.Unmarshal(item.Request.Body, &body) != nil {
			replay(t, base, item, m)
			return
		}
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		for _, k := range slices.Sorted(maps.Keys(body.Multipart)) {
			v := m.inText(body.Multipart[k])
			if k != "image" {
				_ = w.WriteField(k, v)
				continue
			}
			height := 8
			if item.Name == "upload_same_name_other_content" {
				height = 9
			}
			part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {fmt.Sprintf(`form-data; name="image"; filename=%q`, v)}})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = part.Write(emptyPicture("png", 8, height, 2))
		}
		_ = w.Close()
		req, err := http.NewRequestWithContext(t.Context(), item.Request.Method, base+item.Request.Path, &b)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", w.FormDataContentType())
		compareAnswer(t, req, item, m)
	})
}

// TestFrontendLoads asks for what the web frontend asks for while it loads: whatever
// is not a file of its own is answered.
func TestFrontendLoads(t *testing.T) {
	b := newFake(t, 1, succeed)
	b.answers = map[string][]byte{"/": []byte("<html>")}
	_, base := serve(t, Config{Backend: b})
	raw, err := os.ReadFile("testdata/recordings/frontend-load.json")
	if err != nil {
		t.Fatal(err)
	}
	var load struct{ Paths []string }
	if err := json.Unmarshal(raw, &load); err != nil {
		t.Fatal(err)
	}
	for _, p := range load.Paths {
		want := http.StatusOK
		switch {
		case strings.HasPrefix(p, "/api/userdata"), !strings.HasPrefix(p, "/api/") && p != "/" && p != "/ws":
			want = http.StatusNotFound // nothing is stored yet; files of the frontend are a worker's
		case p == "/ws":
			want = http.StatusUpgradeRequired
		}
		resp, err := http.Get(base + p)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", p, resp.StatusCode, want)
		}
	}
}
