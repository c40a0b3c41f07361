// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package agent is a node of the cluster: it reports its devices and its
// checkpoints into the store under a lease, loads the stages that plans give
// it, and serves them.
//
// Imported by the commands and by tests. It must not import the coordinator or
// placement: it executes plans or refuses with numbers, and decides nothing.
// Run owns every goroutine, the devices' sessions and all loaded stages.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/agent/calibration"
	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/donor"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/examine"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/agent/serve"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/gossip"
	"github.com/distorch/distorch/transport/identity"
	"github.com/distorch/distorch/transport/node"
)

// Config of an Agent.
type Config struct {
	Credentials *identity.Credentials
	GossipKey   []byte
	Store       *store.Store
	Engine      engine.Engine
	Devices     map[engine.DeviceID]Limit // of those that are not to be used whole
	Host        *engine.Account           // of RAM, where the engine's sessions share it; may be nil

	Listen, Advertise string
	Memory            tensor.Bytes // of RAM, what stages, their tiers and donations may take
	Reserve           tensor.Bytes // of RAM, kept free; already taken off Memory
	Donate            tensor.Bytes // of Memory, at most for blocks of other nodes' stages
	ModelDirs         []string
	Labels            map[string]string
	Version           string
	EngineName        string
	LeaseTTL          time.Duration
	HandshakeTimeout  time.Duration
	RedialFor         time.Duration
	Log               *slog.Logger    // may be nil
	Calibrations      calibration.Dir // where what was measured is kept; "": nowhere
	// Brought has the LoRA files that clients brought; nil: only those in ModelDirs
	// can be used.
	Brought Brought
	// Measure finds the device's rates; nil runs programs on it for some seconds.
	Measure func(ctx context.Context, s engine.Session, d tensor.DType) ([]measure.Rates, error)
	// Examine says what else to look at for a diagnosis; the agent fills in what it
	// knows itself.
	Examine examine.Config
	// Ready is called once the agent is registered; may be nil.
	Ready func(address string)
}

// Brought finds a client's file by its SHA-256; the file stays until release is
// called.
type Brought interface {
	File(ctx context.Context, digest string) (path string, release func(), err error)
}

// Agent is one node.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	node    *node.Node
	serve   *serve.Server
	units   []*unit // in the engine's order
	entries []catalog.Entry
	losses  chan struct{} // holds a token when a device was lost

	mu    sync.Mutex
	lease *store.Lease

	links links

	memory *donor.Memory // given to other nodes' stages
	owner  *donor.Owner  // asks others for theirs
	claims claims        // what others have given

	measuring sync.Mutex // of one device at a time

	recordMu sync.Mutex
	record   *pb.NodeRecord // of this node
}

// New opens the agent's port and devices and finds its checkpoints.
func New(ctx context.Context, cfg Config) (_ *Agent, err error) {
	if cfg.Credentials == nil || cfg.Store == nil || cfg.Engine == nil {
		return nil, errors.New("agent: credentials, store and engine are all needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Measure == nil {
		cfg.Measure = measure.Measure
	}
	a := &Agent{cfg: cfg, log: cfg.Log, losses: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.closeDevices())
		}
	}()
	if err := a.openDevices(ctx); err != nil {
		return nil, err
	}
	if err := a.scan(); err != nil {
		return nil, err
	}
	a.node, err = node.New(ctx, node.Config{
		Credentials: cfg.Credentials, Listen: cfg.Listen, Advertise: cfg.Advertise, GossipKey: cfg.GossipKey,
		Seeds: a.seeds, HandshakeTimeout: cfg.HandshakeTimeout, RedialFor: cfg.RedialFor, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	if err := a.openDonor(); err != nil {
		return nil, errors.Join(err, a.node.Close())
	}
	a.serve, err = serve.New(serve.Config{
		Transport: a.node.Host(), Hello: a.hello(), PeerFrom: node.PeerFrom, Log: cfg.Log, Donor: a.memory, Lending: a.lending(),
		Facts: serve.Facts{
			NodeName: cfg.Credentials.Self().Name, PID: int64(os.Getpid()),
			Memory: func() uint64 { return uint64(device.PeakResident()) },
		},
		Link:     a.link,
		Taught:   a.taught,
		Feedback: a.feedback,
		Failed:   a.lose,
	})
	if err != nil {
		return nil, errors.Join(err, a.node.Close())
	}
	pb.RegisterStageServiceServer(a.node.Server(), a.serve)
	pb.RegisterNodeServiceServer(a.node.Server(), &nodeService{agent: a})
	return a, nil
}

// openDonor makes both ends of keeping blocks in other nodes' RAM.
func (a *Agent) openDonor() (err error) {
	a.cfg.Donate = max(0, min(a.cfg.Donate, a.cfg.Memory-overhead))
	a.memory, err = donor.NewMemory(donor.MemoryConfig{
		Transport: a.node.Host(), Room: a.host().session, Offer: a.cfg.Donate, Hello: a.hello(), NodeName: a.cfg.Credentials.Self().Name, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.owner, err = donor.NewOwner(donor.OwnerConfig{Transport: a.node.Host(), Hello: a.hello(), Threads: max(1, runtime.NumCPU()/8), Log: a.log})
	return err
}

func (a *Agent) scan() error {
	entries, skipped, err := catalog.Scan(a.cfg.ModelDirs)
	if err != nil {
		return err
	}
	a.entries = entries
	for _, s := range skipped {
		a.log.Info("checkpoint not used", "path", s.Path, "reason", s.Err)
	}
	return nil
}

func (a *Agent) hello() *pb.Hello {
	return &pb.Hello{
		Node: a.node.ID(), Incarnation: a.node.Incarnation(),
		ProtocolMin: node.ProtocolMin, ProtocolMax: node.ProtocolMax, OpSet: graph.OpSet,
	}
}

// Address is where peers dial this agent.
func (a *Agent) Address() string { return a.node.Address() }

// ID is the node's id.
func (a *Agent) ID() string { return a.node.ID() }

// Run registers and serves until ctx ends. It frees everything before it
// returns.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.closeDevices()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.node.Run(ctx) })
	g.Go(func() error { return a.serve.Run(ctx) })
	g.Go(func() error { return a.memory.Run(ctx) })
	g.Go(func() error {
		if err := a.register(ctx, g); err != nil {
			return err
		}
		for _, u := range a.units {
			g.Go(func() error { return a.learn(ctx, u) })
		}
		return a.follow(ctx)
	})
	return g.Wait()
}

// register finds the devices' rates, measures the link to the coordinators and
// writes the node's records under a lease that g keeps.
func (a *Agent) register(ctx context.Context, g *errgroup.Group) error {
	lease, err := a.cfg.Store.NewLease(store.LeaseConfig{TTL: a.cfg.LeaseTTL})
	if err != nil {
		return err
	}
	if err := a.measureDevices(ctx); err != nil {
		return err
	}
	a.record = a.describe(ctx)
	a.record.SeenDevices = a.seen(ctx, a.record.Devices)
	link := a.links.first(ctx, a)
	a.mu.Lock()
	a.lease = lease
	a.mu.Unlock()
	// The node's own record comes last: whoever sees it finds the rest.
	for _, e := range a.entries {
		if _, err := store.Create(ctx, a.cfg.Store, store.ModelKey(e.Record.Id), e.Record); err != nil && !errors.Is(err, store.ErrExists) {
			return fmt.Errorf("announce %s: %w", e.Path, err)
		}
	}
	g.Go(func() error { return lease.Run(ctx) })
	for _, e := range a.entries {
		h := &pb.HolderRecord{Model: e.Record.Id, Node: a.ID(), Path: e.Path}
		if err := store.PutLeased(ctx, lease, store.HolderKey(h.Model, h.Node), h); err != nil {
			return err
		}
	}
	if err := store.PutLeased(ctx, lease, store.LinkKey(a.ID()), link); err != nil {
		return err
	}
	if err := store.PutLeased(ctx, lease, store.NodeKey(a.ID()), a.record); err != nil {
		return err
	}
	a.log.Info("registered", "node_id", a.ID(), "node", a.record.Name, "address", a.record.Address, "checkpoints", len(a.entries))
	if a.cfg.Ready != nil {
		a.cfg.Ready(a.Address())
	}
	return nil
}

// members lists the nodes that are registered, without this one.
func (a *Agent) members(ctx context.Context) ([]*pb.NodeRecord, error) {
	snap, err := store.List(ctx, a.cfg.Store, store.Nodes())
	if err != nil {
		return nil, err
	}
	var out []*pb.NodeRecord
	for _, e := range snap.Entries {
		if e.Value.Id != a.ID() {
			out = append(out, e.Value)
		}
	}
	return out, nil
}

func (a *Agent) seeds(ctx context.Context) ([]gossip.Seed, error) {
	members, err := a.members(ctx)
	if err != nil {
		return nil, err
	}
	var out []gossip.Seed
	for _, m := range members {
		out = append(out, gossip.Seed{Node: m.Id, Addr: m.Address})
	}
	return out, nil
}
