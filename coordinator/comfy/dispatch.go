// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
)

// enqueue puts a prompt in the queue, or says that there is no room.
func (s *Server) enqueue(e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue.pending >= s.cfg.MaxPending || s.queue.bytes+e.size > s.cfg.MaxQueueBytes {
		return fmt.Errorf("%d prompts of %d MiB wait; send this one again when some are done", s.queue.pending, s.queue.bytes>>20)
	}
	s.queue.add(e, groupKey(e.prompt))
	s.tellQueue()
	s.wakeUp()
	return nil
}

// groupKey is the same for prompts that the same workers can run.
func groupKey(p *Prompt) string {
	var b strings.Builder
	for _, c := range p.Classes {
		b.WriteString(c)
		b.WriteByte(0)
	}
	for _, c := range p.Choices {
		for _, part := range []string{c.Class, c.Input, c.Value} {
			b.WriteString(part)
			b.WriteByte(0)
		}
	}
	return b.String()
}

// tellQueue sends the queue's length to all. s.mu is held, so that the lengths come
// in the order in which they were true.
func (s *Server) tellQueue() { s.hub.broadcast(statusFrame(s.queue.remaining(), "")) }

func (s *Server) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// dispatch gives pending prompts to workers until ctx ends, and waits for the runs.
func (s *Server) dispatch(ctx context.Context) {
	var runs sync.WaitGroup
	defer runs.Wait()
	changed := s.cfg.Backend.Changed()
	for {
		for s.startNext(ctx, &runs) {
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-changed:
			changed = s.cfg.Backend.Changed()
			s.mu.Lock()
			s.queue.unblock()
			s.mu.Unlock()
		}
	}
}

// startNext begins the next prompt that a worker is free for. It says whether to go on.
func (s *Server) startNext(ctx context.Context, runs *sync.WaitGroup) bool {
	s.mu.Lock()
	e := s.queue.next()
	s.mu.Unlock()
	if e == nil || ctx.Err() != nil {
		return false
	}
	lease, err := s.cfg.Backend.Reserve(e.prompt)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil && e.group == nil: // deleted meanwhile
		lease.Release()
		return true
	case errors.Is(err, ErrNoneFree):
		return false
	case err != nil:
		if none := (*NoWorkerError)(nil); errors.As(err, &none) && !e.waits {
			e.waits = true
			s.note("prompt %s waits: %v", e.prompt.ID, err)
		}
		s.queue.block(e)
		return true
	}
	s.queue.start(e, lease)
	s.tellQueue()
	s.note("prompt %s began on %s", e.prompt.ID, lease.Worker())
	runs.Go(func() { s.runPrompt(ctx, e, lease) })
	return true
}

func (s *Server) runPrompt(ctx context.Context, e *entry, lease Lease) {
	r := newRun(s, e)
	err := lease.Run(ctx, r)
	s.mu.Lock()
	e.lease = nil // the lease gets no interrupt after its release
	s.mu.Unlock()
	lease.Release()
	if ctx.Err() != nil && err != nil {
		return // the queue ends with the server
	}
	if errors.Is(err, ErrWorkerLost) {
		if e.told == nil {
			e.told = map[string]*object{}
		}
		maps.Copy(e.told, r.told)
		if err = s.runAgain(e, lease.Worker()); err == nil {
			return
		}
	}
	record := r.end(err)
	s.mu.Lock()
	s.queue.stop(e)
	s.queue.drop(e)
	s.history.add(record)
	s.tellQueue()
	s.mu.Unlock()
	s.note("prompt %s on %s: %s", e.prompt.ID, lease.Worker(), record.job.status)
	if e.hasClient {
		s.hub.send(e.client, textFrame("executing", fields("node", nil, "prompt_id", e.prompt.ID).value()))
	}
	s.wakeUp()
}

// runAgain queues a prompt whose worker was lost, at its old place; it errs where
// that is the end of the prompt.
func (s *Server) runAgain(e *entry, worker string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.interrupted {
		return ErrInterrupted
	}
	e.attempts++
	if e.attempts >= s.cfg.Attempts {
		return &PromptError{Type: "WorkerLost", Message: fmt.Sprintf("%d workers were lost while they ran this prompt, the last of them %s; see their logs", e.attempts, worker)}
	}
	s.queue.again(e, groupKey(e.prompt))
	s.note("prompt %s: worker %s was lost; queued again", e.prompt.ID, worker)
	s.wakeUp()
	return nil
}

// interrupt asks for running prompts to stop: those of an id, or all for "".
func (s *Server) interrupt(id string) (found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.queue.running {
		if id != "" && e.prompt.ID != id {
			continue
		}
		found, e.interrupted = true, true
		if e.lease != nil {
			e.lease.Interrupt()
		}
	}
	return found
}

// asPromptError is what to tell of a failed run, or that it was interrupted.
func asPromptError(err error) (failed *PromptError, interrupted bool) {
	if errors.Is(err, ErrInterrupted) {
		return nil, true
	}
	if errors.As(err, &failed) {
		return failed, false
	}
	if err == nil {
		return nil, false
	}
	return &PromptError{Type: "RuntimeError", Message: err.Error()}, false
}
