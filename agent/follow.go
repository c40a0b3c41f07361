// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/serve"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

func lower(d tensor.DType) string { return strings.ToLower(d.String()) }

// probeBytes is what loadRate reads of a checkpoint.
const probeBytes = 64 << 20

// loadRate reads the beginning of the largest checkpoint; 0 when there is none.
func (a *Agent) loadRate() float64 {
	var largest *catalog.Entry
	for i := range a.entries {
		if largest == nil || a.entries[i].Record.FileBytes > largest.Record.FileBytes {
			largest = &a.entries[i]
		}
	}
	if largest == nil {
		return 0
	}
	f, err := os.Open(largest.Path)
	if err != nil {
		return 0
	}
	defer f.Close()
	buf := make([]byte, 4<<20)
	began, n := time.Now(), int64(0)
	for n < probeBytes {
		k, err := io.ReadFull(f, buf)
		if n += int64(k); err != nil {
			break
		}
	}
	return float64(n) / max(time.Since(began).Seconds(), 1e-9)
}

// held is a deployment of which this node has stages.
type held struct {
	plan   *pb.Plan
	stages []*serve.Hosted
}

// follower converges this node on the plans. Only its own goroutine touches it.
type follower struct {
	*Agent
	held map[string]*held // by deployment name
	want map[string]*pb.Plan
}

// follow acts on plans from the revision of their first read until ctx ends,
// then frees everything.
func (a *Agent) follow(ctx context.Context) error {
	f := &follower{Agent: a, held: map[string]*held{}, want: map[string]*pb.Plan{}}
	defer func() {
		for _, h := range f.held {
			h.close()
		}
	}()
	return store.Watch(ctx, a.cfg.Store, store.Plans(), func(c store.Change[*pb.Plan]) error {
		if c.Reset {
			clear(f.want)
		}
		for _, e := range c.Entries {
			f.want[e.Value.Deployment] = e.Value
		}
		for _, key := range c.Deleted {
			// /distorch/deployments/<name>/plan
			parts := strings.Split(strings.Trim(key, "/"), "/")
			if len(parts) == 4 {
				delete(f.want, parts[2])
			}
		}
		f.converge(ctx)
		return nil
	})
}

// converge frees what no plan asks for, then loads what is missing.
func (f *follower) converge(ctx context.Context) {
	for name, h := range f.held {
		if p := f.want[name]; p == nil || p.Epoch != h.plan.Epoch || p.DeploymentId != h.plan.DeploymentId {
			h.close()
			delete(f.held, name)
			f.log.Info("stages freed", "deployment", name, "epoch", h.plan.Epoch)
			if p == nil || len(f.mine(p)) == 0 {
				f.forget(ctx, name)
			}
		}
	}
	for name, p := range f.want {
		if f.held[name] != nil || len(f.mine(p)) == 0 {
			continue
		}
		h := &held{plan: p}
		f.held[name] = h
		began := time.Now()
		if err := f.load(ctx, h); err != nil {
			h.close()
			if ctx.Err() != nil {
				return
			}
			f.log.Warn("stage not loaded", "deployment", name, "epoch", p.Epoch, "error", err)
			f.observe(ctx, p, &pb.Observed{State: pb.Observed_FAILED, Message: err.Error()})
			continue
		}
		f.log.Info("stages loaded", "deployment", name, "epoch", p.Epoch, "seconds", time.Since(began).Seconds())
		_, peak, _ := f.session.Account()
		f.observe(ctx, p, &pb.Observed{State: pb.Observed_READY, AccountPeakBytes: uint64(peak)})
	}
}

// mine lists the stages of a plan that are for this very process.
func (f *follower) mine(p *pb.Plan) []int {
	var out []int
	for i, s := range p.Stages {
		if s.Node == f.ID() && s.Incarnation == f.node.Incarnation() {
			out = append(out, i)
		}
	}
	return out
}

func (h *held) close() {
	for _, s := range h.stages {
		s.Close()
	}
	h.stages = nil
}

func (f *follower) observe(ctx context.Context, p *pb.Plan, o *pb.Observed) {
	o.Deployment, o.DeploymentId, o.Node, o.Epoch, o.Incarnation = p.Deployment, p.DeploymentId, f.ID(), p.Epoch, f.node.Incarnation()
	if err := store.PutLeased(ctx, f.lease, store.ObservedKey(p.Deployment, f.ID()), o); err != nil && ctx.Err() == nil {
		f.log.Warn("state not reported", "deployment", p.Deployment, "error", err)
	}
}

func (f *follower) forget(ctx context.Context, deployment string) {
	if err := store.DeleteLeased(ctx, f.lease, store.ObservedKey(deployment, f.ID())); err != nil && ctx.Err() == nil {
		f.log.Warn("state not withdrawn", "deployment", deployment, "error", err)
	}
}

// load loads this node's stages of a plan and begins to serve them.
func (f *follower) load(ctx context.Context, h *held) error {
	p := h.plan
	i := -1
	for k := range f.entries {
		if f.entries[k].Record.Id == p.Model {
			i = k
		}
	}
	if i < 0 {
		return fmt.Errorf("no file of model %s (%s) in models.dirs", p.ModelName, p.Model)
	}
	program, err := f.program(ctx, p)
	if err != nil {
		return err
	}
	entry := &f.entries[i]
	if err := unchanged(entry); err != nil {
		return err
	}
	file, err := safetensors.Open(entry.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, index := range f.mine(p) {
		s := p.Stages[index]
		st, err := stage.Load(ctx, stage.Config{
			Session: f.session, Checkpoint: stage.Checkpoint{File: file, Prefix: entry.Record.Prefix}, Program: program,
			FirstBlock: int(s.FirstBlock), Blocks: int(s.Blocks), Head: s.Head, Tail: s.Tail,
			Stored: s.Stored, Slots: int(s.Slots), InFlight: int(p.Workload.GetInFlight()),
			Progress: f.progress(ctx, p),
		})
		if err != nil {
			return fmt.Errorf("stage %d of %s: %w", index, p.Deployment, err)
		}
		hosted, err := f.serve.Host(p, index, st, f.session)
		if err != nil {
			st.Close()
			return fmt.Errorf("stage %d of %s: %w", index, p.Deployment, err)
		}
		h.stages = append(h.stages, hosted)
	}
	return unchanged(entry) // nor while it was read
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

// program is the plan's graph at its workload.
func (f *follower) program(ctx context.Context, p *pb.Plan) (*graph.Program, error) {
	e, err := store.Get(ctx, f.cfg.Store, store.ModelKey(p.Model))
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

func (f *follower) progress(ctx context.Context, p *pb.Plan) func(done, total tensor.Bytes) {
	last := time.Time{}
	return func(done, total tensor.Bytes) {
		if time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		f.observe(ctx, p, &pb.Observed{State: pb.Observed_LOADING, LoadedBytes: uint64(done), TotalBytes: uint64(total)})
	}
}
