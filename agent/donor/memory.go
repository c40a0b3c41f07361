// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donor

import (
	"cmp"
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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

const (
	defaultKeep     = 5 * time.Second
	defaultPlanWait = 3 * time.Second
	// maxLeases bounds what peers can make this side keep.
	maxLeases = 1024
)

// Room is the account that donations are taken from: a session's host memory.
type Room interface {
	HostBuffer(n tensor.Bytes) (engine.Buffer, error)
	HostAccount() (used, peak, limit tensor.Bytes)
}

// MemoryConfig configures a Memory. Log may be nil.
type MemoryConfig struct {
	Transport *transport.Host
	Room      Room
	Offer     tensor.Bytes // at most for other nodes' blocks; 0: nothing
	Hello     *pb.Hello    // this agent
	NodeName  string
	Keep      time.Duration // 0 is 5 s
	PlanWait  time.Duration // how long a request may be ahead of this node's view of plans; 0 is 3 s
	Log       *slog.Logger
}

// Memory gives RAM of this node to stages of others, as plans say.
type Memory struct {
	cfg MemoryConfig
	log *slog.Logger

	mu     sync.Mutex
	closed bool
	used   tensor.Bytes
	leases map[string]*lease
	plans  map[string]*pb.Plan // by deployment name
	news   chan struct{}       // closed when plans change
}

// lease is memory that a stage of another node has. Memory's mutex guards it.
type lease struct {
	id           string
	node         string
	incarnation  [16]byte
	deployment   string
	deploymentID string
	epoch        uint64
	stage        uint32
	bytes        tensor.Bytes
	buffer       engine.Buffer
	region       *transport.Region

	session chan struct{} // closed when a newer session takes its place; nil: none is there
	breaks  int           // how often the session broke
	gone    chan struct{} // closed at the end
	reason  error         // of the end
}

var (
	errReleased   = errors.New("it was released")
	errReplan     = errors.New("the plan is not the deployment's any more")
	errSilent     = errors.New("its owner was silent")
	errRestarted  = errors.New("its owner was restarted")
	errWanted     = errors.New("its owner was silent and the memory was needed")
	errStopped    = errors.New("this agent stops")
	errTakenOver  = errors.New("a newer session has the memory")
	errManyLeases = fmt.Errorf("%d donations are there, the limit", maxLeases)
)

// NewMemory checks the configuration.
func NewMemory(cfg MemoryConfig) (*Memory, error) {
	if cfg.Transport == nil || cfg.Room == nil || cfg.Hello == nil {
		return nil, errors.New("donor: transport, room and hello are all needed")
	}
	if cfg.Keep <= 0 {
		cfg.Keep = defaultKeep
	}
	if cfg.PlanWait <= 0 {
		cfg.PlanWait = defaultPlanWait
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Memory{cfg: cfg, log: cfg.Log, leases: map[string]*lease{}, plans: map[string]*pb.Plan{}, news: make(chan struct{})}, nil
}

// Run waits until ctx ends, then takes every donation back.
func (m *Memory) Run(ctx context.Context) error {
	<-ctx.Done()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, l := range m.leases {
		m.end(l, errStopped)
	}
	return nil
}

// Use says what is given away and what may be.
func (m *Memory) Use() (used, offer tensor.Bytes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, m.cfg.Offer
}

// Plans tells which plans are in force, by deployment name. Donations of others
// end. The map is not kept.
func (m *Memory) Plans(now map[string]*pb.Plan) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.plans = maps.Clone(now)
	close(m.news)
	m.news = make(chan struct{})
	for _, l := range m.leases {
		if p := m.plans[l.deployment]; p == nil || p.DeploymentId != l.deploymentID || p.Epoch != l.epoch {
			m.end(l, errReplan)
		}
	}
}

// end frees a lease. It needs the mutex.
func (m *Memory) end(l *lease, reason error) {
	delete(m.leases, l.id)
	m.used -= l.bytes
	l.reason = reason
	close(l.gone)
	l.region.Deregister()
	l.buffer.Free()
	m.log.Info("donor memory freed", "owner", l.node, "deployment", l.deployment, "epoch", l.epoch, "bytes", int64(l.bytes), "reason", reason)
}

// attach makes a new session the lease's. It needs the mutex.
func (l *lease) attach() chan struct{} {
	if l.session != nil {
		close(l.session)
	}
	l.session = make(chan struct{})
	return l.session
}

// leave ends a session that broke; the lease stays for Keep.
func (m *Memory) leave(l *lease, session chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.reason != nil || l.session != session {
		return
	}
	l.session = nil
	l.breaks++
	round := l.breaks
	time.AfterFunc(m.cfg.Keep, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.reason == nil && l.session == nil && l.breaks == round {
			m.end(l, errSilent)
		}
	})
}

// release ends a lease by its owner's wish.
func (m *Memory) release(l *lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.reason == nil {
		m.end(l, errReleased)
	}
}

// permit waits until the plan that a request names is known here, and says
// whether it gives this node's memory to the caller.
func (m *Memory) permit(ctx context.Context, node string, req *pb.DonateRequest) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.PlanWait)
	defer cancel()
	for {
		m.mu.Lock()
		p, news := m.plans[req.Deployment], m.news
		m.mu.Unlock()
		if p != nil && p.DeploymentId == req.DeploymentId && p.Epoch >= req.Epoch {
			return m.allows(p, node, req)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return status.Errorf(codes.PermissionDenied, "node %s knows no plan of deployment %.80q at epoch %d; memory is given to plans only", m.cfg.NodeName, req.Deployment, req.Epoch)
		}
	}
}

func (m *Memory) allows(p *pb.Plan, node string, req *pb.DonateRequest) error {
	if p.Epoch != req.Epoch {
		return status.Errorf(codes.Aborted, "epoch %d of deployment %.80q is over, its plan is of epoch %d", req.Epoch, req.Deployment, p.Epoch)
	}
	if int(req.Stage) >= len(p.Stages) || p.Stages[req.Stage].Node != node || p.Stages[req.Stage].Incarnation != req.GetHello().GetIncarnation() {
		return status.Errorf(codes.PermissionDenied, "stage %d of deployment %.80q is not of node %s, or that was restarted since the plan was made", req.Stage, req.Deployment, node)
	}
	own := m.cfg.Hello
	if !slices.ContainsFunc(p.Stages[req.Stage].Tiers, func(t *pb.BlockTier) bool {
		return t.Kind == pb.BlockTier_REMOTE && t.Node == own.Node && t.Incarnation == own.Incarnation
	}) {
		return status.Errorf(codes.PermissionDenied, "the plan of deployment %.80q keeps no blocks of stage %d on node %s", req.Deployment, req.Stage, m.cfg.NodeName)
	}
	return nil
}

// grant finds the lease that a request names, or makes one.
func (m *Memory) grant(ctx context.Context, node string, req *pb.DonateRequest) (*lease, chan struct{}, error) {
	own := m.cfg.Hello
	h := req.GetHello()
	if h.GetProtocolMax() < own.ProtocolMin || h.GetProtocolMin() > own.ProtocolMax {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "node %.40q speaks protocol %d to %d, this agent %d to %d; update the older one",
			h.GetNode(), h.GetProtocolMin(), h.GetProtocolMax(), own.ProtocolMin, own.ProtocolMax)
	}
	if req.ExpectIncarnation != own.Incarnation {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "agent %s was restarted since the plan was made; the deployment is being placed again", m.cfg.NodeName)
	}
	inc, err := transport.ParseID(h.GetIncarnation())
	if err != nil {
		return nil, nil, status.Errorf(codes.InvalidArgument, "incarnation of the owner: %s", err)
	}
	if req.Bytes == 0 || req.Bytes > transport.MaxTransferBytes {
		return nil, nil, status.Errorf(codes.InvalidArgument, "%d bytes of memory", req.Bytes)
	}
	if err := m.permit(ctx, node, req); err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, nil, status.Error(codes.Unavailable, errStopped.Error())
	}
	if req.Lease != "" {
		l := m.leases[req.Lease]
		if l == nil || l.node != node || l.incarnation != inc || l.deploymentID != req.DeploymentId || l.epoch != req.Epoch || l.stage != req.Stage || uint64(l.bytes) != req.Bytes {
			return nil, nil, status.Errorf(codes.NotFound, "node %s has freed the memory", m.cfg.NodeName)
		}
		return l, l.attach(), nil
	}
	l := &lease{
		node: node, incarnation: inc, deployment: req.Deployment, deploymentID: req.DeploymentId, epoch: req.Epoch, stage: req.Stage,
		bytes: tensor.Bytes(req.Bytes), gone: make(chan struct{}),
	}
	if err := m.allocate(l); err != nil {
		return nil, nil, err
	}
	return l, l.attach(), nil
}

// allocate takes a lease's memory and registers it for its owner alone. It
// needs the mutex.
func (m *Memory) allocate(l *lease) (err error) {
	for _, old := range m.leases {
		if old.node == l.node && old.incarnation != l.incarnation {
			m.end(old, errRestarted)
		}
	}
	if len(m.leases) >= maxLeases {
		return status.Error(codes.ResourceExhausted, errManyLeases.Error())
	}
	l.buffer, err = m.take(l.bytes)
	for _, old := range m.broken() {
		if err == nil {
			break
		}
		m.end(old, errWanted)
		l.buffer, err = m.take(l.bytes)
	}
	if err != nil {
		return err
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		l.buffer.Free()
		return status.Errorf(codes.Internal, "make a lease: %s", err)
	}
	l.id = hex.EncodeToString(raw)
	l.region, err = m.cfg.Transport.Register(l.buffer.Host(), transport.ForPeer(transport.NodeID(l.node)), transport.ForIncarnation(l.incarnation),
		transport.AtEpoch(l.epoch), transport.Readable(), transport.NoCompletions(),
		transport.WithAccept(nil))
	if err != nil {
		l.buffer.Free()
		return status.Errorf(codes.Internal, "register donor memory: %s", err)
	}
	m.used += l.bytes
	m.leases[l.id] = l
	m.log.Info("donor memory given", "owner", l.node, "deployment", l.deployment, "epoch", l.epoch, "bytes", int64(l.bytes))
	return nil
}

// broken lists the leases whose session broke, the largest first, so that few
// are ended.
func (m *Memory) broken() []*lease {
	var out []*lease
	for _, l := range m.leases {
		if l.session == nil {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *lease) int { return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.id, b.id)) })
	return out
}

// take allocates, or says with numbers why not. It needs the mutex.
func (m *Memory) take(n tensor.Bytes) (engine.Buffer, error) {
	if n > m.cfg.Offer-m.used {
		return nil, status.Errorf(codes.ResourceExhausted, "node %s offers %v of donor memory, %v in use; asked %v; raise agent.donate there or keep fewer blocks on it",
			m.cfg.NodeName, m.cfg.Offer, m.used, n)
	}
	b, err := m.cfg.Room.HostBuffer(n)
	if err != nil {
		used, _, limit := m.cfg.Room.HostAccount()
		return nil, status.Errorf(codes.ResourceExhausted, "node %s offers %v of donor memory, %v in use, but of the %v that its agent may use its own stages and donations have %v; asked %v",
			m.cfg.NodeName, m.cfg.Offer, m.used, limit, used, n)
	}
	return b, nil
}
