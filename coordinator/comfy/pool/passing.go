// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/coordinator/comfy"
)

// HasFile implements comfy.Backend.
func (p *Pool) HasFile(f comfy.FileRef) bool {
	if p.shelf.has(f) {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.origins[f]; ok {
		w := p.workers[o.worker]
		return w != nil && w.live
	}
	if f.Type != kindInput {
		return false
	}
	name := annotation(f, "")
	for _, w := range p.alive() {
		if w.listed[name] {
			return true
		}
	}
	return false
}

// View implements comfy.Backend. A file that is kept is answered from disk; a
// preview of it is made by a worker. Others are asked for on
// the workers: that which made the file, or all.
func (p *Pool) View(ctx context.Context, v comfy.View) (*http.Response, error) {
	f := v.File
	if err := valid(f); err != nil {
		return nil, err
	}
	plain := v.Query.Get("preview") == "" && v.Query.Get("channel") == ""
	if plain {
		r, err := p.shelf.open(f)
		if err == nil {
			info, err := r.Stat()
			if err != nil {
				return nil, errors.Join(err, r.Close())
			}
			out := answer(http.StatusOK, contentType(f.Name), nil)
			out.Header.Set("Content-Disposition", fmt.Sprintf("filename=%q", f.Name))
			return part(out, r, info.Size(), v.Range), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	p.mu.Lock()
	made, known := p.origins[f]
	maker := p.workers[made.worker]
	if known && (maker == nil || !maker.live) {
		maker = nil
	}
	others := p.alive()
	p.mu.Unlock()
	if maker != nil {
		resp, err := maker.api.viewRange(ctx, made.file, v)
		if err == nil && resp.StatusCode < http.StatusBadRequest {
			return resp, nil
		}
		drop(resp)
	}
	if !plain && p.shelf.has(f) {
		return p.converted(ctx, v, others)
	}
	if known { // another worker's file of that name is another one
		return answer(http.StatusNotFound, "", nil), nil
	}
	for _, w := range others {
		resp, err := w.api.viewRange(ctx, f, v)
		if err == nil && resp.StatusCode < http.StatusBadRequest {
			return resp, nil
		}
		drop(resp)
	}
	return answer(http.StatusNotFound, "", nil), nil
}

// part gives a response a file as body, or the one range of it that was asked for.
func part(out *http.Response, f *os.File, size int64, asked string) *http.Response {
	out.Body, out.ContentLength = f, size
	out.Header.Set("Accept-Ranges", "bytes")
	from, to, ok := strings.Cut(strings.TrimPrefix(asked, "bytes="), "-")
	if !ok || !strings.HasPrefix(asked, "bytes=") {
		return out
	}
	first, err := strconv.ParseInt(from, 10, 64)
	last := size - 1
	switch {
	case from == "": // the last bytes
		n, e := strconv.ParseInt(to, 10, 64)
		first, err = max(0, size-n), e
	case to != "" && err == nil:
		var n int64
		n, err = strconv.ParseInt(to, 10, 64)
		last = min(last, n)
	}
	if err != nil || first < 0 {
		return out // not one range: all of it
	}
	if first > last {
		out.StatusCode, out.Status = http.StatusRequestedRangeNotSatisfiable, ""
		out.Header.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		_ = f.Close() //nolint:errcheck // it was not read
		out.Body, out.ContentLength = http.NoBody, 0
		return out
	}
	out.StatusCode, out.Status = http.StatusPartialContent, ""
	out.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
	out.ContentLength = last - first + 1
	out.Body = struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, first, out.ContentLength), f}
	return out
}

func drop(resp *http.Response) {
	if resp != nil {
		_ = resp.Body.Close() //nolint:errcheck // nobody reads it
	}
}

// converted has some worker make the preview of a file that is kept here.
func (p *Pool) converted(ctx context.Context, v comfy.View, workers []*worker) (*http.Response, error) {
	for _, w := range workers {
		content, err := p.shelf.open(v.File)
		if err != nil {
			return answer(http.StatusNotFound, "", nil), nil //nolint:nilerr // dropped meanwhile
		}
		lent := file{Type: kindTemp, Subfolder: "distorch", Name: v.File.Name}
		theirs, err := w.api.upload(ctx, "/upload/image", lent, false, nil, content)
		err = errors.Join(err, content.Close())
		if err != nil {
			continue
		}
		resp, err := w.api.viewRange(ctx, theirs, v)
		if err == nil && resp.StatusCode < http.StatusBadRequest {
			return resp, nil
		}
		drop(resp)
	}
	if len(workers) == 0 {
		return nil, &comfy.NoWorkerError{}
	}
	return answer(http.StatusNotFound, "", nil), nil
}

// Upload implements comfy.Backend. A mask is put on its picture by a worker, as
// pictures are not read here.
func (p *Pool) Upload(ctx context.Context, u *comfy.Upload) (comfy.FileRef, error) {
	if err := valid(u.FileRef); err != nil {
		return comfy.FileRef{}, err
	}
	if u.Original == nil {
		return p.shelf.keep(u.FileRef, u.Overwrite, u.Content)
	}
	original, err := p.shelf.open(*u.Original)
	if errors.Is(err, fs.ErrNotExist) {
		return u.FileRef, nil // as ComfyUI answers: nothing is stored
	}
	if err != nil {
		return comfy.FileRef{}, err
	}
	defer original.Close()
	var last error = &comfy.NoWorkerError{}
	for _, w := range p.living() {
		if _, err := original.Seek(0, io.SeekStart); err != nil {
			return comfy.FileRef{}, err
		}
		if _, err := u.Content.Seek(0, io.SeekStart); err != nil {
			return comfy.FileRef{}, err
		}
		made, err := p.masked(ctx, w, u, original)
		if err == nil {
			return made, nil
		}
		last = err
	}
	return comfy.FileRef{}, fmt.Errorf("put a mask on %s: %w", nameOf(*u.Original), last)
}

func (p *Pool) masked(ctx context.Context, w *worker, u *comfy.Upload, original io.Reader) (file, error) {
	lent := file{Type: kindTemp, Subfolder: "distorch", Name: u.Original.Name}
	theirs, err := w.api.upload(ctx, "/upload/image", lent, false, nil, original)
	if err != nil {
		return file{}, err
	}
	ref, err := json.Marshal(map[string]string{"filename": theirs.Name, "subfolder": theirs.Subfolder, "type": theirs.Type})
	if err != nil {
		return file{}, err
	}
	mask := file{Type: kindTemp, Subfolder: "distorch", Name: u.Name}
	theirs, err = w.api.upload(ctx, "/upload/mask", mask, true, map[string]string{"original_ref": string(ref)}, u.Content)
	if err != nil {
		return file{}, err
	}
	resp, err := w.api.view(ctx, theirs, nil)
	if err != nil {
		return file{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return file{}, &statusError{"/view", resp.StatusCode, nil}
	}
	ours := u.FileRef
	if !u.Overwrite {
		if ours, err = p.shelf.claim(ours); err != nil {
			return file{}, err
		}
	}
	err = p.shelf.put(ours, resp.Body)
	if err != nil {
		p.shelf.release(ours)
	}
	return ours, err
}

// Get implements comfy.Backend. Lists of several workers are one list, each element
// once.
func (p *Pool) Get(ctx context.Context, path string, q url.Values) (*http.Response, error) {
	workers := p.living()
	if len(workers) == 0 {
		return nil, &comfy.NoWorkerError{}
	}
	if !lists(path) {
		return p.first(ctx, workers, path, q)
	}
	answers := make([][]json.RawMessage, len(workers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, w := range workers {
		g.Go(func() error {
			gctx, cancel := context.WithTimeout(gctx, callTimeout)
			defer cancel()
			raw, err := w.api.read(gctx, http.MethodGet, path, q, nil, maxAnswerBytes)
			if err == nil {
				answers[i], _ = asList(raw)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var all []json.RawMessage
	seen := map[string]bool{}
	for _, list := range answers {
		if list != nil && all == nil {
			all = []json.RawMessage{}
		}
		for _, v := range list {
			if k := canonical(v); !seen[k] {
				seen[k] = true
				all = append(all, v)
			}
		}
	}
	if all == nil { // no lists after all
		return p.first(ctx, workers, path, q)
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return answer(http.StatusOK, "application/json; charset=utf-8", raw), nil
}

func lists(path string) bool {
	return path == "/embeddings" || path == "/models" || strings.HasPrefix(path, "/models/") || path == "/extensions"
}

// first is the first good answer, or the last bad one.
func (p *Pool) first(ctx context.Context, workers []*worker, path string, q url.Values) (*http.Response, error) {
	var last *http.Response
	var failed error
	for _, w := range workers {
		resp, err := w.api.request(ctx, http.MethodGet, path, q, "", nil)
		if err != nil {
			failed = err
			continue
		}
		drop(last)
		last = resp
		if resp.StatusCode < http.StatusBadRequest {
			return resp, nil
		}
	}
	if last == nil {
		return nil, fmt.Errorf("GET %s of the comfyui workers: %w", path, failed)
	}
	return last, nil
}

// Free implements comfy.Backend.
func (p *Pool) Free(ctx context.Context, body json.RawMessage) error {
	var g errgroup.Group
	for _, w := range p.living() {
		g.Go(func() error {
			err := w.within(ctx, func(ctx context.Context) error {
				_, err := w.api.read(ctx, http.MethodPost, "/free", nil, body, maxErrorBytes)
				return err
			})
			if err != nil {
				return fmt.Errorf("free memory of worker %s: %w", w.registration.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Stats implements comfy.Backend: the versions of the first worker, the memory of
// all, and their devices under the workers' names.
func (p *Pool) Stats() comfy.SystemStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := comfy.SystemStats{System: comfy.SystemInfo{Argv: []string{}}, Devices: []comfy.DeviceStats{}}
	for i, w := range p.alive() {
		ram, free := out.System.RAMTotal, out.System.RAMFree
		if i == 0 {
			out.System = w.stats.System
			out.System.Argv = []string{}
		}
		out.System.RAMTotal, out.System.RAMFree = ram+w.stats.System.RAMTotal, free+w.stats.System.RAMFree
		for _, d := range w.stats.Devices {
			d.Name = w.registration.Name + ": " + d.Name
			out.Devices = append(out.Devices, d)
		}
	}
	return out
}
