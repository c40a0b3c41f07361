// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/distorch/distorch/coordinator/comfy"
)

// collect gives each file of a node's output the coordinator's own name and copies
// it, before the client learns of it: workers name files alike, and go.
func (r *run) collect(ctx context.Context, output json.RawMessage, cached bool) (json.RawMessage, error) {
	ui, ok := asObject(output)
	if !ok {
		return output, nil
	}
	for i, m := range ui {
		items, ok := asList(m.value)
		if !ok {
			continue
		}
		for j, item := range items {
			o, ok := asObject(item)
			if !ok || o.text("filename") == "" {
				continue
			}
			theirs := file{Name: o.text("filename"), Subfolder: strings.ReplaceAll(o.text("subfolder"), `\`, "/"), Type: o.text("type")}
			if theirs.Type == "" {
				theirs.Type = kindOutput
			}
			ours, err := r.fetch(ctx, theirs, cached)
			if err != nil {
				return nil, fmt.Errorf("copy %s: %w", nameOf(theirs), err)
			}
			if ours != theirs {
				o = o.with("filename", quote(ours.Name))
				if ours.Subfolder != theirs.Subfolder {
					o = o.with("subfolder", quote(ours.Subfolder))
				}
			}
			items[j] = o.raw()
		}
		raw, err := json.Marshal(items)
		if err != nil {
			return nil, err
		}
		ui[i].value = raw
	}
	return ui.raw(), nil
}

// fetch copies one file of the worker. A node that was cached names the file of an
// earlier run, which has its name already. One that the worker does not hand out,
// that is larger than the shelf or slower than an interrupt, keeps its name and is relayed when asked for.
func (r *run) fetch(ctx context.Context, theirs file, cached bool) (file, error) {
	p, w := r.pool, r.worker
	if valid(theirs) != nil || theirs.Type == kindInput {
		return theirs, nil
	}
	p.mu.Lock()
	ours, known := w.names[theirs]
	p.mu.Unlock()
	if known && cached && (p.shelf.has(ours) || p.origin(ours) == origin{w.registration.Name, theirs}) {
		return ours, nil
	}
	ours, err := p.shelf.claim(theirs)
	if err != nil {
		return theirs, nil //nolint:nilerr // its name was valid, so the new one is too long
	}
	p.remember(w, theirs, ours)
	err = r.copyOf(ctx, theirs, ours)
	var refused *statusError
	if errors.As(err, &refused) || errors.Is(err, errTooLarge) || errors.Is(err, comfy.ErrInterrupted) {
		w.log.Warn("output of comfyui worker is not copied", "file", nameOf(theirs), "error", err)
		return ours, nil
	}
	if err != nil {
		p.shelf.release(ours)
		p.forget(w, theirs, ours)
	}
	return ours, err
}

func (r *run) copyOf(ctx context.Context, theirs, ours file) error {
	ctx, stalled, end := r.transfer(ctx)
	defer end()
	resp, err := r.api.view(ctx, theirs, nil)
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return &statusError{"/view", resp.StatusCode, nil}
		}
		err = r.pool.shelf.put(ours, &stirring{resp.Body, stalled, r.pool.cfg.Silence})
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return err
}

// transfer is the time in which a file goes from or to the worker: it ends when
// stalled fires, and soon after an interrupt, which waits for it.
func (r *run) transfer(ctx context.Context) (tctx context.Context, stalled *time.Timer, end func()) {
	tctx, cancel := context.WithCancelCause(ctx)
	stalled = time.AfterFunc(r.pool.cfg.Silence, func() { cancel(fmt.Errorf("no bytes moved in %v", r.pool.cfg.Silence)) })
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-r.halted:
		case <-tctx.Done():
			return
		}
		t := time.NewTimer(r.pool.cfg.Halt)
		defer t.Stop()
		select {
		case <-t.C:
			cancel(comfy.ErrInterrupted)
		case <-tctx.Done():
		}
	})
	return tctx, stalled, func() {
		stalled.Stop()
		cancel(nil)
		watch.Wait()
	}
}

// stirring puts a timer off as long as bytes come.
type stirring struct {
	r     io.Reader
	timer *time.Timer
	by    time.Duration
}

func (s *stirring) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if n > 0 {
		s.timer.Reset(s.by)
	}
	return n, err
}

func (p *Pool) origin(f file) origin {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.origins[f]
}

func (p *Pool) remember(w *worker, theirs, ours file) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(w.names) >= maxNames {
		clear(w.names)
	}
	if len(p.origins) >= maxOrigins {
		clear(p.origins)
	}
	w.names[theirs] = ours
	p.origins[ours] = origin{w.registration.Name, theirs}
}

func (p *Pool) forget(w *worker, theirs, ours file) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(w.names, theirs)
	delete(p.origins, ours)
}

// bring gives the worker the files of the coordinator that the prompt names, and
// has the prompt name them as the worker does.
func (r *run) bring(ctx context.Context, g graph) (graph, error) {
	out := g.copied()
	for _, id := range g.ids {
		n := out.nodes[id]
		for i, m := range n.inputs {
			value, ok := asText(m.value)
			if !ok || value == "" || len(value) > maxNameLen {
				continue
			}
			f := annotated(value)
			if valid(f) != nil || !r.pool.shelf.has(f) {
				continue
			}
			theirs, err := r.give(ctx, f)
			if errors.Is(err, fs.ErrNotExist) {
				continue // dropped meanwhile: the worker says what is missing
			}
			if err != nil {
				return g, fmt.Errorf("give the worker %s: %w", nameOf(f), err)
			}
			if theirs != f {
				n.inputs[i].value = quote(annotation(theirs, value))
			}
		}
		out.nodes[id] = n
	}
	return out, nil
}

// give uploads a file unless the worker has had it on this connection.
func (r *run) give(ctx context.Context, f file) (file, error) {
	p, w := r.pool, r.worker
	sum, err := p.shelf.sum(f)
	if err != nil {
		return f, err
	}
	key := sent{f, hex.EncodeToString(sum[:])}
	p.mu.Lock()
	theirs, done := w.sent[key]
	if !done {
		for name, ours := range w.names { // it made the file itself
			if ours == f && p.origins[f] == (origin{w.registration.Name, name}) {
				theirs, done = name, true
			}
		}
	}
	p.mu.Unlock()
	if done {
		return theirs, nil
	}
	content, err := p.shelf.open(f)
	if err != nil {
		return f, err
	}
	defer content.Close()
	tctx, stalled, end := r.transfer(ctx)
	defer end()
	theirs, err = r.api.upload(tctx, "/upload/image", f, false, nil, &stirring{content, stalled, p.cfg.Silence})
	if err != nil {
		return f, cmp.Or(context.Cause(tctx), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(w.sent) >= maxNames {
		clear(w.sent)
	}
	w.sent[key] = theirs
	return theirs, nil
}

// forgetFiles makes the next try give all files again; it reports whether any were
// given before.
func (r *run) forgetFiles() bool {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	any := len(r.worker.sent) > 0
	clear(r.worker.sent)
	return any
}

// answer is a response that the coordinator makes itself.
func answer(status int, contentType string, body []byte) *http.Response {
	h := http.Header{}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Header: h, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
	}
}
