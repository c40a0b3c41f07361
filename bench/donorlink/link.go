// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package donorlink is two nodes in network namespaces, joined by a link of a
// given rate, of which one keeps blocks for the other: transport, identities
// and mutual TLS as between agents, without a cluster around them.
//
// Imported by the benches and by tests. It may import all of distorch that has
// no part in the control plane.
package donorlink

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/distorch/distorch/agent/donor"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/internal/netns"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
	"github.com/distorch/distorch/transport/identity"
	"github.com/distorch/distorch/transport/node"
)

// Config of a Link.
type Config struct {
	BitsPerSecond uint64     // each way; 0: unshaped
	Room          donor.Room // of the node that gives
	Offer         tensor.Bytes
	Threads       int // of the owner, that decode
	// Loopback leaves the namespaces away.
	Loopback bool
}

// Link is the two nodes.
type Link struct {
	Memory  *donor.Memory
	network *netns.Network
	owner   *donor.Owner
	want    donor.Want
	closers []func() error
	wg      sync.WaitGroup
	stop    context.CancelFunc
}

const (
	deployment = "bench"
	epoch      = 1
)

func id(k byte) string { return hex.EncodeToString(append(make([]byte, 15), k)) }

// New builds the network and both nodes. On an error nothing is left.
func New(ctx context.Context, cfg Config) (_ *Link, err error) {
	l := &Link{}
	ctx, l.stop = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	listen := func() (net.Listener, error) { return transport.Listen(ctx, "127.0.0.1:0") }
	var dial func(context.Context, string) (net.Conn, error)
	if !cfg.Loopback {
		if l.network, err = netns.New(netns.Options{Hosts: 2, BitsPerSecond: cfg.BitsPerSecond}); err != nil {
			return nil, err
		}
		hosts := l.network.Hosts()
		listen = func() (ln net.Listener, err error) {
			err = hosts[1].Do(func() error {
				ln, err = transport.Listen(ctx, net.JoinHostPort(hosts[1].Addr().String(), "0"))
				return err
			})
			return ln, err
		}
		dial = func(ctx context.Context, addr string) (conn net.Conn, err error) {
			err = hosts[0].Do(func() error {
				d := net.Dialer{Control: transport.SocketControl}
				conn, err = d.DialContext(ctx, "tcp", addr)
				return err
			})
			return conn, err
		}
	}
	return l, l.build(ctx, cfg, listen, dial)
}

func (l *Link) build(ctx context.Context, cfg Config, listen func() (net.Listener, error), dial func(context.Context, string) (net.Conn, error)) error {
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		return err
	}
	var hosts [2]*transport.Host
	var certs [2]*identity.Credentials
	for i, name := range [...]string{"owner", "donor"} {
		if certs[i], err = ca.Issue(identity.Subject{Role: identity.RoleAgent, Name: name}, time.Now()); err != nil {
			return err
		}
		hosts[i], err = transport.New(transport.Config{
			PeerFrom: node.PeerFrom, DialContext: dial,
			Credentials: func(to transport.NodeID) (credentials.TransportCredentials, error) {
				return certs[i].ClientCredentials(identity.Expect{ID: string(to)}), nil
			},
		})
		if err != nil {
			return err
		}
		l.closers = append(l.closers, hosts[i].Close)
	}
	hello := func(i int) *pb.Hello {
		return &pb.Hello{Node: certs[i].Self().ID, Incarnation: id(byte(i)), ProtocolMin: 1, ProtocolMax: 1}
	}
	l.Memory, err = donor.NewMemory(donor.MemoryConfig{Transport: hosts[1], Room: cfg.Room, Offer: cfg.Offer, Hello: hello(1), NodeName: "donor"})
	if err != nil {
		return err
	}
	l.Memory.Plans(map[string]*pb.Plan{deployment: {
		Deployment: deployment, DeploymentId: id(9), Epoch: epoch,
		Stages: []*pb.Stage{{Node: certs[0].Self().ID, Incarnation: id(0), Tiers: []*pb.BlockTier{{Kind: pb.BlockTier_REMOTE, Node: certs[1].Self().ID, Incarnation: id(1)}}}},
	}})
	ln, err := l.serve(ctx, hosts[1], certs[1], listen)
	if err != nil {
		return err
	}
	l.wg.Go(func() { _ = l.Memory.Run(ctx) }) // never fails
	if l.owner, err = donor.NewOwner(donor.OwnerConfig{Transport: hosts[0], Hello: hello(0), Threads: cfg.Threads}); err != nil {
		return err
	}
	l.want = donor.Want{
		Node: transport.NodeID(certs[1].Self().ID), NodeName: "donor", Address: ln.Addr().String(), Incarnation: id(1),
		Deployment: deployment, DeploymentID: id(9), Epoch: epoch,
	}
	return nil
}

// service is the one RPC that a donor answers.
type service struct {
	pb.UnimplementedStageServiceServer
	memory *donor.Memory
}

func (s service) Donate(stream pb.StageService_DonateServer) error {
	peer, _, err := node.PeerFrom(stream.Context())
	if err != nil {
		return err
	}
	return s.memory.Serve(stream, peer)
}

func (l *Link) serve(ctx context.Context, h *transport.Host, c *identity.Credentials, listen func() (net.Listener, error)) (net.Listener, error) {
	ln, err := listen()
	if err != nil {
		return nil, err
	}
	mux, err := identity.NewMux(identity.MuxConfig{Listener: ln, TLS: c.ServerTLS([]string{identity.ALPNControl})})
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	control, err := mux.Listen(identity.ALPNControl)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s := grpc.NewServer(append(transport.ServerOptions(), grpc.Creds(transport.ServerCredentials(identity.AcceptedCredentials())))...)
	h.RegisterService(s)
	pb.RegisterStageServiceServer(s, service{memory: l.Memory})
	l.wg.Go(func() { _ = mux.Run(ctx) })
	l.wg.Go(func() { _ = s.Serve(control) }) // ends with Stop
	l.closers = append(l.closers, func() error { s.Stop(); return nil })
	return ln, nil
}

// Claim is memory of the donor for blocks of these sizes.
func (l *Link) Claim(ctx context.Context, blocks []tensor.Bytes, compressed bool) (*donor.Claim, error) {
	w := l.want
	w.Blocks, w.Compressed = blocks, compressed
	return l.owner.Claim(ctx, w)
}

// Place is the donor's memory as a tier of a stage.
func (l *Link) Place(compressed bool) offload.Place { return place{l, compressed} }

type place struct {
	link       *Link
	compressed bool
}

func (p place) Name() string { return p.link.want.NodeName }

func (p place) Claim(ctx context.Context, sizes []tensor.Bytes) (offload.Claim, error) {
	c, err := p.link.Claim(ctx, sizes, p.compressed)
	if err != nil {
		return nil, err
	}
	return claim{c}, nil
}

type claim struct{ *donor.Claim }

func (c claim) Reader(i int) offload.Reader { return c.Claim.Reader(i) }

// SetRate changes the link's rate.
func (l *Link) SetRate(bitsPerSecond uint64) error {
	var errs []error
	for _, h := range l.network.Hosts() {
		errs = append(errs, h.SetRate(bitsPerSecond))
	}
	return errors.Join(errs...)
}

// Close ends both nodes; claims are closed before.
func (l *Link) Close() error {
	l.stop()
	var errs []error
	for _, c := range slices.Backward(l.closers) {
		errs = append(errs, c())
	}
	l.wg.Wait()
	if l.network != nil {
		errs = append(errs, l.network.Close())
	}
	return errors.Join(errs...)
}
