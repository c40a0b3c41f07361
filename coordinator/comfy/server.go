// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Config is what a Server is made of. Zero values of the bounds stand for the defaults.
type Config struct {
	Backend Backend
	// Dir keeps settings and user data, and uploads while they arrive.
	Dir string
	// Allow are the networks besides loopback whose clients are answered.
	Allow []netip.Prefix
	// Origins are the origins (https://host:port) of other web pages that may use
	// the API; "*" is any.
	Origins []string

	MaxUploadBytes int64 // of one request's body, 100 MiB
	MaxPending     int   // prompts in the queue, 100,000
	MaxQueueBytes  int64 // of all prompts in the queue, 512 MiB
	HistoryEntries int   // 10,000
	HistoryBytes   int64 // 256 MiB
	MaxSockets     int   // WebSocket connections at once, 1024
	// BodyPause is how far a body may fall behind slowestBody, 30 s.
	BodyPause time.Duration
	Attempts  int // workers that may be lost with one prompt, 3

	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.MaxUploadBytes = cmp.Or(c.MaxUploadBytes, 100<<20)
	c.MaxPending = cmp.Or(c.MaxPending, 100_000)
	c.MaxQueueBytes = cmp.Or(c.MaxQueueBytes, 512<<20)
	c.HistoryEntries = cmp.Or(c.HistoryEntries, 10_000)
	c.HistoryBytes = cmp.Or(c.HistoryBytes, 256<<20)
	c.MaxSockets = cmp.Or(c.MaxSockets, 1024)
	c.Attempts = cmp.Or(c.Attempts, 3)
	c.BodyPause = cmp.Or(c.BodyPause, 30*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Server is ComfyUI's API over a Backend.
type Server struct {
	cfg  Config
	log  *slog.Logger
	hub  *hub
	cat  catalogue
	root *os.Root // user data
	logs logRing

	sockets *semaphore.Weighted
	bodies  *semaphore.Weighted // bytes of large bodies that are being read
	uploads *semaphore.Weighted
	open    sync.WaitGroup // sockets

	settingsMu sync.Mutex

	mu      sync.Mutex // guards what follows
	queue   *queue
	history *history
	number  int64 // of the next prompt

	wake chan struct{} // holds one
}

const (
	uploadsAtOnce = 64
	// A body up to this size is not counted.
	smallBody = 1 << 20
	// slowestBody is bytes per second: a stalled client holds no one's place.
	slowestBody = 64 << 10
)

// New makes a server and its folders.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "tmp")); err != nil { // uploads that a crash cut off
		return nil, fmt.Errorf("folder of the ComfyUI API: %w", err)
	}
	for _, dir := range []string{"user", "tmp"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("folder of the ComfyUI API: %w", err)
		}
	}
	root, err := os.OpenRoot(filepath.Join(cfg.Dir, "user"))
	if err != nil {
		return nil, fmt.Errorf("folder of the ComfyUI API: %w", err)
	}
	return &Server{
		cfg: cfg, log: cfg.Log, hub: newHub(), cat: catalogue{backend: cfg.Backend}, root: root,
		sockets: semaphore.NewWeighted(int64(cfg.MaxSockets)),
		bodies:  semaphore.NewWeighted(max(cfg.MaxUploadBytes, smallBody)),
		uploads: semaphore.NewWeighted(uploadsAtOnce),
		queue:   newQueue(), history: newHistory(cfg.HistoryEntries, cfg.HistoryBytes),
		wake: make(chan struct{}, 1),
	}, nil
}

// Run serves on l and runs the queue until ctx ends. The queue ends with it, as
// ComfyUI's does.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Minute, // of what bodyOf does not read
		WriteTimeout:      30 * time.Minute, // a clip over a slow network; a client that never reads
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	var work sync.WaitGroup
	work.Go(func() { s.dispatch(ctx) })
	work.Go(func() {
		<-ctx.Done()
		_ = server.Close() // requests in flight end with ctx
	})
	s.note("listening on %s", l.Addr())
	err := server.Serve(l)
	cancel()
	work.Wait()
	s.open.Wait()
	_ = s.root.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("ComfyUI API on %s: %w", l.Addr(), err)
}

// answer writes JSON.
func answer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away needs no answer
}

// empty answers with a status alone.
func empty(w http.ResponseWriter, status int) {
	if status != http.StatusNoContent {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	w.WriteHeader(status)
}

func plain(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, message)
}

// trouble is ComfyUI's answer to what it cannot read, and why.
func (s *Server) trouble(w http.ResponseWriter, r *http.Request, err error) {
	s.log.Debug("request refused", "path", r.URL.Path, "err", err)
	plain(w, http.StatusInternalServerError, "500 Internal Server Error\n\nServer got itself in trouble: "+err.Error())
}
