// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/coordinator/endpoint"
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

// waiting is the error of an attempt that may succeed later.
type waiting struct {
	why  error
	soon bool // at once, not when something has changed
	once bool // not too often on the same plan: waiting does not mend it
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
		if e := sess.drop(); later.once {
			if e != epoch {
				epoch, repeats = e, 0
			}
			if repeats++; repeats >= maxRepeats {
				return nil, later.why
			}
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
	if err := f.split(t.graph); err != nil {
		return nil, err
	}
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
	if err != nil {
		return nil, s.judge(sess, err, true)
	}
	return &result{ForwardResponse: res, plan: t.plan}, nil
}

// judge says of an error whether the forward is worth repeating.
func (s *Server) judge(sess *session, err error, begun bool) error {
	var fault *endpoint.Fault
	switch code := status.Code(err); {
	case code == codes.FailedPrecondition: // the first stage dropped the conditioning
		return &waiting{why: err, soon: true, once: true}
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

// drop forgets the session's plan, whose epoch it returns; the runs on it end.
func (sess *session) drop() uint64 {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	e := sess.target.epoch()
	sess.target = nil
	return e
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
	what := f.blob + " " + f.digest
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

// conditioning is what stays the same over the steps: the blob's tensors and
// those that came with the forward.
func (s *Server) conditioning(f *forwardRequest) ([]*pb.Tensor, error) {
	var out []*pb.Tensor
	if f.blob != "" {
		b, err := s.readBlob(f.blob)
		if err != nil {
			return nil, err
		}
		for _, t := range b.tensors {
			v, err := t.floats()
			if err != nil {
				return nil, err
			}
			out = append(out, float32Tensor(graphName(t.name), t.shape, v))
		}
	}
	return append(out, f.conditioningList()...), nil
}

// readBlob is a conditioning's blob in memory.
func (s *Server) readBlob(digest string) (*tensorBody, error) {
	path, size, ok := s.blobs.Use(digest)
	if !ok {
		return nil, missing(digest)
	}
	if size > s.limits.ForwardBytes {
		return nil, &Error{CodeTooLarge, fmt.Sprintf("conditioning %s has %d bytes, at most %d are taken", digest, size, s.limits.ForwardBytes), map[string]any{"bytes": size, "limit": s.limits.ForwardBytes}}
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, missing(digest)
	}
	if err != nil {
		return nil, storeError(err)
	}
	return parseTensors("conditioning "+digest, raw)
}

// blobShapes are the shapes in a conditioning's blob, by the graph's names.
func (s *Server) blobShapes(sess *session, digest string) (map[string]tensor.Shape, error) {
	if digest == "" {
		return nil, nil
	}
	sess.mu.Lock()
	known := sess.shapes[digest]
	sess.mu.Unlock()
	if known != nil {
		_, _, _ = s.blobs.Use(digest)
		return known, nil
	}
	b, err := s.readBlob(digest)
	if err != nil {
		return nil, err
	}
	known = map[string]tensor.Shape{}
	for _, t := range b.tensors {
		known[graphName(t.name)] = t.shape
	}
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if len(sess.shapes) >= maxShapes {
		clear(sess.shapes)
	}
	sess.shapes[digest] = known
	return known, nil
}

// maxShapes bounds the blobs of a run that are remembered.
const maxShapes = 256

// history is what the numerics sentence says of a run.
type history struct {
	begun   bool
	classes []string // by block, of the plan that the run began on
	plan    *pb.Plan
	changed string
}

// numerics is the sentence about the run, of which a forward of the step was
// answered on a plan.
func (sess *session) numerics(step uint32, p *pb.Plan) string {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	h := &sess.history
	now := classes(p)
	switch {
	case !h.begun:
		*h = history{begun: true, classes: now, plan: p}
	case h.plan.GetEpoch() != p.GetEpoch() || h.plan.GetDeploymentId() != p.GetDeploymentId():
		if c := difference(step, h, now, p); c != "" {
			h.changed = c
		}
		h.classes, h.plan = now, p
	}
	return cmp.Or(h.changed, p.GetNumerics())
}

func classes(p *pb.Plan) []string {
	var out []string
	for _, s := range p.GetStages() {
		for range s.GetBlocks() {
			out = append(out, s.GetNumericsClass())
		}
	}
	return out
}

// difference says which blocks have another class than before, and which nodes
// the plan has lost.
func difference(step uint32, h *history, now []string, p *pb.Plan) string {
	first, last := -1, -1
	for i := range min(len(now), len(h.classes)) {
		if now[i] != h.classes[i] {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first < 0 {
		return ""
	}
	text := fmt.Sprintf("changed at step %d (%s → %s, blocks %d-%d", step, h.classes[first], now[first], first, last)
	for _, s := range h.plan.GetStages() {
		if !slices.ContainsFunc(p.GetStages(), func(t *pb.Stage) bool { return t.GetNode() == s.GetNode() }) {
			text += fmt.Sprintf(", node %s lost", s.GetNodeName())
		}
	}
	return text + ")"
}
