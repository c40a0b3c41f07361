// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// endless is a body of n bytes that is made as it is read.
func endless(n int64) io.Reader { return io.LimitReader(zeros{}, n) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// TestBodies: what is too large, too deep or no JSON is refused, and the server goes on.
func TestBodies(t *testing.T) {
	b := newFake(t, 1, succeed)
	s, base := serve(t, Config{Backend: b, MaxUploadBytes: 4 << 20})
	picture := func(size int64) (io.Reader, string) {
		head := "--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"x.png\"\r\n\r\n"
		return io.MultiReader(strings.NewReader(head), endless(size), strings.NewReader("\r\n--b--\r\n")), "multipart/form-data; boundary=b"
	}
	large, multi := picture(8 << 20)
	long := "--b\r\nContent-Disposition: form-data; name=\"subfolder\"\r\n\r\n" + strings.Repeat("a", maxFormField+1) + "\r\n--b--\r\n"
	many := strings.Repeat("--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\nv\r\n", maxFormParts+1) + "--b--\r\n"
	for _, tc := range []struct {
		name, path, kind string
		body             io.Reader
		length           int64 // 0: chunked
		want             int
	}{
		{"declared too large", "/prompt", "", endless(5 << 20), 5 << 20, http.StatusRequestEntityTooLarge},
		{"too large in chunks", "/prompt", "", endless(5 << 20), 0, http.StatusRequestEntityTooLarge},
		{"too large for a setting", "/settings/x", "", endless(5 << 20), 0, http.StatusRequestEntityTooLarge},
		{"too large for user data", "/userdata/x", "", endless(5 << 20), 0, http.StatusRequestEntityTooLarge},
		{"too large a picture", "/upload/image", multi, large, 0, http.StatusRequestEntityTooLarge},
		{"too long a field", "/upload/image", multi, strings.NewReader(long), 0, http.StatusBadRequest},
		{"too many fields", "/upload/image", multi, strings.NewReader(many), 0, http.StatusBadRequest},
		{"a picture that ends early", "/upload/image", multi, strings.NewReader("--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"x.png\"\r\n\r\nabc"), 0, http.StatusBadRequest},
		{"blanks", "/prompt", "", endless(3 << 20), 0, http.StatusInternalServerError},
		{"deep lists", "/prompt", "", strings.NewReader(strings.Repeat("[", 1<<20)), 0, http.StatusInternalServerError},
		{"a deep value", "/prompt", "", strings.NewReader(`{"prompt":{"1":{"class_type":"EmptyImage","inputs":{"width":` + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + `}}}}`), 0, http.StatusInternalServerError},
		{"no UTF-8", "/prompt", "", strings.NewReader("{\"prompt\":{\"1\xff\":{}}}"), 0, http.StatusInternalServerError},
		{"a number of a million digits", "/prompt", "", strings.NewReader(`{"prompt":{},"number":` + strings.Repeat("9", 1_000_000) + `}`), 0, http.StatusInternalServerError},
		{"an input of a million digits", "/prompt", "", strings.NewReader(`{"prompt":{"1":{"class_type":"EmptyImage","inputs":{"width":` + strings.Repeat("9", 1_000_000) + `}},"2":{"class_type":"PreviewImage","inputs":{"images":["1",0]}}}}`), 0, http.StatusBadRequest},
		{"two values", "/prompt", "", strings.NewReader(`{}{}`), 0, http.StatusInternalServerError},
		{"NaN", "/prompt", "", strings.NewReader(`{"prompt":{},"number":NaN}`), 0, http.StatusInternalServerError},
		{"a list of ids that is none", "/queue", "", strings.NewReader(`{"delete":5}`), 0, http.StatusInternalServerError},
		{"extra data that is a list", "/prompt", "", strings.NewReader(`{"prompt":{},"extra_data":[]}`), 0, http.StatusInternalServerError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+tc.path, tc.body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = tc.length
			if tc.length == 0 {
				req.ContentLength = -1
			}
			req.Header.Set("Content-Type", tc.kind)
			resp, err := http.DefaultClient.Do(req)
			if err != nil && tc.want == http.StatusRequestEntityTooLarge {
				return // the connection ended while the body was still being sent
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tc.want {
				t.Errorf("status %d, want %d: %.200s", resp.StatusCode, tc.want, body)
			}
		})
	}
	left, err := os.ReadDir(filepath.Join(s.cfg.Dir, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("%d files of refused uploads are left (%v)", len(left), err)
	}
	post(t, base+"/prompt", imagePrompt("after", ""), http.StatusOK)
	waitRecord(t, s, "after")
}

// TestCutOffUploads: an upload that an earlier process was killed in is removed.
func TestCutOffUploads(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "tmp", "upload-1")
	if err := errors.Join(os.Mkdir(filepath.Dir(left), 0o700), os.WriteFile(left, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	serve(t, Config{Backend: newFake(t, 0, nil), Dir: dir})
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", left, err)
	}
}

// TestStalledBodies: clients that send the beginning of a body and nothing more hold
// neither the places of uploads nor the room for large bodies.
func TestStalledBodies(t *testing.T) {
	_, base := serve(t, Config{Backend: newFake(t, 0, nil), MaxUploadBytes: 2 << 20, BodyPause: 50 * time.Millisecond})
	for i := range uploadsAtOnce + 1 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		head := "POST /upload/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n--b"
		if i == uploadsAtOnce {
			head = "POST /prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2097152\r\n\r\n{"
		}
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		answered, err := bufio.NewReader(c).ReadString('\n') // so that the next is behind it
		if err != nil || !strings.Contains(answered, " 400 ") {
			t.Fatalf("a stalled client got %q (%v)", answered, err)
		}
	}
}

// TestTenThousandPrompts: what they hold while they wait, and how fast they come and go.
func TestTenThousandPrompts(t *testing.T) {
	const n = 10_000
	b := newFake(t, 0, succeed)
	s, base := serve(t, Config{Backend: b})
	watcher := connect(t, base, "watcher", false)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, start := heap(), time.Now()
	h := s.handler()
	for i := range n {
		w := &discard{header: http.Header{}}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/prompt", bytes.NewReader(imagePrompt(fmt.Sprint(i), "")))
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = "127.0.0.1:1"
		if h.ServeHTTP(w, r); w.status != http.StatusOK {
			t.Fatalf("prompt %d: status %d", i, w.status)
		}
	}
	in := time.Since(start)
	held := (int64(heap()) - int64(before)) / n
	s.mu.Lock()
	counted := s.queue.bytes / n
	s.mu.Unlock()
	start = time.Now()
	if q := get(t, base+"/queue"); bytes.Count(q, []byte("EmptyImage")) != n {
		t.Error("not all are listed")
	}
	listed := time.Since(start)
	start = time.Now()
	b.change(func() { b.free = 3 })
	for last := ""; last != `{"type":"status","data":{"status":{"exec_info":{"queue_remaining":0}}}}`; { // the watcher is not dropped
		_, raw := watcher.next()
		last = string(raw)
	}
	t.Logf("queued %.0f/s, listed in %s, run %.0f/s; %d bytes each (counted as %d)", n/in.Seconds(), listed.Round(time.Millisecond), n/time.Since(start).Seconds(), held, counted)
	if held > 3*counted {
		t.Errorf("a prompt holds %d bytes and is counted as %d", held, counted)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, id := range b.begun {
		if id != fmt.Sprint(i) {
			t.Fatalf("prompt %s was the %dth to run", id, i)
		}
	}
}

func (s *Server) remaining() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.remaining()
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// TestSocketThatNeverReads: it is dropped when its backlog is full, and neither the
// run nor other clients wait for it.
func TestSocketThatNeverReads(t *testing.T) {
	const frames, size = 100, 1 << 20
	picture := append([]byte{0, 0, 0, 1, 0, 0, 0, 1}, make([]byte, size)...)
	var sleeper atomic.Pointer[socket]
	s, base := serve(t, Config{Backend: newFake(t, 1, func(_ context.Context, _ *Prompt, sink Sink, _ <-chan struct{}) error {
		taken := func() bool { // by the writer, which hangs when it takes longer
			k := sleeper.Load()
			for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); runtime.Gosched() {
				k.mu.Lock()
				n := len(k.waiting)
				k.mu.Unlock()
				if n == 0 {
					return true
				}
			}
			return false
		}
		for taken() {
			sink.Binary(picture)
		}
		for range frames {
			sink.Binary(picture)
		}
		return nil
	})})
	// A socket with a small buffer that says hello and then nothing.
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /ws?clientId=sleeper HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	joined := func() bool {
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		k := s.hub.sockets["sleeper"]
		if k != nil {
			sleeper.Store(k)
		}
		return k != nil
	}
	for !joined() {
		runtime.Gosched()
	}
	other := connect(t, base, "other", false)
	post(t, base+"/prompt", imagePrompt("a", `,"client_id":"sleeper"`), http.StatusOK)
	waitRecord(t, s, "a")
	start := time.Now()
	for joined() { // until its writer is done
		runtime.Gosched()
	}
	if waited := time.Since(start); waited > writeTime/2 {
		t.Errorf("dropped after %s", waited)
	}
	if !s.sockets.TryAcquire(int64(s.cfg.MaxSockets) - 1) {
		t.Error("the dropped socket still counts")
	}
	for { // the other client got everything
		if _, raw := other.next(); bytes.Contains(raw, []byte(`"queue_remaining":0}}}`)) && !bytes.Contains(raw, []byte("sid")) {
			break
		}
	}
}

// TestTooManySockets: one more than allowed is refused, and one that ends makes room.
func TestTooManySockets(t *testing.T) {
	_, base := serve(t, Config{Backend: newFake(t, 1, succeed), MaxSockets: 2})
	first := connect(t, base, "a", false)
	connect(t, base, "b", false)
	at := "ws" + strings.TrimPrefix(base, "http") + "/ws"
	if _, resp, err := websocket.Dial(t.Context(), at, nil); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%v, %v", resp, err)
	}
	_ = first.c.Close(websocket.StatusNormalClosure, "")
	for {
		if c, _, err := websocket.Dial(t.Context(), at, nil); err == nil {
			_ = c.CloseNow()
			return
		}
	}
}

// TestSocketThatIsNone: a request without an upgrade does not take a client's socket away.
func TestSocketThatIsNone(t *testing.T) {
	s, base := serve(t, Config{Backend: newFake(t, 1, succeed)})
	c := connect(t, base, "me", false)
	c.next()
	resp, err := http.Get(base + "/ws?clientId=me")
	if err != nil || resp.StatusCode != http.StatusUpgradeRequired {
		t.Fatal(resp, err)
	}
	s.hub.send("me", textFrame("hello", encode(nil)))
	if _, raw := c.next(); string(raw) != `{"type":"hello","data":null}` {
		t.Errorf("%s", raw)
	}
}

// TestStatusOfALaggingSocket: statuses that wait are told as one, other frames are kept.
func TestStatusOfALaggingSocket(t *testing.T) {
	s := newSocket("x", func() {})
	for i := range laggingFrames {
		s.queue(frame{data: []byte{byte(i)}})
	}
	for i := range 1000 {
		s.queue(statusFrame(i, ""))
	}
	s.queue(frame{data: []byte("end")})
	frames, ok := s.take()
	if !ok || len(frames) != laggingFrames+2 || !strings.Contains(string(frames[laggingFrames].data), ":999}") || string(frames[laggingFrames+1].data) != "end" {
		t.Errorf("%d frames wait", len(frames))
	}
}

// TestGuard: who may ask.
func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		name                string
		remote, local, host string
		origin, site        string
		want                int
		allow               string
		origins             []string
		wantOrigin          string
	}{
		{name: "loopback", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "127.0.0.1:8188", want: 200},
		{name: "loopback of IPv6", remote: "[::1]:9", local: "[::1]:8188", host: "[::1]:8188", want: 200},
		{name: "another network", remote: "192.168.1.5:9", local: "192.168.1.2:8188", host: "192.168.1.2:8188", want: 403},
		{name: "an allowed network", remote: "192.168.1.5:9", local: "192.168.1.2:8188", host: "big.lan:8188", allow: "192.168.1.0/24", want: 200},
		{name: "an allowed network over IPv6", remote: "[::ffff:192.168.1.5]:9", local: "192.168.1.2:8188", host: "x", allow: "192.168.1.0/24", want: 200},
		{name: "its own page", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "localhost:8188", origin: "http://localhost:8188", site: "same-origin", want: 200},
		{name: "another port's page", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "localhost:8188", origin: "http://localhost:3000", want: 403},
		{name: "an origin without a port", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "localhost:8188", origin: "http://localhost", want: 200},
		{name: "another page", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "127.0.0.1:8188", origin: "http://evil.example", want: 403},
		{name: "another page without an origin", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "127.0.0.1:8188", site: "cross-site", want: 403},
		{name: "a page of another host in an allowed network", remote: "10.0.0.5:9", local: "10.0.0.2:8188", host: "10.0.0.2:8188", origin: "http://evil.example", allow: "10.0.0.0/8", want: 403},
		{name: "a named page", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "127.0.0.1:8188", origin: "https://ui.example", site: "cross-site", origins: []string{"https://ui.example"}, want: 200, wantOrigin: "https://ui.example"},
		{name: "any page", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "127.0.0.1:8188", origin: "https://ui.example", origins: []string{"*"}, want: 200, wantOrigin: "https://ui.example"},
		{name: "a name that was pointed at loopback", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "evil.example:8188", origin: "http://evil.example:8188", want: 403},
		{name: "a proxy's name", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "ui.example", origins: []string{"https://ui.example"}, want: 200},
		{name: "a page without a host", remote: "127.0.0.1:9", local: "127.0.0.1:8188", host: "127.0.0.1:8188", origin: "null", want: 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{Backend: newFake(t, 1, succeed), Dir: t.TempDir(), Origins: tc.origins}
			if tc.allow != "" {
				cfg.Allow = []netip.Prefix{netip.MustParsePrefix(tc.allow)}
			}
			s, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.root.Close()
			local := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tc.local))
			ctx := context.WithValue(t.Context(), http.LocalAddrContextKey, local)
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/prompt", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.RemoteAddr, r.Host = tc.remote, tc.host
			for k, v := range map[string]string{"Origin": tc.origin, "Sec-Fetch-Site": tc.site} {
				if v != "" {
					r.Header.Set(k, v)
				}
			}
			w := &discard{header: http.Header{}}
			s.handler().ServeHTTP(w, r)
			if w.status != tc.want || w.header.Get("Access-Control-Allow-Origin") != tc.wantOrigin {
				t.Errorf("status %d, want %d; Access-Control-Allow-Origin %q", w.status, tc.want, w.header.Get("Access-Control-Allow-Origin"))
			}
		})
	}
}

// TestUserDataStaysInside its folder.
func TestUserDataStaysInside(t *testing.T) {
	dir := t.TempDir()
	_, base := serve(t, Config{Backend: newFake(t, 1, succeed), Dir: dir})
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "user", "link")); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"..%2Fsecret", "%2Fetc%2Fpasswd", "a%2F..%2F..%2Fsecret", "link%2Fsecret", "..%5Csecret", "C:%5Cx", "%00", "."} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			req, err := http.NewRequestWithContext(t.Context(), method, base+"/userdata/"+at, strings.NewReader("overwritten"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode < 400 {
				t.Errorf("%s %s: status %d", method, at, resp.StatusCode)
			}
		}
		post(t, base+"/userdata/ok.json", []byte("{}"), http.StatusOK)
		resp, err := http.Post(base+"/userdata/ok.json/move/"+at, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("move to %s: status %d", at, resp.StatusCode)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("%q, %v", b, err)
	}
	if got := string(get(t, base+"/userdata?dir=.&recurse=true")); got != `["ok.json"]` {
		t.Errorf("listed %s", got)
	}
}

// TestUserDataIsBounded in all: a file that is too much is refused and leaves nothing.
func TestUserDataIsBounded(t *testing.T) {
	dir := t.TempDir()
	_, base := serve(t, Config{Backend: newFake(t, 1, succeed), Dir: dir})
	large := filepath.Join(dir, "user", "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, maxUserData-10); err != nil { // a hole, which takes no disk
		t.Fatal(err)
	}
	if got := string(post(t, base+"/userdata/more.json", make([]byte, 11), http.StatusBadRequest)); !strings.Contains(got, "delete some") {
		t.Errorf("answered %q", got)
	}
	post(t, base+"/userdata/fits.json", make([]byte, 10), http.StatusOK)
	if got := string(get(t, base+"/userdata?dir=.&recurse=true")); got != `["fits.json","large"]` {
		t.Errorf("listed %s", got)
	}
}

// TestUploadPlaces: a broken upload changes nothing, and names stay inside.
// TestFilesAreNotPages: nothing that was uploaded runs in a browser as a page of this
// origin, whose requests would pass the guard.
func TestFilesAreNotPages(t *testing.T) {
	for kind, want := range map[string]string{
		"text/html; charset=utf-8": "application/octet-stream", "application/xhtml+xml": "application/octet-stream", "Text/JavaScript": "application/octet-stream",
		"image/svg+xml": "image/svg+xml", "image/png": "image/png", "video/mp4": "video/mp4",
	} {
		t.Run(kind, func(t *testing.T) {
			_, base := serve(t, Config{Backend: kindOfView{newFake(t, 0, nil), kind}})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/view?filename=x", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			if got := resp.Header.Get("Content-Type"); got != want || resp.Header.Get("Content-Security-Policy") != "sandbox" {
				t.Errorf("headers %v, want type %s and a sandbox", resp.Header, want)
			}
		})
	}
}

// kindOfView answers every GET /view with a file of one type.
type kindOfView struct {
	*fakeBackend
	kind string
}

func (k kindOfView) View(context.Context, View) (*http.Response, error) {
	return response(http.StatusOK, k.kind, []byte("x")), nil
}

func TestUploadPlaces(t *testing.T) {
	b := newFake(t, 1, succeed)
	_, base := serve(t, Config{Backend: b})
	for _, tc := range []struct{ name, sub, kind string }{
		{"x.png", "/etc", "input"}, {"x.png", `..\..`, "input"}, {"x.png", "a/../../b", "temp"}, {`a\b.png`, "", "input"},
		{"a/b.png", "", "input"}, {"..", "", "input"}, {"", "", "input"}, {"x.png", "", "models"}, {"x\x00.png", "", "input"}, {"x.png", "C:/x", "input"},
	} {
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		_ = w.WriteField("subfolder", tc.sub)
		_ = w.WriteField("type", tc.kind)
		part, err := w.CreateFormFile("image", tc.name)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = part.Write([]byte("x"))
		_ = w.Close()
		resp, err := http.Post(base+"/upload/image", w.FormDataContentType(), &body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%+v: status %d, want 400", tc, resp.StatusCode)
		}
	}
	if len(b.files) > 0 {
		t.Errorf("files: %v", b.files)
	}
}
