// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// forwardAll runs n forwards in one run.
func forwardAll(t testing.TB, conn *grpc.ClientConn, n int) (*pb.Plan, *pb.StageStats) {
	t.Helper()
	ep := pb.NewEndpointClient(conn)
	run, err := ep.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims})
	if err != nil {
		t.Fatal(err)
	}
	cond, step := request(t, "large red circle on blue")
	put, err := ep.PutConditioning(t.Context(), &pb.PutConditioningRequest{Run: run.Run, Tensors: cond})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := ep.Forward(t.Context(), &pb.ForwardRequest{Run: run.Run, Step: uint32(i), Conditioning: put.Digest, Tensors: step}); err != nil {
			t.Fatal(err)
		}
	}
	end, err := ep.EndRun(t.Context(), &pb.EndRunRequest{Run: run.Run})
	if err != nil {
		t.Fatal(err)
	}
	return run.Plan, end.Stages[0]
}

// awaitDevice is the one device of the one node, when it is as wanted.
func awaitDevice(t testing.TB, conn *grpc.ClientConn, what string, ok func(*pb.Device) bool) *pb.Device {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last *pb.ListNodesResponse
	for end := time.Now().Add(time.Minute); time.Now().Before(end); <-tick.C {
		var err error
		if last, err = pb.NewControlClient(conn).ListNodes(t.Context(), &pb.ListNodesRequest{}); err == nil && len(last.Nodes) == 1 {
			if d := last.Nodes[0].Record.Devices[0]; ok(d) {
				return d
			}
		}
	}
	t.Fatalf("waited a minute for %s; the nodes are %v", what, last)
	return nil
}

// An agent whose device is far slower than its calibration says: it
// finds that out by itself, measures again when it is idle, and later plans
// are forecast by what it learned. A plan that runs stays.
func TestFeedback(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	var measured atomic.Int32
	cfg := testConfig(t.TempDir())
	cfg.Agent.Name = "a"
	dir, tok := openDir(t, cfg.DataDir), token(t, conn)
	agent := func(cfg *config.Config, rate float64) *process {
		return start(t, "agent a", func(ctx context.Context, ready func(string)) error {
			if err := JoinCluster(ctx, dir, tok, "a"); err != nil {
				return err
			}
			return Agent{
				Config: cfg, Dir: dir, Version: "test", Log: slog.New(slog.DiscardHandler), Ready: ready,
				Measure: func(_ context.Context, _ engine.Session, d tensor.DType) ([]measure.Rates, error) {
					v := rate / float64(1+measured.Add(1)/2) // both dtypes take their turn
					return []measure.Rates{{DType: d, Tokens: 1024, Elements: 1 << 20, Linear: v, Attention: v, Elementwise: v, Expand: v}}, nil
				},
			}.Run(ctx)
		})
	}
	a := agent(cfg, 1e13) // no CPU does that
	deploy(t, conn)
	before := await(t, conn, "the deployment", ready)
	first := awaitDevice(t, conn, "the node", func(d *pb.Device) bool { return d.Calibration != "" })
	if s := before.Plan.Stages[0].Forecast; s.Correction != 1 || s.Calibration != first.Calibration {
		t.Errorf("the first plan is forecast by %v, the device is %v", s, first)
	}
	_, stats := forwardAll(t, conn, 12)
	f := stats.GetFeedback()
	if want := "slower than its calibration for 10 steps; measuring again"; !strings.HasPrefix(f.GetEvent(), "node a, cpu: ") || !strings.HasSuffix(f.GetEvent(), want) || f.GetRatio() < 2 || f.GetSamples() < 10 {
		t.Errorf("feedback %v", f)
	}
	second := awaitDevice(t, conn, "other rates", func(d *pb.Device) bool { return d.Calibration != first.Calibration })
	if n := measured.Load(); n != 4 {
		t.Errorf("two dtypes were measured %d times, want twice each", n)
	}
	if len(second.Feedback) != 1 || second.Feedback[0].Dtype != before.Plan.Dtype || second.Feedback[0].Ratio <= 1 {
		t.Fatalf("the device tells %v", second.Feedback)
	}
	plan, stats := forwardAll(t, conn, 12)
	if plan.Epoch != before.Plan.Epoch {
		t.Errorf("feedback moved a plan that runs: epoch %d, then %d", before.Plan.Epoch, plan.Epoch)
	}
	if stats.GetFeedback().GetEvent() != "" {
		t.Errorf("one change is told twice: %v", stats.GetFeedback())
	}
	deploy(t, conn)
	after := await(t, conn, "another plan", func(s *pb.DeploymentStatus) bool { return s.Ready && s.Plan.Epoch > plan.Epoch })
	s := after.Plan.Stages[0].Forecast
	if s.Correction <= 1 || s.Calibration != second.Calibration || s.ComputeSeconds <= before.Plan.Stages[0].Forecast.ComputeSeconds {
		t.Errorf("the next plan is forecast by %v, the device is %v", s, second)
	}

	// The next start takes what was kept, and what was learned with it.
	a.stop()
	agent(cfg, 1)
	third := awaitDevice(t, conn, "the node again", func(d *pb.Device) bool { return d.Calibration == second.Calibration })
	if n := measured.Load(); n != 4 || len(third.Feedback) != 1 || third.Feedback[0].Ratio <= 1 {
		t.Errorf("after a restart the device was measured %d times and tells %v", n, third.Feedback)
	}
}
