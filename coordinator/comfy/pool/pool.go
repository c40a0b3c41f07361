// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/coordinator/comfy"
)

// Defaults of Config.
const (
	defaultStorage = 20 << 30
	defaultPoll    = 2 * time.Second
	defaultRefresh = 20 * time.Second
	defaultGrace   = 10 * time.Second
	defaultSilence = 30 * time.Second
	defaultHalt    = 3 * time.Second
	// DefaultLoader is the node of distorch's pack that loads a MODEL of the cluster.
	DefaultLoader = "DistorchLoadDiffusionModel"
)

// Registration is one worker that an operator has added.
type Registration struct {
	Name string
	URL  string // as ParseURL returns it
}

// Config of a Pool. What is zero takes its default.
type Config struct {
	// Workers calls fn with all registrations, first as they are and then after
	// every change, until ctx ends.
	Workers func(ctx context.Context, fn func([]Registration)) error
	// Models are the cluster's models; nil: no loader is replaced.
	Models func() []Model
	Dir    string // for files; it is made
	// Storage bounds the bytes of files that are kept, the least recently used
	// dropped.
	Storage int64
	Loader  string        // class that loads a model of the cluster
	Poll    time.Duration // between two looks at a worker's queue
	Refresh time.Duration // between two looks at a worker's node classes
	// Grace is how long a worker may be unreachable in the middle of a prompt. One
	// that refuses connections is lost at once.
	Grace time.Duration
	// Silence is how long a worker may leave a ping unanswered: a ComfyUI that loads
	// a model answers late.
	Silence time.Duration
	// Halt is how long a file that is on its way from or to a worker still has when
	// the prompt is interrupted.
	Halt      time.Duration
	Transport http.RoundTripper // for tests
	Log       *slog.Logger
}

// Pool implements comfy.Backend. Run it.
type Pool struct {
	cfg   Config
	log   *slog.Logger
	http  *http.Client
	shelf *shelf

	mu      sync.Mutex
	workers map[string]*worker // by name
	changed chan struct{}      // closed when a worker comes, goes or gets free
	info    map[string]json.RawMessage
	stale   chan struct{} // closed when info is no longer what workers offer
	models  []Model       // as in info
	leases  int64         // given out so far: the order of use
	origins map[file]origin
}

// origin is where a file was made.
type origin struct {
	worker string
	file   file
}

const maxOrigins = 100_000

var _ comfy.Backend = (*Pool)(nil)

// New checks the configuration and takes in the files of an earlier process.
func New(cfg Config) (*Pool, error) {
	if cfg.Workers == nil || cfg.Dir == "" {
		return nil, errors.New("comfy pool: workers and a folder are both needed")
	}
	if cfg.Models == nil {
		cfg.Models = func() []Model { return nil }
	}
	if cfg.Storage <= 0 {
		cfg.Storage = defaultStorage
	}
	if cfg.Loader == "" {
		cfg.Loader = DefaultLoader
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&cfg.Poll, defaultPoll}, {&cfg.Refresh, defaultRefresh}, {&cfg.Grace, defaultGrace}, {&cfg.Silence, defaultSilence}, {&cfg.Halt, defaultHalt}} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		cfg.Transport = newTransport()
	}
	s, err := openShelf(cfg.Dir, cfg.Storage)
	if err != nil {
		return nil, err
	}
	return &Pool{
		cfg: cfg, log: cfg.Log, http: newClient(cfg.Transport), shelf: s,
		workers: map[string]*worker{}, changed: make(chan struct{}), stale: make(chan struct{}), origins: map[file]origin{},
	}, nil
}

// Run follows the registrations and keeps a connection to each worker until ctx
// ends.
func (p *Pool) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return p.cfg.Workers(gctx, func(all []Registration) { p.follow(gctx, g, all) })
	})
	g.Go(func() error { return p.followModels(gctx) })
	err := g.Wait()
	if t, ok := p.cfg.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return err
}

// follow starts and stops workers so that they are those registered.
func (p *Pool) follow(ctx context.Context, g *errgroup.Group, all []Registration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := map[string]Registration{}
	for _, r := range all {
		want[r.Name] = r
	}
	for name, w := range p.workers {
		if want[name] != w.registration {
			w.stop()
			delete(p.workers, name)
			p.offer()
			p.notify()
		}
	}
	for name, r := range want {
		if p.workers[name] != nil {
			continue
		}
		wctx, stop := context.WithCancel(ctx)
		w := &worker{
			pool: p, registration: r, stop: stop, log: p.log.With("worker", r.Name),
			api: api{base: r.URL, http: p.http}, client: "distorch-" + strings.ToLower(rand.Text()),
			names: map[file]file{}, sent: map[sent]file{}, refresh: make(chan struct{}, 1),
		}
		p.workers[name] = w
		g.Go(func() error { defer stop(); return w.run(wctx) })
	}
}

// followModels lets the union show models that come and go.
func (p *Pool) followModels(ctx context.Context) error {
	t := time.NewTicker(p.cfg.Poll)
	defer t.Stop()
	for {
		models := slices.Clone(p.cfg.Models())
		slices.SortFunc(models, func(a, b Model) int {
			return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Deployment, b.Deployment))
		})
		p.mu.Lock()
		if !slices.Equal(models, p.models) {
			p.models = models
			p.offer()
			p.notify()
		}
		p.mu.Unlock()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// notify tells who waits for a worker. The lock is held.
func (p *Pool) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// offer says that the node classes on offer are others. The lock is held.
func (p *Pool) offer() {
	p.info = nil
	close(p.stale)
	p.stale = make(chan struct{})
}

// Changed implements comfy.Backend.
func (p *Pool) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// alive are the workers that answer, by name. The lock is held.
func (p *Pool) alive() (out []*worker) {
	for _, name := range slices.Sorted(maps.Keys(p.workers)) {
		if w := p.workers[name]; w.live {
			out = append(out, w)
		}
	}
	return out
}

func (p *Pool) living() []*worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive()
}

// ObjectInfo implements comfy.Backend. Loaders also list the cluster's models if a
// worker can run those.
func (p *Pool) ObjectInfo() (map[string]json.RawMessage, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.info == nil {
		var all []map[string]class
		replaces := false
		for _, w := range p.alive() {
			all = append(all, w.classes)
			_, has := w.classes[p.cfg.Loader]
			replaces = replaces || has
		}
		p.info = union(all)
		if replaces {
			p.offerModels()
		}
	}
	return p.info, p.stale
}

// WorkerState is what is known of a registered worker.
type WorkerState struct {
	Registration
	Live     bool
	Problem  string // why it is not live
	Version  string // of ComfyUI
	Classes  int
	Busy     bool // runs a prompt of ours
	Queued   int  // prompts of others in its own queue
	Prompts  int64
	Lost     int64 // prompts that it lost
	Replaces bool  // has the node that loads a model of the cluster
	Devices  []comfy.DeviceStats
}

// State is all workers by name.
func (p *Pool) State() (out []WorkerState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(p.workers)) {
		w := p.workers[name]
		_, replaces := w.classes[p.cfg.Loader]
		out = append(out, WorkerState{
			Registration: w.registration, Live: w.live, Problem: w.problem, Version: w.stats.System.ComfyUIVersion,
			Classes: len(w.classes), Busy: w.lease != nil, Queued: w.foreign, Prompts: w.prompts, Lost: w.lost,
			Replaces: replaces, Devices: w.stats.Devices,
		})
	}
	return out
}
