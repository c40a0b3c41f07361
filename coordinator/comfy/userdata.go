// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// userPath is a path below the user's folder, without a leading slash; "." is the
// folder itself. os.Root keeps what is done with it inside.
func userPath(p string) (string, bool) {
	p = strings.ReplaceAll(p, `\`, "/")
	if !inside(p) {
		return "", false
	}
	return path.Clean(p), true
}

// fileInfo describes a file; name is as it is to be shown.
func fileInfo(name string, info fs.FileInfo) *object {
	at := encodeAny(float64(info.ModTime().UnixMicro()) / 1e6)
	return fields("path", name, "size", info.Size(), "modified", at, "created", at)
}

// listUserData is GET /userdata?dir=.
func (s *Server) listUserData(w http.ResponseWriter, r *http.Request) {
	q := query(r)
	if q.Get("dir") == "" {
		plain(w, http.StatusBadRequest, "Directory not provided")
		return
	}
	dir, ok := userPath(q.Get("dir"))
	if !ok {
		plain(w, http.StatusForbidden, "Invalid directory")
		return
	}
	if _, err := s.root.Stat(dir); err != nil {
		plain(w, http.StatusNotFound, "Directory not found")
		return
	}
	on := func(name string) bool { return strings.EqualFold(q.Get(name), "true") }
	items := []jsontext.Value{}
	err := fs.WalkDir(s.root.FS(), dir, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || at == dir:
			return err
		case strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() && !on("recurse"):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		name := strings.TrimPrefix(at, dir+"/")
		if dir == "." {
			name = at
		}
		switch {
		case on("full_info"):
			info, err := d.Info()
			if err != nil {
				return nil //nolint:nilerr // deleted meanwhile
			}
			items = append(items, fileInfo(name, info).value())
		case on("split"):
			items = append(items, encode(append([]string{name}, strings.Split(name, "/")...)))
		default:
			items = append(items, text(name))
		}
		return nil
	})
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	answer(w, http.StatusOK, array(items...))
}

// walkUserData is GET /v2/userdata?path=.
func (s *Server) walkUserData(w http.ResponseWriter, r *http.Request) {
	dir, ok := userPath(query(r).Get("path"))
	if !ok {
		plain(w, http.StatusBadRequest, "Invalid path requested")
		return
	}
	switch info, err := s.root.Stat(dir); {
	case err != nil:
		plain(w, http.StatusNotFound, "Requested path not found")
		return
	case !info.IsDir():
		plain(w, http.StatusBadRequest, "Requested path is not a directory")
		return
	}
	type item struct {
		dir  bool
		name string
		o    *object
	}
	var items []item
	err := fs.WalkDir(s.root.FS(), dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || at == dir {
			return err
		}
		o := fields("name", d.Name(), "path", at, "type", "directory")
		if !d.IsDir() {
			o.set("type", text("file"))
			if info, err := d.Info(); err == nil {
				o.set("size", encode(info.Size()))
				o.set("modified", encodeAny(float64(info.ModTime().UnixMicro())/1e6))
			}
		}
		items = append(items, item{d.IsDir(), strings.ToLower(d.Name()), o})
		return nil
	})
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	slices.SortStableFunc(items, func(a, b item) int {
		if a.dir != b.dir {
			if a.dir {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	values := make([]jsontext.Value, len(items))
	for i := range items {
		values[i] = items[i].o.value()
	}
	answer(w, http.StatusOK, array(values...))
}

// userFile is the path that a route names; it has answered when ok is false.
func userFile(w http.ResponseWriter, r *http.Request, name string) (at string, ok bool) {
	at, ok = userPath(r.PathValue(name))
	if !ok || at == "." {
		empty(w, http.StatusForbidden)
		return "", false
	}
	return at, true
}

// readUserData is GET /userdata/{file}.
func (s *Server) readUserData(w http.ResponseWriter, r *http.Request) {
	at, ok := userFile(w, r, "file")
	if !ok {
		return
	}
	f, err := s.root.Open(at)
	if err != nil {
		empty(w, http.StatusNotFound)
		return
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.IsDir() {
		empty(w, http.StatusNotFound)
		return
	}
	kind := mime.TypeByExtension(path.Ext(at))
	switch base, _, _ := strings.Cut(kind, ";"); {
	case base == "application/json", base == "text/css":
		kind = base
	case !strings.HasPrefix(base, "image/") || base == "image/svg+xml": // nothing that a browser would run
		kind = "application/octet-stream"
	}
	w.Header().Set("Content-Type", kind)
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// writeUserData is POST /userdata/{file}.
func (s *Server) writeUserData(w http.ResponseWriter, r *http.Request) {
	at, ok := userFile(w, r, "file")
	if !ok {
		return
	}
	q := query(r)
	if _, err := s.root.Stat(at); err == nil && q.Get("overwrite") == "false" {
		plain(w, http.StatusConflict, "File already exists")
		return
	}
	b, ok := s.body(w, r)
	if !ok {
		return
	}
	if err := s.writeFile(at, b); err != nil {
		s.log.Warn("user data was not written", "file", at, "err", err)
		plain(w, http.StatusBadRequest, "cannot write "+at+": "+err.Error())
		return
	}
	s.answerUserFile(w, r, at)
}

// maxUserData bounds what all files of the user come to.
const maxUserData = 1 << 30

// writeFile replaces a file whole.
func (s *Server) writeFile(at string, b []byte) error {
	size, err := s.userBytes()
	if err != nil {
		return err
	}
	if size+int64(len(b)) > maxUserData {
		return fmt.Errorf("user data has %d bytes, at most %d are kept; delete some", size, maxUserData)
	}
	if err := s.root.MkdirAll(path.Dir(at), 0o700); err != nil {
		return err
	}
	next := path.Join(path.Dir(at), rand.Text()+".new")
	if err := s.root.WriteFile(next, b, 0o600); err != nil {
		_ = s.root.Remove(next) // what there is of it
		return err
	}
	return s.root.Rename(next, at)
}

// userBytes is the size of all files of the user.
func (s *Server) userBytes() (n int64, err error) {
	err = fs.WalkDir(s.root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				n += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // it was removed meanwhile
			return nil
		}
		return err
	})
	return n, err
}

// answerUserFile says where a file is, or all of it with full_info.
func (s *Server) answerUserFile(w http.ResponseWriter, r *http.Request, at string) {
	if !strings.EqualFold(query(r).Get("full_info"), "true") {
		answer(w, http.StatusOK, text(at))
		return
	}
	info, err := s.root.Stat(at)
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	answer(w, http.StatusOK, fileInfo(at, info).value())
}

// deleteUserData is DELETE /userdata/{file}.
func (s *Server) deleteUserData(w http.ResponseWriter, r *http.Request) {
	at, ok := userFile(w, r, "file")
	if !ok {
		return
	}
	if err := s.root.Remove(at); err != nil {
		empty(w, http.StatusNotFound)
		return
	}
	empty(w, http.StatusNoContent)
}

// moveUserData is POST /userdata/{file}/move/{dest}.
func (s *Server) moveUserData(w http.ResponseWriter, r *http.Request) {
	from, ok := userFile(w, r, "file")
	if !ok {
		return
	}
	to, ok := userFile(w, r, "dest")
	if !ok {
		return
	}
	if _, err := s.root.Stat(from); err != nil {
		empty(w, http.StatusNotFound)
		return
	}
	if _, err := s.root.Stat(to); err == nil && query(r).Get("overwrite") == "false" {
		plain(w, http.StatusConflict, "File already exists")
		return
	}
	err := s.root.MkdirAll(path.Dir(to), 0o700)
	if err == nil {
		err = s.root.Rename(from, to)
	}
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	s.answerUserFile(w, r, to)
}

// users is GET /users; there is one user.
func (s *Server) users(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, fields("storage", "server", "migrated", true).value())
}

// addUser is POST /users, which means something to servers of several users alone.
func (s *Server) addUser(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusBadRequest, fields("error", "this server has one user").value())
}

const settingsFile = "comfy.settings.json"

// settings reads what POST /settings wrote. s.settingsMu is held.
func (s *Server) settings() (*object, error) {
	f, err := s.root.Open(settingsFile)
	if errors.Is(err, os.ErrNotExist) {
		return &object{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, s.cfg.MaxUploadBytes))
	if err != nil {
		return nil, err
	}
	v, err := compact(b)
	if err != nil {
		return &object{}, nil //nolint:nilerr // a broken file is as none, for ComfyUI too
	}
	o, err := readObject(v)
	if err != nil {
		return &object{}, nil //nolint:nilerr // likewise
	}
	return o, nil
}

func (s *Server) readSettings(w http.ResponseWriter, r *http.Request) (*object, bool) {
	s.settingsMu.Lock()
	defer s.settingsMu.Unlock()
	o, err := s.settings()
	if err != nil {
		s.trouble(w, r, err)
		return nil, false
	}
	return o, true
}

// allSettings is GET /settings.
func (s *Server) allSettings(w http.ResponseWriter, r *http.Request) {
	if o, ok := s.readSettings(w, r); ok {
		answer(w, http.StatusOK, o.value())
	}
}

// oneSetting is GET /settings/{id}: null for an unknown one.
func (s *Server) oneSetting(w http.ResponseWriter, r *http.Request) {
	o, ok := s.readSettings(w, r)
	if !ok {
		return
	}
	v, has := o.at(r.PathValue("id"))
	if !has {
		v = encode(nil)
	}
	answer(w, http.StatusOK, v)
}

// mergeSettings is POST /settings.
func (s *Server) mergeSettings(w http.ResponseWriter, r *http.Request) {
	if o, ok := s.readJSON(w, r); ok {
		s.keepSettings(w, r, o.members)
	}
}

// setSetting is POST /settings/{id}.
func (s *Server) setSetting(w http.ResponseWriter, r *http.Request) {
	b, ok := s.body(w, r)
	if !ok {
		return
	}
	v, err := compact(b)
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	s.keepSettings(w, r, []member{{r.PathValue("id"), v}})
}

func (s *Server) keepSettings(w http.ResponseWriter, r *http.Request, members []member) {
	s.settingsMu.Lock()
	defer s.settingsMu.Unlock()
	o, err := s.settings()
	if err == nil {
		for _, m := range members {
			o.set(m.name, m.value)
		}
		err = s.writeFile(settingsFile, o.value())
	}
	if err != nil {
		s.trouble(w, r, err)
		return
	}
	empty(w, http.StatusOK)
}
