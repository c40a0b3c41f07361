// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package serve answers for the stages that an agent has loaded: attaching,
// the drive session of an endpoint, frames that arrive, the queue in front of
// the device, and what is sent on.
//
// Imported by the agent. It must not import the store, placement or the
// coordinator. Ownership: a Hosted stage owns its regions, its queue and its
// drive session; a drive session owns its runs and their conditioning. The
// reader of a connection never waits for the device: frames are only queued.
package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

// Config of a Server. Log may be nil.
type Config struct {
	Transport *transport.Host
	Hello     *pb.Hello // this agent: node, incarnation, protocol, op set
	// PeerFrom names the caller of an RPC by its certificate.
	PeerFrom func(ctx context.Context) (node, role string, err error)
	Facts    Facts
	Log      *slog.Logger
	// Taught is called after each forward that may be held against the forecast;
	// Feedback says at a run's end what was learned of a device's forwards; Failed
	// is told of a forward that its device failed. They may be nil and must not
	// block.
	Taught   func(Forward)
	Feedback func(device, dtype string, elements uint64) *pb.Feedback
	Failed   func(device string, err error)
	// Link measures the link to a node; nil refuses to.
	Link func(ctx context.Context, peer string) (*pb.PeerLink, error)
	// Donor gives memory to stages of other nodes; nil refuses to.
	Donor Donor
	// Lending says which devices there are to lend of; without it nothing is lent.
	Lending Lending
}

// Donor answers for a session with a node that keeps blocks in this one's RAM.
type Donor interface {
	Serve(stream pb.StageService_DonateServer, node string) error
}

// Facts go into a stage's statistics.
type Facts struct {
	NodeName string
	PID      int64
	// Memory is the process's peak resident bytes (0 where it is not known).
	Memory func() uint64
}

// Roles that may call.
const (
	roleCoordinator = "coordinator"
	roleAgent       = "agent"
)

type key struct {
	deployment string // id
	epoch      uint64
	stage      uint32
}

// Server implements distorchv1.StageServiceServer.
type Server struct {
	pb.UnimplementedStageServiceServer
	cfg         Config
	log         *slog.Logger
	incarnation [16]byte
	queue       *transport.Queue
	usage       usage
	lender      *lender

	mu     sync.Mutex
	hosted map[key]*Hosted
}

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	if cfg.Transport == nil || cfg.Hello == nil || cfg.PeerFrom == nil {
		return nil, errors.New("serve: transport, hello and peer lookup are all needed")
	}
	inc, err := transport.ParseID(cfg.Hello.Incarnation)
	if err != nil {
		return nil, fmt.Errorf("serve: own incarnation: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Log, incarnation: inc, queue: cfg.Transport.NewQueue(), hosted: map[key]*Hosted{}}
	s.lender = newLender(cfg.Lending, cfg.Facts.NodeName, s.tenants, s.lendFailed)
	return s, nil
}

// Run hands what arrives to the stages until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.lender.run(ctx) })
	for {
		select {
		case c, ok := <-s.queue.Completions():
			if !ok {
				return nil
			}
			if slot, ok := c.Region.Info().Tag.(*slot); ok {
				slot.hosted.arrived(slot, c.Imm)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// find answers an attach request with the stage it names, or says why not.
func (s *Server) find(req *pb.AttachRequest) (*Hosted, error) {
	h := req.GetHello()
	own := s.cfg.Hello
	if h.GetProtocolMax() < own.ProtocolMin || h.GetProtocolMin() > own.ProtocolMax {
		return nil, status.Errorf(codes.FailedPrecondition, "node %.40q speaks protocol %d to %d, this agent %d to %d; update the older one",
			h.GetNode(), h.GetProtocolMin(), h.GetProtocolMax(), own.ProtocolMin, own.ProtocolMax)
	}
	if req.ExpectIncarnation != "" && req.ExpectIncarnation != own.Incarnation {
		return nil, status.Errorf(codes.FailedPrecondition, "agent %s was restarted since the plan was made; the deployment is being placed again", s.cfg.Facts.NodeName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.hosted[key{req.DeploymentId, req.Epoch, req.Stage}]; st != nil {
		return st, nil
	}
	for k := range s.hosted {
		if k.deployment == req.DeploymentId && k.epoch > req.Epoch {
			return nil, status.Errorf(codes.Aborted, "epoch %d of deployment %.80q is over, this agent runs epoch %d", req.Epoch, req.Deployment, k.epoch)
		}
	}
	return nil, status.Errorf(codes.NotFound, "stage %d of deployment %.80q at epoch %d is not loaded on %s", req.Stage, req.Deployment, req.Epoch, s.cfg.Facts.NodeName)
}

// Attach gives the previous stage the keys of this stage's input regions.
func (s *Server) Attach(ctx context.Context, req *pb.AttachRequest) (*pb.AttachResponse, error) {
	node, role, err := s.cfg.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	h, err := s.find(req)
	if err != nil {
		return nil, err
	}
	if role != roleAgent || node != h.previous {
		return nil, status.Errorf(codes.PermissionDenied, "%s %s is not the stage before stage %d of %s", role, node, req.Stage, h.plan.Deployment)
	}
	if inc, err := transport.ParseID(req.GetHello().GetIncarnation()); err != nil || inc != h.prevInc {
		return nil, status.Errorf(codes.FailedPrecondition, "node %s was restarted since the plan of %s was made; the deployment is being placed again", node, h.plan.Deployment)
	}
	return h.attached(s.cfg.Hello), nil
}

// MeasureLink measures the link to another node for a coordinator.
func (s *Server) MeasureLink(ctx context.Context, req *pb.MeasureLinkRequest) (*pb.PeerLink, error) {
	node, role, err := s.cfg.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if role != roleCoordinator {
		return nil, status.Errorf(codes.PermissionDenied, "links are measured for a coordinator, not for %s with the role %s", node, role)
	}
	if s.cfg.Link == nil {
		return nil, status.Errorf(codes.Unimplemented, "%s does not measure links", s.cfg.Facts.NodeName)
	}
	if idle, _ := s.Idle(); !idle {
		return nil, status.Errorf(codes.FailedPrecondition, "node %s runs or loads something, which measuring would disturb; ask again when that is done", s.cfg.Facts.NodeName)
	}
	l, err := s.cfg.Link(ctx, req.GetPeer())
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return l, nil
}

// Stats says what the stages of a deployment did.
func (s *Server) Stats(ctx context.Context, req *pb.StageStatsRequest) (*pb.StageStatsResponse, error) {
	node, role, err := s.cfg.PeerFrom(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if role != roleCoordinator {
		return nil, status.Errorf(codes.PermissionDenied, "statistics are for a coordinator, not for %s with the role %s", node, role)
	}
	s.mu.Lock()
	var found []*Hosted
	for k, h := range s.hosted {
		if k.deployment == req.DeploymentId {
			found = append(found, h)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(found, func(a, b *Hosted) int {
		return cmp.Or(cmp.Compare(a.key.epoch, b.key.epoch), cmp.Compare(a.key.stage, b.key.stage))
	})
	res := &pb.StageStatsResponse{}
	for _, h := range found {
		res.Stages = append(res.Stages, h.stats(""))
	}
	return res, nil
}

// Uses says whether a stage runs in a session.
func (s *Server) Uses(session engine.Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hosted {
		if h.session == session {
			return true
		}
	}
	return false
}

// needs is what all stages on a session's device were counted to take of it, and
// all stages of the node of RAM.
func (s *Server) needs(session engine.Session) (device, host tensor.Bytes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hosted {
		n := h.stage.Need()
		if h.session == session {
			device += n.Device
		}
		if h.session.Device().Unified {
			host += n.Device
		}
		host += n.Host
	}
	return device, host
}

// Empty says whether no stage is hosted.
func (s *Server) Empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hosted) == 0
}

// Donate is the session of another agent's stage with this node's memory.
func (s *Server) Donate(stream pb.StageService_DonateServer) error {
	node, role, err := s.cfg.PeerFrom(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if role != roleAgent {
		return status.Errorf(codes.PermissionDenied, "memory is given to agents, not to %s with the role %s", node, role)
	}
	if s.cfg.Donor == nil {
		return status.Errorf(codes.Unimplemented, "%s gives no memory", s.cfg.Facts.NodeName)
	}
	return s.cfg.Donor.Serve(stream, node)
}

// Drive is the session of an endpoint with one stage.
func (s *Server) Drive(stream pb.StageService_DriveServer) error {
	node, role, err := s.cfg.PeerFrom(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if role != roleCoordinator {
		return status.Errorf(codes.PermissionDenied, "a stage is driven by a coordinator, not by a peer with the role %s", role)
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	req := first.GetAttach()
	if req == nil {
		return status.Error(codes.InvalidArgument, "the first command must be attach")
	}
	h, err := s.find(req)
	if err != nil {
		return err
	}
	return h.drive(stream, req, node)
}
