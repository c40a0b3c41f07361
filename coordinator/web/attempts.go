// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/coordinator/endpoint"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// waiting is the error of an attempt that may succeed later.
type waiting struct {
	why  error
	soon bool // at once, not when something has changed
	once bool // not too often on the same plan: waiting does not mend it
	keep bool // the run at the endpoint is well
}

func (e *waiting) Error() string { return e.why.Error() }
func (e *waiting) Unwrap() error { return e.why }

const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
	maxRepeats = 3 // of an attempt that fails on the same plan for reasons of its own
)

// runForward repeats a forward, which is pure, until it has an answer, its
// context ends, or repeating is of no use.
func (s *Server) runForward(ctx context.Context, key runKey, f *forwardRequest) (*result, error) {
	sess, done, err := s.session(key)
	if err != nil {
		return nil, err
	}
	defer done()
	delay, repeats, epoch := firstRetry, 0, uint64(0)
	for attempt := 1; ; attempt++ {
		changed := s.cfg.Control.Changed()
		res, err := s.attempt(ctx, sess, f)
		if err == nil {
			res.attempt = attempt
			res.numerics = sess.numerics(f.step, res.plan)
			return res, nil
		}
		var later *waiting
		if !errors.As(err, &later) || ctx.Err() != nil {
			return nil, err
		}
		if e := sess.epoch(); later.once {
			if e != epoch {
				epoch, repeats = e, 0
			}
			if repeats++; repeats >= maxRepeats {
				return nil, later.why
			}
		}
		if !later.keep {
			sess.drop()
		}
		s.log.Info("forward is repeated", "deployment", key.deployment, "run", key.run, "step", f.step, "attempt", attempt, "error", later.why)
		if later.soon {
			continue
		}
		timer := time.NewTimer(delay)
		select {
		case <-changed:
			timer.Stop()
		case <-timer.C:
			delay = min(2*delay, lastRetry)
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
}

// attempt runs a forward once.
func (s *Server) attempt(ctx context.Context, sess *session, f *forwardRequest) (*result, error) {
	t, err := s.aim(ctx, sess, f)
	if err != nil {
		return nil, err
	}
	f.split(t.graph)
	shapes, err := s.blobShapes(sess, f.blob)
	if err != nil {
		return nil, err
	}
	words, err := f.words(t.graph, shapes)
	if err != nil {
		return nil, err
	}
	b, err := s.bind(sess, t, words)
	if err != nil {
		return nil, err
	}
	given := strengths(t.plan, f.loras)
	run, digest, err := s.prepare(ctx, sess, b, words, f)
	if err != nil {
		return nil, err
	}
	res, err := s.cfg.Forwards.Forward(ctx, &pb.ForwardRequest{
		Run: run, Step: f.step, Branch: f.branch, Conditioning: digest, Tensors: f.step32, LoraStrengths: given,
		Deadline: durationpb.New(s.limits.MaxDeadline), // ctx has the forward's own
	})
	if status.Code(err) == codes.FailedPrecondition { // the first stage keeps some conditionings of a run, the newest
		b.resend(f)
	}
	if err != nil {
		return nil, s.judge(sess, err, true)
	}
	return &result{ForwardResponse: res, plan: t.plan}, nil
}

// judge says of an error whether the forward is worth repeating.
func (s *Server) judge(sess *session, err error, begun bool) error {
	var fault *endpoint.Fault
	switch code := status.Code(err); {
	case code == codes.FailedPrecondition && begun:
		return &waiting{why: err, soon: true, once: true, keep: true}
	case code == codes.NotFound && begun, code == codes.Aborted && begun:
		s.mu.Lock()
		defer s.mu.Unlock()
		if sess.ended {
			return fail(CodeConflict, "run %s was ended by its client", sess.key.run)
		}
		return &waiting{why: err, soon: true, once: true}
	case errors.As(err, &fault):
		lost := fault.Kind == pb.StageFault_PEER_UNREACHABLE || fault.Kind == pb.StageFault_STALE_EPOCH || fault.Kind == pb.StageFault_CANCELLED
		return &waiting{why: err, once: !lost}
	case code == codes.Unavailable:
		return &waiting{why: err}
	case code == codes.ResourceExhausted && s.makeRoom():
		return &waiting{why: err, soon: true}
	}
	return err
}

// makeRoom ends the session that was idle longest, if there is one.
func (s *Server) makeRoom() bool {
	s.mu.Lock()
	old := s.idlest()
	if old != nil {
		old.ended = true
		delete(s.sessions, old.key)
	}
	s.mu.Unlock()
	if old == nil {
		return false
	}
	s.forget(old)
	return true
}

// aim is the plan that the session runs on, with the forward's LoRAs.
func (s *Server) aim(ctx context.Context, sess *session, f *forwardRequest) (*target, error) {
	sess.mu.Lock()
	t := sess.target
	sess.mu.Unlock()
	if t != nil && has(t.plan, f.loras) {
		return t, s.ensure(ctx, sess.key.deployment, f.loras, true)
	}
	d, err := s.ready(ctx, sess)
	if err != nil {
		return nil, err
	}
	loaded := has(d.Plan, f.loras)
	if err := s.ensure(ctx, sess.key.deployment, f.loras, loaded); err != nil {
		if status.Code(err) == codes.ResourceExhausted { // the end of a run makes no room for a LoRA
			return nil, err
		}
		return nil, s.judge(sess, err, false)
	}
	if !loaded {
		if d, err = s.ready(ctx, sess); err != nil {
			return nil, err
		}
		if !has(d.Plan, f.loras) {
			return nil, &waiting{why: fail(CodeUnavailable, "deployment %s has been placed again without the LoRAs of this forward", sess.key.deployment), once: true}
		}
	}
	t = &target{d.Plan, d.Graph}
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if was := sess.target; was != nil && was.plan.GetEpoch() == d.Plan.GetEpoch() && was.plan.GetDeploymentId() == d.Plan.GetDeploymentId() {
		return was, nil
	}
	sess.target = t
	return t, nil
}

// ready is the session's deployment, which runs; one that does not is waited
// for, unless it fits nowhere and the run has not begun.
func (s *Server) ready(ctx context.Context, sess *session) (endpoint.Deployment, error) {
	d, err := s.cfg.Control.Deployment(ctx, sess.key.deployment)
	switch {
	case err != nil:
		return d, err
	case d.Ready && d.Graph != nil:
		return d, nil
	}
	why := fail(CodeUnavailable, "deployment %s is not ready: %s", sess.key.deployment, d.Message)
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if len(d.Plan.GetStages()) == 0 && d.Plan.GetInfeasible() != "" && !sess.history.begun {
		return d, why
	}
	return d, &waiting{why: why}
}

// drop forgets the session's plan; the runs on it end.
func (sess *session) drop() {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	sess.target = nil
}

// epoch is of the session's plan; 0: it has none.
func (sess *session) epoch() uint64 {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	return sess.target.epoch()
}

func (t *target) epoch() uint64 {
	if t == nil {
		return 0
	}
	return t.plan.GetEpoch()
}

// bind is the session's run of a size on a plan, begun or not.
func (s *Server) bind(sess *session, t *target, words map[string]int64) (*binding, error) {
	var key strings.Builder
	for _, w := range slices.Sorted(maps.Keys(words)) {
		fmt.Fprintf(&key, "%s=%d ", w, words[w])
	}
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if sess.closed {
		return nil, fail(CodeConflict, "run %s was ended meanwhile", sess.key.run)
	}
	b := sess.bindings[key.String()]
	if b != nil && b.target == t {
		return b, nil
	}
	if b == nil && len(sess.bindings) >= maxSizes {
		return nil, fail(CodeBusy, "run %s has forwards of %d sizes, the limit of one run; give pictures of other sizes runs of their own", sess.key.run, maxSizes)
	}
	if old := b; old != nil {
		s.background.Go(func() { s.unbind(sess, old) })
	}
	b = &binding{target: t, turn: make(chan struct{}, 1), sent: map[string]string{}}
	sess.bindings[key.String()] = b
	return b, nil
}

// maxSizes bounds the sizes of one run's forwards.
const maxSizes = 8

// prepare begins a binding's run, once, and gives its plan the forward's
// conditioning, once.
func (s *Server) prepare(ctx context.Context, sess *session, b *binding, words map[string]int64, f *forwardRequest) (run, digest string, err error) {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return "", "", context.Cause(ctx)
	}
	if b.run == "" {
		begun, err := s.cfg.Forwards.BeginRun(ctx, &pb.BeginRunRequest{Deployment: sess.key.deployment, Dims: words})
		if err != nil {
			return "", "", s.judge(sess, err, false)
		}
		if begun.Plan.GetEpoch() != b.target.epoch() {
			b.run = begun.Run // ended with the others
			return "", "", &waiting{why: fail(CodeUnavailable, "deployment %s was placed again meanwhile", sess.key.deployment), soon: true}
		}
		b.run = begun.Run
	}
	what := f.sends()
	if d, ok := b.sent[what]; ok {
		return b.run, d, nil
	}
	tensors, err := s.conditioning(f)
	if err != nil {
		return "", "", err
	}
	put, err := s.cfg.Forwards.PutConditioning(ctx, &pb.PutConditioningRequest{Run: b.run, Tensors: tensors})
	if err != nil {
		return "", "", s.judge(sess, err, true)
	}
	b.sent[what] = put.Digest
	return b.run, put.Digest, nil
}

// sends names the conditioning of a forward, wherever it comes from.
func (f *forwardRequest) sends() string { return f.blob + " " + f.digest }

// resend has the next forward with this one's conditioning bring it again.
func (b *binding) resend(f *forwardRequest) {
	b.turn <- struct{}{}
	defer func() { <-b.turn }()
	delete(b.sent, f.sends())
}
