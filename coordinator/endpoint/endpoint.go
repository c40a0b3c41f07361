// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package endpoint takes the forwards of a deployment from a client that
// samples, drives them through the stages of the active plan and answers with
// the output.
//
// Imported by the coordinator. It must not import the agent; it speaks to
// agents only through proto and transport. Ownership: a pipeline owns its
// drive streams, its slots and its output regions, and lives exactly as long
// as at least one run, or a call of one, uses it. A run keeps the plan it began with. One client
// call owns a slot from the moment its inputs are written until its output is
// delivered, refused or cancelled.
package endpoint

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/distorch/distorch/model/graph"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

// Deployment is what the coordinator knows of a deployment at this moment.
type Deployment struct {
	Plan    *pb.Plan
	Graph   *graph.Model
	Ready   bool   // every stage reports ready at the plan's epoch
	Message string // why it is not ready
}

// Plans answers for deployments by name.
type Plans interface {
	Deployment(ctx context.Context, name string) (Deployment, error)
}

// Config of a Server. Log may be nil.
type Config struct {
	Plans     Plans
	Transport *transport.Host
	Hello     *pb.Hello
	Address   string // where agents reach this process
	Log       *slog.Logger

	// Allow says whether the caller may use the endpoint; nil allows all.
	Allow func(ctx context.Context) error
	// Silence after which a stage counts as lost while forwards are in flight.
	Silence time.Duration
	// MaxRuns bounds the runs open at one time.
	MaxRuns int
	// RunIdle ends a run that no call has used for so long.
	RunIdle time.Duration
}

// Server implements distorchv1.EndpointServer.
type Server struct {
	pb.UnimplementedEndpointServer
	cfg   Config
	log   *slog.Logger
	queue *transport.Queue // of all output regions

	incarnation [16]byte

	mu        sync.Mutex
	runs      map[string]*run
	begun     int // runs, those that are being begun included
	pipelines map[pipelineKey]*pipeline
	opening   map[pipelineKey]chan struct{} // closed when the attempt is over
	ctx       context.Context               // of Run; pipelines end with it
	stop      context.CancelCauseFunc
}

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Plans == nil, cfg.Transport == nil, cfg.Hello == nil:
		return nil, errors.New("endpoint: plans, transport and hello are all needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Silence == 0 {
		cfg.Silence = 2 * time.Second
	}
	if cfg.MaxRuns == 0 {
		cfg.MaxRuns = 64
	}
	if cfg.RunIdle == 0 {
		cfg.RunIdle = 15 * time.Minute
	}
	self, err := transport.ParseID(cfg.Hello.Incarnation)
	if err != nil {
		return nil, fmt.Errorf("endpoint: own incarnation: %w", err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	return &Server{
		cfg: cfg, incarnation: self, log: cfg.Log, queue: cfg.Transport.NewQueue(), ctx: ctx, stop: stop,
		runs: map[string]*run{}, pipelines: map[pipelineKey]*pipeline{}, opening: map[pipelineKey]chan struct{}{},
	}, nil
}

// errStopped ends what is in flight when the server stops.
var errStopped = errors.New("the endpoint is stopping")

// Run blocks until ctx ends, then ends every run and joins all goroutines.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.RunIdle / 4)
	defer tick.Stop()
	arrivals := s.queue.Completions()
	for {
		select {
		case c, ok := <-arrivals:
			if !ok && ctx.Err() == nil {
				return errors.New("endpoint: the transport closed first")
			}
			if !ok { // both end with ctx, in no order
				arrivals = nil
				continue
			}
			if o, ok := c.Region.Info().Tag.(*output); ok {
				o.pipeline.arrived(o.slot, c.Imm)
			}
		case <-ctx.Done():
			s.stop(errStopped)
			s.mu.Lock()
			pipelines := slices.Collect(maps.Values(s.pipelines))
			runs := slices.Collect(maps.Values(s.runs))
			s.mu.Unlock()
			for _, p := range pipelines {
				p.fail(errStopped) // nobody is asked for statistics any more
			}
			for _, r := range runs {
				s.endRun(r, errStopped)
			}
			return nil
		case <-tick.C:
			s.expire(time.Now())
		}
	}
}

func (s *Server) expire(now time.Time) {
	s.mu.Lock()
	var old []*run
	for _, r := range s.runs {
		if r.active == 0 && now.Sub(r.used) > s.cfg.RunIdle {
			old = append(old, r)
		}
	}
	s.mu.Unlock()
	for _, r := range old {
		s.log.Info("run expired", "run", r.id, "deployment", r.pipeline.key.name)
		s.endRun(r, fmt.Errorf("the run was not used for %s and expired", s.cfg.RunIdle))
	}
}

// run is one picture: it keeps its pipeline, and with it its plan.
type run struct {
	id       string
	raw      [16]byte
	pipeline *pipeline
	lengths  lengths
	ctx      context.Context // of its forwards; ends with the run
	end      context.CancelCauseFunc

	// guarded by Server.mu
	used   time.Time
	active int
	ended  bool
}

func newRunID() (string, [16]byte, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", b, fmt.Errorf("make a run id: %w", err)
	}
	return hex.EncodeToString(b[:]), b, nil
}
