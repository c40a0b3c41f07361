// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/coordinator/endpoint"
	"github.com/distorch/distorch/coordinator/reconcile"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// Config of a Coordinator. Log may be nil.
type Config struct {
	Store       *store.Store
	Credentials *identity.Credentials
	Addresses   []string // host:port where others reach this one: for tokens
	Version     string
	ProtocolMin uint32
	ProtocolMax uint32
	LeaseTTL    time.Duration // of the leadership; 0: store's default
	Log         *slog.Logger
	// Link asks the agent at an address to measure its link to another node, by
	// their ids; nil where agents cannot be asked.
	Link func(ctx context.Context, address, node, peer string) (*pb.PeerLink, error)
	// Stats asks the agent at an address what its stages of a deployment did; nil
	// asks nobody.
	Stats func(ctx context.Context, address, node string, req *pb.StageStatsRequest) (*pb.StageStatsResponse, error)
	// Diagnose asks the agent at an address, by the node's id, what is wrong with
	// it; nil where agents cannot be asked.
	Diagnose func(ctx context.Context, address, node string, req *pb.DiagnoseRequest) (*pb.DiagnoseResponse, error)
	// Lend asks the agent at an address to leave memory of a device to others; nil
	// where agents cannot be asked.
	Lend func(ctx context.Context, address, node string, req *pb.LendRequest) (*pb.LendResponse, error)
	// Comfy looks at ComfyUI workers; nil where none can be added.
	Comfy ComfyWorkers
}

// Coordinator implements distorchv1.ControlServer and endpoint.Plans.
type Coordinator struct {
	pb.UnimplementedControlServer
	cfg    Config
	log    *slog.Logger
	id     string // in the election
	graphs graphs

	mu      sync.Mutex
	state   *store.State // nil until the first read
	loaded  chan struct{}
	newer   chan struct{} // closed when state is not the newest any more
	changed chan struct{} // holds one token when state is newer than what the leader saw
}

var (
	_ pb.ControlServer = (*Coordinator)(nil)
	_ endpoint.Plans   = (*Coordinator)(nil)
)

// New checks the configuration.
func New(cfg Config) (*Coordinator, error) {
	switch {
	case cfg.Store == nil, cfg.Credentials == nil:
		return nil, errors.New("coordinator: a store and credentials are both needed")
	case len(cfg.Addresses) == 0:
		return nil, errors.New("coordinator: at least one address is needed, for join tokens")
	case cfg.ProtocolMin == 0 || cfg.ProtocolMax < cfg.ProtocolMin:
		return nil, fmt.Errorf("coordinator: protocol %d to %d is no range", cfg.ProtocolMin, cfg.ProtocolMax)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Coordinator{
		cfg: cfg, log: cfg.Log, id: cfg.Addresses[0],
		loaded: make(chan struct{}), newer: make(chan struct{}), changed: make(chan struct{}, 1),
	}, nil
}

// Run follows the records and leads when it is this one's turn, until ctx ends.
func (c *Coordinator) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := c.cfg.Store.WatchState(gctx, c.take); err != nil {
			return fmt.Errorf("follow the cluster's state: %w", err)
		}
		return nil
	})
	g.Go(func() error { return c.lead(gctx) })
	return g.Wait()
}

// take makes a state the one that everything is answered from.
func (c *Coordinator) take(st *store.State) error {
	c.mu.Lock()
	first := c.state == nil
	c.state = st
	close(c.newer)
	c.newer = make(chan struct{})
	c.mu.Unlock()
	if first {
		close(c.loaded)
	}
	c.poke()
	return nil
}

// Changed is closed when any record of the cluster has changed.
func (c *Coordinator) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newer
}

// poke makes the leader look at the state again.
func (c *Coordinator) poke() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// latest is the newest state that was followed, nil before the first.
func (c *Coordinator) latest() *store.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *Coordinator) protocol() reconcile.Versions {
	return reconcile.Versions{Min: c.cfg.ProtocolMin, Max: c.cfg.ProtocolMax}
}
