// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

func lower(d tensor.DType) string { return strings.ToLower(d.String()) }

// load loads this node's stages of a plan and begins to serve them.
func (a *Agent) load(ctx context.Context, h *held) (err error) {
	p := h.plan
	i := -1
	for k := range a.entries {
		if a.entries[k].Record.Id == p.Model {
			i = k
		}
	}
	if i < 0 {
		return fmt.Errorf("no file of model %s (%s) in models.dirs", p.ModelName, p.Model)
	}
	model, err := a.model(ctx, p)
	if err != nil {
		return err
	}
	entry := &a.entries[i]
	if err := unchanged(entry); err != nil {
		return err
	}
	file, err := checkpoint.Open(entry.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	known, err := catalog.Recognise(file)
	if err != nil {
		return fmt.Errorf("%s: %w", entry.Path, err)
	}
	model, weights, done, err := a.onTop(ctx, p, model, file, known)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	program, err := specialise(p, model)
	if err != nil {
		return err
	}
	report, stop := a.progress(ctx, p)
	defer stop()
	defer a.serve.Occupy()()
	indices := mine(p, a.ID(), a.node.Incarnation())
	previous := h.handOver(indices)
	defer previous.close()
	for _, index := range indices {
		hosted, err := a.loadStage(ctx, p, index, program, weights, previous.take(index), report)
		if err != nil {
			return fmt.Errorf("stage %d of %s: %w", index, p.Deployment, err)
		}
		h.stages, h.indices = append(h.stages, hosted), append(h.indices, index)
	}
	return unchanged(entry) // nor while it was read
}

// loadStage loads one stage of a plan and begins to serve it.
func (a *Agent) loadStage(
	ctx context.Context, p *pb.Plan, index int, program *graph.Program, file stage.Checkpoint, previous *stage.Stage, report func(done, total tensor.Bytes),
) (_ hosted, err error) {
	loading := false
	defer func() {
		if previous != nil && !loading {
			previous.Close()
		}
	}()
	s := p.Stages[index]
	u, err := a.unit(s.Device)
	if err != nil {
		return nil, err
	}
	session, err := u.open()
	if err != nil {
		return nil, err
	}
	a.restartPeaks(u, session)
	tiers, err := a.tiers(p, index)
	if err != nil {
		return nil, err
	}
	fit, err := offload.ParseFit(p.Fit)
	if err != nil {
		return nil, err
	}
	reserve := u.reserve
	if u.device.Unified {
		reserve = 0 // its account is without
	}
	reserve = max(reserve, a.serve.Lent(s.Device))
	loading = true
	st, err := stage.Load(ctx, stage.Config{
		Session: session, Checkpoint: file, Program: program,
		FirstBlock: int(s.FirstBlock), Blocks: int(s.Blocks), Head: s.Head, Tail: s.Tail,
		Stored: s.Stored, Slots: int(s.Slots), InFlight: int(p.Workload.GetInFlight()),
		Tiers: tiers, Ring: int(s.Ring), Storage: s.Storage, Fit: fit, Reserve: reserve,
		Previous: previous, Progress: report, Log: a.log,
	})
	if err != nil {
		a.lose(s.Device, err)
		return nil, u.fault(err)
	}
	h, err := a.serve.Host(p, index, st, session)
	if err != nil {
		st.Close()
		return nil, err
	}
	return h, nil
}

// restartPeaks begins peaks anew where nothing is loaded, so that what is reported
// is of these stages.
func (a *Agent) restartPeaks(u *unit, s engine.Session) {
	if r, ok := s.(interface{ RestartPeak() }); ok && !u.device.Unified && !a.serve.Uses(s) {
		r.RestartPeak()
	}
	if a.cfg.Host != nil && a.serve.Empty() {
		a.cfg.Host.Restart()
	}
}

// unchanged says whether a file is the one that was announced.
func unchanged(e *catalog.Entry) error {
	now, err := catalog.StampOf(e.Path)
	if err != nil {
		return fmt.Errorf("the checkpoint is gone: %w; put it back and restart the agent", err)
	}
	if now.Bytes != e.Stamp.Bytes || !now.Modified.Equal(e.Stamp.Modified) {
		return fmt.Errorf("%s was changed since this agent started (%d bytes then, %d now); restart the agent", e.Path, e.Stamp.Bytes, now.Bytes)
	}
	return nil
}

// model is the graph of the plan's model, without LoRAs.
func (a *Agent) model(ctx context.Context, p *pb.Plan) (*graph.Model, error) {
	e, err := store.Get(ctx, a.cfg.Store, store.ModelKey(p.Model))
	if err != nil {
		return nil, fmt.Errorf("graph of %s: %w", p.ModelName, err)
	}
	m, err := wire.FromProto(e.Value.Graph)
	if err != nil {
		return nil, fmt.Errorf("graph of %s: %w", p.ModelName, err)
	}
	if m.OpSet > graph.OpSet {
		return nil, fmt.Errorf("graph of %s needs op set %d, this agent has %d; update it", p.ModelName, m.OpSet, graph.OpSet)
	}
	return m, nil
}

// specialise is the plan's graph at its workload.
func specialise(p *pb.Plan, m *graph.Model) (*graph.Program, error) {
	dtype, err := tensor.ParseDType(strings.ToUpper(p.Dtype))
	if err != nil {
		return nil, err
	}
	dims, err := m.Request(p.Workload.GetDims())
	if err != nil {
		return nil, err
	}
	return graph.Specialise(m, dims, dtype)
}

// progressEvery is how often a loading stage reports.
const progressEvery = 500 * time.Millisecond

// progress reports how far a load is until it is stopped. Loading does not
// wait for the store.
func (a *Agent) progress(ctx context.Context, p *pb.Plan) (report func(done, total tensor.Bytes), stop func()) {
	news := make(chan *pb.Observed, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for o := range news {
			a.observe(ctx, p, o)
		}
	})
	last := time.Time{}
	report = func(done, total tensor.Bytes) {
		if time.Since(last) < progressEvery {
			return
		}
		select {
		case news <- &pb.Observed{State: pb.Observed_LOADING, LoadedBytes: uint64(done), TotalBytes: uint64(total)}:
			last = time.Now()
		default: // the store has not taken the one before
		}
	}
	return report, func() { close(news); wg.Wait() }
}
