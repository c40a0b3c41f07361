// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/agent/donor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// held is a deployment of which this node has stages, or could not load them.
type held struct {
	plan    *pb.Plan
	stages  []hosted
	indices []int // of the stages, in the plan
	failed  bool
	before  *held // while it is being loaded: what this node has of an earlier plan
}

// hosted is a stage that is served.
type hosted interface{ Close() }

// follower converges this node on the plans: one goroutine watches them, one
// frees and loads.
type follower struct {
	id, incarnation string // of this process
	log             *slog.Logger
	load            func(context.Context, *held) error            // fills the stages; on an error some may be there
	observe         func(context.Context, *pb.Plan, *pb.Observed) // tells the cluster
	forget          func(ctx context.Context, deployment string)
	gone            func(*pb.Plan) error      // why stages that are held cannot go on; may be nil
	plans           func(map[string]*pb.Plan) // told of every change; must not block

	held map[string]*held // by deployment name; the converging goroutine's

	mu     sync.Mutex
	want   map[string]*pb.Plan // by deployment name
	wake   chan struct{}       // holds one token when want has changed
	loads  *pb.Plan            // what is being loaded; nil for nothing
	giveUp context.CancelCauseFunc
}

// errChanged ends a load whose plan is not the deployment's any more.
var errChanged = errors.New("the plan was replaced while it was being loaded")

func newFollower() *follower {
	return &follower{held: map[string]*held{}, want: map[string]*pb.Plan{}, wake: make(chan struct{}, 1)}
}

// follow acts on plans from the revision of their first read until ctx ends,
// then frees everything.
func (a *Agent) follow(ctx context.Context) error {
	f := newFollower()
	f.id, f.incarnation, f.log = a.ID(), a.node.Incarnation(), a.log
	f.load, f.observe, f.forget, f.plans, f.gone = a.load, a.observe, a.forget, a.memory.Plans, a.gone
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return store.Watch(ctx, a.cfg.Store, store.Plans(), func(c store.Change[*pb.Plan]) error {
			f.learn(c)
			return nil
		})
	})
	g.Go(func() error { return a.revive(ctx, f.look) })
	g.Go(func() error {
		f.run(ctx)
		return nil
	})
	return g.Wait()
}

// look wakes the converging goroutine.
func (f *follower) look() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// learn takes a change of the plans. It never waits for a load; one that
// nobody wants any more is given up.
func (f *follower) learn(c store.Change[*pb.Plan]) {
	f.mu.Lock()
	defer f.mu.Unlock()
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
	if f.plans != nil {
		f.plans(f.want)
	}
	if f.loads != nil && !same(f.want[f.loads.Deployment], f.loads) {
		f.giveUp(errChanged)
	}
	f.look()
}

// run converges whenever plans have changed, and frees everything at the end.
func (f *follower) run(ctx context.Context) {
	defer func() {
		for _, h := range f.held {
			h.close()
		}
	}()
	for {
		select {
		case <-f.wake:
			f.converge(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// same says whether two plans of a deployment are the same one.
func same(a, b *pb.Plan) bool {
	return a != nil && b != nil && a.Epoch == b.Epoch && a.DeploymentId == b.DeploymentId
}

// converge frees what no plan asks for, then loads what is missing. Plans that
// change meanwhile wake the follower again, so it looks at one state of them.
func (f *follower) converge(ctx context.Context) {
	f.mu.Lock()
	want := maps.Clone(f.want)
	f.mu.Unlock()
	f.free(ctx, want)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		p, before := want[name], f.held[name]
		if before != nil && same(p, before.plan) || len(mine(p, f.id, f.incarnation)) == 0 {
			continue
		}
		lctx, done := f.begin(ctx, p)
		if lctx == nil {
			continue // it changed already
		}
		h, began := &held{plan: p, before: before}, time.Now()
		delete(f.held, name)
		err := f.load(lctx, h)
		given := lctx.Err() != nil
		done()
		if before != nil {
			before.close()
			h.before = nil
		}
		if err != nil {
			h.close()
		}
		switch {
		case ctx.Err() != nil:
			h.close()
			return
		case given:
			h.close()
			f.forget(ctx, name) // with its progress
			f.log.Info("load given up", "deployment", name, "epoch", p.Epoch, "reason", errChanged)
		case err != nil:
			h.failed = true
			f.held[name] = h
			f.log.Warn("stage not loaded", "deployment", name, "epoch", p.Epoch, "error", err)
			f.observe(ctx, p, failure(err))
		default:
			f.held[name] = h
			f.log.Info("stages loaded", "deployment", name, "epoch", p.Epoch, "seconds", time.Since(began).Seconds())
			f.observe(ctx, p, &pb.Observed{State: pb.Observed_READY})
		}
	}
}

// free gives back what is not wanted. What could not be loaded before is tried
// again when that made room.
func (f *follower) free(ctx context.Context, want map[string]*pb.Plan) {
	room := false
	for name, h := range f.held {
		p := want[name]
		if same(p, h.plan) {
			if err := f.lost(h); err != nil {
				h.close()
				h.failed = true
				f.log.Warn("stages freed", "deployment", name, "epoch", h.plan.Epoch, "reason", err)
				f.observe(ctx, p, failure(err))
			}
			continue
		}
		if !h.failed && f.follows(p, h.plan) {
			continue // its load takes over what stays the same
		}
		h.close()
		room = room || !h.failed
		delete(f.held, name)
		f.log.Info("stages freed", "deployment", name, "epoch", h.plan.Epoch)
		if p == nil || len(mine(p, f.id, f.incarnation)) == 0 {
			f.forget(ctx, name)
		}
	}
	if room {
		maps.DeleteFunc(f.held, func(_ string, h *held) bool { return h.failed })
	}
}

// follows says whether a plan is a later one of the same deployment that this
// node has a part in.
func (f *follower) follows(p, held *pb.Plan) bool {
	return p != nil && p.DeploymentId == held.DeploymentId && p.Model == held.Model && p.Dtype == held.Dtype && len(mine(p, f.id, f.incarnation)) > 0
}

// lost says why what is held cannot go on.
func (f *follower) lost(h *held) error {
	if h.failed || f.gone == nil {
		return nil
	}
	return f.gone(h.plan)
}

// failure reports an error, with the device or the other node that it is of.
func failure(err error) *pb.Observed {
	o := &pb.Observed{State: pb.Observed_FAILED, Message: err.Error()}
	if d, ok := errors.AsType[*deviceError](err); ok {
		o.Device = string(d.device)
	}
	if d, ok := errors.AsType[*donor.Error](err); ok {
		o.Device, o.Donor = "", d.Culprit()
	}
	return o
}

// begin says that a plan is being loaded; ctx is nil when it is not the
// deployment's any more.
func (f *follower) begin(parent context.Context, p *pb.Plan) (ctx context.Context, done func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !same(f.want[p.Deployment], p) {
		return nil, nil
	}
	ctx, giveUp := context.WithCancelCause(parent)
	f.loads, f.giveUp = p, giveUp
	return ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.loads, f.giveUp = nil, nil
		giveUp(nil)
	}
}

// mine lists the stages of a plan that are for this very process.
func mine(p *pb.Plan, node, incarnation string) []int {
	var out []int
	for i, s := range p.Stages {
		if s.Node == node && s.Incarnation == incarnation {
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

// observe writes what this node has of a deployment.
func (a *Agent) observe(ctx context.Context, p *pb.Plan, o *pb.Observed) {
	o.Deployment, o.DeploymentId, o.Node, o.Epoch, o.Incarnation = p.Deployment, p.DeploymentId, a.ID(), p.Epoch, a.node.Incarnation()
	if o.State == pb.Observed_READY {
		o.AccountPeakBytes, o.HostPeakBytes = a.peaks(p)
	}
	if err := store.PutLeased(ctx, a.lease, store.ObservedKey(p.Deployment, a.ID()), o); err != nil && ctx.Err() == nil {
		a.log.Warn("state not reported", "deployment", p.Deployment, "error", err)
	}
}

// peaks are the most that the devices of a plan's stages here have held, and
// their host memory beside them.
func (a *Agent) peaks(p *pb.Plan) (devices, host uint64) {
	seen := map[string]bool{}
	for _, i := range mine(p, a.ID(), a.node.Incarnation()) {
		u, err := a.unit(p.Stages[i].Device)
		if err != nil || seen[p.Stages[i].Device] {
			continue
		}
		seen[p.Stages[i].Device] = true
		s, err := u.open()
		if err != nil {
			continue
		}
		_, peak, _ := s.Account()
		devices += uint64(peak)
		if !u.device.Unified {
			_, peak, _ := s.HostAccount()
			host = max(host, uint64(peak))
		}
	}
	return devices, host
}

func (a *Agent) forget(ctx context.Context, deployment string) {
	if err := store.DeleteLeased(ctx, a.lease, store.ObservedKey(deployment, a.ID())); err != nil && ctx.Err() == nil {
		a.log.Warn("state not withdrawn", "deployment", deployment, "error", err)
	}
}
