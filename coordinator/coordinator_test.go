// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement/report"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

func planned(name string, epoch uint64) func(*store.State) bool {
	return func(st *store.State) bool { return st.Plans[name].Value.GetEpoch() >= epoch }
}

func TestDeployUndeployRedeploy(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "tiny.safetensors", tiny, tensor.F32))
	c.join("m1", map[string]float64{"a": 1e9, "b": 1e9})
	co, _ := c.run("one:1")
	op := c.as(identity.RoleOperator)

	first, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("demo", "tiny")})
	if err != nil {
		t.Fatal(err)
	}
	if s := first.Spec; s.Model != "m1" || s.ModelName != "tiny.safetensors" || s.Generation != 1 || len(s.Id) != 32 || s.Dtype != "bf16" || s.Workload.InFlight != 2 {
		t.Errorf("spec %v", s)
	}
	p := c.until("a plan", planned("demo", 1)).Plans["demo"].Value
	if len(p.Stages) != 1 || p.Numerics != "equals one device (native/1)" || p.Forecast.StepSeconds <= 0 || p.DeploymentId != first.Spec.Id {
		t.Fatalf("plan %v", p)
	}
	for _, tc := range []struct {
		state   pb.Observed_State
		ready   bool
		message string
	}{
		{pb.Observed_STATE_UNSPECIFIED, false, "it has not begun to load"},
		{pb.Observed_LOADING, false, "loading, 1.0 GB of 3.0 GB"},
		{pb.Observed_READY, true, "ready"},
	} {
		if tc.state != pb.Observed_STATE_UNSPECIFIED {
			c.loads(p, tc.state, "")
		}
		got, err := co.Status(op, &pb.StatusRequest{Name: "demo"})
		if err != nil {
			t.Fatal(err)
		}
		if d := got.Deployments[0]; d.Ready != tc.ready || !strings.HasSuffix(d.Message, tc.message) || got.Leader != "one:1" {
			t.Errorf("%v: ready %v, %q, leader %q", tc.state, d.Ready, d.Message, got.Leader)
		}
	}
	d, err := co.Deployment(t.Context(), "demo")
	if err != nil || !d.Ready || d.Plan.Epoch != 1 || d.Graph == nil {
		t.Fatalf("deployment %+v, %v", d, err)
	}
	larger, err := d.Graph.Request(map[string]int64{"width": 1024, "height": 512, "text_tokens": 512, "batch": 1})
	if err != nil {
		t.Fatal(err)
	}
	most, err := d.Graph.Request(d.Plan.Workload.Dims)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Graph.Within(larger, most); !errors.Is(err, graph.ErrTooLarge) {
		t.Errorf("a request beyond the workload: %v", err)
	}

	again, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("demo", "m1", func(s *pb.DeploymentSpec) {
		s.Pins = []*pb.Pin{{Node: "a", Blocks: 2}, {Node: "n-b", FirstBlock: 2, Blocks: 6}}
	})})
	if err != nil || again.Spec.Generation != 2 || again.Spec.Id == first.Spec.Id {
		t.Fatalf("%v, %v", again, err)
	}
	p = c.until("the next plan", planned("demo", 2)).Plans["demo"].Value
	if p.Epoch != 2 || p.Generation != 2 || p.DeploymentId != again.Spec.Id || len(p.Stages) != 2 || p.Stages[1].FirstBlock != 2 {
		t.Fatalf("plan %v", p)
	}

	if _, err := co.Undeploy(op, &pb.UndeployRequest{Name: "demo"}); err != nil {
		t.Fatal(err)
	}
	c.until("the plan's end", func(st *store.State) bool { return len(st.Plans)+len(st.Specs) == 0 })
	if _, err := co.Deployment(t.Context(), "demo"); status.Code(err) != codes.NotFound {
		t.Errorf("a deployment that is gone: %v", err)
	}
	if _, err := co.Undeploy(op, &pb.UndeployRequest{Name: "demo"}); status.Code(err) != codes.NotFound {
		t.Errorf("undeployed twice: %v", err)
	}
	if _, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("demo", "tiny.safetensors")}); err != nil {
		t.Fatal(err)
	}
	c.until("another first plan", planned("demo", 1))
}

func TestOneLeaderAtATime(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "tiny.safetensors", tiny, tensor.F32))
	c.join("m1", map[string]float64{"a": 1e9})
	one, stop := c.run("one:1")
	if _, err := one.Deploy(c.as(identity.RoleOperator), &pb.DeployRequest{Spec: spec("first", "m1")}); err != nil {
		t.Fatal(err)
	}
	c.until("a plan", planned("first", 1))
	two, _ := c.run("two:1")
	// Either answers; the one that leads places.
	if _, err := two.Deploy(c.as(identity.RoleOperator), &pb.DeployRequest{Spec: spec("second", "m1")}); err != nil {
		t.Fatal(err)
	}
	c.until("a plan", planned("second", 1))
	if leader, err := c.store.Leader(t.Context()); err != nil || leader != "one:1" {
		t.Errorf("leader %q, %v", leader, err)
	}
	stop()
	if _, err := two.Deploy(c.as(identity.RoleOperator), &pb.DeployRequest{Spec: spec("third", "m1")}); err != nil {
		t.Fatal(err)
	}
	st := c.until("a plan of the second leader", planned("third", 1))
	for name, e := range st.Plans {
		if e.Value.Epoch != 1 {
			t.Errorf("%s was placed %d times", name, e.Value.Epoch)
		}
	}
	if leader, err := c.store.Leader(t.Context()); err != nil || leader != "two:1" {
		t.Errorf("leader %q, %v", leader, err)
	}
}

// TestLostTransaction: what was decided from an old state is not written, and
// a leader that lost its lease writes nothing.
func TestLostTransaction(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "tiny.safetensors", tiny, tensor.F32))
	c.join("m1", map[string]float64{"a": 1e9})
	co, op := c.new("one:1"), c.as(identity.RoleOperator)
	if _, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("demo", "m1")}); err != nil {
		t.Fatal(err)
	}
	old, err := c.store.ReadState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("demo", "m1")}); err != nil {
		t.Fatal(err)
	}
	l, err := co.cfg.Store.Campaign(t.Context(), "one:1", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := co.settle(t.Context(), l, old); !errors.Is(err, store.ErrConflict) {
		t.Errorf("an old state: %v", err)
	}
	now, err := c.store.ReadState(t.Context())
	if err != nil || len(now.Plans) != 0 {
		t.Fatalf("plans %v, %v", now.Plans, err)
	}
	if err := co.settle(t.Context(), l, now); err != nil {
		t.Fatal(err)
	}
	l.Resign(t.Context())
	if _, err := co.Undeploy(op, &pb.UndeployRequest{Name: "demo"}); err != nil {
		t.Fatal(err)
	}
	if now, err = c.store.ReadState(t.Context()); err != nil || now.Plans["demo"].Value.GetGeneration() != 2 {
		t.Fatalf("plans %v, %v", now.Plans, err)
	}
	if err := co.settle(t.Context(), l, now); !errors.Is(err, store.ErrNotLeader) {
		t.Errorf("a leader that resigned: %v", err)
	}
	// One that runs refreshes and tries again by itself.
	_, _ = c.run("two:1")
	c.until("the plan's end", func(st *store.State) bool { return len(st.Plans) == 0 })
}

// TestRestartForgetsNothing: a new process finds the plan and leaves it alone.
func TestRestartForgetsNothing(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "tiny.safetensors", tiny, tensor.F32))
	c.join("m1", map[string]float64{"a": 1e9})
	op := c.as(identity.RoleOperator)
	co, stop := c.run("one:1")
	if _, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("demo", "m1")}); err != nil {
		t.Fatal(err)
	}
	before := c.until("a plan", planned("demo", 1)).Plans["demo"]
	c.loads(before.Value, pb.Observed_READY, "")
	stop()

	co, _ = c.run("one:1")
	if d, err := co.Deployment(t.Context(), "demo"); err != nil || !d.Ready {
		t.Fatalf("%+v, %v", d, err)
	}
	// What comes later shows that the new leader has seen everything before.
	if _, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("other", "m1")}); err != nil {
		t.Fatal(err)
	}
	if now := c.until("another plan", planned("other", 1)).Plans["demo"]; now.Revision != before.Revision {
		t.Errorf("the plan was written again: %v", now.Value)
	}
}

func TestInfeasible(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "flux1-dev.safetensors", dev, tensor.BF16))
	c.join("m1", map[string]float64{"a": 11.8e9, "b": 7.8e9})
	co, _ := c.run("one:1")
	op := c.as(identity.RoleOperator)
	const want = "deployment flux: needs 23.8 GB, nodes offer 18.2 GB (a: 11.1, b: 7.1); add a donor or use fp8"
	dry, err := co.Plan(op, &pb.PlanRequest{Spec: spec("flux", "flux1-dev")})
	if err != nil || !strings.HasPrefix(dry.Explanation, want) || len(dry.Plan.Stages) != 0 {
		t.Fatalf("%v, %v", dry, err)
	}
	if _, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("flux", "flux1-dev")}); err != nil {
		t.Fatal(err)
	}
	c.until("a plan", planned("flux", 1))
	got, err := co.Status(op, &pb.StatusRequest{})
	if err != nil || !strings.HasPrefix(got.Deployments[0].Message, want) || got.Deployments[0].Ready {
		t.Fatalf("%v, %v", got, err)
	}
	c.join("m1", map[string]float64{"c": 7.8e9})
	p := c.until("room", func(st *store.State) bool { return len(st.Plans["flux"].Value.GetStages()) > 0 }).Plans["flux"].Value
	if p.Epoch < 2 || len(p.Stages) != 3 {
		t.Errorf("plan %v", p)
	}
	dry, err = co.Plan(op, &pb.PlanRequest{Spec: spec("flux", "flux1-dev")})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := report.Parse(dry.Report); err != nil || len(r.Stages) != 3 || r.Model != "flux1-dev.safetensors" || r.Objective != "latency" {
		t.Errorf("report %s, %v", dry.Report, err)
	}
	dry, err = co.Plan(op, &pb.PlanRequest{Spec: spec("flux", "flux1-dev", func(s *pb.DeploymentSpec) { s.Name = "" })})
	if err != nil || !strings.Contains(dry.Explanation, "needs 23.8 GB, nodes offer") || dry.Plan.Deployment != "" {
		t.Errorf("a second one beside it: %v, %v", dry, err)
	}
}

// TestFailedNode: a node that could not load is left out until its record
// changes, and a node that went is named.
func TestFailedNode(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "tiny.safetensors", tiny, tensor.F32))
	c.join("m1", map[string]float64{"a": 1e9, "b": 1e9})
	co, _ := c.run("one:1")
	op := c.as(identity.RoleOperator)
	if _, err := co.Deploy(op, &pb.DeployRequest{Spec: spec("demo", "m1")}); err != nil {
		t.Fatal(err)
	}
	p := c.until("a plan", planned("demo", 1)).Plans["demo"].Value
	c.loads(p, pb.Observed_FAILED, "input/output error")
	q := c.until("the next plan", planned("demo", 2)).Plans["demo"].Value
	if stageNames(q)[0] == stageNames(p)[0] || len(q.Unused) != 1 || q.Unused[0].Reason != "failed: input/output error" {
		t.Fatalf("plan %v", q)
	}
	if err := store.Delete(t.Context(), c.store, store.NodeKey(q.Stages[0].Node), 0); err != nil {
		t.Fatal(err)
	}
	q = c.until("a refusal", planned("demo", 3)).Plans["demo"].Value
	if len(q.Stages) != 0 || !strings.Contains(q.Infeasible, "input/output error") || !strings.Contains(q.Infeasible, "left the cluster") {
		t.Fatalf("plan %v", q)
	}
	name := p.Stages[0].NodeName
	put(c, store.NodeKey("n-"+name), nodeRecord(name, 1e9))
	if q = c.until("room", planned("demo", 4)).Plans["demo"].Value; stageNames(q)[0] != name {
		t.Errorf("plan %v", q)
	}
}
