// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Config of a Host.
type Config struct {
	// PeerFrom names the authenticated peer of a server's RPC. Required.
	PeerFrom func(ctx context.Context) (nodeID, role string, err error)
	// Credentials for dialling a node; they must refuse any other identity.
	// Required.
	Credentials func(node NodeID) (credentials.TransportCredentials, error)
	// DialContext opens a connection; nil dials TCP with SocketControl.
	DialContext func(ctx context.Context, addr string) (net.Conn, error)
	// Accept is the policy of regions registered without WithAccept; nil
	// accepts whatever key, peer, epoch and range allow.
	Accept AcceptFunc
	// RedialFor is how long a broken connection is dialled again before its
	// transfers fail with ErrPeerUnreachable; 0 is 1 s.
	RedialFor time.Duration
	// SilentFor is how long no byte may come from a peer while something is being
	// read from it before its connection is taken for broken; 0 is 1 s.
	SilentFor time.Duration
	Logger    *slog.Logger // nil logs nothing
}

const (
	defaultRedial = time.Second
	defaultSilent = time.Second
)

// Host is a process's end of the transport: its regions, its connections and
// its completion queues. Safe for concurrent use.
type Host struct {
	cfg    Config
	log    *slog.Logger
	queue  *Queue
	ctx    context.Context // ends when the Host closes; parent of the links' streams
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu         sync.Mutex
	closed     bool
	regions    map[uint64]*Region
	lastRegion uint64
	inbound    map[linkKey]*inboundLink
	linkClock  uint64
	links      map[target]*link
	readers    map[target]*readLink
	conns      map[target]*grpc.ClientConn
	queues     []*Queue
}

// target is one peer at one address.
type target struct {
	addr string
	node NodeID
}

// New makes a Host. Close it, or let Run do so.
func New(cfg Config) (*Host, error) {
	if cfg.PeerFrom == nil || cfg.Credentials == nil {
		return nil, errors.New("transport: Config needs PeerFrom and Credentials")
	}
	if cfg.RedialFor <= 0 {
		cfg.RedialFor = defaultRedial
	}
	if cfg.SilentFor <= 0 {
		cfg.SilentFor = defaultSilent
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	h := &Host{
		cfg:     cfg,
		log:     log,
		ctx:     ctx,
		cancel:  cancel,
		regions: map[uint64]*Region{},
		inbound: map[linkKey]*inboundLink{},
		links:   map[target]*link{},
		readers: map[target]*readLink{},
		conns:   map[target]*grpc.ClientConn{},
	}
	h.queue = h.NewQueue()
	return h, nil
}

// Run waits until ctx ends, then closes the Host.
func (h *Host) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-h.ctx.Done():
	}
	return h.Close()
}

// Close fails what is in flight with ErrClosed, closes connections and
// queues, and waits for every goroutine of the Host. Handlers of RPCs belong to
// the gRPC server; stop that too.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		h.wg.Wait()
		return nil
	}
	h.closed = true
	conns, queues := h.conns, h.queues
	h.conns, h.queues = nil, nil
	h.mu.Unlock()

	h.cancel(ErrClosed)
	for _, q := range queues {
		close(q.stop)
	}
	var errs []error
	for t, c := range conns {
		if err := c.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close connection to %s: %w", t.addr, err))
		}
	}
	h.wg.Wait()
	return errors.Join(errs...)
}

// NewQueue makes a completion queue of its own, for OnQueue. It ends with the
// Host.
func (h *Host) NewQueue() *Queue {
	q := newQueue()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(q.out)
		return q
	}
	h.queues = append(h.queues, q)
	h.wg.Go(q.run)
	return q
}

// Completions delivers the completions of regions registered without OnQueue.
func (h *Host) Completions() <-chan Completion { return h.queue.out }

// WriteImm writes the concatenation of src to dst at offset off and lets imm
// appear on the target's completion queue. It returns nil when the receiver
// has acknowledged the last byte; a RefusedError when it refused;
// ErrPeerUnreachable when no connection could be kept; or the context's error,
// in which case the target may or may not have completed the transfer. The
// bytes of src must not change before it returns. A cancelled context returns
// as soon as gRPC has let go of src: at once, or within 2*sourceGrace if the
// peer has stopped reading, whose connection is then broken on purpose.
func (h *Host) WriteImm(ctx context.Context, addr string, peer NodeID, dst RemoteKey, off uint64, src [][]byte, imm Immediate) error {
	t := newTransfer(dst, off, src, imm)
	if t.total > MaxTransferBytes || off > dst.Bytes || t.total > dst.Bytes-off {
		return fmt.Errorf("write %d bytes at %d to region %d of node %s, which has %d: %w", t.total, off, dst.Region, peer, dst.Bytes, ErrOutOfRange)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write to node %s: %w", peer, context.Cause(ctx))
	}
	l, err := h.link(target{addr, peer})
	if err != nil {
		return fmt.Errorf("write to node %s: %w", peer, err)
	}
	if err := l.submit(ctx, t); err != nil {
		return fmt.Errorf("write to node %s: %w", peer, err)
	}
	select {
	case <-t.done:
	case <-ctx.Done():
		l.cancel(t, context.Cause(ctx))
	}
	l.release(t)
	if t.err != nil {
		return fmt.Errorf("write %d bytes to node %s: %w", t.total, peer, t.err)
	}
	return nil
}

// link finds or makes the sending side of a target.
func (h *Host) link(t target) (*link, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	if l := h.links[t]; l != nil {
		return l, nil
	}
	l := &link{host: h, target: t, wake: make(chan struct{}, 1), slots: make(chan struct{}, maxOutstanding)}
	if _, err := rand.Read(l.id[:]); err != nil {
		return nil, err
	}
	h.links[t] = l
	h.wg.Go(l.run)
	return l, nil
}
