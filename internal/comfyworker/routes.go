// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfyworker

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
)

func (w *Worker) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /ws": w.socket, "GET /prompt": w.remaining, "POST /prompt": w.post, "GET /queue": w.queue, "POST /queue": w.change,
		"GET /history": w.past, "GET /history/{id}": w.past, "POST /history": empty, "POST /interrupt": w.stopRun, "POST /free": w.free,
		"GET /object_info": w.info, "GET /object_info/{class}": w.info, "GET /system_stats": w.stats, "GET /features": features,
		"GET /view": w.view, "POST /upload/image": w.upload, "POST /upload/mask": w.upload, "GET /models": w.models, "GET /embeddings": w.models,
		"GET /models/{folder}": w.models,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(pattern, h)
		mux.HandleFunc(method+" /api"+path, h)
	}
	return mux
}

func reply(rw http.ResponseWriter, status int, body any) {
	rw.Header().Set("Content-Type", "application/json; charset=utf-8")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(body) //nolint:errcheck // the client may be gone
}

func empty(http.ResponseWriter, *http.Request) {}

func features(rw http.ResponseWriter, _ *http.Request) {
	reply(rw, http.StatusOK, map[string]any{"supports_preview_metadata": true, "max_upload_size": 104857600})
}

func (w *Worker) socket(rw http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(rw, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer conn.CloseNow() //nolint:errcheck // it is over
	id := r.URL.Query().Get("clientId")
	if id == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) //nolint:errcheck // it does not fail
		id = hex.EncodeToString(b[:])
	}
	s := &session{conn: conn, ready: make(chan struct{}, 1)}
	w.mu.Lock()
	w.sockets[id] = s
	w.send(id, "status", map[string]any{"status": w.status(), "sid": id})
	if w.running != nil && w.running.client == id && w.node != "" {
		w.send(id, "executing", map[string]any{"node": w.node})
	}
	w.mu.Unlock()
	written := make(chan struct{})
	go func() { defer close(written); s.write(r.Context()) }()
	for first := true; ; first = false {
		_, body, err := conn.Read(r.Context())
		if err != nil {
			break
		}
		var m struct {
			Type string
			Data struct {
				Previews bool `json:"supports_preview_metadata"`
			}
		}
		if first && json.Unmarshal(body, &m) == nil && m.Type == "feature_flags" {
			w.mu.Lock()
			s.metadata = m.Data.Previews
			w.send(id, "feature_flags", map[string]any{"supports_preview_metadata": true, "max_upload_size": 104857600})
			w.mu.Unlock()
		}
	}
	w.mu.Lock()
	if w.sockets[id] == s {
		delete(w.sockets, id)
	}
	w.mu.Unlock()
	s.abort()
	<-written
}

func (w *Worker) remaining(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	reply(rw, http.StatusOK, w.status())
}

func (w *Worker) post(rw http.ResponseWriter, r *http.Request) {
	var body struct {
		Prompt    json.RawMessage            `json:"prompt"`
		ClientID  string                     `json:"client_id"`
		PromptID  string                     `json:"prompt_id"`
		ExtraData map[string]json.RawMessage `json:"extra_data"`
		Targets   []string                   `json:"partial_execution_targets"`
	}
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		rw.WriteHeader(http.StatusInternalServerError)
		return
	}
	it, problem := w.validate(body.Prompt, body.Targets)
	if problem != nil {
		reply(rw, http.StatusBadRequest, problem)
		return
	}
	it.id, it.client, it.extra = body.PromptID, body.ClientID, body.ExtraData
	if it.extra == nil {
		it.extra = map[string]json.RawMessage{}
	}
	if it.client != "" {
		it.extra["client_id"], _ = json.Marshal(it.client) //nolint:errcheck // a string
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	it.number = float64(w.number)
	w.number++
	if it.id == "" {
		it.id = "prompt-" + strconv.Itoa(w.number)
	}
	w.prompts = append(w.prompts, body.Prompt)
	w.pending = append(w.pending, it)
	w.sendStatus()
	select {
	case w.changed <- struct{}{}:
	default:
	}
	reply(rw, http.StatusOK, map[string]any{"prompt_id": it.id, "number": it.number, "node_errors": map[string]any{}})
}

func (it *item) listed() []any {
	return []any{it.number, it.id, it.prompt, it.extra, it.outputs}
}

func (w *Worker) queue(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	running, pending := []any{}, []any{}
	if w.running != nil {
		running = append(running, w.running.listed())
	}
	for _, it := range w.pending {
		pending = append(pending, it.listed())
	}
	reply(rw, http.StatusOK, map[string]any{"queue_running": running, "queue_pending": pending})
}

func (w *Worker) change(_ http.ResponseWriter, r *http.Request) {
	var body struct {
		Clear  bool
		Delete []string
	}
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before := len(w.pending)
	w.pending = slices.DeleteFunc(w.pending, func(it *item) bool { return body.Clear || slices.Contains(body.Delete, it.id) })
	if len(w.pending) != before {
		w.sendStatus()
	}
}

func (w *Worker) past(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]any{}
	for _, it := range w.history {
		if id := r.PathValue("id"); id != "" && id != it.id {
			continue
		}
		meta := map[string]any{}
		for id := range it.ui {
			meta[id] = map[string]any{"node_id": id, "display_node": id, "parent_node": nil, "real_node_id": id}
		}
		out[it.id] = map[string]any{
			"prompt": it.listed(), "outputs": it.ui, "meta": meta,
			"status": map[string]any{"status_str": it.state, "completed": it.state == "success", "messages": it.messages},
		}
	}
	reply(rw, http.StatusOK, out)
}

func (w *Worker) stopRun(_ http.ResponseWriter, r *http.Request) {
	var body struct {
		PromptID string `json:"prompt_id"`
	}
	raw, _ := io.ReadAll(r.Body)   //nolint:errcheck // any body interrupts
	_ = json.Unmarshal(raw, &body) //nolint:errcheck // as above
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running != nil && (body.PromptID == "" || body.PromptID == w.running.id) {
		w.interrupt()
	}
}

func (w *Worker) free(http.ResponseWriter, *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.freed++
}

func (w *Worker) info(rw http.ResponseWriter, r *http.Request) {
	class := r.PathValue("class")
	if class == "" {
		reply(rw, http.StatusOK, w.classes)
		return
	}
	out := map[string]json.RawMessage{}
	if c, ok := w.classes[class]; ok {
		out[class] = c
	}
	reply(rw, http.StatusOK, out)
}

func (w *Worker) stats(rw http.ResponseWriter, _ *http.Request) {
	reply(rw, http.StatusOK, map[string]any{
		"system": map[string]any{
			"os": "posix", "ram_total": 64 << 30, "ram_free": 32 << 30, "comfyui_version": w.cfg.Version, "python_version": "3.12.3",
			"pytorch_version": "2.9.0+cu128", "embedded_python": false, "argv": []string{"main.py"},
			"required_frontend_version": "1.27.10", "installed_templates_version": "0.1.94", "required_templates_version": "0.1.94",
		},
		"devices": []any{map[string]any{
			"name": "cuda:0 scripted", "type": "cuda", "index": 0, "vram_total": 24 << 30, "vram_free": 20 << 30, "torch_vram_total": 0, "torch_vram_free": 0,
		}},
	})
}

func (w *Worker) view(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	kind := q.Get("type")
	if kind == "" {
		kind = "output"
	}
	w.mu.Lock()
	content, ok := w.files[key(kind, q.Get("subfolder"), q.Get("filename"))]
	w.mu.Unlock()
	if !ok {
		rw.WriteHeader(http.StatusNotFound)
		return
	}
	rw.Header().Set("Content-Disposition", fmt.Sprintf("filename=%q", q.Get("filename")))
	rw.Header().Set("Content-Type", "image/png")
	if q.Get("preview") != "" {
		rw.Header().Set("Content-Type", "image/webp")
		content = append([]byte("RIFF0000WEBP"), content...)
	}
	http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(content))
}

func (w *Worker) upload(rw http.ResponseWriter, r *http.Request) {
	f, header, err := r.FormFile("image")
	if err != nil {
		rw.WriteHeader(http.StatusBadRequest)
		return
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		rw.WriteHeader(http.StatusBadRequest)
		return
	}
	kind := r.FormValue("type")
	if kind == "" {
		kind = "input"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uploads++
	if ref := r.FormValue("original_ref"); ref != "" { // a mask: this one marks the original
		var o struct{ Filename, Subfolder, Type string }
		if json.Unmarshal([]byte(ref), &o) == nil {
			content = append(slices.Clone(w.files[key(o.Type, o.Subfolder, o.Filename)]), "+mask"...)
		}
	}
	name := header.Filename
	stem, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		stem, ext = name[:i], name[i:]
	}
	for i := 1; r.FormValue("overwrite") == ""; i++ {
		old, taken := w.files[key(kind, r.FormValue("subfolder"), name)]
		if !taken || bytes.Equal(old, content) {
			break
		}
		name = fmt.Sprintf("%s (%d)%s", stem, i, ext)
	}
	w.files[key(kind, r.FormValue("subfolder"), name)] = content
	reply(rw, http.StatusOK, map[string]any{"name": name, "subfolder": r.FormValue("subfolder"), "type": kind})
}

func (w *Worker) models(rw http.ResponseWriter, r *http.Request) {
	switch folder := r.PathValue("folder"); {
	case strings.HasSuffix(r.URL.Path, "/embeddings"):
		reply(rw, http.StatusOK, []string{})
	case folder == "":
		reply(rw, http.StatusOK, []string{"checkpoints", "diffusion_models", "vae"})
	case folder == "diffusion_models":
		reply(rw, http.StatusOK, append([]string{}, w.cfg.Files["UNETLoader.unet_name"]...))
	case folder == "checkpoints":
		reply(rw, http.StatusOK, append([]string{}, w.cfg.Files["CheckpointLoaderSimple.ckpt_name"]...))
	default:
		rw.WriteHeader(http.StatusNotFound)
	}
}
