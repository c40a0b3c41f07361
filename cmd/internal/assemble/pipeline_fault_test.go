// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// hooked is an engine whose sessions run a function after each segment.
type hooked struct {
	engine.Engine
	after func(p engine.Program, bindings []engine.Binding)
}

type hookedSession struct {
	engine.Session
	after func(p engine.Program, bindings []engine.Binding)
}

func (h hooked) Open(ctx context.Context, id engine.DeviceID) (engine.Session, error) {
	s, err := h.Engine.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	return &hookedSession{Session: s, after: h.after}, nil
}

// Run waits: what comes after a run on the queue sees what the hook did.
func (h *hookedSession) Run(p engine.Program, w engine.Buffer, at tensor.Bytes, scratch engine.Buffer, b []engine.Binding, after ...engine.Event) engine.Event {
	e := h.Session.Run(p, w, at, scratch, b, after...)
	if h.Wait(context.Background(), e) == nil {
		h.after(p, b)
	}
	return e
}

func TestOneFlippedBitShows(t *testing.T) {
	good, _, err := newRig(t, "bf16", []int{1, 2, 3}, nil).forward(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var flips atomic.Int64
	// Only the output of the middle agent's first block changes, by one bit.
	outputs := func(p engine.Program, bindings []engine.Binding) {
		seg := p.Segment()
		var out []engine.Binding
		for _, b := range bindings {
			for _, id := range seg.Outputs {
				if b.Name == seg.Values[id].Name {
					out = append(out, b)
				}
			}
		}
		if seg.Name == "double_blocks" && len(out) > 0 && flips.Add(1) == 1 {
			out[0].Buffer.Host()[int(out[0].Offset)+1] ^= 1 << 6
		}
	}
	bad, _, err := newRig(t, "bf16", []int{1, 2, 3}, func(i int, e engine.Engine) engine.Engine {
		if i != 1 {
			return e
		}
		return hooked{e, outputs}
	}).forward(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if flips.Load() == 0 {
		t.Fatal("no bit was flipped")
	}
	if string(good) == string(bad) {
		t.Error("a flipped bit in one agent's output did not change the result")
	}
}

// gate holds an agent after its first segment until it is opened.
type gate struct{ reached, open chan struct{} }

func newGate() *gate { return &gate{make(chan struct{}, 64), make(chan struct{})} }

func (g *gate) wrap(at int) func(int, engine.Engine) engine.Engine {
	return func(i int, e engine.Engine) engine.Engine {
		if i != at {
			return e
		}
		return hooked{e, func(engine.Program, []engine.Binding) {
			select {
			case g.reached <- struct{}{}:
			default:
			}
			<-g.open
		}}
	}
}

// begin opens a run with its conditioning.
func (r *rig) begin(t testing.TB) (run, digest string, step []*pb.Tensor) {
	t.Helper()
	b, err := r.server.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: r.plan.Workload.Dims})
	if err != nil {
		t.Fatal(err)
	}
	cond, step := request(t, "small blue circle on orange")
	p, err := r.server.PutConditioning(t.Context(), &pb.PutConditioningRequest{Run: b.Run, Tensors: cond})
	if err != nil {
		t.Fatal(err)
	}
	return b.Run, p.Digest, step
}

func TestCancelReleasesTheCallerAndTheSlotIsUsedAgain(t *testing.T) {
	g := newGate()
	r := newRig(t, "bf16", []int{1, 2, 3}, g.wrap(1))
	run, digest, step := r.begin(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := r.server.Forward(ctx, &pb.ForwardRequest{Run: run, Step: 1, Conditioning: digest, Tensors: step})
		failed <- err
	}()
	<-g.reached
	cancel()
	select {
	case err := <-failed:
		if status.Code(err) != codes.Canceled {
			t.Errorf("the cancelled forward ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the cancelled caller was not released while the stage was held")
	}
	close(g.open)
	var outs [4][]byte
	for i := range outs { // more than there are slots
		res, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Step: uint32(2 + i), Conditioning: digest, Tensors: step})
		if err != nil {
			t.Fatal(err)
		}
		outs[i] = res.Out.Data
		if string(outs[i]) != string(outs[0]) {
			t.Errorf("forward %d after the cancelled one differs", i)
		}
	}
	if _, err := r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: run}); err != nil {
		t.Error(err)
	}
}

func TestLostAgentIsNamed(t *testing.T) {
	g := newGate()
	r := newRig(t, "bf16", []int{1, 2, 3}, g.wrap(2))
	run, digest, step := r.begin(t)
	failed := make(chan error, 1)
	go func() {
		_, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Conditioning: digest, Tensors: step})
		failed <- err
	}()
	<-g.reached
	r.agents[1].cancel()
	select {
	case err := <-failed:
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "stage 1 on node n1 (blocks 1-2)") {
			t.Errorf("the error is %v, want it to name stage 1 on node n1", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the forward did not fail")
	}
	close(g.open)
}

func TestTwoForwardsInFlight(t *testing.T) {
	r := newRig(t, "bf16", []int{3, 3}, nil)
	run, digest, step := r.begin(t)
	want, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Conditioning: digest, Tensors: step})
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for i := range 12 {
		group.Go(func() error {
			res, err := r.server.Forward(t.Context(), &pb.ForwardRequest{
				Run: run, Step: uint32(1 + i/2), Branch: uint32(i % 2), Conditioning: digest, Tensors: step})
			if err == nil && string(res.Out.Data) != string(want.Out.Data) {
				return errors.New("a forward among others gave other bits")
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	r := newRig(t, "bf16", []int{6}, nil)
	large := map[string]int64{"width": 256, "height": 128, "text_tokens": 5, "batch": 1}
	_, err := r.server.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: large})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "width 256 is more than the 128") {
		t.Errorf("a request beyond the workload gave %v", err)
	}
	run, digest, step := r.begin(t)
	short := []*pb.Tensor{{Name: "x", Dtype: "F32", Shape: []int64{1, 16, 16, 16}, Data: step[0].Data[:100]}, step[1]}
	for name, req := range map[string]*pb.ForwardRequest{
		"unknown run":     {Run: strings.Repeat("0", 32), Conditioning: digest, Tensors: step},
		"truncated":       {Run: run, Conditioning: digest, Tensors: short},
		"missing":         {Run: run, Conditioning: digest, Tensors: step[:1]},
		"foreign":         {Run: run, Conditioning: digest, Tensors: append([]*pb.Tensor{{Name: "weights"}}, step...)},
		"twice":           {Run: run, Conditioning: digest, Tensors: append([]*pb.Tensor{step[0]}, step...)},
		"no conditioning": {Run: run, Conditioning: "nonsense", Tensors: step},
	} {
		if _, err := r.server.Forward(t.Context(), req); err == nil {
			t.Errorf("%s: the forward was taken", name)
		}
	}
	_, err = r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Conditioning: strings.Repeat("00", 32), Tensors: step})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a conditioning that is not there gave %v", err)
	}
	if _, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Conditioning: digest, Tensors: step}); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}
