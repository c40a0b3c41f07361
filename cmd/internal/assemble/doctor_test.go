// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/agent/diagnose"
	"github.com/distorch/distorch/agent/engine/torch"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

// TestDiagnose asks nodes what is wrong with them, through the coordinator.
func TestDiagnose(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	control := pb.NewControlClient(conn)
	for _, name := range []string{"a", "b"} {
		startAgent(t, name, token(t, conn), t.TempDir())
	}
	res, err := control.Diagnose(t.Context(), &pb.DiagnoseRequest{Node: "a"})
	if err != nil {
		t.Fatal(err)
	}
	var facts diagnose.Facts
	if err := json.Unmarshal(res.Facts, &facts); err != nil {
		t.Fatal(err)
	}
	if res.Node != "a" || res.UnixNanos == 0 || facts.Node != "a" || facts.RAM.Total <= 0 || !facts.RAM.Running || facts.Certificate.Until.IsZero() {
		t.Errorf("%+v, %+v", res, facts)
	}
	checks := map[string]pb.Finding_Severity{}
	for _, f := range res.Findings {
		checks[f.Check] = f.Severity
	}
	for _, c := range []string{diagnose.CheckMemory, diagnose.CheckModels, diagnose.CheckDisk, diagnose.CheckClock, diagnose.CheckPort} {
		if checks[c] == pb.Finding_SEVERITY_UNSPECIFIED {
			t.Errorf("no finding of %s in %v", c, res.Findings)
		}
	}
	if len(res.Peers) != 1 || res.Peers[0].Name != "b" || res.Peers[0].Failure != "" || res.Peers[0].RoundTrip.AsDuration() <= 0 {
		t.Errorf("peers: %v", res.Peers)
	}

	one, err := control.Diagnose(t.Context(), &pb.DiagnoseRequest{Node: "b", Reach: "a"})
	if err != nil || len(one.Findings) != 0 || len(one.Facts) != 0 || len(one.Peers) != 1 || one.Peers[0].Name != "a" || one.Peers[0].Failure != "" {
		t.Errorf("%v, %v", one, err)
	}
	for _, r := range []*pb.DiagnoseRequest{{Node: "c"}, {Node: "a", Reach: "c"}} {
		if _, err := control.Diagnose(t.Context(), r); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `no node "c" here`) {
			t.Errorf("%v: %v", r, err)
		}
	}

	nodes, err := control.ListNodes(t.Context(), &pb.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Nodes { // what cards this machine has is its own affair
		for _, s := range n.Record.SeenDevices {
			if s.Model == "" || len(s.Sources) == 0 || s.UsedAs == "" && s.Reason == "" {
				t.Errorf("%v", s)
			}
		}
	}

	// A node answers a coordinator, nobody else.
	creds, err := co.dir.Load(identity.SlotOperator)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := grpc.NewClient(nodes.Nodes[0].Record.Address, grpc.WithTransportCredentials(creds.ClientCredentials(identity.Expect{})))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if _, err := pb.NewNodeServiceClient(agent).Diagnose(t.Context(), &pb.DiagnoseRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an operator's call: %v", err)
	}
}

// TestNoPyTorch: a Python without PyTorch is named, and what is wrong with it.
func TestNoPyTorch(t *testing.T) {
	got := lookForTorch(t.Context(), torch.Search{Python: "/nonexistent/python"})
	if got.Problem != diagnose.TorchFailed && got.Problem != diagnose.TorchAbsent || got.Python != "/nonexistent/python" || got.Error == "" {
		t.Errorf("%+v", got)
	}
}
