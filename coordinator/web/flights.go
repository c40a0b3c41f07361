// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// flightKey is a forward by its client's name for it.
type flightKey struct{ client, id string }

// flight is a forward that has not been answered.
type flight struct{ cancel context.CancelCauseFunc }

// takeOff counts a forward and makes it known for cancellation, until land.
func (s *Server) takeOff(ctx context.Context, client string, f *forwardRequest) (_ context.Context, land func(), err error) {
	key := flightKey{client, f.id}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case f.id != "" && s.flying[key] != nil:
		return nil, nil, fail(CodeConflict, "forward %s has not been answered yet; give every forward an id of its own", f.id)
	case s.forwards >= s.limits.Forwards, s.perName[client] >= max(s.limits.Forwards/2, 1):
		return nil, nil, fail(CodeBusy, "%d forwards are under way, %d of client %s; send this one again when some have been answered", s.forwards, s.perName[client], client)
	}
	ctx, late := context.WithTimeoutCause(ctx, f.deadline, fmt.Errorf("%w: the forward of step %d was not done in %s", context.DeadlineExceeded, f.step, f.deadline))
	ctx, cancel := context.WithCancelCause(ctx)
	if f.id != "" {
		s.flying[key] = &flight{cancel}
	}
	s.forwards++
	s.perName[client]++
	return ctx, func() {
		cancel(nil)
		late()
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.id != "" {
			delete(s.flying, key)
		}
		s.forwards--
		if s.perName[client]--; s.perName[client] == 0 {
			delete(s.perName, client)
		}
	}, nil
}

// overdue says why a forward's context ended, and what it was waiting for.
func (f *forwardRequest) overdue(cause, last error) error {
	if !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	e := fail(CodeDeadline, "the forward of step %d was not done in %s; give it more with deadline_ms", f.step, f.deadline.Round(time.Millisecond))
	if waited, ok := errors.AsType[*waiting](last); ok {
		e.Message += "; last: " + asError(waited.why).Message
	}
	return e
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request, c Client) error {
	id := r.PathValue("id")
	s.mu.Lock()
	f := s.flying[flightKey{c.Name, id}]
	s.mu.Unlock()
	if f == nil {
		return fail(CodeNotFound, "no forward %.80q of client %s is under way; it was answered, or has not begun", id, c.Name)
	}
	f.cancel(errCanceled)
	answer(w, http.StatusOK, map[string]string{"canceled": id})
	return nil
}
