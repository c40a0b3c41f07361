// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// A socket that does not read is dropped when this much waits for it.
	maxBacklogBytes  = 32 << 20
	maxBacklogFrames = 8192
	// From this many waiting frames on, a status replaces the one that waits last.
	laggingFrames = 16
	// writeTime is how long one frame may take.
	writeTime = 30 * time.Second
	// maxClientFrame bounds what a client sends: feature flags.
	maxClientFrame = 1 << 20
)

// socket is one WebSocket: a queue of frames and the goroutine that writes them.
type socket struct {
	id       string
	giveUp   context.CancelFunc // ends the connection, a write that hangs too
	metadata bool               // guarded by the hub, as left
	left     bool

	mu      sync.Mutex
	waiting []frame
	bytes   int
	dropped bool
	wake    chan struct{} // holds one
}

func newSocket(id string, giveUp context.CancelFunc) *socket {
	return &socket{id: id, giveUp: giveUp, wake: make(chan struct{}, 1)}
}

// queue adds a frame, or gives the socket up.
func (s *socket) queue(f frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped {
		return
	}
	last := len(s.waiting) - 1
	if f.status && len(s.waiting) >= laggingFrames && s.waiting[last].status {
		s.bytes += len(f.data) - len(s.waiting[last].data)
		s.waiting[last] = f
		return
	}
	s.waiting = append(s.waiting, f)
	s.bytes += len(f.data)
	if s.bytes > maxBacklogBytes || len(s.waiting) > maxBacklogFrames {
		s.dropped, s.waiting, s.bytes = true, nil, 0
		s.giveUp()
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take is all that waits; ok is false when the socket was given up.
func (s *socket) take() (frames []frame, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	frames, s.waiting, s.bytes = s.waiting, nil, 0
	return frames, !s.dropped
}

// write sends what is queued until the connection or ctx ends.
func (s *socket) write(ctx context.Context, c *websocket.Conn) {
	for {
		frames, ok := s.take()
		if !ok {
			return
		}
		for _, f := range frames {
			kind := websocket.MessageText
			if f.binary {
				kind = websocket.MessageBinary
			}
			if writeFrame(ctx, c, kind, f.data) != nil {
				return
			}
		}
		if len(frames) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
	}
}

func writeFrame(ctx context.Context, c *websocket.Conn, kind websocket.MessageType, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	return c.Write(ctx, kind, data)
}

// serveSocket is GET /ws.
func (s *Server) serveSocket(w http.ResponseWriter, r *http.Request) {
	if !s.sockets.TryAcquire(1) {
		http.Error(w, "too many WebSocket connections; close some", http.StatusServiceUnavailable)
		return
	}
	defer s.sockets.Release(1)
	s.open.Add(1) // the HTTP server does not wait for it
	defer s.open.Done()
	id := query(r).Get("clientId")
	if id == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		id = hex.EncodeToString(b[:])
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	k := newSocket(id, cancel)
	// It joins before the answer, since a client may queue a prompt as soon as it
	// has that and misses none of its frames.
	old := s.joinSocket(k)
	// Where the page comes from was checked before the request came here.
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil { // Accept has answered
		s.hub.leave(k, old)
		return
	}
	defer s.hub.leave(k, nil)
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(maxClientFrame)
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer cancel() // ends the reader
		k.write(ctx, c)
		_ = c.CloseNow()
	}()
	s.readSocket(ctx, c, k)
	cancel()
	<-written
}

// joinSocket lets a socket in with the frames that a new one gets, at one point of
// the queue's history.
func (s *Server) joinSocket(k *socket) (old *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := []frame{statusFrame(s.queue.remaining(), k.id)}
	for _, e := range slices.Backward(s.queue.running) {
		if e.hasClient && e.client == k.id && e.node != "" {
			first = append(first, textFrame("executing", fields("node", e.node).value()))
			break
		}
	}
	return s.hub.join(k, first...)
}

// readSocket reads what the client says, of which only feature_flags in its first
// frame means anything.
func (s *Server) readSocket(ctx context.Context, c *websocket.Conn, k *socket) {
	for first := true; ; first = false {
		kind, data, err := c.Read(ctx)
		if err != nil {
			return
		}
		if !first || kind != websocket.MessageText {
			continue
		}
		var m struct {
			Type string `json:"type"`
			Data struct {
				Metadata any `json:"supports_preview_metadata"`
			} `json:"data"`
		}
		if json.Unmarshal(data, &m) != nil || m.Type != "feature_flags" {
			continue
		}
		on, _ := m.Data.Metadata.(bool)
		s.hub.setMetadata(k, on)
		k.queue(textFrame("feature_flags", jsontext.Value(s.features())))
	}
}
