// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// errClosed is the error of work on a closed session.
var errClosed = errors.New("the session is closed")

// Queue is one of a session's two.
type Queue int

// The queues. The lowest bit of an event is its queue.
const (
	Computing Queue = iota
	Copying
	queues
)

func queueOf(e engine.Event) Queue { return Queue(e) & 1 }

// Queued is a session that takes work of others on its queues: the simulated
// devices put their throttled copies there.
type Queued interface {
	engine.Session
	RestartPeak()
	Issue(q Queue, after []engine.Event, do func() error) engine.Event
}

// task is one piece of work on a queue.
type task struct {
	event engine.Event
	after []engine.Event
	do    func() error
}

// session runs each queue's work strictly in the order in which it was issued.
type session struct {
	engine  *Engine
	account *engine.Account
	pool    *pool // of the compute queue
	copiers *pool // of the copy queue
	expand  expansion

	mu       sync.Mutex
	cond     *sync.Cond
	waiting  [queues][]task
	issued   uint64
	accepted [queues]engine.Event // the last one queued; more are issued on a closed session
	passed   [queues]engine.Event
	errs     map[engine.Event]error
	closed   bool
	wg       sync.WaitGroup
}

var _ Queued = (*session)(nil)

func newSession(e *Engine) *session {
	s := &session{engine: e, account: e.cfg.Account, errs: map[engine.Event]error{}}
	if s.account == nil {
		s.account = engine.NewAccount(e.cfg.Memory, cmp.Or(e.cfg.Mend, "raise agent.memory or place fewer blocks here"))
	}
	s.cond = sync.NewCond(&s.mu)
	s.pool, s.copiers = newPool(e.cfg.Threads), newPool(e.cfg.Copiers)
	for q := range queues {
		s.wg.Go(func() { s.work(q) })
	}
	return s
}

// work is a queue's goroutine.
func (s *session) work(q Queue) {
	if s.engine.cfg.Begin != nil {
		s.engine.cfg.Begin(q)
	}
	for {
		t, ok, err := s.next(q)
		if !ok {
			return
		}
		if err == nil {
			err = t.do()
		}
		s.mu.Lock()
		if err != nil {
			s.errs[t.event] = err
		}
		s.passed[q] = t.event
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}

// next waits for a task and for what it comes after; err is why it is not done.
func (s *session) next(q Queue) (t task, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.waiting[q]) == 0 && !s.closed {
		s.cond.Wait()
	}
	if len(s.waiting[q]) == 0 {
		return t, false, nil
	}
	t = s.waiting[q][0]
	s.waiting[q] = s.waiting[q][1:]
	for _, e := range t.after {
		for !s.hasPassed(e) && !s.closed {
			s.cond.Wait()
		}
		if err := s.errs[e]; err != nil {
			return t, true, err
		}
	}
	if s.closed {
		return t, true, errClosed
	}
	return t, true, nil
}

// hasPassed needs s.mu.
func (s *session) hasPassed(e engine.Event) bool { return e == 0 || s.passed[queueOf(e)] >= e }

// maxErrors bounds the errors kept for events that nobody waits for.
const maxErrors = 1024

// Issue puts work on a queue.
func (s *session) Issue(q Queue, after []engine.Event, do func() error) engine.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issued++
	e := engine.Event(s.issued<<1) | engine.Event(q)
	if len(s.errs) > maxErrors {
		for old := range s.errs {
			if old+2*maxErrors < e {
				delete(s.errs, old)
			}
		}
	}
	if s.closed { // nobody works on the queue any more
		return e
	}
	s.accepted[q] = e
	s.waiting[q] = append(s.waiting[q], task{event: e, after: slices.Clone(after), do: do})
	s.cond.Broadcast()
	return e
}

// Wait returns when e has passed, with its error. A cancelled caller is
// released at once; the work goes on.
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
		if s.closed && e > s.accepted[queueOf(e)] {
			return errClosed
		}
		s.cond.Wait()
	}
	if !s.hasPassed(e) {
		return context.Cause(ctx)
	}
	return s.errs[e]
}

// Buffer takes memory from the account; its content is zero.
func (s *session) Buffer(n tensor.Bytes) (engine.Buffer, error) {
	b, err := newBuffer(s.account, n)
	if err != nil {
		return nil, err
	}
	s.expand.hold()
	b.released = s.expand.release
	return b, nil
}

// Device is the CPU.
func (s *session) Device() engine.Device { return s.engine.device() }

// HostBuffer is a Buffer: the device computes in the host's memory.
func (s *session) HostBuffer(n tensor.Bytes) (engine.Buffer, error) { return s.Buffer(n) }

// Account says what the session has handed out.
func (s *session) Account() (used, peak, limit tensor.Bytes) { return s.account.Use() }

// RestartPeak makes what is in use the account's peak.
func (s *session) RestartPeak() { s.account.Restart() }

// HostAccount is Account: there is one memory.
func (s *session) HostAccount() (used, peak, limit tensor.Bytes) { return s.account.Use() }

// window is n bytes of b from offset on, or an error that names what is short.
func window(b engine.Buffer, offset, n tensor.Bytes, what string) ([]byte, error) {
	if b == nil {
		return nil, fmt.Errorf("%s: no buffer given", what)
	}
	h := b.Host()
	if offset < 0 || n < 0 || offset > tensor.Bytes(len(h)) || n > tensor.Bytes(len(h))-offset {
		return nil, fmt.Errorf("%s: %v at %d in a buffer of %d bytes", what, n, int64(offset), len(h))
	}
	return h[offset : offset+n : offset+n], nil
}

// Copy moves bytes between buffers on the compute queue.
func (s *session) Copy(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after ...engine.Event) engine.Event {
	return s.move(Computing, dst, dstOffset, src, srcOffset, n, after)
}

// Fetch moves bytes between buffers on the copy queue.
func (s *session) Fetch(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after ...engine.Event) engine.Event {
	return s.move(Copying, dst, dstOffset, src, srcOffset, n, after)
}

func (s *session) move(q Queue, dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after []engine.Event) engine.Event {
	return s.Issue(q, after, func() error {
		to, err := window(dst, dstOffset, n, "copy to")
		if err != nil {
			return err
		}
		from, err := window(src, srcOffset, n, "copy from")
		if err != nil {
			return err
		}
		copy(to, from)
		return nil
	})
}

// Close ends the queues after what is running and joins the workers. Buffers
// that were handed out stay valid until freed.
func (s *session) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.cond.Broadcast()
	s.mu.Unlock()
	s.wg.Wait()
	s.pool.close()
	s.copiers.close()
	return nil
}
