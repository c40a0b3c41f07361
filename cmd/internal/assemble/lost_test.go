// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/cmd/internal/config"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// fragile is an engine with one device that can be pulled out.
type fragile struct {
	engine.Engine
	device engine.DeviceID
	out    *atomic.Bool
}

func (f fragile) Open(ctx context.Context, id engine.DeviceID) (engine.Session, error) {
	if id == f.device && f.out.Load() {
		return nil, fmt.Errorf("open %s: %w", id, engine.ErrLost)
	}
	s, err := f.Engine.Open(ctx, id)
	if err != nil || id != f.device {
		return s, err
	}
	return &fragileSession{Session: s, out: f.out}, nil
}

type fragileSession struct {
	engine.Session
	out *atomic.Bool
}

func (s *fragileSession) Wait(ctx context.Context, e engine.Event) error {
	if err := s.Session.Wait(ctx, e); err != nil {
		return err
	}
	if s.out.Load() {
		return fmt.Errorf("the driver stopped answering: %w", engine.ErrLost)
	}
	return nil
}

// TestDeviceIsLost pulls a GPU out under a stage: the agent stays up and says so,
// the deployment is placed on what is left, and goes back when nothing else is
// there.
func TestDeviceIsLost(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	cfg := testConfig(t.TempDir())
	cfg.Agent.Name = "gpu"
	cfg.Agent.Devices = []config.Device{{Name: "sim:0", Memory: 60e6}}
	host := engine.NewAccount(2e9, "")
	cfg.Agent.Engine = "native" // as the simulated device
	real, _, err := machine{cfg, host, 1, slog.New(slog.DiscardHandler)}.engines(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out atomic.Bool
	dir := openDir(t, cfg.DataDir)
	join := token(t, conn)
	start(t, "agent gpu", func(ctx context.Context, ready func(string)) error {
		if err := JoinCluster(ctx, dir, join, "gpu"); err != nil {
			return err
		}
		return Agent{
			Config: cfg, Dir: dir, Version: "test", Log: slog.New(slog.DiscardHandler), Measure: rates, Ready: ready,
			Engine: fragile{real, "sim:0", &out},
		}.Run(ctx)
	})
	if _, err := deployAs(t, conn, &pb.DeploymentSpec{}); err != nil {
		t.Fatal(err)
	}
	first := await(t, conn, "a stage on sim:0", func(s *pb.DeploymentStatus) bool { return s.Ready })
	if d := first.Plan.Stages[0].Device; d != "sim:0" {
		t.Fatalf("placed on %s", d)
	}
	want, _, err := picture(t, conn)
	if err != nil {
		t.Fatal(err)
	}

	out.Store(true)
	if _, _, err := picture(t, conn); err == nil || !strings.Contains(err.Error(), "the device was lost") {
		t.Errorf("a picture on a lost device: %v", err)
	}
	again := await(t, conn, "a plan without sim:0", func(s *pb.DeploymentStatus) bool {
		return s.Ready && s.Plan.Stages[0].Device == "cpu"
	})
	if again.Plan.Epoch <= first.Plan.Epoch {
		t.Errorf("epoch %d after %d", again.Plan.Epoch, first.Plan.Epoch)
	}
	got, _, err := picture(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("the cpu gives another picture")
	}
	nodes, err := pb.NewControlClient(conn).ListNodes(t.Context(), &pb.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r := nodes.Nodes[0].Record
	if len(r.Devices) != 1 || len(r.Lost) != 1 || r.Lost[0].Name != "sim:0" || !strings.Contains(r.Lost[0].Reason, "the driver stopped answering") {
		t.Errorf("devices %v, lost %v", r.Devices, r.Lost)
	}

	// It comes back, and a deployment that is made again uses it.
	out.Store(false)
	tick := func(s *pb.DeploymentStatus) bool {
		nodes, err := pb.NewControlClient(conn).ListNodes(t.Context(), &pb.ListNodesRequest{})
		return err == nil && len(nodes.Nodes[0].Record.Devices) == 2
	}
	await(t, conn, "sim:0 to come back", tick)
	spec, err := deployAs(t, conn, &pb.DeploymentSpec{})
	if err != nil {
		t.Fatal(err)
	}
	await(t, conn, "a stage on sim:0 again", func(s *pb.DeploymentStatus) bool {
		return s.Ready && s.Plan.DeploymentId == spec.Id && s.Plan.Stages[0].Device == "sim:0"
	})
	got, _, err = picture(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("the device that came back gives another picture")
	}
}
