// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// script plays a worker's part in one run.
type script func(ctx context.Context, p *Prompt, sink Sink, interrupted <-chan struct{}) error

// fakeBackend is a pool whose workers play scripts.
type fakeBackend struct {
	classes map[string]json.RawMessage
	play    script
	answers map[string][]byte // of Get, by path; nil body is 404

	mu      sync.Mutex
	free    int
	has     func(p *Prompt) bool // nil: every worker can run all
	changed chan struct{}
	files   map[FileRef][]byte
	frees   [][]byte
	begun   []string // prompt ids in the order of Reserve
	never   chan struct{}
}

func newFake(t testing.TB, workers int, play script) *fakeBackend {
	t.Helper()
	return &fakeBackend{classes: recordedClasses(t), play: play, free: workers, changed: make(chan struct{}), never: make(chan struct{}), files: map[FileRef][]byte{}}
}

func (b *fakeBackend) ObjectInfo() (map[string]json.RawMessage, <-chan struct{}) {
	return b.classes, b.never
}

func (b *fakeBackend) Check(p *Prompt) error {
	for _, c := range p.Classes {
		if _, ok := b.classes[c]; !ok {
			return &NoWorkerError{Classes: []string{c}}
		}
	}
	return nil
}

func (b *fakeBackend) Reserve(p *Prompt) (Lease, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.free == 0:
		return nil, ErrNoneFree
	case b.has != nil && !b.has(p):
		return nil, ErrBusy
	}
	b.free--
	b.begun = append(b.begun, p.ID)
	return &fakeLease{b: b, p: p, asked: make(chan struct{})}, nil
}

// change is told by the backend's user, with what is to change.
func (b *fakeBackend) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *fakeBackend) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

func (b *fakeBackend) HasFile(f FileRef) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.files[f]
	return ok
}

func response(status int, kind string, body []byte) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(bytes.NewReader(body))}
}

// View shows a file as a worker would, but for the work on pictures, of which it
// gives an empty one of the right kind.
func (b *fakeBackend) View(_ context.Context, v View) (*http.Response, error) {
	b.mu.Lock()
	body, ok := b.files[v.File]
	b.mu.Unlock()
	if !ok {
		return response(http.StatusNotFound, "", nil), nil
	}
	kind, status := "image/png", http.StatusOK
	switch preview, _, _ := strings.Cut(v.Query.Get("preview"), ";"); {
	case preview == "jpeg":
		kind, body = "image/jpeg", emptyPicture("jpeg", 8, 8, 2)
	case preview != "":
		kind, body = "image/webp", []byte("RIFF\x04\x00\x00\x00WEBP")
	case v.Query.Get("channel") == "a":
		body = emptyPicture("png", 8, 8, 6)
	}
	var first, last int
	if n, _ := fmt.Sscanf(v.Range, "bytes=%d-%d", &first, &last); n == 2 {
		status, body = http.StatusPartialContent, body[first:last+1]
	}
	r := response(status, kind, body)
	r.Header.Set("Content-Disposition", `filename="`+v.File.Name+`"`)
	return r, nil
}

func (b *fakeBackend) Upload(_ context.Context, u *Upload) (FileRef, error) {
	body, err := io.ReadAll(u.Content)
	if err != nil {
		return FileRef{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ref := u.FileRef
	ext := path.Ext(ref.Name)
	for i := 1; !u.Overwrite; i++ {
		old, ok := b.files[ref]
		if !ok || sha256.Sum256(old) == sha256.Sum256(body) {
			break
		}
		ref.Name = fmt.Sprintf("%s (%d)%s", strings.TrimSuffix(u.Name, ext), i, ext)
	}
	b.files[ref] = body
	return ref, nil
}

func (b *fakeBackend) Get(_ context.Context, at string, _ url.Values) (*http.Response, error) {
	body, ok := b.answers[at]
	if !ok {
		return nil, &NoWorkerError{}
	}
	if body == nil {
		return response(http.StatusNotFound, "", nil), nil
	}
	kind := "application/json; charset=utf-8"
	if at == "/" {
		kind = "text/html"
	}
	r := response(http.StatusOK, kind, body)
	r.Header.Set("Cache-Control", "no-cache")
	return r, nil
}

func (b *fakeBackend) Free(_ context.Context, body json.RawMessage) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.frees = append(b.frees, body)
	return nil
}

func (b *fakeBackend) Stats() SystemStats {
	return SystemStats{
		System: SystemInfo{OS: "posix", RAMTotal: 1 << 34, RAMFree: 1 << 33, ComfyUIVersion: "0.3.64", RequiredFrontendVersion: "1.27.10",
			InstalledTemplatesVersion: "0.1.95", RequiredTemplatesVersion: "0.1.95", PythonVersion: "3.11.2", PyTorchVersion: "2.8.0", Argv: []string{"main.py"}},
		Devices: []DeviceStats{{Name: "cpu", Type: "cpu", VRAMTotal: 1 << 34, VRAMFree: 1 << 33, TorchVRAMTotal: 1 << 34, TorchVRAMFree: 1 << 33}},
	}
}

type fakeLease struct {
	b     *fakeBackend
	p     *Prompt
	once  sync.Once
	asked chan struct{}
}

func (l *fakeLease) Worker() string { return "fake" }
func (l *fakeLease) Run(ctx context.Context, sink Sink) error {
	return l.b.play(ctx, l.p, sink, l.asked)
}
func (l *fakeLease) Interrupt() { l.once.Do(func() { close(l.asked) }) }
func (l *fakeLease) Release()   { l.b.change(func() { l.b.free++ }) }

// succeed executes every node at once.
func succeed(_ context.Context, p *Prompt, sink Sink, _ <-chan struct{}) error {
	say(sink, "execution_start", `{"prompt_id":%q,"timestamp":%d}`, p.ID, time.Now().UnixMilli())
	say(sink, "execution_cached", `{"nodes":[],"prompt_id":%q,"timestamp":%d}`, p.ID, time.Now().UnixMilli())
	for _, o := range p.Outputs {
		say(sink, "executing", `{"node":%q,"display_node":%q,"prompt_id":%q}`, o, o, p.ID)
		say(sink, "executed", `{"node":%q,"display_node":%q,"output":{"images":[{"filename":"ComfyUI_temp_abcde_00001_.png","subfolder":"","type":"temp"}]},"prompt_id":%q}`, o, o, p.ID)
	}
	say(sink, "execution_success", `{"prompt_id":%q,"timestamp":%d}`, p.ID, time.Now().UnixMilli())
	return nil
}

func say(sink Sink, kind, format string, args ...any) {
	sink.Text(Message{kind, json.RawMessage(fmt.Sprintf(format, args...))})
}

// recordedClasses are the classes of object-info.json, with the files that the
// recorded prompts name, and ImageInvert, which one of them has besides.
func recordedClasses(t testing.TB) map[string]json.RawMessage {
	t.Helper()
	classes := map[string]json.RawMessage{}
	for _, item := range recording(t, "object-info") {
		if item.Name == "all" {
			continue
		}
		var one map[string]json.RawMessage
		if err := json.Unmarshal(item.Response.Body, &one); err != nil {
			t.Fatal(err)
		}
		for name, info := range one {
			file := map[string]string{"UNETLoader": "<unet>", "CLIPLoader": "<clip>", "VAELoader": "<vae>"}[name]
			if file != "" {
				info = bytes.ReplaceAll(info, []byte("<file>"), []byte(file))
			}
			classes[name] = info
		}
	}
	classes["ImageInvert"] = json.RawMessage(`{"input":{"required":{"image":["IMAGE"]}},"input_order":{"required":["image"]},"output":["IMAGE"],"output_is_list":[false],"output_name":["IMAGE"],"name":"ImageInvert","display_name":"Invert Image","description":"","python_module":"nodes","category":"image","output_node":false}`)
	return classes
}

// recorded is one item of a recording.
type recorded struct {
	Name    string
	Request *struct {
		Method, Path string
		Headers      map[string]string
		Body         json.RawMessage
	}
	Response struct {
		Status  int
		Headers map[string]string
		Body    json.RawMessage
	}
	Value   json.RawMessage
	Frames  []json.RawMessage
	History map[string]json.RawMessage
}

func recording(t testing.TB, name string) (items []recorded) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "recordings", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &items); err != nil {
		t.Fatal(err)
	}
	return items
}

// serve runs a server until the test ends and returns its address.
func serve(t testing.TB, cfg Config) (*Server, string) {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, "http://" + l.Addr().String()
}
