// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// logEntry is a line of GET /internal/logs/raw.
type logEntry struct {
	Time    string `json:"t"`
	Message string `json:"m"`
}

// keptLines is how many lines the ring holds.
const keptLines = 300

// logRing holds what happened to prompts lately.
type logRing struct {
	mu    sync.Mutex
	lines []logEntry
}

func (l *logRing) add(e logEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == keptLines {
		l.lines = append(l.lines[:0], l.lines[1:]...)
	}
	l.lines = append(l.lines, e)
}

func (l *logRing) all() []logEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]logEntry{}, l.lines...)
}

// note adds a line for the clients that show logs.
func (s *Server) note(format string, args ...any) {
	e := logEntry{time.Now().Format("2006-01-02T15:04:05.000000"), fmt.Sprintf(format, args...) + "\n"}
	s.logs.add(e)
	s.hub.log(e)
	s.log.Debug("comfyui api", "event", strings.TrimSuffix(e.Message, "\n"))
}

// logText is GET /internal/logs.
func (s *Server) logText(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	for _, e := range s.logs.all() {
		b.WriteString(e.Time + " - " + e.Message)
	}
	answer(w, http.StatusOK, text(b.String()))
}

// logLines is GET /internal/logs/raw.
func (s *Server) logLines(w http.ResponseWriter, r *http.Request) {
	b, err := json.Marshal(map[string]any{"entries": s.logs.all(), "size": map[string]int{"cols": 80, "rows": 24}})
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	answer(w, http.StatusOK, b)
}

// subscribeLogs is PATCH /internal/logs/subscribe.
func (s *Server) subscribeLogs(w http.ResponseWriter, r *http.Request) {
	o, ok := s.readJSON(w, r)
	if !ok {
		return
	}
	client, isText := asText(firstOf(o, "clientId"))
	enabled := firstOf(o, "enabled")
	if !isText || enabled == nil {
		s.trouble(w, r, fmt.Errorf("clientId and enabled are wanted"))
		return
	}
	s.hub.subscribeLogs(client, enabled.Kind() == 't')
	empty(w, http.StatusOK)
}
