// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// alone is a pipeline of one stage that nobody serves.
func alone() *pipeline {
	p := &pipeline{
		key: pipelineKey{name: "demo", epoch: 4}, flying: map[int]*forward{}, done: make(chan struct{}),
		plan: &pb.Plan{Deployment: "demo", Stages: []*pb.Stage{{NodeName: "a", FirstBlock: 0, Blocks: 6}}},
	}
	p.drivers = []*driver{newDriver(p, 0, time.Second)}
	return p
}

// A run that ends while one of its calls still reads the output must not take
// the output's memory away.
func TestCallKeepsThePipelineOfAnEndedRun(t *testing.T) {
	p := alone()
	p.drivers, p.users = nil, 1
	s := &Server{runs: map[string]*run{}, pipelines: map[pipelineKey]*pipeline{p.key: p}, begun: 1}
	r := &run{id: "r", pipeline: p}
	r.ctx, r.end = context.WithCancelCause(t.Context())
	s.runs["r"] = r
	_, done, err := s.use(t.Context(), "r")
	if err != nil {
		t.Fatal(err)
	}
	s.endRun(r, errEnded)
	if !errors.Is(context.Cause(r.ctx), errEnded) {
		t.Errorf("the call's context ended with %v", context.Cause(r.ctx))
	}
	if p.err() != nil {
		t.Errorf("the pipeline was closed under a call: %v", p.err())
	}
	done()
	if !errors.Is(p.err(), errClosed) || len(s.pipelines) != 0 {
		t.Errorf("after the last call the pipeline is %v, %d are left", p.err(), len(s.pipelines))
	}
}

// Two callers that ask the same are both answered by one answer.
func TestEqualCommandsShareAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := alone()
		d := p.drivers[0]
		got := make(chan *pb.StageEvent, 3)
		ask := func(ctx context.Context) {
			if ev, err := d.ask(ctx, "k", &pb.StageCommand{}); err == nil {
				got <- ev
			}
		}
		go ask(t.Context())
		go ask(t.Context())
		gone, leave := context.WithCancel(t.Context())
		go ask(gone)
		synctest.Wait()
		leave()
		synctest.Wait()
		d.answer("k", &pb.StageEvent{})
		synctest.Wait()
		if len(got) != 2 || len(d.waiting) != 0 || d.asked.Load() != 0 {
			t.Errorf("%d of two callers were answered, %d keys and %d commands still wait", len(got), len(d.waiting), d.asked.Load())
		}
		d.answer("k", &pb.StageEvent{})
		p.close()
	})
}

// broken is a stream that ends with an error.
type broken struct {
	grpc.BidiStreamingClient[pb.StageCommand, pb.StageEvent]
	err error
}

func (b broken) Recv() (*pb.StageEvent, error) { return nil, b.err }

// However a session ends, its pipeline ends with it: nobody waits for it.
func TestEndOfASessionEndsThePipeline(t *testing.T) {
	for _, c := range []struct {
		name, want string
		kind       pb.StageFault_Kind
		err        error
	}{
		{"cut", "is gone: reset", pb.StageFault_PEER_UNREACHABLE, status.Error(codes.Unavailable, "reset")},
		{"freed", "ended the session at epoch 4: placed again", pb.StageFault_STALE_EPOCH, status.Error(codes.Aborted, "placed again")},
		{"given up here", "is gone", pb.StageFault_PEER_UNREACHABLE, context.Canceled},
	} {
		p := alone()
		d := p.drivers[0]
		d.stream = broken{err: c.err}
		d.cancel()
		d.read()
		f, ok := errors.AsType[*Fault](p.err())
		if !ok || f.Kind != c.kind || !strings.Contains(f.Error(), c.want) || !strings.Contains(f.Error(), "stage 0 on node a (blocks 0-5)") {
			t.Errorf("%s: the pipeline ended with %v", c.name, p.err())
		}
		p.close()
	}
}
