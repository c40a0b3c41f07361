// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distorch/distorch/model/safetensors"
)

// Blobs keeps files that clients brought, named by their SHA-256, in one folder.
// When there is no room for another, the one that was used longest ago goes.
type Blobs struct {
	dir  string
	most int64

	mu     sync.Mutex
	all    int64 // bytes, those that arrive included
	byHash map[string]*blob
}

type blob struct {
	digest string
	bytes  int64
	used   time.Time
}

const (
	arrivingPrefix = "arriving-"
	// touchEvery is how exactly the order of use outlives a restart.
	touchEvery = time.Minute
)

// OpenBlobs takes in what the folder has; it makes the folder.
func OpenBlobs(dir string, most int64) (*Blobs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of blobs: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("folder of blobs: %w", err)
	}
	b := &Blobs{dir: dir, most: most, byHash: map[string]*blob{}}
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case err != nil || !info.Mode().IsRegular():
		case strings.HasPrefix(e.Name(), arrivingPrefix):
			_ = os.Remove(filepath.Join(dir, e.Name())) // of a process that ended meanwhile
		case isDigest(e.Name()):
			b.byHash[e.Name()] = &blob{e.Name(), info.Size(), info.ModTime()}
			b.all += info.Size()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.evict(0)
	return b, nil
}

func isDigest(s string) bool {
	return len(s) == hex.EncodedLen(sha256.Size) && strings.Trim(s, "0123456789abcdef") == ""
}

// evict makes room for n bytes more, as far as there are files to drop.
func (b *Blobs) evict(n int64) {
	if b.all+n <= b.most {
		return
	}
	old := make([]*blob, 0, len(b.byHash))
	for _, e := range b.byHash {
		old = append(old, e)
	}
	slices.SortFunc(old, func(x, y *blob) int { return cmp.Or(x.used.Compare(y.used), cmp.Compare(x.digest, y.digest)) })
	for _, e := range old {
		if b.all+n <= b.most {
			return
		}
		if err := os.Remove(filepath.Join(b.dir, e.digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue // someone reads it, on a system that minds
		}
		delete(b.byHash, e.digest)
		b.all -= e.bytes
	}
}

// Use is a blob's file, and marks it as used. The file may go at any time
// afterwards: open it at once, and take a file that is not there as one that the
// store has not.
func (b *Blobs) Use(digest string) (path string, bytes int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.byHash[digest]
	if e == nil {
		return "", 0, false
	}
	path = filepath.Join(b.dir, digest)
	now := time.Now()
	if now.Sub(e.used) > touchEvery {
		if err := os.Chtimes(path, now, now); errors.Is(err, fs.ErrNotExist) {
			delete(b.byHash, digest)
			b.all -= e.bytes
			return "", 0, false
		}
	}
	e.used = now
	return path, e.bytes, true
}

// Path is Use for LoRAs.Ensure: a blob that is not there is an error.
func (b *Blobs) Path(digest string) (string, error) {
	path, _, ok := b.Use(digest)
	if !ok {
		return "", missing(digest)
	}
	return path, nil
}

func missing(digests ...string) *Error {
	slices.Sort(digests)
	return &Error{CodeMissingBlobs, "the store has not, or has dropped, blob " + strings.Join(digests, ", ") + "; send it with PUT /v1/blobs/SHA256 and repeat the request", map[string]any{"missing": digests}}
}

// Put keeps n bytes of body under their digest, once they are here and right.
func (b *Blobs) Put(digest string, n int64, body io.Reader) (err error) {
	b.mu.Lock()
	b.evict(n)
	if b.all+n > b.most {
		b.mu.Unlock()
		return fail(CodeBusy, "the blob store is full of blobs that arrive at this moment; send it again in a while")
	}
	b.all += n
	b.mu.Unlock()
	kept := false
	defer func() {
		if !kept {
			b.mu.Lock()
			b.all -= n
			b.mu.Unlock()
		}
	}()
	f, err := os.CreateTemp(b.dir, arrivingPrefix)
	if err != nil {
		return storeError(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := receive(f, digest, n, body); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return storeError(err)
	}
	if err := isSafetensors(f.Name()); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byHash[digest] != nil { // it came twice at the same time
		kept = true
		b.all -= n
		return os.Remove(f.Name())
	}
	if err := os.Rename(f.Name(), filepath.Join(b.dir, digest)); err != nil {
		return storeError(err)
	}
	kept = true
	b.byHash[digest] = &blob{digest, n, time.Now()}
	return nil
}

// receive writes a body and compares its hash.
func receive(f io.Writer, digest string, n int64, body io.Reader) error {
	h := sha256.New()
	got, err := io.CopyBuffer(io.MultiWriter(onlyWrite{f}, h), body, make([]byte, min(n, chunkBytes)))
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case err != nil:
		return storeError(err)
	case got != n:
		return fail(CodeBadRequest, "the body ends after %d of its %d bytes", got, n)
	}
	return check(h, digest)
}

// onlyWrite hides ReadFrom, so that the hash sees what the file gets.
type onlyWrite struct{ io.Writer }

func check(h hash.Hash, digest string) error {
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return fail(CodeBadRequest, "the body's SHA-256 is %s, not %s as its address says; it was damaged on the way, or the address is of another file", got, digest)
	}
	return nil
}

func isSafetensors(path string) error {
	f, err := safetensors.Open(path)
	if err != nil {
		if format, ok := errors.AsType[*safetensors.FormatError](err); ok {
			return fail(CodeBadRequest, "the blob is no safetensors: %v", format)
		}
		return storeError(err)
	}
	return f.Close()
}

func storeError(err error) error {
	return &Error{CodeUnavailable, "the coordinator cannot keep the blob: " + err.Error(), nil}
}

func blobName(r *http.Request) (string, error) {
	digest := r.PathValue("sha256")
	if !isDigest(digest) {
		return "", fail(CodeBadRequest, "blob %.80q: its name is its SHA-256, 64 digits of lower-case hexadecimal", digest)
	}
	return digest, nil
}

func (s *Server) putBlob(w http.ResponseWriter, r *http.Request, _ Client) error {
	digest, err := blobName(r)
	if err != nil {
		return err
	}
	n, err := length(r, "a blob", s.limits.BlobBytes)
	if err != nil {
		return err
	}
	code := http.StatusOK
	body := s.arriving(w, r, n)
	if _, _, there := s.blobs.Use(digest); there {
		if _, err := io.Copy(io.Discard, body); err != nil { // so that the connection can be used again
			return err
		}
	} else {
		if err := s.blobs.Put(digest, n, body); err != nil {
			return err
		}
		code = http.StatusCreated
	}
	answer(w, code, map[string]any{"sha256": digest, "bytes": n})
	return nil
}

func (s *Server) headBlob(w http.ResponseWriter, r *http.Request, _ Client) error {
	digest, err := blobName(r)
	if err != nil {
		return err
	}
	_, bytes, ok := s.blobs.Use(digest)
	if !ok {
		return missingBlob(digest)
	}
	w.Header().Set("Content-Length", strconv.FormatInt(bytes, 10))
	w.WriteHeader(http.StatusOK)
	return nil
}

func missingBlob(digest string) error {
	return fail(CodeNotFound, "the store has not, or has dropped, blob %s; send it with PUT /v1/blobs/SHA256", digest)
}
