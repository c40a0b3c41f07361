// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// What measuring takes is not in the account of the stages, nor does it stay.
func TestMeasuringIsNotInTheAccount(t *testing.T) {
	const much = 300 << 20
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	cfg := testConfig(t.TempDir())
	cfg.Agent.Name = "a"
	dir, tok := openDir(t, cfg.DataDir), token(t, conn)
	var sessions []engine.Session
	start(t, "agent a", func(ctx context.Context, ready func(string)) error {
		if err := JoinCluster(ctx, dir, tok, "a"); err != nil {
			return err
		}
		return Agent{
			Config: cfg, Dir: dir, Version: "test", Log: slog.New(slog.DiscardHandler), Ready: ready,
			Measure: func(ctx context.Context, s engine.Session, d tensor.DType) ([]measure.Rates, error) {
				b, err := s.Buffer(much)
				if err != nil {
					return nil, err
				}
				b.Free()
				sessions = append(sessions, s)
				return rates(ctx, s, d)
			},
		}.Run(ctx)
	})
	deploy(t, conn)
	s := await(t, conn, "the deployment", ready)
	if len(s.Observed) != 1 || s.Observed[0].AccountPeakBytes == 0 || s.Observed[0].AccountPeakBytes >= much {
		t.Errorf("the stage reports %v", s.Observed)
	}
	for _, s := range sessions {
		if err := s.Wait(t.Context(), 1<<60); err == nil {
			t.Error("the session that measured is still open")
		}
	}
	if _, stats, err := picture(t, conn); err != nil || stats[0].AccountPeakBytes >= much {
		t.Errorf("the stage's peak is %v (%v)", stats, err)
	}
}

// A device too full to be measured is left out; the node serves with the others.
func TestDeviceThatCannotBeMeasured(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	cfg := testConfig(t.TempDir())
	cfg.Agent.Name = "a"
	cfg.Agent.Devices = []config.Device{{Name: "sim:0", Memory: 64e6}, {Name: "sim:1", Memory: 64e6}}
	dir, tok := openDir(t, cfg.DataDir), token(t, conn)
	start(t, "agent a", func(ctx context.Context, ready func(string)) error {
		if err := JoinCluster(ctx, dir, tok, "a"); err != nil {
			return err
		}
		return Agent{
			Config: cfg, Dir: dir, Version: "test", Log: slog.New(slog.DiscardHandler), Ready: ready,
			Measure: func(ctx context.Context, s engine.Session, d tensor.DType) ([]measure.Rates, error) {
				if s.Device().ID == "sim:0" {
					return nil, fmt.Errorf("%w: another program has it", engine.ErrNoMemory)
				}
				return rates(ctx, s, d)
			},
		}.Run(ctx)
	})
	res, err := pb.NewControlClient(conn).ListNodes(t.Context(), &pb.ListNodesRequest{})
	if err != nil || len(res.Nodes) != 1 {
		t.Fatalf("%v nodes: %v", len(res.GetNodes()), err)
	}
	var names []string
	for _, d := range res.Nodes[0].Record.Devices {
		names = append(names, d.Name)
	}
	if diff := cmp.Diff([]string{"cpu", "sim:1"}, names); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}
