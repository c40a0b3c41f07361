// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"encoding/json"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// frame is one message of a socket.
type frame struct {
	binary bool
	status bool // a status that a later one replaces
	data   []byte
}

// textFrame writes type first: clients look at the first bytes.
func textFrame(kind string, data jsontext.Value) frame {
	b := append([]byte(`{"type":`), text(kind)...)
	b = append(append(b, `,"data":`...), data...)
	return frame{data: append(b, '}')}
}

// statusFrame is the queue's length, with the client's id on connecting.
func statusFrame(remaining int, sid string) frame {
	data := fields("status", fields("exec_info", fields("queue_remaining", remaining)))
	if sid != "" {
		data.set("sid", text(sid))
	}
	f := textFrame("status", data.value())
	f.status = sid == ""
	return f
}

// hub has the sockets by client id. Its methods queue frames and do not wait.
type hub struct {
	mu      sync.Mutex
	sockets map[string]*socket
	logs    map[string]bool // clients that want logs
}

func newHub() *hub {
	return &hub{sockets: map[string]*socket{}, logs: map[string]bool{}}
}

// join makes s the socket of its client, with the frames that it begins with. An
// older socket of the same client, which it returns, stays open and gets nothing more.
func (h *hub) join(s *socket, first ...frame) (old *socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old = h.sockets[s.id]
	for _, f := range first {
		s.queue(f)
	}
	h.sockets[s.id] = s
	return old
}

// leave forgets s. An older socket of the client may take its place again.
func (h *hub) leave(s, old *socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.sockets[s.id] != s:
	case old != nil && !old.left:
		h.sockets[s.id] = old
	default:
		delete(h.sockets, s.id)
		delete(h.logs, s.id)
	}
	s.left = true
}

func (h *hub) send(client string, f frame) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sockets[client]; s != nil {
		s.queue(f)
	}
}

func (h *hub) broadcast(f frame) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sockets {
		s.queue(f)
	}
}

// describes says whether a client takes previews that say which node they are of.
func (h *hub) describes(client string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sockets[client]
	return s != nil && s.metadata
}

func (h *hub) setMetadata(s *socket, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.metadata = on
}

func (h *hub) subscribeLogs(client string, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.sockets[client]; on && known {
		h.logs[client] = true
		return
	}
	delete(h.logs, client)
}

func (h *hub) log(e logEntry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.logs) == 0 {
		return
	}
	entries, err := json.Marshal([]logEntry{e})
	if err != nil {
		return
	}
	f := textFrame("logs", fields("entries", jsontext.Value(entries), "size", nil).value())
	for client := range h.logs {
		if s := h.sockets[client]; s != nil {
			s.queue(f)
		}
	}
}
