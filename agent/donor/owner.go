// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/model/planes"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

const (
	claimTimeout = 10 * time.Second
	// attachPause is between tries to come back to a node after a break.
	attachPause = 200 * time.Millisecond
	// releaseTimeout bounds Close: the node frees what a silent owner has.
	releaseTimeout = time.Second
)

// OwnerConfig configures an Owner. Log may be nil.
type OwnerConfig struct {
	Transport *transport.Host
	Hello     *pb.Hello // this agent
	Threads   int       // that decode; 0 is 1
	Log       *slog.Logger
}

// Owner asks other nodes for memory.
type Owner struct {
	cfg         OwnerConfig
	log         *slog.Logger
	incarnation [16]byte
	codec       *planes.Codec
}

// NewOwner checks the configuration.
func NewOwner(cfg OwnerConfig) (*Owner, error) {
	if cfg.Transport == nil || cfg.Hello == nil {
		return nil, errors.New("donor: transport and hello are both needed")
	}
	inc, err := transport.ParseID(cfg.Hello.Incarnation)
	if err != nil {
		return nil, fmt.Errorf("donor: own incarnation: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Threads = max(1, cfg.Threads)
	return &Owner{cfg: cfg, log: cfg.Log, incarnation: inc, codec: planes.New(cfg.Threads)}, nil
}

// Want says which memory is asked of whom: room for blocks of so many bytes, as
// a plan has it.
type Want struct {
	Node                           transport.NodeID
	NodeName, Address, Incarnation string
	Deployment, DeploymentID       string
	Epoch                          uint64
	Stage                          uint32
	Blocks                         []tensor.Bytes // of each block, in the order in which Store and Reader count
	// Compressed keeps the blocks compressed without loss, where that makes them
	// smaller: for links that are slower than decoding.
	Compressed bool
	// Lost is called once when the memory is gone, by a goroutine of the claim; it
	// must not wait. It may be nil.
	Lost func()
}

// Claim is memory of another node that this process may use.
type Claim struct {
	owner         *Owner
	want          Want
	imm           transport.Immediate
	key           transport.RemoteKey
	used, offered tensor.Bytes // as the node said
	lease         string
	keep          time.Duration
	offsets       []uint64
	seed          uint64

	stop context.CancelFunc
	wg   sync.WaitGroup
	lost chan struct{}

	mu     sync.Mutex
	blocks [][]group // of each stored block
	err    error     // why the memory is lost
}

// Claim asks for memory. It fails with an Error that names the node.
func (o *Owner) Claim(ctx context.Context, w Want) (*Claim, error) {
	c := &Claim{owner: o, want: w, lost: make(chan struct{}), blocks: make([][]group, len(w.Blocks))}
	id, err := transport.ParseID(w.DeploymentID)
	if err != nil {
		return nil, fmt.Errorf("deployment %s: %w", w.Deployment, err)
	}
	c.imm = transport.Immediate{DeploymentID: id, Epoch: w.Epoch, Stage: w.Stage, SenderIncarnation: o.incarnation}
	total := uint64(0)
	for _, n := range w.Blocks {
		c.offsets = append(c.offsets, total)
		total += uint64(n)
	}
	c.offsets = append(c.offsets, total)
	if c.seed, err = newSeed(); err != nil {
		return nil, err
	}
	s, err := c.open(ctx)
	if err != nil {
		return nil, c.fail(err)
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.wg.Go(func() { c.hold(life, s) })
	return c, nil
}

// Node is whose memory it is.
func (c *Claim) Node() transport.NodeID { return c.want.Node }

// Use is what the node said of its memory when it gave this.
func (c *Claim) Use() (used, offered tensor.Bytes) { return c.used, c.offered }

// Lost is closed when the memory is gone; Err says why.
func (c *Claim) Lost() <-chan struct{} { return c.lost }

// Err is why the memory is gone; nil while it is not.
func (c *Claim) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close releases the memory. Reads that are under way fail.
func (c *Claim) Close() {
	c.stop()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = c.fail(fmt.Errorf("%w: %w", ErrLost, errReleased))
	}
}

// fail names the node.
func (c *Claim) fail(err error) *Error {
	return &Error{Node: c.want.Node, Name: c.want.NodeName, Address: c.want.Address, Err: err}
}

// session is one stream with the node.
type session struct {
	stream pb.StageService_DonateClient
	end    context.CancelFunc
}

// open asks for the memory, or for the lease that is there already. The answer
// is waited for as long as ctx lasts; the stream outlives it.
func (c *Claim) open(ctx context.Context) (*session, error) {
	conn, err := c.owner.cfg.Transport.Dial(c.want.Address, c.want.Node)
	if err != nil {
		return nil, err
	}
	sctx, end := context.WithCancel(context.WithoutCancel(ctx))
	late := time.AfterFunc(claimTimeout, end)
	defer late.Stop()
	stop := context.AfterFunc(ctx, end)
	s, err := c.ask(pb.NewStageServiceClient(conn).Donate(sctx))
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		return nil, reasonOf(err)
	}
	s.end = end
	return s, nil
}

func (c *Claim) ask(stream pb.StageService_DonateClient, err error) (*session, error) {
	if err != nil {
		return nil, err
	}
	w := &c.want
	req := &pb.DonateRequest{
		Hello: c.owner.cfg.Hello, Deployment: w.Deployment, DeploymentId: w.DeploymentID, Epoch: w.Epoch, Stage: w.Stage,
		Bytes: c.offsets[len(c.offsets)-1], ExpectIncarnation: w.Incarnation, Lease: c.lease,
	}
	// An error of Send says less than the status that Recv then has.
	_ = stream.Send(&pb.DonorCommand{Command: &pb.DonorCommand_Request{Request: req}})
	ev, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	g := ev.GetGranted()
	key, err := transport.KeyFromProto(g.GetKey())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if key.Bytes != req.Bytes || g.GetHello().GetIncarnation() != w.Incarnation {
		return nil, fmt.Errorf("%w: it gave %d bytes for %d as incarnation %.40q", ErrRefused, key.Bytes, req.Bytes, g.GetHello().GetIncarnation())
	}
	if c.lease == "" {
		c.key, c.lease, c.keep = key, g.Lease, max(g.Keep.AsDuration(), time.Second/2)
		c.offered, c.used = tensor.Bytes(g.OfferedBytes), tensor.Bytes(g.UsedBytes)
	} else if key != c.key {
		return nil, fmt.Errorf("%w: it gave other memory", ErrLost)
	}
	return &session{stream: stream}, nil
}

// reasonOf turns a status into an error of this package.
func reasonOf(err error) error {
	st := status.Convert(err)
	switch st.Code() {
	case codes.ResourceExhausted:
		return fmt.Errorf("%w: %s", ErrFull, st.Message())
	case codes.NotFound, codes.FailedPrecondition, codes.Aborted:
		return fmt.Errorf("%w: %s", ErrLost, st.Message())
	case codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented, codes.Unauthenticated:
		return fmt.Errorf("%w: %s", ErrRefused, st.Message())
	case codes.Canceled:
		return fmt.Errorf("no answer within %v", claimTimeout)
	}
	return err
}

// final says whether trying again is in vain.
func final(err error) bool {
	return errors.Is(err, ErrLost) || errors.Is(err, ErrRefused) || errors.Is(err, ErrFull)
}

// hold keeps the session until the claim is closed or the memory is lost.
func (c *Claim) hold(life context.Context, s *session) {
	for s != nil {
		heard, err := c.attend(life, s)
		if life.Err() != nil {
			return
		}
		c.owner.log.Warn("session with donor broken", "node_id", string(c.want.Node), "node", c.want.NodeName, "error", err)
		if s, err = c.again(life, heard, err); err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			close(c.lost)
			if c.want.Lost != nil {
				c.want.Lost()
			}
		}
	}
}

// again comes back to the lease while the node keeps it; nil and nil when the
// claim is closed.
func (c *Claim) again(life context.Context, heard time.Time, err error) (*session, error) {
	for !final(err) && time.Since(heard) < c.keep {
		select {
		case <-life.Done():
		case <-time.After(attachPause):
		}
		ctx, cancel := context.WithTimeout(life, max(c.keep-time.Since(heard), attachPause))
		var s *session
		s, err = c.open(ctx)
		cancel()
		if life.Err() != nil && s == nil {
			return nil, nil
		}
		if err == nil {
			return s, nil
		}
	}
	if !errors.Is(err, ErrLost) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil, c.fail(err)
}

// attend exchanges heartbeats until the session breaks, and releases the memory
// when the claim is closed. It says when the node was last heard.
func (c *Claim) attend(life context.Context, s *session) (heard time.Time, err error) {
	events, stop := make(chan error), make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.end()
	defer close(stop)
	wg.Go(func() {
		for err := error(nil); err == nil; {
			_, err = s.stream.Recv()
			select {
			case events <- err:
			case <-stop:
				return
			}
		}
	})
	beat := time.NewTicker(c.keep / beats)
	defer beat.Stop()
	for heard = time.Now(); ; {
		select {
		case err := <-events:
			if err != nil {
				return heard, reasonOf(err)
			}
			heard = time.Now()
		case <-beat.C:
			if time.Since(heard) >= c.keep {
				return heard, errors.New("it was silent")
			}
			// Recv says why a Send failed.
			_ = s.stream.Send(&pb.DonorCommand{Command: &pb.DonorCommand_Heartbeat{Heartbeat: durationpb.New(c.keep)}})
		case <-life.Done():
			return heard, release(s, events)
		}
	}
}

// release gives the memory back and waits a little for the answer, since the
// next plan may want it at once.
func release(s *session, events <-chan error) error {
	if err := s.stream.Send(&pb.DonorCommand{Command: &pb.DonorCommand_Release_{Release: &pb.DonorCommand_Release{}}}); err != nil {
		return err
	}
	late := time.NewTimer(releaseTimeout)
	defer late.Stop()
	for {
		select {
		case err := <-events:
			if err != nil {
				return err // the node ends the session when it has freed the memory
			}
		case <-late.C:
			return errors.New("no answer")
		}
	}
}
