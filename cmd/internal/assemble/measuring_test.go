// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"log/slog"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/model/tensor"
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
