// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// runKey names a client's run.
type runKey struct{ client, deployment, run string }

// session is a client's run: on one plan, with a run at the endpoint for each
// size that its forwards have (cond and uncond may have texts of other lengths).
type session struct {
	key runKey

	// guarded by Server.mu
	used   time.Time
	active int
	ended  bool

	mu       sync.Mutex
	closed   bool // no run begins any more
	target   *target
	bindings map[string]*binding                // by the words of their size
	shapes   map[string]map[string]tensor.Shape // of conditioning blobs, by digest
	history  history
}

// target is the plan that a session runs on.
type target struct {
	plan  *pb.Plan
	graph *graph.Model
}

// binding is a run at the endpoint.
type binding struct {
	target *target
	turn   chan struct{}     // holds one token: who has it begins the run or sends conditioning
	run    string            // empty until it is begun
	sent   map[string]string // digests at the endpoint, by what was sent
}

// session finds or makes a client's run and keeps it until done.
func (s *Server) session(key runKey) (_ *session, done func(), err error) {
	s.mu.Lock()
	sess := s.sessions[key]
	var old *session
	if sess == nil {
		if len(s.sessions) >= s.limits.Runs {
			if old = s.idlest(); old == nil {
				s.mu.Unlock()
				return nil, nil, fail(CodeBusy, "%d runs have forwards under way, the limit of this endpoint; try again when one has ended", s.limits.Runs)
			}
			old.ended = true
			delete(s.sessions, old.key)
		}
		sess = &session{key: key, bindings: map[string]*binding{}, shapes: map[string]map[string]tensor.Shape{}}
		s.sessions[key] = sess
	}
	sess.active++
	sess.used = time.Now()
	s.mu.Unlock()
	if old != nil {
		s.forget(old)
	}
	return sess, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		sess.active--
		sess.used = time.Now()
	}, nil
}

// idlest is the session without forwards that was used longest ago.
func (s *Server) idlest() (old *session) {
	for _, sess := range s.sessions {
		if sess.active == 0 && (old == nil || sess.used.Before(old.used)) {
			old = sess
		}
	}
	return old
}

// forget ends the endpoint's runs of a session that is in no list any more.
func (s *Server) forget(sess *session) {
	sess.mu.Lock()
	all := slices.Collect(maps.Values(sess.bindings))
	clear(sess.bindings)
	sess.closed = true
	sess.mu.Unlock()
	for _, b := range all {
		s.unbind(sess, b)
	}
}

// unbind ends a run at the endpoint, if it was begun.
func (s *Server) unbind(sess *session, b *binding) {
	b.turn <- struct{}{}
	run := b.run
	b.run = ""
	<-b.turn
	if run == "" {
		return
	}
	ctx, cancel := context.WithTimeout(coordinator.OnBehalf(context.Background(), sess.key.client), closeTimeout)
	defer cancel()
	if _, err := s.cfg.Forwards.EndRun(ctx, &pb.EndRunRequest{Run: run}); err != nil && status.Code(err) != codes.NotFound {
		s.log.Info("a run did not end", "run", run, "deployment", sess.key.deployment, "error", err)
	}
}

// expire ends sessions that no forward has used for long, and all of them with
// ctx.
func (s *Server) expire(ctx context.Context) {
	tick := time.NewTicker(max(s.limits.RunIdle/8, time.Millisecond))
	defer tick.Stop()
	for {
		var over []*session
		select {
		case <-ctx.Done():
			s.mu.Lock()
			over = slices.Collect(maps.Values(s.sessions))
			clear(s.sessions)
			s.mu.Unlock()
			for _, sess := range over {
				s.forget(sess)
			}
			return
		case now := <-tick.C:
			s.mu.Lock()
			for key, sess := range s.sessions {
				if sess.active == 0 && now.Sub(sess.used) > s.limits.RunIdle {
					sess.ended = true
					delete(s.sessions, key)
					over = append(over, sess)
				}
			}
			s.mu.Unlock()
		}
		for _, sess := range over {
			s.forget(sess)
		}
	}
}

func (s *Server) endRun(w http.ResponseWriter, r *http.Request, c Client) error {
	run := r.PathValue("run")
	var over []*session
	s.mu.Lock()
	for key, sess := range s.sessions {
		if key.client == c.Name && key.run == run {
			sess.ended = true
			delete(s.sessions, key)
			over = append(over, sess)
		}
	}
	s.mu.Unlock()
	if len(over) == 0 {
		return fail(CodeNotFound, "no run %.80q of client %s is open; it ended, or was idle for long", run, c.Name)
	}
	for _, sess := range over {
		s.forget(sess)
	}
	answer(w, http.StatusOK, map[string]string{"ended": run})
	return nil
}
