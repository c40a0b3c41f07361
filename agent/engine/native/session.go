// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// errClosed is the error of work on a closed session.
var errClosed = errors.New("the session is closed")

// task is one piece of work on the queue.
type task struct {
	event engine.Event
	after []engine.Event
	do    func() error
}

// session runs its work strictly in the order in which it was issued: on a
// CPU a copy has no engine of its own, so one queue serves both.
type session struct {
	engine  *Engine
	account account
	pool    *pool
	expand  expansion

	mu       sync.Mutex
	cond     *sync.Cond
	queue    []task
	issued   engine.Event
	accepted engine.Event // the last one queued; more are issued on a closed session
	passed   engine.Event
	errs     map[engine.Event]error
	closed   bool
	wg       sync.WaitGroup
}

var _ engine.Session = (*session)(nil)

func newSession(e *Engine) *session {
	s := &session{
		engine: e, account: account{limit: e.cfg.Memory}, pool: newPool(e.cfg.Threads),
		errs: map[engine.Event]error{},
	}
	s.cond = sync.NewCond(&s.mu)
	s.wg.Go(s.work)
	return s
}

// work is the queue's goroutine.
func (s *session) work() {
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed {
			s.cond.Wait()
		}
		if len(s.queue) == 0 {
			s.mu.Unlock()
			return
		}
		t := s.queue[0]
		s.queue = s.queue[1:]
		err := s.failedBefore(t)
		if s.closed {
			err = errClosed
		}
		s.mu.Unlock()
		if err == nil {
			err = t.do()
		}
		s.mu.Lock()
		if err != nil {
			s.errs[t.event] = err
		}
		s.passed = t.event
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}

// failedBefore is the error of an event that t depends on. The queue is in
// order, so waiting is not needed.
func (s *session) failedBefore(t task) error {
	for _, e := range t.after {
		if err := s.errs[e]; err != nil {
			return err
		}
	}
	return nil
}

// maxErrors bounds the errors kept for events that nobody waits for.
const maxErrors = 1024

func (s *session) issue(after []engine.Event, do func() error) engine.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issued++
	if len(s.errs) > maxErrors {
		for e := range s.errs {
			if e+maxErrors < s.issued {
				delete(s.errs, e)
			}
		}
	}
	if s.closed { // nobody works on the queue any more
		return s.issued
	}
	s.accepted = s.issued
	s.queue = append(s.queue, task{event: s.issued, after: after, do: do})
	s.cond.Broadcast()
	return s.issued
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
	for s.passed < e && ctx.Err() == nil {
		if s.closed && e > s.accepted {
			return errClosed
		}
		s.cond.Wait()
	}
	if s.passed < e {
		return context.Cause(ctx)
	}
	return s.errs[e]
}

// Buffer takes memory from the account; its content is zero.
func (s *session) Buffer(n tensor.Bytes) (engine.Buffer, error) {
	b, err := newBuffer(&s.account, n)
	if err != nil {
		return nil, err
	}
	s.expand.hold()
	b.released = s.expand.release
	return b, nil
}

// Account says what the session has handed out.
func (s *session) Account() (used, peak, limit tensor.Bytes) {
	s.account.mu.Lock()
	defer s.account.mu.Unlock()
	return s.account.used, s.account.peak, s.account.limit
}

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

// Copy moves bytes between buffers.
func (s *session) Copy(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after ...engine.Event) engine.Event {
	return s.issue(after, func() error {
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

// Close ends the queue after what is running and joins the workers. Buffers
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
	return nil
}
