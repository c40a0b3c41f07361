// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/distorch/distorch/coordinator/comfy"
)

// maxMissing bounds what an error lists.
const maxMissing = 20

// loaders are the nodes that load the file of one model, and the input that names
// it. Slot 0 of each is the MODEL.
func loaders(class string) (input string, ok bool) {
	switch class {
	case "UNETLoader", "UnetLoaderGGUF":
		return "unet_name", true
	case "CheckpointLoaderSimple":
		return "ckpt_name", true
	}
	return "", false
}

// missing is what a worker lacks for a prompt. The lock is held.
func (p *Pool) missing(w *worker, pr *comfy.Prompt) (out []string) {
	for _, c := range pr.Classes {
		if _, ok := w.classes[c]; !ok && len(out) < maxMissing {
			out = append(out, c)
		}
	}
	for _, c := range pr.Choices {
		if len(out) >= maxMissing {
			break
		}
		if !p.offers(w, pr, c) {
			out = append(out, c.Class+"."+c.Input+"="+c.Value)
		}
	}
	return out
}

// offers reports whether a worker can take a value: it lists it, is given the file,
// or runs the model on the cluster.
func (p *Pool) offers(w *worker, pr *comfy.Prompt, c comfy.Choice) bool {
	class, ok := w.classes[c.Class]
	if !ok {
		return true // the class itself is missing
	}
	in := class.inputs[c.Input]
	switch {
	case in.brings || c.File:
		return w.listed[c.Value] || p.shelf.has(annotated(c.Value)) || !p.listsElsewhere(w, c.Value)
	case in.options == nil || in.options["s"+c.Value]:
		return true
	case p.replaceable(w, c.Class, c.Input, c.Value):
		return c.Class != "CheckpointLoaderSimple" || !usesMore(pr, c.Node)
	}
	return false
}

// listsElsewhere reports whether another worker has an input file. The lock is held.
func (p *Pool) listsElsewhere(w *worker, name string) bool {
	return slices.ContainsFunc(p.alive(), func(o *worker) bool { return o != w && o.listed[name] })
}

// usesMore reports whether a checkpoint's CLIP or VAE are used.
func usesMore(pr *comfy.Prompt, id string) bool {
	g, err := parseGraph(pr.Graph)
	return err != nil || slices.ContainsFunc(g.slots(id), func(slot int) bool { return slot != 0 })
}

// find lists the workers that can run a prompt; without one, the error says what
// the nearest of them lacks. The lock is held.
func (p *Pool) find(pr *comfy.Prompt) (able []*worker, err error) {
	alive := p.alive()
	var least []string
	for i, w := range alive {
		lacks := p.missing(w, pr)
		if len(lacks) == 0 {
			able = append(able, w)
		}
		if i == 0 || len(lacks) < len(least) {
			least = lacks
		}
	}
	if len(able) == 0 {
		return nil, &comfy.NoWorkerError{Classes: least}
	}
	return able, nil
}

// Check implements comfy.Backend.
func (p *Pool) Check(pr *comfy.Prompt) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.find(pr)
	return err
}

// Reserve implements comfy.Backend. Of the free workers that can run the prompt it
// takes the one with the fewest prompts of others, then the one that was idle
// longest.
func (p *Pool) Reserve(pr *comfy.Prompt) (comfy.Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if all := p.alive(); len(all) > 0 && !slices.ContainsFunc(all, func(w *worker) bool { return w.lease == nil }) {
		return nil, comfy.ErrNoneFree
	}
	able, err := p.find(pr)
	if err != nil {
		return nil, err
	}
	able = slices.DeleteFunc(able, func(w *worker) bool { return w.lease != nil })
	if len(able) == 0 {
		return nil, comfy.ErrBusy
	}
	w := slices.MinFunc(able, func(a, b *worker) int { return cmp.Or(cmp.Compare(a.foreign, b.foreign), cmp.Compare(a.used, b.used)) })
	p.leases++
	w.used = p.leases
	w.prompts++
	w.lease = &lease{
		pool: p, worker: w, prompt: pr, session: w.session,
		frames: make(chan frame, 4096), taken: make(chan struct{}, 1), done: make(chan struct{}), woken: make(chan struct{}, 1), stopping: make(chan struct{}, 1), halted: make(chan struct{}),
	}
	return w.lease, nil
}

// lease is one worker held for one prompt.
type lease struct {
	pool   *Pool
	worker *worker
	prompt *comfy.Prompt

	frames   chan frame
	waiting  atomic.Int64  // bytes in frames
	taken    chan struct{} // holds a token when a frame was taken
	done     chan struct{} // closed by Release
	woken    chan struct{} // holds a token when the worker's connection changed
	stopping chan struct{} // holds a token when the prompt is to be interrupted
	halted   chan struct{} // closed by the first interrupt

	mu          sync.Mutex
	id          string // of the prompt on the worker
	interrupted bool
	released    bool

	session int // of the worker's connection that the prompt was given on
}

// Worker implements comfy.Lease.
func (l *lease) Worker() string { return l.worker.registration.Name }

// Interrupt implements comfy.Lease.
func (l *lease) Interrupt() {
	l.mu.Lock()
	if !l.interrupted {
		l.interrupted = true
		close(l.halted)
	}
	l.mu.Unlock()
	token(l.stopping)
}

// Release implements comfy.Lease.
func (l *lease) Release() {
	l.mu.Lock()
	again := l.released
	l.released = true
	l.mu.Unlock()
	if again {
		return
	}
	close(l.done)
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	l.worker.lease = nil
	p.notify()
}

func (l *lease) wake() { token(l.woken) }

// hand puts a frame behind those that wait for the run, when there is room: a run
// that copies a file takes none meanwhile. Only ctx makes it fail.
func (l *lease) hand(ctx context.Context, f frame) error {
	n := int64(len(f.body))
	for l.waiting.Load() > 0 && l.waiting.Load()+n > maxFrame {
		select {
		case <-l.taken:
		case <-l.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.waiting.Add(n)
	select {
	case l.frames <- f:
	case <-l.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// took makes room for another frame.
func (l *lease) took(f frame) {
	l.waiting.Add(-int64(len(f.body)))
	token(l.taken)
}

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (l *lease) promptID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

func (l *lease) isInterrupted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.interrupted
}

// annotated reads the name of a file as loaders have it: sub/name.png, perhaps
// with [input], [output] or [temp] behind it.
func annotated(value string) file {
	f := file{Type: kindInput}
	for _, kind := range []string{kindInput, kindOutput, kindTemp} {
		if before, ok := strings.CutSuffix(value, "["+kind+"]"); ok {
			value, f.Type = strings.TrimSuffix(before, " "), kind
			break
		}
	}
	if i := strings.LastIndexByte(value, '/'); i >= 0 {
		f.Subfolder, value = value[:i], value[i+1:]
	}
	f.Name = value
	return f
}

// annotation is the other way round.
func annotation(f file, like string) string {
	out := f.Name
	if f.Subfolder != "" {
		out = f.Subfolder + "/" + out
	}
	if strings.HasSuffix(like, "]") {
		out += " [" + f.Type + "]"
	}
	return out
}

// listedFiles are the input files that a worker's nodes offer.
func listedFiles(classes map[string]class) map[string]bool {
	out := map[string]bool{}
	for _, c := range classes {
		for _, in := range c.inputs {
			for _, f := range in.files {
				out[f] = true
			}
		}
	}
	return out
}
