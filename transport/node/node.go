// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package node is a process's one TCP port: mutual TLS, split by protocol into
// gRPC (with bulk transfers), gossip and, on a coordinator, joining and HTTPS.
//
// The agent and the coordinator's commands import it. It must not import
// either of them, the store or the generated protobuf packages.
//
// Ownership: Run owns the listener, the gRPC server, the transport host, the
// gossip member and the join server, and joins all of them before it returns.
package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/distorch/distorch/transport"
	"github.com/distorch/distorch/transport/gossip"
	"github.com/distorch/distorch/transport/identity"
)

// Protocol versions that this build speaks.
const (
	ProtocolMin = 1
	ProtocolMax = 1
)

// A peer that left without a word (a machine that lost its power) is noticed
// after both, and what it held here is free again: an endpoint's sessions.
const (
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
)

// Config of a Node.
type Config struct {
	Credentials *identity.Credentials
	Listen      string // host:port; port 0 takes a free one
	Advertise   string // host:port that peers dial; empty: the listening address
	GossipKey   []byte
	// Join answers ALPNJoin; nil on anything but a coordinator.
	Join *identity.JoinServer
	// Web opens ALPNWeb to clients without a certificate: take its connections
	// from Web. Only with Join.
	Web bool
	// Seeds lists members that gossip should know; may be nil.
	Seeds func(ctx context.Context) ([]gossip.Seed, error)
	// Events is told of members that come and go; may be nil.
	Events           func(gossip.Event)
	HandshakeTimeout time.Duration
	RedialFor        time.Duration
	Log              *slog.Logger // may be nil
}

// Node is a process's port and what is served there.
type Node struct {
	cfg         Config
	log         *slog.Logger
	incarnation [16]byte
	listener    net.Listener
	mux         *identity.Mux
	control     net.Listener
	gossipLn    net.Listener
	joinLn      net.Listener
	webLn       net.Listener
	server      *grpc.Server
	host        *transport.Host
	gossip      *gossip.Gossip
	advertise   string
}

// New opens the port. Register services on Server, then call Run.
func New(ctx context.Context, cfg Config) (_ *Node, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg, log: cfg.Log}
	if _, err := rand.Read(n.incarnation[:]); err != nil {
		return nil, fmt.Errorf("make an incarnation: %w", err)
	}
	ln, err := transport.Listen(ctx, cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("%w; if another program has the port, choose another with --listen (--agent-listen of the agent inside up)", err)
	}
	n.listener = ln
	defer func() {
		if err != nil {
			err = errors.Join(err, ln.Close(), n.closeHost())
		}
	}()
	if n.advertise = cfg.Advertise; n.advertise == "" {
		n.advertise = ln.Addr().String()
	}
	if a, perr := netip.ParseAddrPort(n.advertise); perr == nil && a.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listening on %s: peers cannot dial that address; say with --advertise HOST:PORT where they reach this machine", n.advertise)
	}
	if err := n.open(ln); err != nil {
		return nil, err
	}
	n.server = grpc.NewServer(append(transport.ServerOptions(), grpc.Creds(transport.ServerCredentials(identity.AcceptedCredentials())), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}))...)
	n.host, err = transport.New(transport.Config{
		PeerFrom: PeerFrom,
		Credentials: func(id transport.NodeID) (credentials.TransportCredentials, error) {
			return cfg.Credentials.ClientCredentials(identity.Expect{ID: string(id)}), nil
		},
		RedialFor: cfg.RedialFor, Logger: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	n.host.RegisterService(n.server)
	if err := n.startGossip(); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *Node) open(ln net.Listener) error {
	c := n.cfg.Credentials
	protocols := []string{identity.ALPNControl, identity.ALPNGossip}
	tls := c.ServerTLS(protocols)
	switch {
	case n.cfg.Join != nil && n.cfg.Web:
		tls = c.ServerTLSWithWeb(protocols)
	case n.cfg.Join != nil:
		tls = c.ServerTLSWithJoin(protocols)
	}
	var err error
	if n.mux, err = identity.NewMux(identity.MuxConfig{Listener: ln, TLS: tls, Logger: n.log, HandshakeTimeout: n.cfg.HandshakeTimeout}); err != nil {
		return err
	}
	if n.control, err = n.mux.Listen(identity.ALPNControl); err != nil {
		return err
	}
	if n.gossipLn, err = n.mux.Listen(identity.ALPNGossip, identity.RoleAgent, identity.RoleCoordinator); err != nil {
		return err
	}
	if n.cfg.Join != nil {
		if n.joinLn, err = n.mux.Listen(identity.ALPNJoin); err != nil {
			return err
		}
	}
	if n.cfg.Join != nil && n.cfg.Web {
		n.webLn, err = n.mux.Listen(identity.ALPNWeb)
	}
	return err
}

func (n *Node) startGossip() error {
	addr, err := netip.ParseAddrPort(n.advertise)
	if err != nil {
		// A name instead of an address: gossip tells members addresses, so it
		// advertises what the listener has.
		if addr, err = netip.ParseAddrPort(n.mux.Addr().String()); err != nil {
			return fmt.Errorf("advertise %s: %w", n.advertise, err)
		}
	}
	n.gossip, err = gossip.New(gossip.Config{
		Meta:      gossip.Meta{ID: n.cfg.Credentials.Self().ID, Incarnation: n.incarnation, Port: addr.Port()},
		Advertise: addr, Listener: n.gossipLn, SecretKey: n.cfg.GossipKey, Seeds: n.cfg.Seeds, Events: n.cfg.Events, Logger: n.log,
		Dial: func(ctx context.Context, addr, node string) (net.Conn, error) {
			return n.cfg.Credentials.Dial(ctx, addr, identity.ALPNGossip,
				identity.Expect{Roles: []identity.Role{identity.RoleAgent, identity.RoleCoordinator}, ID: node})
		},
	})
	return err
}

// Close closes the port of a node that will not run. After Run it does nothing.
func (n *Node) Close() error {
	err := n.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	n.server.Stop()
	return errors.Join(err, n.closeHost())
}

func (n *Node) closeHost() error {
	if n.host == nil {
		return nil
	}
	return n.host.Close()
}

// PeerFrom names the caller of an RPC by its certificate.
func PeerFrom(ctx context.Context) (node, role string, err error) {
	p, err := identity.PeerFromContext(ctx)
	if err != nil {
		return "", "", err
	}
	return p.ID, string(p.Role), nil
}

// Server is where services are registered before Run.
func (n *Node) Server() *grpc.Server { return n.server }

// Host is the process's end of the transport.
func (n *Node) Host() *transport.Host { return n.host }

// Gossip is the process as a member.
func (n *Node) Gossip() *gossip.Gossip { return n.gossip }

// Web has the connections of HTTPS clients, their handshake done; nil unless
// Config.Web asks for it. Run closes it.
func (n *Node) Web() net.Listener { return n.webLn }

// ID is the node id of the credentials.
func (n *Node) ID() string { return n.cfg.Credentials.Self().ID }

// Incarnation names this process, in hex.
func (n *Node) Incarnation() string { return hex.EncodeToString(n.incarnation[:]) }

// Address is where peers dial.
func (n *Node) Address() string { return n.advertise }

// Run serves until ctx ends or a part fails.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.mux.Run(ctx) })
	g.Go(func() error {
		if err := n.server.Serve(n.control); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serve gRPC on %s: %w", n.advertise, err)
		}
		return nil
	})
	g.Go(func() error { return n.host.Run(ctx) })
	g.Go(func() error { return n.gossip.Run(ctx) })
	if n.cfg.Join != nil {
		g.Go(func() error { return n.cfg.Join.Serve(ctx, n.joinLn) })
	}
	g.Go(func() error {
		<-ctx.Done()
		n.server.Stop()
		return nil
	})
	return g.Wait()
}
