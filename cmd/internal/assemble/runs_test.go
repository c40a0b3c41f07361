// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// await fails the test when an answer does not come.
func answer(t *testing.T, from chan error) error {
	t.Helper()
	select {
	case err := <-from:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("no answer in 20 s")
		return nil
	}
}

func TestDeadline(t *testing.T) {
	g := newGate()
	r := newRig(t, "bf16", []int{3, 3}, g.wrap(1))
	run, digest, step := r.begin(t)
	forward := func(d time.Duration) error {
		_, err := r.server.Forward(t.Context(), &pb.ForwardRequest{
			Run: run, Conditioning: digest, Tensors: step, Deadline: durationpb.New(d)})
		return err
	}
	for range 2 * int(r.plan.Workload.InFlight) { // the slots come back while the stage is held
		err := forward(300 * time.Millisecond)
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "did not finish in 300ms") {
			t.Errorf("past its deadline the forward ended with %v", err)
		}
	}
	if err := forward(-time.Second); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a negative deadline gave %v", err)
	}
	close(g.open)
	if err := forward(time.Minute); err != nil {
		t.Errorf("after the deadlines: %v", err)
	}
}

func TestClientThatVanishesDrains(t *testing.T) {
	g := newGate()
	r := newRig(t, "bf16", []int{6}, g.wrap(0))
	run, digest, step := r.begin(t)
	ctx, vanish := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := r.server.Forward(ctx, &pb.ForwardRequest{Run: run, Conditioning: digest, Tensors: step})
		failed <- err
	}()
	<-g.reached
	vanish()
	if err := answer(t, failed); status.Code(err) != codes.Canceled {
		t.Errorf("the forward ended with %v", err)
	}
	close(g.open)
	if _, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Step: 1, Conditioning: digest, Tensors: step}); err != nil {
		t.Fatal(err)
	}
	end, err := r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: run})
	if err != nil {
		t.Fatal(err)
	}
	if s := end.Stages[0]; s.Forwards != 1 || s.BlocksRun > 8 {
		t.Errorf("the stage finished %d forwards and ran %d blocks; the cancelled one issues no more", s.Forwards, s.BlocksRun)
	}
}

func TestEndOfRunEndsItsForwards(t *testing.T) {
	g := newGate()
	r := newRig(t, "bf16", []int{3, 3}, g.wrap(0))
	run, digest, step := r.begin(t)
	failed := make(chan error, 2)
	for branch := range uint32(2) { // one is computed, one is queued behind it
		go func() {
			_, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Branch: branch, Conditioning: digest, Tensors: step})
			failed <- err
		}()
	}
	<-g.reached
	if _, err := r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: run}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := answer(t, failed); status.Code(err) != codes.Aborted {
			t.Errorf("a forward of an ended run ended with %v", err)
		}
	}
	close(g.open)
	if _, _, err := r.forward(t.Context()); err != nil {
		t.Errorf("the next run: %v", err)
	}
}

func TestRunsThatBeginTogether(t *testing.T) {
	r := newRig(t, "bf16", []int{2, 4}, nil)
	want, _, err := r.forward(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for range 6 {
		group.Go(func() error {
			out, _, err := r.forward(t.Context())
			if err == nil && string(out) != string(want) {
				t.Error("a run among others gave other bits")
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func TestInterleavedRunsEqualSeparateOnes(t *testing.T) {
	r := newRig(t, "bf16", []int{2, 4}, nil)
	prompts := []string{"large red circle on blue", "small blue circle on orange"}
	forward := func(run, digest string, step []*pb.Tensor, i int) (string, error) {
		res, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Step: uint32(i), Conditioning: digest, Tensors: step})
		return string(res.GetOut().GetData()), err
	}
	open := func(prompt string) (run, digest string, step []*pb.Tensor) {
		b, err := r.server.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: r.plan.Workload.Dims})
		if err != nil {
			t.Fatal(err)
		}
		cond, step := request(t, prompt)
		p, err := r.server.PutConditioning(t.Context(), &pb.PutConditioningRequest{Run: b.Run, Tensors: cond})
		if err != nil {
			t.Fatal(err)
		}
		return b.Run, p.Digest, step
	}
	var separate [2]string
	for i, prompt := range prompts {
		run, digest, step := open(prompt)
		out, err := forward(run, digest, step, 0)
		if err != nil {
			t.Fatal(err)
		}
		separate[i] = out
		if _, err := r.server.EndRun(t.Context(), &pb.EndRunRequest{Run: run}); err != nil {
			t.Fatal(err)
		}
	}
	if separate[0] == separate[1] {
		t.Fatal("two prompts gave the same output")
	}
	var group errgroup.Group
	for i, prompt := range prompts {
		run, digest, step := open(prompt)
		group.Go(func() error {
			for k := range 8 {
				out, err := forward(run, digest, step, k)
				if err != nil {
					return err
				}
				if out != separate[i] {
					t.Errorf("forward %d of run %d differs from the separate run's", k, i)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// A pipeline that failed makes room for the next at once, with its run open.
func TestRunAfterAFailure(t *testing.T) {
	r := newRig(t, "bf16", []int{3, 3}, nil)
	run, digest, step := r.begin(t)
	held := r.plan.Stages[1]
	h := r.drive(t, r.node, 1) // the same coordinator's later session replaces the first
	_, err := r.server.Forward(t.Context(), &pb.ForwardRequest{Run: run, Conditioning: digest, Tensors: step})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "node "+held.NodeName) {
		t.Errorf("the forward of the replaced session ended with %v", err)
	}
	if _, _, err := r.forward(t.Context()); err != nil {
		t.Errorf("the next run: %v", err)
	}
	if _, err := h.stream.Recv(); err != nil && !strings.Contains(err.Error(), "another session") {
		t.Errorf("the session by hand ended with %v", err)
	}
}
