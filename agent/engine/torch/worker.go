// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"bufio"
	"context"
	"embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distorch/distorch/agent/engine"
)

//go:embed worker/*.py
var sources embed.FS

func embedded() ([]Module, error) {
	var out []Module
	for _, name := range []string{"stored", "program", "worker"} { // each after what it imports
		text, err := sources.ReadFile("worker/" + name + ".py")
		if err != nil {
			return nil, err
		}
		out = append(out, Module{name, string(text)})
	}
	return out, nil
}

// The worker's messages, as worker.py makes them.
const (
	protocolVersion = 1
	maxMessage      = 16 << 20 // to the worker
	maxAnswer       = 1 << 20  // from it
)

// Exit codes of the bootstrap: no PyTorch, or one that does not load.
const (
	exitAbsent = 41
	exitBroken = 42
	exitTooOld = 43
)

// bootstrap reads the modules from the standard input, so that nothing of them
// is on disk or on a command line. Isolated mode leaves the user's own site
// packages out, where PyTorch may be.
const bootstrap = `
import sys
n = int(sys.stdin.buffer.readline())
text = sys.stdin.buffer.read(n)
try:
    try:
        import torch
    except ModuleNotFoundError as e:
        if e.name != "torch": raise
        import site
        sys.path.append(site.getusersitepackages())
        import torch
except ModuleNotFoundError as e:
    print(e, file=sys.stderr)
    sys.exit(41 if e.name == "torch" else 42)
except Exception as e:
    print(type(e).__name__, e, file=sys.stderr)
    sys.exit(42)
if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 4):
    print(torch.__version__, file=sys.stderr)
    sys.exit(43)
import json, types
boot = json.loads(text)
for name, source in boot["modules"]:
    m = types.ModuleType(name)
    m.__file__ = "<distorch %s.py>" % name
    sys.modules[name] = m
    exec(compile(source, m.__file__, "exec"), m.__dict__)
m.main(boot["config"])
`

// hello is a worker's first message.
type hello struct {
	Op       string        `json:"op"`
	Protocol int           `json:"protocol"`
	Torch    string        `json:"torch"`
	Runtime  string        `json:"runtime"`
	Python   string        `json:"python"`
	Prefix   string        `json:"prefix"`
	Archs    []string      `json:"archs"`
	Devices  []helloDevice `json:"devices"`
}

type helloDevice struct {
	ID     string            `json:"id"`
	Kind   string            `json:"kind"`
	Name   string            `json:"name"`
	UUID   string            `json:"uuid"`
	Memory int64             `json:"memory"`
	Arch   string            `json:"arch"`   // "sm_89", "AVX512"
	Lacks  string            `json:"lacks"`  // the architecture that this PyTorch has no code for
	DTypes map[string]string `json:"dtypes"` // compute dtype to attention kernels
}

func (h *hello) names() string {
	var names []string
	for _, d := range h.Devices {
		names = append(names, d.ID)
	}
	return strings.Join(names, ", ")
}

// answer is any other message from the worker.
type answer struct {
	Op      string `json:"op"` // reply, done
	Query   uint64 `json:"q"`
	Session uint32 `json:"s"`
	Event   uint64 `json:"e"`
	Micros  int64  `json:"us"`
	Root    uint64 `json:"root"` // the event at whose fault this one failed
	Kind    string `json:"kind"` // of an error: error, memory, lost
	Err     string `json:"err"`

	Fixed, Free, Temp, Packed int64
	Allocated, Peak, Reserved int64
	Source                    string
	Pinned                    bool
}

// failure is the answer's error.
func (a *answer) failure() error {
	switch {
	case a.Err == "":
		return nil
	case a.Kind == "memory":
		return fmt.Errorf("%w: %s", engine.ErrNoMemory, a.Err)
	}
	return errors.New(a.Err)
}

// worker is a process that runs.
type worker struct {
	cfg    Config
	log    *slog.Logger
	cmd    *exec.Cmd
	stdin  io.Closer
	conn   net.Conn
	hello  hello
	stderr *tail
	gone   chan struct{} // closed when it is lost
	exited chan error
	wg     sync.WaitGroup

	out sync.Mutex // guards writes

	mu       sync.Mutex
	err      error // why it is lost
	queries  map[uint64]chan answer
	sessions map[uint32]*session
	next     uint64
	ids      uint32
	buffers  atomic.Uint64 // ids
	heard    time.Time     // when it last said anything
}

// startWorker starts a worker and waits for its hello.
func startWorker(ctx context.Context, cfg Config) (_ *worker, err error) {
	w := &worker{
		cfg: cfg, log: cfg.Log, stderr: &tail{}, gone: make(chan struct{}), exited: make(chan error, 1),
		queries: map[uint64]chan answer{}, sessions: map[uint32]*session{},
	}
	link, err := newLink()
	if err != nil {
		return nil, fmt.Errorf("torch worker: %w", err)
	}
	modules, err := embedded()
	if err != nil {
		return nil, errors.Join(err, link.close())
	}
	boot, err := w.boot(link, append(modules, cfg.More...))
	if err != nil {
		return nil, errors.Join(err, link.close())
	}
	w.cmd = exec.Command(cfg.Python, "-I", "-c", bootstrap) //nolint:noctx // it outlives the call; end kills it
	w.cmd.Stdout, w.cmd.Stderr = w.stderr, w.stderr
	w.cmd.Env = environment(cfg.Threads)
	link.prepare(w.cmd)
	stdin, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, errors.Join(err, link.close())
	}
	w.stdin = stdin
	if err := w.spawn(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w; set agent.torch.python to a Python with PyTorch", cfg.Python, err), link.close())
	}
	w.wg.Go(func() { // as soon as it reads
		_, _ = fmt.Fprintf(stdin, "%d\n", len(boot))
		_, _ = stdin.Write(boot)
	})
	if err := w.greet(ctx, link); err != nil {
		w.end(err)
		return nil, err
	}
	return w, nil
}

func (w *worker) boot(link *link, modules []Module) ([]byte, error) {
	texts := make([][2]string, len(modules))
	for i, m := range modules {
		texts[i] = [2]string{m.Name, m.Text}
	}
	config := map[string]any{"threads": w.cfg.Threads, "attention": w.cfg.Attention}
	link.describe(config)
	return json.Marshal(map[string]any{"modules": texts, "config": config})
}

// spawn starts the process from a thread that lives as long as it does: on
// Linux the process dies with that thread.
func (w *worker) spawn() error {
	started := make(chan error, 1)
	w.wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := w.cmd.Start()
		started <- err
		if err == nil {
			w.exited <- w.cmd.Wait()
			close(w.exited)
		}
	})
	return <-started
}

// greet takes the connection and the hello, then begins to listen.
func (w *worker) greet(ctx context.Context, link *link) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(float64(startFor)*w.cfg.Patience))
	defer cancel()
	type outcome struct {
		conn net.Conn
		in   *bufio.Reader
		err  error
	}
	done := make(chan outcome, 1)
	w.wg.Go(func() {
		conn, err := link.accept()
		if err != nil {
			done <- outcome{err: err}
			return
		}
		in := bufio.NewReaderSize(conn, 64<<10)
		var raw []byte
		if raw, err = readMessage(in, maxAnswer); err == nil {
			err = json.Unmarshal(raw, &w.hello)
		}
		done <- outcome{conn, in, err}
	})
	var o outcome
	var ended error
	select {
	case o = <-done:
	case ended = <-w.exited:
		link.abort()
		o = <-done
	case <-ctx.Done():
		link.abort()
		if o = <-done; o.err == nil {
			_ = o.conn.Close()
		}
		return fmt.Errorf("%w: %s did not report within %v%s", ErrWorkerLost, w.cfg.Python, time.Duration(float64(startFor)*w.cfg.Patience), w.stderr.said())
	}
	if o.err != nil && ended == nil {
		ended = w.reap()
	}
	switch {
	case o.err != nil:
		if o.conn != nil {
			_ = o.conn.Close()
		}
		return startError(w.cfg.Python, ended, o.err, w.stderr)
	case w.hello.Op != "hello" || w.hello.Protocol != protocolVersion || w.hello.Torch == "":
		_ = o.conn.Close()
		return fmt.Errorf("%w: its first message is no hello of protocol %d%s", ErrWorkerLost, protocolVersion, w.stderr.said())
	}
	w.conn, w.heard = o.conn, time.Now()
	w.wg.Go(func() { w.listen(o.in) })
	w.wg.Go(w.watch)
	return nil
}

// reap ends the process and returns how it ended.
func (w *worker) reap() error {
	select {
	case err := <-w.exited:
		return err
	case <-time.After(time.Second):
	}
	_ = w.cmd.Process.Kill()
	return <-w.exited
}

func readMessage(in io.Reader, most int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if int64(n) > int64(most) {
		return nil, fmt.Errorf("a message of %d bytes, at most %d", n, most)
	}
	raw := make([]byte, n)
	_, err := io.ReadFull(in, raw)
	return raw, err
}

// listen takes what the worker says until it is lost.
func (w *worker) listen(in io.Reader) {
	for {
		raw, err := readMessage(in, maxAnswer)
		var a answer
		if err == nil {
			if err = json.Unmarshal(raw, &a); err != nil {
				err = fmt.Errorf("it sent %q: %w", brief(raw), err)
			}
		}
		if err == nil {
			err = w.take(a)
		}
		if err != nil {
			w.lose(w.reason(err))
			return
		}
	}
}

func brief(raw []byte) string {
	if len(raw) > 80 {
		raw = raw[:80]
	}
	return string(raw)
}

// reason names why the connection ended: the process's own end explains more
// than the end of its stream.
func (w *worker) reason(err error) error {
	said := w.stderr.said
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || isReset(err) {
		if end := w.reap(); end != nil {
			return fmt.Errorf("%w: it ended: %w%s", ErrWorkerLost, end, said())
		}
		return fmt.Errorf("%w: it ended%s", ErrWorkerLost, said())
	}
	return fmt.Errorf("%w: %w%s", ErrWorkerLost, err, said())
}

func (w *worker) take(a answer) error {
	w.mu.Lock()
	w.heard = time.Now()
	switch a.Op {
	case "reply":
		ch := w.queries[a.Query]
		delete(w.queries, a.Query)
		w.mu.Unlock()
		if ch == nil {
			return fmt.Errorf("it answered a question %d that nobody asked", a.Query)
		}
		ch <- a
		return nil
	case "done":
		s := w.sessions[a.Session]
		w.mu.Unlock()
		if a.Kind == "lost" {
			return fmt.Errorf("the device failed: %s", a.Err)
		}
		if s == nil {
			return nil // closed meanwhile
		}
		return s.done(a)
	}
	w.mu.Unlock()
	return fmt.Errorf("it sent a message %q", brief([]byte(a.Op)))
}

// learnFor is how long a broken connection waits for the end of its process.
const learnFor = 3 * time.Second

// send writes a message, with a file if there is one.
func (w *worker) send(msg any, file *shared) error {
	raw, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	if len(raw) > maxMessage {
		return fmt.Errorf("a message of %d bytes, at most %d", len(raw), maxMessage)
	}
	framed := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(raw)), uint32(len(raw)))
	w.out.Lock()
	defer w.out.Unlock()
	if err := write(w.conn, append(framed, raw...), file); err != nil {
		select {
		case <-w.gone: // listen has found how it ended, which says more than a broken pipe
			return w.lost()
		case <-time.After(learnFor):
			return fmt.Errorf("%w: %w", ErrWorkerLost, err)
		}
	}
	return nil
}

// ask sends a question and waits for its answer.
func (w *worker) ask(ctx context.Context, msg map[string]any, file *shared) (answer, error) {
	ch := make(chan answer, 1)
	w.mu.Lock()
	if w.err != nil {
		defer w.mu.Unlock()
		return answer{}, w.err
	}
	w.next++
	q := w.next
	w.queries[q] = ch
	w.mu.Unlock()
	msg["q"] = q
	if err := w.send(msg, file); err != nil {
		return answer{}, err
	}
	select {
	case a := <-ch:
		return a, a.failure()
	case <-w.gone:
		return answer{}, w.lost()
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
}

func (w *worker) lost() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// lose marks the worker and its sessions lost, once, and kills the process.
func (w *worker) lose(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = err
	sessions := make([]*session, 0, len(w.sessions))
	for _, s := range w.sessions {
		sessions = append(sessions, s)
	}
	w.mu.Unlock()
	close(w.gone) // whoever hears it from a session finds it here
	for _, s := range sessions {
		s.lose(err)
	}
	if !errors.Is(err, errClosed) {
		w.log.Error("torch worker lost", "pid", w.cmd.Process.Pid, "error", err)
	}
	_ = w.cmd.Process.Kill()
	if w.conn != nil {
		_ = w.conn.Close()
	}
}

// end loses the worker and joins its goroutines.
func (w *worker) end(why error) {
	w.lose(why)
	_ = w.stdin.Close()
	w.wg.Wait()
}

// How long a worker may be silent, and how often it is asked.
const (
	silence   = time.Minute
	pingEvery = 2 * time.Second
)

// watch asks for a sign of life, and looks at the progress of every session.
func (w *worker) watch() {
	limit := time.Duration(float64(silence) * w.cfg.Patience)
	tick := time.NewTicker(min(pingEvery, max(limit/4, time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-w.gone:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		quiet := time.Since(w.heard)
		sessions := make([]*session, 0, len(w.sessions))
		for _, s := range w.sessions {
			sessions = append(sessions, s)
		}
		w.next++
		q := w.next
		w.queries[q] = make(chan answer, 1)
		w.mu.Unlock()
		if quiet > limit {
			w.lose(fmt.Errorf("%w: it said nothing for %v%s", ErrWorkerLost, quiet.Round(time.Millisecond), w.stderr.said()))
			return
		}
		for _, s := range sessions {
			if err := s.stuck(w.cfg.Patience); err != nil {
				w.lose(err)
				return
			}
		}
		if err := w.send(map[string]any{"op": "ping", "q": q}, nil); err != nil {
			w.lose(err)
			return
		}
	}
}

// tail keeps the end of what a process prints.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > tailBytes {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailBytes:]...)
	}
	return len(p), nil
}

// last is the last line that was printed.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.buf)), "\n")
	return brief([]byte(strings.ToValidUTF8(strings.TrimSpace(lines[len(lines)-1]), "?")))
}

// said is the last line as the end of an error.
func (t *tail) said() string {
	if last := t.last(); last != "" {
		return "; its last words: " + last
	}
	return ""
}
