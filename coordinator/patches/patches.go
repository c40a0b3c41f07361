// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package patches makes deployments have the LoRAs that clients bring: it keeps
// their files, adds them to a deployment's spec, waits until the plan that has
// them is loaded, gives the files to agents, and drops those that nobody uses.
//
// Imported by the commands, which give it to the endpoint of clients; it must
// not import that or the coordinator. It decides nothing about placing: the
// leader does, from the spec. Strengths are inputs of a run and no matter of it.
package patches

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/distorch/distorch/internal/digestdir"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
)

// Deployments is what the control plane does for this package.
type Deployments interface {
	// State is the newest state and a channel that is closed when there is a
	// newer one.
	State(ctx context.Context) (st *store.State, newer <-chan struct{}, err error)
	// Readiness says whether a deployment's plan is loaded, or what is missing.
	Readiness(st *store.State, deployment string) (ready bool, message string, err error)
	// Bring makes a deployment's brought LoRAs these, if its spec still has the
	// revision, and gives the revision at which it has them. Errors are gRPC's:
	// Aborted for another revision.
	Bring(ctx context.Context, deployment string, digests []string, revision int64) (int64, error)
	// Announce writes the record of a LoRA where there is none.
	Announce(ctx context.Context, r *pb.ModelRecord) error
	// Forget removes a LoRA's record, if it is still of the revision.
	Forget(ctx context.Context, id string, revision int64) error
}

// Config of Patches. Log may be nil.
type Config struct {
	Deployments Deployments
	Dir         string           // where files are kept while a deployment has them
	Now         func() time.Time // nil: the system's
	Log         *slog.Logger
}

// What is dropped, and when: a LoRA that no client used for idleAfter, when
// others come; where a deployment has no room for those, the ones used longest
// ago but not within busyFor.
const (
	idleAfter = 10 * time.Minute
	busyFor   = time.Minute
)

// use is a LoRA of a deployment.
type use struct{ deployment, digest string }

// Patches implements distorchv1.PatchesServer and the endpoint's LoRAs.
type Patches struct {
	pb.UnimplementedPatchesServer
	cfg   Config
	log   *slog.Logger
	files *digestdir.Dir
	began time.Time
	gives chan struct{} // a token for each agent that is being given a file

	mu    sync.Mutex
	used  map[use]time.Time
	turns map[string]chan struct{} // by deployment; held by who changes its LoRAs
	wants map[string]int           // by digest: who is about to need its record and file
}

// maxGives bounds the files that are read for agents at a time.
const maxGives = 16

// New opens the folder.
func New(cfg Config) (*Patches, error) {
	if cfg.Deployments == nil || cfg.Dir == "" {
		return nil, errors.New("patches: deployments and a folder are both needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files, err := digestdir.Open(cfg.Dir, 0)
	if err != nil {
		return nil, err
	}
	return &Patches{
		cfg: cfg, log: cfg.Log, files: files, began: cfg.Now(), gives: make(chan struct{}, maxGives),
		used: map[use]time.Time{}, turns: map[string]chan struct{}{}, wants: map[string]int{},
	}, nil
}

// sweepEvery is how often files and records that no deployment has are looked
// for.
const sweepEvery = time.Minute

// Run drops what no deployment has until ctx ends.
func (p *Patches) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := p.sweep(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("clients' LoRAs not tidied", "error", err)
		}
	}
}

// sweep drops files and records of LoRAs that no deployment has, once nobody
// used them for idleAfter.
func (p *Patches) sweep(ctx context.Context) error {
	st, _, err := p.cfg.Deployments.State(ctx)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	add := func(all []*pb.LoRA) {
		for _, l := range all {
			named[l.GetId()] = true
		}
	}
	for _, e := range st.Specs {
		add(e.Value.GetLoras())
	}
	for _, e := range st.Plans {
		add(e.Value.GetLoras())
	}
	held := map[string]bool{}
	for of := range st.Holders {
		held[of.Of] = true
	}
	wanted := p.wanted(st)
	errs := []error{p.files.Keep(func(digest string) bool { return named[digest] || wanted[digest] })}
	for id, e := range st.Models {
		if len(e.Value.GetPackedPatches()) == 0 || named[id] || held[id] || wanted[id] {
			continue
		}
		errs = append(errs, p.cfg.Deployments.Forget(ctx, id, e.Revision))
	}
	return errors.Join(errs...)
}

// wanted are the digests that somebody is about to need or used of late, and
// forgets uses of deployments that are gone.
func (p *Patches) wanted(st *store.State) map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]bool{}
	for d := range p.wants {
		out[d] = true
	}
	now := p.cfg.Now()
	for u, at := range p.used {
		if _, ok := st.Specs[u.deployment]; !ok && now.Sub(at) > idleAfter {
			delete(p.used, u)
		}
		out[u.digest] = out[u.digest] || now.Sub(at) <= idleAfter
	}
	for id := range st.Models {
		if now.Sub(p.began) <= idleAfter {
			out[id] = true // another process may have been asked for it just before
		}
	}
	return out
}

// touch notes that LoRAs of a deployment are used now.
func (p *Patches) touch(deployment string, digests []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.cfg.Now()
	for _, d := range digests {
		p.used[use{deployment, d}] = now
	}
}

// idle is for how long nobody used a LoRA, at most since this process began.
func (p *Patches) idle(deployment, digest string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.used[use{deployment, digest}]
	if !ok {
		at = p.began
	}
	return p.cfg.Now().Sub(at)
}

// want keeps records and files from being dropped until the result is called.
func (p *Patches) want(digests []string) (done func()) {
	add := func(n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, d := range digests {
			if p.wants[d] += n; p.wants[d] == 0 {
				delete(p.wants, d)
			}
		}
	}
	add(1)
	return func() { add(-1) }
}

// turn waits until nobody else changes a deployment's LoRAs.
func (p *Patches) turn(ctx context.Context, deployment string) (done func(), err error) {
	p.mu.Lock()
	t := p.turns[deployment]
	if t == nil {
		t = make(chan struct{}, 1)
		p.turns[deployment] = t
	}
	p.mu.Unlock()
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
