// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/cmd/internal/config"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// A deployment whose blocks were in a node that died says so, and goes on when
// the node is back.
func TestDonorThatDies(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	gpu := testConfig(t.TempDir())
	gpu.Agent.Devices = []config.Device{{Name: "sim:0", Memory: 14e6, H2D: 4e8}}
	startAgentWith(t, "gpu", token(t, conn), gpu)
	ram := testConfig(t.TempDir())
	ram.Models.Dirs, ram.Agent.Memory = nil, 5e8
	donor := startAgentWith(t, "ram", token(t, conn), ram)
	if _, err := deployAs(t, conn, &pb.DeploymentSpec{Allocation: "gpu/sim:0,20%;ram/cpu,80%#gpu/sim:0"}); err != nil {
		t.Fatal(err)
	}
	remote := func(s *pb.DeploymentStatus) bool { return s.Ready && strings.Contains(tiersOf(s.Plan), "remote ram") }
	first := await(t, conn, "the deployment", remote)
	want, _, err := picture(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	donor.stop()
	s := await(t, conn, "a plan without the donor", func(s *pb.DeploymentStatus) bool { return s.Plan.GetEpoch() > first.Plan.Epoch })
	if s.Ready || !strings.Contains(s.Message+s.Plan.GetInfeasible(), "ram") {
		t.Errorf("without the donor: ready %v, %q, %q", s.Ready, s.Message, s.Plan.GetInfeasible())
	}
	if _, _, err := picture(t, conn); err == nil {
		t.Error("a picture was made without the donor")
	}
	startAgentWith(t, "ram", "", ram)
	await(t, conn, "the donor's return", remote)
	got, _, err := picture(t, conn)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the donor's return: %d bytes, the same %v, %v", len(got), bytes.Equal(got, want), err)
	}
}

// Memory of a device is lent while pictures are made, and comes back; nothing of
// the pictures changes.
func TestLend(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	gpu := testConfig(t.TempDir())
	gpu.Agent.Devices = []config.Device{{Name: "sim:0", Memory: 30e6, H2D: 4e8}}
	startAgentWith(t, "gpu", token(t, conn), gpu)
	if _, err := deployAs(t, conn, &pb.DeploymentSpec{Allocation: "sim:0,*#sim:0"}); err != nil {
		t.Fatal(err)
	}
	await(t, conn, "the deployment", ready)
	want, stats, err := picture(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	ctl := pb.NewControlClient(conn)
	done := make(chan error)
	go func() { // one picture after the other
		for {
			out, _, err := picture(t, conn)
			if err == nil && !bytes.Equal(out, want) {
				err = status.Error(codes.DataLoss, "another picture")
			}
			select {
			case done <- err:
				return
			default:
				if err != nil {
					done <- err
					return
				}
			}
		}
	}()
	ask := func(req *pb.LendRequest) *pb.LendResponse {
		t.Helper()
		req.Node, req.Device = "gpu", "sim:0"
		res, err := ctl.Lend(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	free := 30e6 - stats[0].AccountBytes
	for range 3 {
		res := ask(&pb.LendRequest{Bytes: free + 6e6})
		if s := res.Stages; len(s) != 1 || s[0].MovedBytes < 6e6 || s[0].StreamedBytes < 6e6 || s[0].AfterSeconds < s[0].BeforeSeconds || res.LentBytes != free+6e6 {
			t.Errorf("lent: %v", res)
		}
		if took := res.Took.AsDuration(); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if res := ask(&pb.LendRequest{Bytes: free + 6e6, Duration: durationpb.New(time.Hour)}); res.Stages[0].MovedBytes != 0 || res.Left.AsDuration() < 59*time.Minute {
			t.Errorf("lent again: %v", res)
		}
		if res := ask(&pb.LendRequest{Restore: true}); res.LentBytes != 0 || res.Stages[0].StreamedBytes != 0 || res.Stages[0].MovedBytes < 6e6 {
			t.Errorf("restored: %v", res)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	ask(&pb.LendRequest{Bytes: free + 6e6})
	out, stats, err := picture(t, conn)
	if err != nil || !bytes.Equal(out, want) || stats[0].LentBytes != free+6e6 {
		t.Errorf("with memory lent: the same picture %v, %d bytes lent, %v", bytes.Equal(out, want), stats[0].LentBytes, err)
	}
	for name, x := range map[string]struct {
		req  *pb.LendRequest
		code codes.Code
		says string
	}{
		"too much": {&pb.LendRequest{Node: "gpu", Device: "sim:0", Bytes: 1e12}, codes.ResourceExhausted, "asked 1.0 TB"},
		"device":   {&pb.LendRequest{Node: "gpu", Device: "cuda:3", Bytes: 1}, codes.NotFound, `"cuda:3" is not one of this node`},
		"cpu":      {&pb.LendRequest{Node: "gpu", Device: "cpu", Bytes: 1}, codes.FailedPrecondition, "agent.memory"},
		"node":     {&pb.LendRequest{Node: "gpx", Device: "sim:0", Bytes: 1}, codes.NotFound, `no node "gpx" here`},
	} {
		if _, err := ctl.Lend(t.Context(), x.req); status.Code(err) != x.code || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
