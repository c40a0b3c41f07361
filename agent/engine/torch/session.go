// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// The queues. The lowest bit of an event is its queue, here and in the worker.
const (
	computing = iota
	copying
	queues
)

// pending is work that was sent and has not passed.
type pending struct {
	event  engine.Event
	budget time.Duration // what it may take at the most, beside what it waits for
	what   string
}

// session is one device of one worker. Commands are sent without waiting; the
// worker says what has passed, in the order of each queue.
type session struct {
	engine  *Engine
	worker  *worker
	id      uint32
	device  engine.Device
	account *engine.Account
	host    *engine.Account
	expand  expansion
	// unpinned is said once.
	unpinned sync.Once
	fixed    tensor.Bytes // of the device, what libraries keep

	issuing sync.Mutex // numbers and sends go together

	mu       sync.Mutex
	cond     *sync.Cond
	issued   uint64
	passed   [queues]engine.Event
	waiting  [queues][]pending
	progress time.Time
	errs     map[engine.Event]error         // of events that failed
	causes   map[engine.Event]error         // what this side found wrong, by event
	took     map[engine.Event]time.Duration // of the latest runs
	programs uint64
	closed   bool
	dead     error
}

var _ engine.Session = (*session)(nil)

// fragments is the part of a device's limit that is left to PyTorch's allocator
// for what it cannot use between its blocks.
const fragments = 64

func newSession(ctx context.Context, e *Engine, w *worker, d engine.Device, limit tensor.Bytes) (*session, error) {
	s := &session{
		engine: e, worker: w, device: d, host: e.host,
		errs: map[engine.Event]error{}, causes: map[engine.Event]error{}, took: map[engine.Event]time.Duration{},
	}
	s.cond = sync.NewCond(&s.mu)
	w.mu.Lock()
	w.ids++
	s.id = w.ids
	w.mu.Unlock()
	asked := limit
	a, err := w.ask(ctx, map[string]any{"op": "open", "s": s.id, "device": string(d.ID), "limit": int64(limit)}, nil)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d.ID, err)
	}
	s.fixed = tensor.Bytes(a.Fixed)
	if free := tensor.Bytes(a.Free); limit == 0 || free > 0 && free < limit {
		limit = free // others use the card too
	}
	if limit > 0 {
		if limit -= s.fixed; !d.Unified {
			limit -= limit / fragments
		}
		if limit <= 0 {
			return nil, fmt.Errorf("open %s: %w: %v are allowed, PyTorch's libraries keep %v; raise agent.memory", d.ID, engine.ErrNoMemory, asked, tensor.Bytes(a.Fixed))
		}
	}
	s.account = engine.NewAccount(limit, "raise agent.memory or place fewer blocks here")
	switch {
	case d.Unified && e.cfg.Host != nil:
		s.account = e.host
	case d.Unified:
		s.host = s.account
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	w.sessions[s.id] = s
	return s, nil
}

// Device is what was opened.
func (s *session) Device() engine.Device { return s.device }

// Account says what the session has handed out of the device.
func (s *session) Account() (used, peak, limit tensor.Bytes) { return s.account.Use() }

// HostAccount says what the engine's sessions have handed out of the host.
func (s *session) HostAccount() (used, peak, limit tensor.Bytes) { return s.host.Use() }

// usable is why nothing can be asked of the session, if so.
func (s *session) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	return s.dead
}

// kept bounds the errors and times of events that nobody asks for.
const kept = 1024

// order is a command before it is sent.
type order struct {
	fields map[string]any
	budget time.Duration
	what   string
}

// issue numbers a command and sends it. What make finds wrong fails the event
// when its turn comes, and all that comes after it.
func (s *session) issue(queue int, after []engine.Event, order func() (order, error)) engine.Event {
	s.issuing.Lock()
	defer s.issuing.Unlock()
	o, err := order()
	s.mu.Lock()
	s.issued++
	e := engine.Event(s.issued<<1) | engine.Event(queue)
	if s.closed || s.dead != nil { // Wait tells
		s.mu.Unlock()
		return e
	}
	before := make([]engine.Event, 0, len(after))
	for _, a := range after {
		switch {
		case s.errs[a] != nil && err == nil:
			err = s.errs[a]
		case a != 0 && s.passed[a&1] < a:
			before = append(before, a)
		}
	}
	if err != nil {
		s.causes[e] = err
		o = refusal()
	}
	s.forget(e)
	if len(s.waiting[computing])+len(s.waiting[copying]) == 0 {
		s.progress = time.Now()
	}
	s.waiting[queue] = append(s.waiting[queue], pending{e, o.budget, o.what})
	s.mu.Unlock()
	o.fields["s"], o.fields["e"], o.fields["after"] = s.id, e, before
	if err := s.worker.send(o.fields, nil); err != nil {
		s.worker.lose(err)
	}
	return e
}

// refusal is a command that only fails.
func refusal() order {
	return order{fields: map[string]any{"op": "fail", "err": "refused"}, budget: time.Minute, what: "nothing"}
}

// forget drops what is old; mu is held.
func (s *session) forget(now engine.Event) {
	if len(s.errs) > kept {
		for e := range s.errs {
			if e+2*kept < now {
				delete(s.errs, e)
				delete(s.causes, e)
			}
		}
	}
	if len(s.took) > kept {
		for e := range s.took {
			if e+kept < now {
				delete(s.took, e)
			}
		}
	}
}

// done takes an event that has passed; an error is about the worker.
func (s *session) done(a answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := engine.Event(a.Event)
	q := e & 1
	if len(s.waiting[q]) == 0 || s.waiting[q][0].event != e {
		return fmt.Errorf("it reports event %d of session %d out of turn", a.Event, s.id)
	}
	if a.Err != "" {
		err := s.causes[engine.Event(a.Root)]
		if err == nil {
			if err = s.errs[engine.Event(a.Root)]; err == nil {
				err = fmt.Errorf("%s: %w", s.waiting[q][0].what, a.failure())
			}
		}
		s.errs[e] = err
	}
	s.took[e] = time.Duration(a.Micros) * time.Microsecond
	s.waiting[q] = s.waiting[q][1:]
	s.passed[q], s.progress = e, time.Now()
	s.cond.Broadcast()
	return nil
}

// stuck is an error when the worker makes no progress with the session's work.
func (s *session) stuck(patience float64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var most time.Duration
	what := ""
	for _, w := range s.waiting {
		if len(w) > 0 && w[0].budget > most {
			most, what = w[0].budget, w[0].what
		}
	}
	if most == 0 || time.Since(s.progress) <= time.Duration(float64(most)*patience) {
		return nil
	}
	return fmt.Errorf("%w: it hangs in %s on %s for %v%s", ErrWorkerLost, what, s.device.ID, time.Since(s.progress).Round(time.Millisecond), s.worker.stderr.said())
}

// lose ends the session with its worker.
func (s *session) lose(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead == nil {
		s.dead = err
	}
	s.cond.Broadcast()
}

// Wait returns when e has passed, with its error. A cancelled caller is
// released at once; the work goes on. A session that is lost has no work.
func (s *session) Wait(ctx context.Context, e engine.Event) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.hasPassed(e) && ctx.Err() == nil {
		switch {
		case s.dead != nil:
			return s.dead
		case s.closed:
			return errClosed
		}
		s.cond.Wait()
	}
	if !s.hasPassed(e) {
		return context.Cause(ctx)
	}
	return s.errs[e]
}

// hasPassed needs s.mu.
func (s *session) hasPassed(e engine.Event) bool { return e == 0 || s.passed[e&1] >= e }

// Took is how long a passed event kept the device, by the device's own clock
// where it has one.
func (s *session) Took(e engine.Event) (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.took[e]
	return d, ok
}

// Memory is what PyTorch says it holds of the device: now, at the most since
// Open, and with what it keeps for later. Fixed is what its libraries keep, which
// is in the others.
type Memory struct{ Allocated, Peak, Reserved, Fixed tensor.Bytes }

// Measured asks PyTorch how much of the device it holds.
func (s *session) Measured(ctx context.Context) (Memory, error) {
	a, err := s.worker.ask(ctx, map[string]any{"op": "stat", "s": s.id}, nil)
	return Memory{tensor.Bytes(a.Allocated), tensor.Bytes(a.Peak), tensor.Bytes(a.Reserved), s.fixed}, err
}

// closeFor bounds the wait for what runs when a session is closed.
const closeFor = 10 * time.Minute

// Close ends the queues after what is running. Buffers that were handed out
// keep their host's memory until freed.
func (s *session) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	dead := s.dead
	s.cond.Broadcast()
	s.mu.Unlock()
	var err error
	if dead == nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeFor)
		defer cancel()
		_, err = s.worker.ask(ctx, map[string]any{"op": "close", "s": s.id}, nil)
	}
	s.worker.mu.Lock()
	delete(s.worker.sessions, s.id)
	s.worker.mu.Unlock()
	if errors.Is(err, engine.ErrLost) {
		return nil // there is nothing left to close
	}
	return err
}
