// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/zeebo/blake3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Limits of one call.
const (
	maxTensors     = 16
	maxDims        = 16
	maxDimName     = 64
	maxForwardTime = 30 * time.Minute
	endRunTimeout  = 5 * time.Second
)

// toStatus is the one place where errors of this package become gRPC codes.
// Callers within the process find a *Fault in its errors.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return &statusError{codeOf(err), err}
}

func codeOf(err error) codes.Code {
	var f *Fault
	switch {
	case errors.As(err, &f) && f.Kind == pb.StageFault_CONDITIONING_MISSING:
		return codes.FailedPrecondition
	case errors.As(err, &f), errors.Is(err, errStopped), errors.Is(err, errClosed):
		return codes.Unavailable
	case errors.Is(err, errEnded):
		return codes.Aborted
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return codes.Internal
}

// statusError is an error with its code.
type statusError struct {
	code codes.Code
	err  error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// GRPCStatus is what a remote caller gets.
func (e *statusError) GRPCStatus() *status.Status { return status.New(e.code, e.err.Error()) }

func (s *Server) allow(ctx context.Context) error {
	if s.cfg.Allow == nil {
		return nil
	}
	return s.cfg.Allow(ctx)
}

// BeginRun binds a run to the deployment's active plan. It fails when the
// deployment does not exist, is not ready, or is smaller than the request.
func (s *Server) BeginRun(ctx context.Context, req *pb.BeginRunRequest) (*pb.BeginRunResponse, error) {
	if err := s.allow(ctx); err != nil {
		return nil, err
	}
	d, err := s.cfg.Plans.Deployment(ctx, req.Deployment)
	if err != nil {
		return nil, err
	}
	if !d.Ready {
		return nil, status.Errorf(codes.Unavailable, "deployment %s is not ready: %s", req.Deployment, d.Message)
	}
	if len(d.Plan.GetStages()) == 0 {
		return nil, status.Errorf(codes.Unavailable, "deployment %s has no stages: %s", req.Deployment, d.Plan.GetInfeasible())
	}
	if err := checkDims(req.Dims); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	l, err := newLengths(d, req.Dims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if l.strengths, err = newStrengths(d.Plan, req.LoraStrengths); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.reserve(); err != nil {
		return nil, err
	}
	p, err := s.acquire(ctx, d)
	if err != nil {
		s.unreserve()
		return nil, toStatus(err)
	}
	id, raw, err := newRunID()
	if err != nil {
		s.unreserve()
		s.release(p)
		return nil, toStatus(err)
	}
	r := &run{id: id, raw: raw, pipeline: p, lengths: l, used: time.Now()}
	r.ctx, r.end = context.WithCancelCause(s.ctx)
	if err := s.announce(ctx, r, req.Dims); err != nil {
		s.endRun(r, err)
		return nil, toStatus(err)
	}
	s.mu.Lock()
	if s.ctx.Err() != nil { // Run has ended the others already
		s.mu.Unlock()
		s.endRun(r, errStopped)
		return nil, toStatus(errStopped)
	}
	s.runs[id] = r
	s.mu.Unlock()
	return &pb.BeginRunResponse{Run: id, Plan: d.Plan}, nil
}

// checkDims bounds what errors about them repeat.
func checkDims(dims map[string]int64) error {
	if len(dims) > maxDims {
		return fmt.Errorf("%d dimensions: no model has more than %d", len(dims), maxDims)
	}
	for name := range dims {
		if len(name) > maxDimName {
			return fmt.Errorf("dimension %.40q: no model has one of that name", name)
		}
	}
	return nil
}

// reserve counts one more run.
func (s *Server) reserve() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun >= s.cfg.MaxRuns {
		return status.Errorf(codes.ResourceExhausted, "%d runs are open, the limit of this endpoint; end one or wait", s.begun)
	}
	s.begun++
	return nil
}

func (s *Server) unreserve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun--
}

// announce lets every stage prepare for the run.
func (s *Server) announce(ctx context.Context, r *run, dims map[string]int64) error {
	for _, drv := range r.pipeline.drivers {
		ev, err := drv.ask(ctx, "run/"+r.id, &pb.StageCommand{Command: &pb.StageCommand_BeginRun{
			BeginRun: &pb.BeginStageRun{Run: r.id, Dims: dims}}})
		if err == nil && ev.GetRunReady().Error != "" {
			err = r.pipeline.fault(drv.stage, pb.StageFault_FRAME_REFUSED, ev.GetRunReady().Error)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// acquire finds or opens the pipeline of a plan and counts one more user.
// Runs that begin at the same time share one attempt.
func (s *Server) acquire(ctx context.Context, d Deployment) (*pipeline, error) {
	key := pipelineKey{name: d.Plan.Deployment, id: d.Plan.DeploymentId, epoch: d.Plan.Epoch}
	var turn chan struct{}
	for turn == nil {
		s.mu.Lock()
		if p := s.pipelines[key]; p != nil && p.err() == nil {
			p.users++
			s.mu.Unlock()
			return p, nil
		}
		other := s.opening[key]
		if other == nil {
			turn = make(chan struct{})
			s.opening[key] = turn
		}
		s.mu.Unlock()
		if other == nil {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	p, err := s.openPlan(ctx, key, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.opening, key)
	close(turn)
	if err != nil {
		return nil, err
	}
	p.users = 1
	s.pipelines[key] = p
	if s.ctx.Err() != nil {
		p.fail(errStopped)
	}
	return p, nil
}

func (s *Server) openPlan(ctx context.Context, key pipelineKey, d Deployment) (*pipeline, error) {
	largest, err := newLengths(d, d.Plan.Workload.GetDims())
	if err != nil {
		return nil, err
	}
	return s.open(ctx, key, d.Plan, largest.output)
}

func (s *Server) release(p *pipeline) {
	s.mu.Lock()
	p.users--
	last := p.users == 0
	if last && s.pipelines[p.key] == p {
		delete(s.pipelines, p.key)
	}
	s.mu.Unlock()
	if last {
		p.close()
	}
}

// use finds a run and keeps it from expiring until the returned func is called.
func (s *Server) use(ctx context.Context, id string) (*run, func(), error) {
	if err := s.allow(ctx); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[id]
	if r == nil || r.ended {
		return nil, nil, status.Errorf(codes.NotFound, "run %.40q is not open here: it ended, or the coordinator restarted; begin a new run", id)
	}
	r.active++
	r.used = time.Now()
	r.pipeline.users++ // the run may end meanwhile; the memory stays until the call has
	return r, func() {
		s.mu.Lock()
		r.active--
		r.used = time.Now()
		s.mu.Unlock()
		s.release(r.pipeline)
	}, nil
}

// PutConditioning gives the first stage the tensors that stay the same over
// the steps of one branch, and answers with their digest.
func (s *Server) PutConditioning(ctx context.Context, req *pb.PutConditioningRequest) (*pb.PutConditioningResponse, error) {
	r, done, err := s.use(ctx, req.Run)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := r.lengths.checkConditioning(req.Tensors); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	digest := Digest(req.Tensors)
	ev, err := r.pipeline.drivers[0].ask(ctx, "conditioning/"+r.id+"/"+digest,
		&pb.StageCommand{Command: &pb.StageCommand_Conditioning{Conditioning: &pb.PutConditioningRequest{
			Run: r.id, Tensors: req.Tensors, Digest: digest}}})
	if err != nil {
		return nil, toStatus(err)
	}
	if msg := ev.GetConditioningReady().Error; msg != "" {
		return nil, toStatus(r.pipeline.fault(0, pb.StageFault_FRAME_REFUSED, msg))
	}
	return &pb.PutConditioningResponse{Digest: digest}, nil
}

// Digest is BLAKE3 over names, dtypes, shapes and bytes, in order of name.
func Digest(tensors []*pb.Tensor) string {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b *pb.Tensor) int { return cmp.Compare(a.Name, b.Name) })
	h := blake3.New()
	for _, t := range sorted {
		_, _ = fmt.Fprintf(h, "%q %s %v %d\n", t.Name, t.Dtype, t.Shape, len(t.Data)) // a hash does not fail
		_, _ = h.Write(t.Data)
	}
	return hex.EncodeToString(h.Sum(nil)[:32])
}

// Forward runs one forward of a run: x and timestep in, prediction out.
func (s *Server) Forward(ctx context.Context, req *pb.ForwardRequest) (*pb.ForwardResponse, error) {
	r, done, err := s.use(ctx, req.Run)
	if err != nil {
		return nil, err
	}
	defer done()
	inputs, err := r.lengths.inputs(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	limit := maxForwardTime
	switch d := req.Deadline.AsDuration(); {
	case d < 0:
		return nil, status.Errorf(codes.InvalidArgument, "deadline of %s: a deadline is the time that is left; leave it out for %s", d, limit)
	case d > 0:
		limit = min(limit, d)
	}
	began := time.Now()
	fctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("%w: forward of step %d did not finish in %s", context.DeadlineExceeded, req.Step, limit))
	defer cancel()
	fctx, end := context.WithCancelCause(fctx)
	defer end(nil)
	stop := context.AfterFunc(r.ctx, func() { end(context.Cause(r.ctx)) })
	defer stop()
	out := make([]byte, r.lengths.output)
	id := &pb.ForwardID{Run: r.id, Step: req.Step, Branch: req.Branch}
	timing, queued, err := r.pipeline.forward(fctx, id, r.raw, inputs, out)
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.ForwardResponse{
		Queued: durationpb.New(queued),
		Out:    &pb.Tensor{Name: "out", Dtype: "F32", Shape: r.lengths.outputShape, Data: out[:r.lengths.outputBytes]},
		Stages: timing, Total: durationpb.New(time.Since(began)),
	}, nil
}

// EndRun forgets a run and answers with what its stages counted.
func (s *Server) EndRun(ctx context.Context, req *pb.EndRunRequest) (*pb.EndRunResponse, error) {
	if err := s.allow(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	r := s.runs[req.Run]
	s.mu.Unlock()
	if r == nil {
		return nil, status.Errorf(codes.NotFound, "run %.40q is not open here: it ended already", req.Run)
	}
	return &pb.EndRunResponse{Stages: s.endRun(r, errEnded)}, nil
}

// errEnded ends the forwards of a run that its client ended.
var errEnded = errors.New("the run was ended")

// endRun cancels the run's forwards with why and lets the stages forget it.
func (s *Server) endRun(r *run, why error) []*pb.StageStats {
	s.mu.Lock()
	if r.ended {
		s.mu.Unlock()
		return nil
	}
	r.ended = true
	delete(s.runs, r.id)
	s.begun--
	s.mu.Unlock()
	r.end(why)
	ctx, cancel := context.WithTimeout(context.Background(), endRunTimeout)
	defer cancel()
	var stats []*pb.StageStats
	for _, d := range r.pipeline.drivers {
		ev, err := d.ask(ctx, "stats/"+r.id, &pb.StageCommand{Command: &pb.StageCommand_EndRun{EndRun: r.id}})
		if err != nil {
			break // the stage is lost; its memory went with it
		}
		stats = append(stats, ev.GetStats())
	}
	s.release(r.pipeline)
	return stats
}
