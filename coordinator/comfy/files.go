// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// view is GET /view.
func (s *Server) view(w http.ResponseWriter, r *http.Request) {
	q := query(r)
	name := q.Get("filename")
	if !q.Has("filename") {
		empty(w, http.StatusNotFound)
		return
	}
	kind := cmp.Or(q.Get("type"), "output")
	for _, k := range []string{"output", "input", "temp"} {
		if note := "[" + k + "]"; strings.HasSuffix(name, note) {
			name, kind = strings.TrimRight(strings.TrimSuffix(name, note), " "), k
			break
		}
	}
	if name == "" || name[0] == '/' || strings.Contains(name, "..") || kind != "output" && kind != "input" && kind != "temp" {
		empty(w, http.StatusBadRequest)
		return
	}
	if !inside(q.Get("subfolder")) {
		empty(w, http.StatusForbidden)
		return
	}
	ref := FileRef{Name: path.Base(name), Subfolder: q.Get("subfolder"), Type: kind}
	if ref.Check() != nil {
		empty(w, http.StatusBadRequest)
		return
	}
	resp, err := s.cfg.Backend.View(r.Context(), View{File: ref, Query: q, Range: r.Header.Get("Range")})
	if err != nil {
		s.log.Debug("file not shown", "file", ref.Name, "err", err)
		empty(w, http.StatusNotFound)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if runs(resp.Header.Get("Content-Type")) {
		resp.Header.Set("Content-Type", "application/octet-stream")
	}
	w.Header().Set("Content-Security-Policy", "sandbox") // of a picture's scripts: SVG has some
	relayResponse(w, resp, "Content-Disposition", "Content-Range", "Accept-Ranges", "Last-Modified", "Etag")
}

// runs tells the types that a browser would run as a page of this origin. ComfyUI
// has them downloaded too.
func runs(contentType string) bool {
	base, _, _ := strings.Cut(contentType, ";")
	switch strings.ToLower(strings.TrimSpace(base)) {
	case "text/html", "text/html-sandboxed", "application/xhtml+xml", "text/xml", "application/xml",
		"text/javascript", "application/javascript", "text/css":
		return true
	}
	return false
}

// relayResponse passes a worker's answer on with the headers named.
func relayResponse(w http.ResponseWriter, resp *http.Response, headers ...string) {
	if resp.StatusCode >= http.StatusBadRequest {
		empty(w, resp.StatusCode)
		return
	}
	for _, name := range append(headers, "Content-Type", "Content-Length", "Content-Encoding") {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

const (
	maxFormField = 64 << 10
	maxFormParts = 32
)

// uploadImage is POST /upload/image.
func (s *Server) uploadImage(w http.ResponseWriter, r *http.Request) { s.upload(w, r, false) }

// uploadMask is POST /upload/mask.
func (s *Server) uploadMask(w http.ResponseWriter, r *http.Request) { s.upload(w, r, true) }

func (s *Server) upload(w http.ResponseWriter, r *http.Request, mask bool) {
	if r.ContentLength > s.cfg.MaxUploadBytes {
		s.tooLarge(w)
		return
	}
	if s.uploads.Acquire(r.Context(), 1) != nil {
		return // the client went
	}
	defer s.uploads.Release(1)
	r.Body = s.bodyOf(w, r)
	form, err := s.readForm(r)
	defer form.close()
	tooLarge := (*http.MaxBytesError)(nil)
	switch {
	case errors.As(err, &tooLarge):
		s.tooLarge(w)
		return
	case err != nil:
		s.log.Debug("upload refused", "err", err)
		empty(w, http.StatusBadRequest)
		return
	}
	u, err := form.upload(mask)
	if err == nil {
		var ref FileRef
		if ref, err = s.cfg.Backend.Upload(r.Context(), u); err == nil {
			answer(w, http.StatusOK, fields("name", ref.Name, "subfolder", ref.Subfolder, "type", ref.Type).value())
			return
		}
		if !errors.Is(err, ErrBadFile) {
			s.trouble(w, r, err)
			return
		}
	}
	s.log.Debug("upload refused", "err", err)
	empty(w, http.StatusBadRequest)
}

// form is the parts of an upload, the picture in a file.
type form struct {
	values map[string]string
	name   string // the picture's
	file   *os.File
	size   int64
}

func (f *form) close() {
	if f.file != nil {
		_ = f.file.Close()
		_ = os.Remove(f.file.Name())
	}
}

// readForm reads a multipart body. The form is to be closed, after an error too.
func (s *Server) readForm(r *http.Request) (*form, error) {
	f := &form{values: map[string]string{}}
	parts, err := r.MultipartReader()
	if err != nil {
		return f, err
	}
	for range maxFormParts {
		p, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return f, nil
		}
		if err != nil {
			return f, err
		}
		name, file := partNames(p)
		if name != "image" {
			b, err := io.ReadAll(io.LimitReader(p, maxFormField+1))
			if err != nil {
				return f, err
			}
			if len(b) > maxFormField {
				return f, fmt.Errorf("form field %q is longer than %d bytes", name, maxFormField)
			}
			f.values[name] = string(b)
			continue
		}
		if f.file != nil {
			return f, errors.New("two pictures in one upload")
		}
		f.name = file
		if f.file, err = os.CreateTemp(filepath.Join(s.cfg.Dir, "tmp"), "upload-*"); err != nil {
			return f, err
		}
		if f.size, err = io.Copy(f.file, p); err != nil {
			return f, err
		}
	}
	return f, fmt.Errorf("more than %d parts in one upload", maxFormParts)
}

// partNames are the field's name and the file's as it was sent: Part.FileName would
// hide a path in it.
func partNames(p *multipart.Part) (field, file string) {
	_, params, err := mime.ParseMediaType(p.Header.Get("Content-Disposition"))
	if err != nil {
		return "", ""
	}
	return params["name"], params["filename"]
}

func (f *form) upload(mask bool) (*Upload, error) {
	if f.file == nil || f.name == "" {
		return nil, errors.New("no file in the field image")
	}
	overwrite := f.values["overwrite"]
	u := &Upload{
		FileRef:   FileRef{Name: f.name, Subfolder: f.values["subfolder"], Type: cmp.Or(f.values["type"], "input")},
		Overwrite: overwrite == "true" || overwrite == "1",
		Content:   f.file, Size: f.size,
	}
	if err := u.Check(); err != nil {
		return nil, err
	}
	if _, err := f.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if !mask {
		return u, nil
	}
	var original struct {
		Name      string `json:"filename"`
		Subfolder string `json:"subfolder"`
		Type      string `json:"type"`
	}
	if err := json.Unmarshal([]byte(f.values["original_ref"]), &original); err != nil {
		return nil, fmt.Errorf("original_ref: %w", err)
	}
	ref, err := annotated(original.Name, cmp.Or(original.Type, "output"))
	if err != nil {
		return nil, err
	}
	ref.Subfolder = path.Join(original.Subfolder, ref.Subfolder)
	u.Original = &ref
	return u, ref.Check()
}
