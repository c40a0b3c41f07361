// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"cmp"
	"encoding/json"
	"net/http"
	"runtime"
	"strings"
)

// passedOn are the routes whose answers are a worker's, and what is answered while
// there is none.
func passedOn() map[string]func(http.ResponseWriter) {
	missing := func(w http.ResponseWriter) { empty(w, http.StatusNotFound) }
	constant := func(body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { answer(w, http.StatusOK, []byte(body)) }
	}
	return map[string]func(http.ResponseWriter){
		"/models":                              constant("[]"),
		"/models/{folder}":                     missing,
		"/experiment/models":                   constant("[]"),
		"/experiment/models/{folder}":          missing,
		"/experiment/models/preview/{path...}": missing,
		"/embeddings":                          constant("[]"),
		"/extensions":                          constant("[]"),
		"/view_metadata/{folder}":              missing,
		"/workflow_templates":                  constant("{}"),
		"/i18n":                                constant("{}"),
		"/global_subgraphs":                    constant("{}"),
		"/global_subgraphs/{id}":               constant("null"),
		"/node_replacements":                   constant("{}"),
		"/internal/folder_paths":               constant("{}"),
		"/internal/files/{kind}":               constant("[]"),
	}
}

// passOn asks a worker; without answers where there is none.
func (s *Server) passOn(without func(http.ResponseWriter)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		at := strings.TrimPrefix(r.URL.Path, "/api")
		resp, err := s.cfg.Backend.Get(r.Context(), at, query(r))
		if err != nil {
			s.log.Debug("request not passed on", "path", at, "err", err)
			without(w)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		relayResponse(w, resp, "Cache-Control", "Last-Modified", "Etag", "Content-Disposition")
	}
}

// systemStats is GET /system_stats.
func (s *Server) systemStats(w http.ResponseWriter, r *http.Request) {
	stats := s.cfg.Backend.Stats()
	stats.System.OS = cmp.Or(stats.System.OS, runtime.GOOS) // there may be no worker
	if stats.System.Argv == nil {
		stats.System.Argv = []string{}
	}
	if stats.Devices == nil {
		stats.Devices = []DeviceStats{}
	}
	b, err := json.Marshal(stats)
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	answer(w, http.StatusOK, b)
}
