// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"container/list"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distorch/distorch/coordinator/comfy"
)

// Kinds of files, as ComfyUI names its folders.
const (
	kindInput  = "input"
	kindOutput = "output"
	kindTemp   = "temp"
)

const (
	maxDepth    = 16
	maxCounters = 100_000
)

// file names one file of a ComfyUI: type, subfolder (with slashes) and filename.
type file = comfy.FileRef

func nameOf(f file) string { return path.Join(f.Type, f.Subfolder, f.Name) }

// valid refuses what would leave the folder, on any system.
func valid(f file) error {
	bad := func() error {
		return fmt.Errorf("%w: type %.20q, subfolder %.80q, filename %.80q", comfy.ErrBadFile, f.Type, f.Subfolder, f.Name)
	}
	if f.Type != kindInput && f.Type != kindOutput && f.Type != kindTemp {
		return bad()
	}
	var parts []string
	if f.Subfolder != "" {
		parts = strings.Split(f.Subfolder, "/")
	}
	parts = append(parts, f.Name)
	if len(parts) > maxDepth || len(f.Subfolder)+len(f.Name) > maxNameLen {
		return bad()
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || len(p) > 240 || strings.HasSuffix(p, partial) || strings.ContainsFunc(p, func(r rune) bool {
			return r < ' ' || r == 0x7f || strings.ContainsRune(`/\:*?"<>|`, r)
		}) || !filepath.IsLocal(p) {
			return bad()
		}
	}
	return nil
}

// partial ends the name of a file that is being written.
const partial = ".distorch-part"

// shelf keeps files on disk under ComfyUI's own names, the least recently used
// ones dropped when they have more than limit bytes together.
type shelf struct {
	dir   string
	limit int64

	mu       sync.Mutex
	files    map[file]*kept
	order    *list.List // of *kept, the most recently used first
	bytes    int64
	taken    map[file]bool  // names given out for files that are not here yet
	counters map[string]int // last number given out, by kind, folder and prefix
}

type kept struct {
	file  file
	bytes int64
	sum   [sha256.Size]byte
	known bool // sum is known: not so for files of an earlier process
	at    *list.Element
}

// openShelf takes in the files that an earlier process left; temporary ones go.
func openShelf(dir string, limit int64) (*shelf, error) {
	s := &shelf{dir: dir, limit: limit, files: map[file]*kept{}, order: list.New(), taken: map[file]bool{}, counters: map[string]int{}}
	if err := os.RemoveAll(filepath.Join(dir, kindTemp)); err != nil {
		return nil, fmt.Errorf("clear temporary files: %w", err)
	}
	type found struct {
		file  file
		bytes int64
		used  time.Time
	}
	var all []found
	for _, kind := range []string{kindInput, kindOutput, kindTemp} {
		top := filepath.Join(dir, kind)
		if err := os.MkdirAll(top, 0o700); err != nil {
			return nil, fmt.Errorf("make folder for files of ComfyUI: %w", err)
		}
		err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(top, p)
			if err != nil {
				return err
			}
			folder, name := path.Split(filepath.ToSlash(rel))
			f := file{Type: kind, Subfolder: strings.TrimSuffix(folder, "/"), Name: name}
			info, err := d.Info()
			switch {
			case err != nil:
				return err
			case strings.HasSuffix(name, partial):
				return os.Remove(p)
			case valid(f) != nil:
				return nil
			}
			all = append(all, found{f, info.Size(), info.ModTime()})
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read files of ComfyUI in %s: %w", top, err)
		}
	}
	slices.SortFunc(all, func(a, b found) int { return a.used.Compare(b.used) })
	for _, f := range all {
		s.enter(&kept{file: f.file, bytes: f.bytes})
		s.count(f.file)
	}
	s.evict(nil)
	return s, nil
}

func (s *shelf) path(f file) string {
	return filepath.Join(s.dir, f.Type, filepath.FromSlash(f.Subfolder), f.Name)
}

func (s *shelf) enter(k *kept) {
	if old := s.files[k.file]; old != nil {
		s.bytes -= old.bytes
		s.order.Remove(old.at)
	}
	k.at = s.order.PushFront(k)
	s.files[k.file] = k
	s.bytes += k.bytes
}

// evict drops the least recently used files, not the one just written.
func (s *shelf) evict(but *kept) {
	for s.bytes > s.limit {
		e := s.order.Back()
		k, _ := e.Value.(*kept)
		if k == nil || k == but {
			return
		}
		s.drop(k)
	}
}

func (s *shelf) drop(k *kept) {
	s.order.Remove(k.at)
	delete(s.files, k.file)
	s.bytes -= k.bytes
	_ = os.Remove(s.path(k.file)) //nolint:errcheck // somebody else removed it
}

// numbered splits golden/a_00012_.png into a_, 12 and _.png.
func numbered(name string) (before string, n int, after string, ok bool) {
	stem, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		stem, ext = name[:i], name[i:]
	}
	tail := ""
	if strings.HasSuffix(stem, "_") {
		stem, tail = stem[:len(stem)-1], "_"
	}
	i := len(stem)
	for i > 0 && stem[i-1] >= '0' && stem[i-1] <= '9' {
		i--
	}
	if len(stem)-i != 5 || i == 0 || stem[i-1] != '_' {
		return "", 0, "", false
	}
	n, err := strconv.Atoi(stem[i:])
	return stem[:i], n, tail + ext, err == nil
}

func counter(f file, before string) string { return f.Type + "/" + f.Subfolder + "/" + before }

// count makes later names have higher numbers.
func (s *shelf) count(f file) {
	if before, n, _, ok := numbered(f.Name); ok {
		key := counter(f, before)
		if len(s.counters) >= maxCounters {
			clear(s.counters) // free names are still looked for on the shelf
		}
		s.counters[key] = max(s.counters[key], n)
	}
}

// claim gives a file a name that no other has: its own if that is free, else
// ComfyUI's next number, or a number in parentheses.
func (s *shelf) claim(f file) (file, error) {
	if err := valid(f); err != nil {
		return file{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := f
	before, n, after, ok := numbered(f.Name)
	if ok {
		n = max(n, s.counters[counter(f, before)]+1)
		f.Name = fmt.Sprintf("%s%05d%s", before, n, after)
	}
	for i := 1; s.taken[f] || s.files[f] != nil; i++ {
		if ok {
			n++
			f.Name = fmt.Sprintf("%s%05d%s", before, n, after)
			continue
		}
		stem, ext := wanted.Name, ""
		if at := strings.LastIndexByte(stem, '.'); at > 0 {
			stem, ext = stem[:at], stem[at:]
		}
		f.Name = fmt.Sprintf("%s (%d)%s", stem, i, ext)
	}
	s.count(f)
	s.taken[f] = true
	return f, nil
}

// release gives a claimed name back that no file came for.
func (s *shelf) release(f file) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.taken, f)
}

var errTooLarge = errors.New("larger than all files of ComfyUI may be together")

// put writes a file under a name that was claimed or is to be written over.
func (s *shelf) put(f file, content io.Reader) error {
	if err := valid(f); err != nil {
		return err
	}
	target := s.path(f)
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	w, err := os.CreateTemp(filepath.Dir(target), "*"+partial)
	if err != nil {
		return err
	}
	defer os.Remove(w.Name()) //nolint:errcheck // gone when all went well
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(content, s.limit+1))
	if err == nil && n > s.limit {
		err = fmt.Errorf("%s is %w: %d bytes (comfy.storage)", nameOf(f), errTooLarge, s.limit)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	k := &kept{file: f, bytes: n, known: true}
	sum.Sum(k.sum[:0])
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(w.Name(), target); err != nil {
		return err
	}
	delete(s.taken, f)
	s.enter(k)
	s.count(f)
	s.evict(k)
	return nil
}

// has reports whether a file is here.
func (s *shelf) has(f file) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[f] != nil
}

// open reads a file; fs.ErrNotExist if it is not here (any more).
func (s *shelf) open(f file) (*os.File, error) {
	if err := valid(f); err != nil {
		return nil, err
	}
	s.mu.Lock()
	k := s.files[f]
	if k != nil {
		s.order.MoveToFront(k.at)
	}
	s.mu.Unlock()
	if k == nil {
		return nil, fs.ErrNotExist
	}
	r, err := os.Open(s.path(f))
	if errors.Is(err, fs.ErrNotExist) {
		s.mu.Lock()
		if s.files[f] == k {
			s.drop(k)
		}
		s.mu.Unlock()
	}
	return r, err
}

// sum is the digest of a file's content.
func (s *shelf) sum(f file) (digest [sha256.Size]byte, err error) {
	s.mu.Lock()
	k := s.files[f]
	if k != nil && k.known {
		defer s.mu.Unlock()
		return k.sum, nil
	}
	s.mu.Unlock()
	r, err := s.open(f)
	if err != nil {
		return digest, err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return digest, err
	}
	h.Sum(digest[:0])
	s.mu.Lock()
	defer s.mu.Unlock()
	if k != nil && s.files[f] == k {
		k.sum, k.known = digest, true
	}
	return digest, nil
}

// keep takes an upload: a file of the same name and content is used again, one of
// other content gets a number, unless it is to be written over.
func (s *shelf) keep(f file, overwrite bool, content io.ReadSeeker) (file, error) {
	if err := valid(f); err != nil {
		return file{}, err
	}
	if !overwrite {
		h := sha256.New()
		if _, err := io.Copy(h, content); err != nil {
			return file{}, err
		}
		if _, err := content.Seek(0, io.SeekStart); err != nil {
			return file{}, err
		}
		wanted := f
		for i := 1; !s.take(f); i++ {
			sum, err := s.sum(f)
			if err == nil && string(sum[:]) == string(h.Sum(nil)) {
				return f, nil
			}
			stem, ext := wanted.Name, ""
			if at := strings.LastIndexByte(stem, '.'); at > 0 {
				stem, ext = stem[:at], stem[at:]
			}
			f.Name = fmt.Sprintf("%s (%d)%s", stem, i, ext)
		}
	}
	err := s.put(f, content)
	if err != nil {
		s.release(f)
	}
	return f, err
}

// take claims a name that nobody has; it says whether it did.
func (s *shelf) take(f file) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[f] || s.files[f] != nil {
		return false
	}
	s.taken[f] = true
	return true
}
