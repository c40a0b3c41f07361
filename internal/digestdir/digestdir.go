// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package digestdir is a folder of files under the SHA-256 of their bytes, of a
// bounded size: a file is there whole and unchanged, or not at all.
//
// Imported by the coordinator, which keeps what clients brought, and by the
// agent, which keeps what coordinators gave it. It imports nothing of distorch.
package digestdir

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Errors that callers tell apart.
var (
	ErrMissing  = errors.New("no file of this digest")
	ErrMismatch = errors.New("the bytes are not those of the digest")
	ErrFull     = errors.New("no room for the file")
)

const writing = ".writing-"

// Check refuses what is no SHA-256 in lower-case hexadecimal digits.
func Check(digest string) error {
	raw, err := hex.DecodeString(digest)
	if err != nil || len(raw) != sha256.Size || strings.ToLower(digest) != digest {
		return fmt.Errorf("%.80q is no SHA-256 in 64 hexadecimal digits", digest)
	}
	return nil
}

// Dir is the folder. All methods may be called at the same time.
type Dir struct {
	path  string
	limit int64 // bytes; 0: none

	mu     sync.Mutex
	pins   map[string]int
	proven map[string]stamp // whose bytes were compared in this process
}

type stamp struct {
	bytes    int64
	modified time.Time
}

// Open makes the folder where there is none, and removes what a process left
// half written.
func Open(path string, limit int64) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(path, writing+"*"))
	if err != nil {
		return nil, err
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return &Dir{path: path, limit: limit, pins: map[string]int{}, proven: map[string]stamp{}}, nil
}

func (d *Dir) file(digest string) string { return filepath.Join(d.path, digest+".safetensors") }

// Use gives a file's path and keeps the file until release is called. Its bytes
// are compared with the digest once in a process; a file of other bytes is
// removed, and ErrMismatch says so. ErrMissing: there is none.
func (d *Dir) Use(digest string) (path string, release func(), err error) {
	if err := Check(digest); err != nil {
		return "", nil, err
	}
	release = d.pin(digest)
	if err := d.prove(digest); err != nil {
		release()
		return "", nil, err
	}
	return d.file(digest), release, nil
}

// Has says whether there is a file, whatever its bytes.
func (d *Dir) Has(digest string) bool {
	_, err := os.Stat(d.file(digest))
	return err == nil
}

func (d *Dir) pin(digest string) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pins[digest]++
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.pins[digest]--; d.pins[digest] == 0 {
			delete(d.pins, digest)
		}
	})
}

// prove compares a file's bytes, unless it is as when they were compared.
func (d *Dir) prove(digest string) error {
	f, err := os.Open(d.file(digest))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w %s", ErrMissing, digest)
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // was only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	now := stamp{info.Size(), info.ModTime()}
	d.mu.Lock()
	known, ok := d.proven[digest]
	d.mu.Unlock()
	if !ok || known.bytes != now.bytes || !known.modified.Equal(now.modified) {
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if err := compare(h, digest); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", f.Name(), err), os.Remove(f.Name()))
		}
		d.mu.Lock()
		d.proven[digest] = now
		d.mu.Unlock()
	}
	now.modified = time.Now() // the last use, by which files are dropped
	if os.Chtimes(f.Name(), time.Time{}, now.modified) == nil {
		if info, err := f.Stat(); err == nil {
			d.mu.Lock()
			d.proven[digest] = stamp{info.Size(), info.ModTime()}
			d.mu.Unlock()
		}
	}
	return nil
}

func compare(h hash.Hash, digest string) error {
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("%w: SHA-256 %s, not %s", ErrMismatch, got, digest)
	}
	return nil
}

// Put writes a file of so many bytes, which fill gives, drops others that nobody
// uses where there is not enough room, those used longest ago first, and gives
// the file as Use does. On an error nothing of it is left.
func (d *Dir) Put(digest string, bytes int64, fill func(io.Writer) error) (path string, release func(), err error) {
	if err := Check(digest); err != nil {
		return "", nil, err
	}
	unpin := d.pin(digest)
	defer func() {
		if err != nil {
			unpin()
		}
	}()
	if err := d.room(digest, bytes); err != nil {
		return "", nil, err
	}
	f, err := os.CreateTemp(d.path, writing+"*")
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	h := sha256.New()
	w := &counted{to: io.MultiWriter(f, h), limit: bytes}
	if err := fill(w); err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	if w.n != bytes {
		return "", nil, errors.Join(fmt.Errorf("%w: %d bytes of %d came", ErrMismatch, w.n, bytes), f.Close())
	}
	if err := compare(h, digest); err != nil {
		return "", nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return "", nil, err
	}
	return d.arrive(digest, f.Name(), unpin)
}

// Take links a file that lies elsewhere into the folder, or copies it where it
// cannot be linked, and gives it as Use does.
func (d *Dir) Take(digest, from string) (path string, release func(), err error) {
	if path, release, err = d.Use(digest); !errors.Is(err, ErrMissing) && !errors.Is(err, ErrMismatch) {
		return path, release, err
	}
	info, err := os.Stat(from)
	if err != nil {
		return "", nil, err
	}
	unpin := d.pin(digest)
	defer unpin()
	if err := d.room(digest, info.Size()); err != nil {
		return "", nil, err
	}
	if err := os.Link(from, d.file(digest)); err == nil || errors.Is(err, os.ErrExist) {
		return d.Use(digest)
	}
	f, err := os.Open(from)
	if err != nil {
		return "", nil, err
	}
	defer f.Close() //nolint:errcheck // was only read
	return d.Put(digest, info.Size(), func(w io.Writer) error {
		_, err := io.Copy(w, f)
		return err
	})
}

// arrive gives a whole file its name.
func (d *Dir) arrive(digest, name string, release func()) (string, func(), error) {
	info, err := os.Stat(name)
	if err == nil {
		err = os.Rename(name, d.file(digest))
	}
	if err != nil {
		return "", nil, err
	}
	d.mu.Lock()
	d.proven[digest] = stamp{info.Size(), info.ModTime()}
	d.mu.Unlock()
	return d.file(digest), release, nil
}

// counted ends at the first byte too many.
type counted struct {
	to       io.Writer
	n, limit int64
}

func (c *counted) Write(b []byte) (int, error) {
	if int64(len(b)) > c.limit-c.n {
		return 0, fmt.Errorf("%w: more than %d bytes came", ErrMismatch, c.limit)
	}
	n, err := c.to.Write(b)
	c.n += int64(n)
	return n, err
}

type held struct {
	digest string
	stamp
}

// files are what is there, those used longest ago first.
func (d *Dir) files() (out []held, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		digest, ok := strings.CutSuffix(e.Name(), ".safetensors")
		if info, err := e.Info(); ok && err == nil && Check(digest) == nil {
			out = append(out, held{digest, stamp{info.Size(), info.ModTime()}})
		}
	}
	slices.SortFunc(out, func(a, b held) int { return a.modified.Compare(b.modified) })
	return out, nil
}

// room drops files until so many bytes more fit.
func (d *Dir) room(digest string, bytes int64) error {
	if bytes < 0 || d.limit == 0 {
		return nil
	}
	all, err := d.files()
	if err != nil {
		return err
	}
	used := int64(0)
	for _, h := range all {
		if h.digest != digest {
			used += h.bytes
		}
	}
	for _, h := range all {
		if used <= d.limit-bytes {
			break
		}
		if h.digest != digest && d.drop(h.digest) {
			used -= h.bytes
		}
	}
	if used > d.limit-bytes {
		return fmt.Errorf("%w: it has %d bytes, %s may hold %d, %d of them in use", ErrFull, bytes, d.path, d.limit, used)
	}
	return nil
}

// drop removes a file that nobody uses.
func (d *Dir) drop(digest string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pins[digest] > 0 {
		return false
	}
	delete(d.proven, digest)
	return os.Remove(d.file(digest)) == nil
}

// Keep drops the files that nobody uses and that are not to be kept.
func (d *Dir) Keep(wanted func(digest string) bool) error {
	all, err := d.files()
	for _, h := range all {
		if !wanted(h.digest) {
			d.drop(h.digest)
		}
	}
	return err
}
