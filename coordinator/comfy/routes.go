// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// handler serves every route, and the same under /api.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /ws":      s.serveSocket,
		"GET /prompt":  s.queueLength,
		"POST /prompt": s.submit,
		"GET /queue":   s.showQueue, "POST /queue": s.editQueue,
		"GET /history": s.listHistory, "POST /history": s.editHistory, "GET /history/{id}": s.oneHistory,
		"POST /interrupt": s.postInterrupt, "POST /free": s.free,
		"GET /object_info": s.objectInfo, "GET /object_info/{class}": s.oneObjectInfo,
		"GET /system_stats": s.systemStats, "GET /features": s.showFeatures,
		"GET /view": s.view, "POST /upload/image": s.uploadImage, "POST /upload/mask": s.uploadMask,
		"GET /users": s.users, "POST /users": s.addUser,
		"GET /settings": s.allSettings, "POST /settings": s.mergeSettings,
		"GET /settings/{id}": s.oneSetting, "POST /settings/{id}": s.setSetting,
		"GET /userdata": s.listUserData, "GET /v2/userdata": s.walkUserData,
		"GET /userdata/{file}": s.readUserData, "POST /userdata/{file}": s.writeUserData,
		"DELETE /userdata/{file}": s.deleteUserData, "POST /userdata/{file}/move/{dest}": s.moveUserData,
		"GET /internal/logs": s.logText, "GET /internal/logs/raw": s.logLines, "PATCH /internal/logs/subscribe": s.subscribeLogs,
		"GET /jobs": s.listJobs, "GET /jobs/{id}": s.oneJob, "POST /jobs/{id}/cancel": s.cancelJob, "POST /jobs/cancel": s.cancelJobs,
	} {
		method, at, _ := strings.Cut(pattern, " ")
		if !strings.HasPrefix(at, "/jobs") {
			mux.HandleFunc(pattern, h)
		}
		mux.HandleFunc(method+" /api"+at, h)
	}
	for at, without := range passedOn() {
		h := s.passOn(without)
		mux.HandleFunc("GET "+at, h)
		mux.HandleFunc("GET /api"+at, h)
	}
	mux.HandleFunc("/", s.elsewhere)
	return s.guard(mux)
}

// queueLength is GET /prompt.
func (s *Server) queueLength(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	n := s.queue.remaining()
	s.mu.Unlock()
	answer(w, http.StatusOK, fields("exec_info", fields("queue_remaining", n)).value())
}

// showQueue is GET /queue.
func (s *Server) showQueue(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	running, pending := slices.Clone(s.queue.running), s.queue.list()
	s.mu.Unlock()
	items := func(entries []*entry) []jsontext.Value {
		out := make([]jsontext.Value, len(entries))
		for i, e := range entries {
			out[i] = e.item() // of what does not change
		}
		return out
	}
	answer(w, http.StatusOK, fields("queue_running", items(running), "queue_pending", items(pending)).value())
}

// editQueue is POST /queue.
func (s *Server) editQueue(w http.ResponseWriter, r *http.Request) {
	s.edit(w, r, func() {
		s.queue.clear()
		s.tellQueue()
	}, func(id string) {
		if s.queue.remove(id) {
			s.tellQueue()
		}
	})
}

// edit clears a list or deletes ids from it, as the body asks, under the lock.
func (s *Server) edit(w http.ResponseWriter, r *http.Request, all func(), one func(id string)) {
	o, ok := s.readJSON(w, r)
	if !ok {
		return
	}
	clear, ids, err := clearAndDelete(o)
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	s.mu.Lock()
	if clear {
		all()
	}
	for _, id := range ids {
		one(id)
	}
	s.mu.Unlock()
	empty(w, http.StatusOK)
}

func clearAndDelete(o *object) (clear bool, ids []string, err error) {
	if v, ok := o.at("clear"); ok {
		value, err := parse(v)
		if err != nil {
			return false, nil, err
		}
		clear = pyBool(value)
	}
	if v, ok := o.at("delete"); ok {
		parts, err := elements(v)
		if err != nil {
			return false, nil, err
		}
		for _, p := range parts {
			if id, ok := asText(p); ok {
				ids = append(ids, id)
			}
		}
	}
	return clear, ids, nil
}

// listHistory is GET /history.
func (s *Server) listHistory(w http.ResponseWriter, r *http.Request) {
	most, offset := -1, -1
	for name, at := range map[string]*int{"max_items": &most, "offset": &offset} {
		if q := query(r); q.Has(name) {
			n, err := strconv.Atoi(strings.TrimSpace(q.Get(name)))
			if err != nil {
				s.trouble(w, r, err)
				return
			}
			*at = n
			if name == "max_items" {
				*at = max(n, 0)
			}
		}
	}
	s.mu.Lock()
	records := s.history.page(most, offset)
	s.mu.Unlock()
	o := &object{}
	for _, rec := range records {
		o.set(rec.id, rec.value())
	}
	answer(w, http.StatusOK, o.value())
}

// oneHistory is GET /history/{id}.
func (s *Server) oneHistory(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	rec := s.history.at(r.PathValue("id"))
	s.mu.Unlock()
	o := &object{}
	if rec != nil {
		o.set(rec.id, rec.value())
	}
	answer(w, http.StatusOK, o.value())
}

// editHistory is POST /history.
func (s *Server) editHistory(w http.ResponseWriter, r *http.Request) {
	s.edit(w, r, s.history.clear, s.history.remove)
}

// postInterrupt is POST /interrupt, the only route that takes a body that is no JSON.
// Without an id it stops whatever runs, on all workers.
func (s *Server) postInterrupt(w http.ResponseWriter, r *http.Request) {
	b, ok := s.body(w, r)
	if !ok {
		return
	}
	id := ""
	if v, err := compact(b); err == nil {
		o, err := readObject(v)
		if err != nil {
			s.trouble(w, r, err)
			return
		}
		if at, has := o.at("prompt_id"); has {
			value, err := parse(at)
			if err != nil {
				s.trouble(w, r, err)
				return
			}
			if pyBool(value) {
				id = pyStr(value)
			}
		}
	}
	s.interrupt(id)
	empty(w, http.StatusOK)
}

// free is POST /free.
func (s *Server) free(w http.ResponseWriter, r *http.Request) {
	o, ok := s.readJSON(w, r)
	if !ok {
		return
	}
	if err := s.cfg.Backend.Free(r.Context(), []byte(o.value())); err != nil {
		s.log.Warn("workers were not freed", "err", err)
		s.note("free: %v", err)
	}
	empty(w, http.StatusOK)
}

func (s *Server) objectInfo(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.cat.everything())
}

func (s *Server) oneObjectInfo(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, s.cat.info(r.PathValue("class")))
}

func (s *Server) showFeatures(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.features())
}

func (s *Server) features() []byte {
	return fields("supports_preview_metadata", true, "max_upload_size", s.cfg.MaxUploadBytes).value()
}

// elsewhere answers what no route does: files of the web frontend, of a worker.
func (s *Server) elsewhere(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		plain(w, http.StatusMethodNotAllowed, "405: Method Not Allowed")
	case r.URL.Path == "/" || frontendFile(r.URL.Path):
		s.passOn(func(w http.ResponseWriter) {
			if r.URL.Path == "/" {
				w.Header().Set("Content-Type", "text/html")
				w.Header().Set("Cache-Control", "no-cache")
				_, _ = w.Write([]byte(landing))
				return
			}
			empty(w, http.StatusNotFound)
		})(w, r)
	default:
		empty(w, http.StatusNotFound)
	}
}

const landing = `<!doctype html><title>distorch</title><p>ComfyUI's API on a distorch cluster. No ComfyUI worker is there to give the web page; add one with <code>distorch comfy add URL</code>.`

// frontendFile tells files of a web page from routes of node packs, which are not
// passed on: a GET of theirs may do something.
func frontendFile(at string) bool {
	if strings.HasPrefix(at, "/api/") || strings.HasPrefix(at, "/internal/") {
		return false
	}
	switch strings.ToLower(path.Ext(at)) {
	case ".css", ".js", ".mjs", ".map", ".json", ".html", ".ico", ".png", ".svg", ".webp", ".jpg", ".jpeg", ".gif", ".woff", ".woff2", ".ttf", ".mp3", ".mp4", ".webm", ".wasm", ".txt", ".md":
		return true
	}
	return false
}
