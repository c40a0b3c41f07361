// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// An operator may have a link measured that was not there when a node started.
func TestMeasureLink(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	control := pb.NewControlClient(conn)
	for _, name := range []string{"a", "b"} {
		startAgent(t, name, token(t, conn), t.TempDir())
	}
	peers := func(name string) (out []*pb.PeerLink) {
		t.Helper()
		res, err := control.ListNodes(t.Context(), &pb.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range res.Nodes {
			if n.Record.Name == name {
				out = n.Link.GetPeers()
			}
		}
		return out
	}
	if len(peers("a")) != 0 || len(peers("b")) != 1 {
		t.Errorf("before: a measured %v, b %v", peers("a"), peers("b"))
	}
	for range 2 { // it is replaced, not added
		l, err := control.MeasureLink(t.Context(), &pb.MeasureLinkRequest{Node: "a", Peer: "b"})
		if err != nil || l.BytesPerSecond < 1e6 || l.RoundTrip.AsDuration() <= 0 {
			t.Fatalf("%v, %v", l, err)
		}
		if got := peers("a"); len(got) != 1 || got[0].BytesPerSecond != l.BytesPerSecond {
			t.Errorf("a's record has %v, measured was %v", got, l)
		}
	}

	deploy(t, conn, &pb.Pin{Node: "a", Blocks: 6})
	await(t, conn, "the deployment", ready)
	run, err := pb.NewEndpointClient(conn).BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, node, peer, want string
		code                   codes.Code
	}{
		{"a node that runs", "a", "b", "node a runs or loads something", codes.FailedPrecondition},
		{"itself", "b", "b", "says nothing", codes.InvalidArgument},
		{"a name that nobody has", "b", "c", `no node "c" here`, codes.NotFound},
	} {
		_, err := control.MeasureLink(t.Context(), &pb.MeasureLinkRequest{Node: c.node, Peer: c.peer})
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := pb.NewEndpointClient(conn).EndRun(t.Context(), &pb.EndRunRequest{Run: run.Run}); err != nil {
		t.Error(err)
	}
}
