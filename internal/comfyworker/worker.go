// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package comfyworker is a ComfyUI without Python, for tests and benchmarks: it
// answers the routes that a client of ComfyUI uses and says on its sockets what a
// real one was recorded to say, while its nodes compute nothing.
//
// Tests and bench import it. It imports nothing of distorch.
package comfyworker

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// classes are node classes of ComfyUI 0.3.64, texts and file lists left out.
//
//go:embed classes.json
var classes []byte

// Config of a Worker. What is zero takes a default.
type Config struct {
	// Files are what loaders list, by class.input: "UNETLoader.unet_name".
	Files map[string][]string
	// Classes are further node classes, or others in the place of the usual ones;
	// one that is null is left out.
	Classes map[string]json.RawMessage
	// Node is called while a node runs, from the one goroutine that runs prompts;
	// its error is the node's exception. step is 0, or counts the steps of a sampler
	// from 1. An interrupt ends ctx.
	Node func(ctx context.Context, n Node, step int) error
	// Begin is how long a prompt takes before its first message. A real ComfyUI needs
	// some milliseconds, and clients have races that they win by these alone.
	Begin   time.Duration
	Version string
}

// Node is a node that runs.
type Node struct {
	Prompt, ID, Class string
	Inputs            map[string]json.RawMessage
}

// Worker is one scripted ComfyUI. Its fields are read while it runs under its lock.
type Worker struct {
	cfg     Config
	classes map[string]json.RawMessage
	server  *http.Server
	address string
	stop    context.CancelFunc
	done    chan struct{}

	mu        sync.Mutex
	changed   chan struct{} // closed when the queue grows
	sockets   map[string]*session
	pending   []*item
	running   *item
	number    int
	history   []*item
	cache     map[string]json.RawMessage // ui output by signature of a node
	files     map[string][]byte          // by type/subfolder/name
	counters  map[string]int
	prompts   []json.RawMessage
	uploads   int
	freed     int
	node      string // that runs
	interrupt context.CancelFunc
}

// item is one prompt.
type item struct {
	number   float64
	id       string
	prompt   json.RawMessage
	nodes    map[string]Node
	order    []string
	extra    map[string]json.RawMessage
	outputs  []string
	client   string
	ui       map[string]json.RawMessage
	messages []any
	state    string
}

// Start listens on a port of loopback.
func Start(cfg Config) (*Worker, error) {
	if cfg.Version == "" {
		cfg.Version = "0.3.64"
	}
	w := &Worker{
		cfg: cfg, done: make(chan struct{}), changed: make(chan struct{}, 1), sockets: map[string]*session{},
		cache: map[string]json.RawMessage{}, files: map[string][]byte{}, counters: map[string]int{},
	}
	if err := json.Unmarshal(classes, &w.classes); err != nil {
		return nil, err
	}
	for name, c := range cfg.Classes {
		if string(c) == "null" {
			delete(w.classes, name)
			continue
		}
		w.classes[name] = c
	}
	w.fill()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w.serve(l)
	return w, nil
}

// Restart listens again on the port that a killed worker had: the same machine with
// a new process.
func Restart(cfg Config, address string) (*Worker, error) {
	w, err := Start(cfg)
	if err != nil {
		return nil, err
	}
	w.Kill()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	w.done = make(chan struct{})
	w.serve(l)
	return w, nil
}

func (w *Worker) serve(l net.Listener) {
	ctx, stop := context.WithCancel(context.Background())
	w.stop, w.address = stop, l.Addr().String()
	w.server = &http.Server{Handler: w.routes(), ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := w.server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			stop()
		}
	}()
	go func() {
		defer close(w.done)
		w.work(ctx)
		<-served
	}()
}

// fill puts the configured files into the loaders' lists.
func (w *Worker) fill() {
	for name, raw := range w.classes {
		var info map[string]any
		if json.Unmarshal(raw, &info) != nil {
			continue
		}
		in, _ := info["input"].(map[string]any)
		for _, group := range []string{"required", "optional"} {
			inputs, _ := in[group].(map[string]any)
			for input, spec := range inputs {
				l, _ := spec.([]any)
				if len(l) == 0 {
					continue
				}
				choices, isList := l[0].([]any)
				files, set := w.cfg.Files[name+"."+input]
				if !isList || !set && !(len(choices) == 1 && choices[0] == "<file>") {
					continue
				}
				l[0] = append([]string{}, files...)
			}
		}
		if raw, err := json.Marshal(info); err == nil {
			w.classes[name] = raw
		}
	}
}

// URL is where it answers.
func (w *Worker) URL() string { return "http://" + w.address }

// Address is host:port.
func (w *Worker) Address() string { return w.address }

// Kill ends it as the end of its process would: connections break, nothing is said.
func (w *Worker) Kill() {
	_ = w.server.Close() //nolint:errcheck // it is gone in any case
	w.mu.Lock()
	for _, s := range w.sockets {
		s.abort()
	}
	w.mu.Unlock()
	w.stop()
	<-w.done
}

// BreakSockets ends the sockets and nothing else, as a flaky network does.
func (w *Worker) BreakSockets() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, s := range w.sockets {
		s.abort()
		delete(w.sockets, id)
	}
}

// Prompts are the prompts that were queued, as they came.
func (w *Worker) Prompts() []json.RawMessage {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.prompts)
}

// Executed counts the prompts that ended well.
func (w *Worker) Executed() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range w.history {
		if it.state == "success" {
			n++
		}
	}
	return n
}

// Uploads counts files that clients gave it; Freed the calls of /free.
func (w *Worker) Uploads() int { w.mu.Lock(); defer w.mu.Unlock(); return w.uploads }

// Freed counts the calls of /free.
func (w *Worker) Freed() int { w.mu.Lock(); defer w.mu.Unlock(); return w.freed }

// Put gives it a file, as one that its user has put there.
func (w *Worker) Put(kind, subfolder, name string, content []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[key(kind, subfolder, name)] = content
}

// Files are the names of its files, sorted.
func (w *Worker) Files() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.files))
}

func key(kind, subfolder, name string) string {
	return kind + "/" + strings.Trim(subfolder+"/"+name, "/")
}

// session is one client's socket. Frames wait in it without bound.
type session struct {
	conn     *websocket.Conn
	metadata bool // previews may carry the node's id
	mu       sync.Mutex
	frames   []frame
	ready    chan struct{}
	gone     bool
}

type frame struct {
	binary bool
	body   []byte
}

func (s *session) abort() {
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	s.poke()
	_ = s.conn.CloseNow() //nolint:errcheck // the other side may be gone
}

func (s *session) poke() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *session) push(f frame) {
	s.mu.Lock()
	s.frames = append(s.frames, f)
	s.mu.Unlock()
	s.poke()
}

func (s *session) write(ctx context.Context) {
	for {
		s.mu.Lock()
		frames, gone := s.frames, s.gone
		s.frames = nil
		s.mu.Unlock()
		if gone {
			return
		}
		for _, f := range frames {
			kind := websocket.MessageText
			if f.binary {
				kind = websocket.MessageBinary
			}
			if s.conn.Write(ctx, kind, f.body) != nil {
				return
			}
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return
		}
	}
}

// send gives a message to one client, or to all if client is "". The lock is held.
func (w *Worker) send(client, kind string, data any) {
	body, err := json.Marshal(struct {
		Type string `json:"type"`
		Data any    `json:"data"`
	}{kind, data})
	if err != nil {
		panic(fmt.Sprintf("comfyworker: %s: %v", kind, err)) // data is made here
	}
	w.deliver(client, frame{body: body})
}

func (w *Worker) deliver(client string, f frame) {
	for id, s := range w.sockets {
		if client == "" || id == client {
			s.push(f)
		}
	}
}

func (w *Worker) status() map[string]any {
	n := len(w.pending)
	if w.running != nil {
		n++
	}
	return map[string]any{"exec_info": map[string]any{"queue_remaining": n}}
}

func (w *Worker) sendStatus() {
	w.send("", "status", map[string]any{"status": w.status()})
}

// Forget loses all files that clients gave it.
func (w *Worker) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.files, func(name string, _ []byte) bool { return strings.HasPrefix(name, "input/") })
}
