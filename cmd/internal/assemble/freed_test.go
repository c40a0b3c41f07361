// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// A picture whose stages are freed under it ends with what to do.
func TestStagesThatAreFreedUnderARun(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	startAgent(t, "a", token(t, conn), t.TempDir())
	deploy(t, conn)
	epoch := await(t, conn, "the deployment", ready).Plan.Epoch
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
	if _, err := pb.NewControlClient(conn).Undeploy(t.Context(), &pb.UndeployRequest{Name: "demo"}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for err == nil && time.Now().Before(deadline) { // the agent learns of it while pictures are made
		_, err = ep.Forward(t.Context(), &pb.ForwardRequest{Run: run.Run, Conditioning: put.Digest, Tensors: step})
	}
	for _, want := range []string{"stage 0 on node a (blocks 0-5)", "undeployed", "begin the picture again"} {
		if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), want) {
			t.Errorf("the run ended with %v, want %q", err, want)
		}
	}
	if _, err := ep.EndRun(t.Context(), &pb.EndRunRequest{Run: run.Run}); err != nil {
		t.Error(err)
	}
	awaitGone(t, conn)
	deploy(t, conn)
	await(t, conn, "another deployment", ready)
	if _, _, err := picture(t, conn); err != nil {
		t.Errorf("after epoch %d: %v", epoch, err)
	}
}
