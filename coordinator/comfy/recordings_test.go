// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
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

func TestPromptErrorsRecorded(t *testing.T) {
	b := newFake(t, 0, succeed)
	_, base := serve(t, Config{Backend: b})
	for _, item := range recording(t, "prompt-errors") {
		t.Run(item.Name, func(t *testing.T) {
			if deviations["prompt-errors/"+item.Name] != "" {
				item.Response.Body = bytes.Replace(item.Response.Body, []byte("Node ID '#7'"),
					[]byte("Node ID '#7': no ComfyUI worker has NoSuchNode; add one that does with `distorch comfy add URL`"), 1)
			}
			replay(t, base, item, &marks{map[string]string{"<seed>": "1"}})
		})
	}
}
