// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// FuzzPrompt: whatever is posted is answered 200, 400 or 500, a valid prompt is JSON
// that validates again to the same, and its answer is JSON.
func FuzzPrompt(f *testing.F) {
	for _, file := range []string{"prompt-errors", "prompt-accepted"} {
		for _, item := range recording(f, file) {
			if item.Request != nil && len(item.Request.Body) > 0 {
				f.Add([]byte(item.Request.Body))
			}
		}
	}
	for _, s := range []string{`{"prompt":{"2":{"class_type":"PreviewImage","inputs":{"images":["2",0]}}}}`, `[]`, `"prompt"`, `{"prompt":{"1":{"class_type":"SaveImage","inputs":{"filename_prefix":{"__value__":[1]}}}},"number":"1e3","partial_execution_targets":"1"}`} {
		f.Add([]byte(s))
	}
	s, err := New(Config{Backend: newFake(f, 0, succeed), Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e, answered, refused, err := s.read(body)
		switch {
		case err != nil:
			return
		case refused != nil:
			if !json.Valid(refused.body()) {
				t.Fatalf("refused with %s", refused.body())
			}
			return
		}
		if !json.Valid(answered) || !json.Valid(e.item()) {
			t.Fatalf("answered %s for %s", answered, e.item())
		}
		again := fields("prompt", jsontext.Value(e.prompt.Graph), "partial_execution_targets", e.prompt.Outputs, "number", e.number).value()
		e2, _, refused, err := s.read(again)
		if err != nil || refused != nil {
			t.Fatalf("%s is not valid again: %v, %v", again, refused, err)
		}
		if string(e2.prompt.Graph) != string(e.prompt.Graph) || e2.order != e.order {
			t.Fatalf("%s is %s the second time", e.prompt.Graph, e2.prompt.Graph)
		}
	})
}

// FuzzObjectInfo: what a worker says of a class is read or refused.
func FuzzObjectInfo(f *testing.F) {
	for _, info := range recordedClasses(f) {
		f.Add([]byte(info))
	}
	for _, info := range testClasses() {
		f.Add([]byte(info))
	}
	f.Fuzz(func(t *testing.T, info []byte) {
		c, err := readClass("X", info)
		if err != nil {
			return
		}
		v := testValidation(nil)
		v.class = func(string) (*class, error) { c.output = true; return c, nil }
		if _, _, err := v.check(jsontext.Value(`{"1":{"class_type":"X","inputs":{"a":1,"image":"b","model":["1",0]}}}`), func(string) bool { return true }); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzFrames: whatever a worker sends, clients get frames and history stays JSON.
func FuzzFrames(f *testing.F) {
	for _, item := range recording(f, "ws") {
		for _, raw := range item.Frames {
			var m Message
			if json.Unmarshal(raw, &m) == nil {
				f.Add(m.Type, []byte(m.Data), []byte{0, 0, 0, 4, 0, 0, 0, 2, '{', '}', 1})
			}
		}
	}
	s, err := New(Config{Backend: newFake(f, 0, succeed), Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind string, data, binaryFrame []byte) {
		e := &entry{prompt: &Prompt{ID: "p"}, number: jsontext.Value("0"), shown: jsontext.Value("{}"), extra: jsontext.Value("{}"), client: "c", hasClient: true}
		k := newSocket("c", func() {})
		s.hub.join(k)
		r := newRun(s, e)
		r.Text(Message{kind, data})
		r.Binary(binaryFrame)
		r.Text(Message{kind, data})
		if rec := r.end(nil); !json.Valid(rec.value()) || !json.Valid(rec.job.object().value()) {
			t.Fatalf("history %s", rec.value())
		}
		frames, _ := k.take()
		for _, fr := range frames {
			if !fr.binary && !json.Valid(fr.data) {
				t.Fatalf("frame %q", fr.data)
			}
			if fr.binary && len(fr.data) >= 8 && binary.BigEndian.Uint32(fr.data) == eventPreviewDescribe {
				t.Fatal("a client that did not ask for it got a preview with its node")
			}
		}
	})
}

// FuzzUploadNames: a name that is accepted stays in its folder.
func FuzzUploadNames(f *testing.F) {
	for _, s := range []string{"x.png", "../x", `a\b`, "a/../../b", "C:/x", "/x", ".", "x [output]"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, name, sub string) {
		if (FileRef{name, sub, "input"}).Check() == nil && !localPath(sub, name) {
			t.Errorf("%q in %q leads out", name, sub)
		}
		if ref, err := annotated(name, "input"); err == nil && !localPath(ref.Subfolder, ref.Name) {
			t.Errorf("%q leads out: %+v", name, ref)
		}
	})
}

// localPath is a second opinion on whether a path stays inside: it walks it.
func localPath(sub, name string) bool {
	depth := 0
	part := ""
	for _, r := range sub + "/" + name + "/" {
		if r != '/' && r != '\\' {
			part += string(r)
			continue
		}
		switch part {
		case "", ".":
		case "..":
			depth--
		default:
			depth++
		}
		if depth < 0 {
			return false
		}
		part = ""
	}
	return depth > 0 && (sub == "" || sub[0] != '/' && sub[0] != '\\')
}
