// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/coordinator/endpoint"
	"github.com/distorch/distorch/coordinator/patches"
	"github.com/distorch/distorch/coordinator/web"
	"github.com/distorch/distorch/model/graph"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport"
	"github.com/distorch/distorch/transport/gossip"
	"github.com/distorch/distorch/transport/identity"
	"github.com/distorch/distorch/transport/node"
)

// Coordinator is a coordinator to run, with etcd inside unless the
// configuration names another.
type Coordinator struct {
	Config  *config.Config
	Dir     identity.Dir
	Version string
	Log     *slog.Logger
	// Ready is called once with the address, when everything answers.
	Ready func(ctx context.Context, address string)
	// Brought is given what makes deployments have LoRAs of clients, when the
	// coordinator runs; for tests.
	Brought func(*patches.Patches)
	// Volatile trades etcd's durability for speed; for tests.
	Volatile bool
}

// names of the identities that `up` makes.
const (
	coordinatorName = "coordinator"
	operatorName    = "operator"
	etcdName        = "etcd"
)

// identities makes the cluster's CA and this machine's certificates, or finds
// those that are there.
func (c Coordinator) identities(now time.Time) (*identity.CA, *identity.Credentials, error) {
	ca, err := c.Dir.InitCluster(now)
	if err != nil {
		return nil, nil, err
	}
	creds, err := c.Dir.Ensure(ca, identity.SlotCoordinator, identity.Subject{Role: identity.RoleCoordinator, Name: coordinatorName, Hosts: c.webHosts()}, now)
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.Dir.Ensure(ca, identity.SlotOperator, identity.Subject{Role: identity.RoleOperator, Name: operatorName}, now); err != nil {
		return nil, nil, err
	}
	hosts := []string{"127.0.0.1", "::1", "localhost", identity.EtcdHost}
	for _, addr := range append([]string{c.Config.Coordinator.Etcd.ClientListen}, c.Config.Coordinator.Advertise...) {
		if h, _, err := net.SplitHostPort(addr); err == nil && h != "" {
			hosts = append(hosts, h)
		}
	}
	_, err = c.Dir.Ensure(ca, identity.SlotEtcd, identity.Subject{Role: identity.RoleEtcd, Name: etcdName, Hosts: hosts}, now)
	return ca, creds, err
}

// webHosts are what clients of the HTTPS endpoint may call this machine.
func (c Coordinator) webHosts() []string {
	hosts := []string{identity.WebHost, "localhost", "127.0.0.1", "::1"}
	for _, addr := range append([]string{c.Config.Coordinator.Listen}, c.Config.Coordinator.Advertise...) {
		h, _, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(h); err == nil && h != "" && (ip == nil || !ip.IsUnspecified()) && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Run blocks until ctx ends; parts end in the reverse order of their start.
func (c Coordinator) Run(ctx context.Context) (err error) {
	ca, creds, err := c.identities(time.Now())
	if err != nil {
		return room(c.Dir, err)
	}
	urls, stopEtcd, err := c.etcd(ctx, ca)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopEtcd()) }()
	st, err := c.openStore(ctx, creds, urls)
	if err != nil {
		return fmt.Errorf("open the cluster's state: %w", err)
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	n, err := c.node(ctx, ca, creds, st, urls)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := c.Dir.SaveCluster(identity.Cluster{ID: ca.Cluster(), Etcd: urls, Coordinators: c.addresses(n)}); err != nil {
		return room(c.Dir, err)
	}
	ui, err := c.comfy(ctx, st)
	if err != nil {
		return err
	}
	defer ui.close()
	co, err := coordinator.New(coordinator.Config{
		Comfy: ui, Store: st, Credentials: creds, Addresses: c.addresses(n), Version: c.Version, Log: c.Log,
		LeaseTTL: c.Config.Coordinator.LeaseTTL, ProtocolMin: node.ProtocolMin, ProtocolMax: node.ProtocolMax,
		Link: func(ctx context.Context, address, id, peer string) (*pb.PeerLink, error) {
			return ask(n, address, id, func(conn *grpc.ClientConn) (*pb.PeerLink, error) {
				return pb.NewStageServiceClient(conn).MeasureLink(ctx, &pb.MeasureLinkRequest{Node: id, Peer: peer})
			})
		},
		Stats: func(ctx context.Context, address, id string, req *pb.StageStatsRequest) (*pb.StageStatsResponse, error) {
			return ask(n, address, id, func(conn *grpc.ClientConn) (*pb.StageStatsResponse, error) {
				return pb.NewStageServiceClient(conn).Stats(ctx, req)
			})
		},
		Diagnose: func(ctx context.Context, address, id string, req *pb.DiagnoseRequest) (*pb.DiagnoseResponse, error) {
			return ask(n, address, id, func(conn *grpc.ClientConn) (*pb.DiagnoseResponse, error) {
				return pb.NewNodeServiceClient(conn).Diagnose(ctx, req)
			})
		},
		Lend: func(ctx context.Context, address, id string, req *pb.LendRequest) (*pb.LendResponse, error) {
			return ask(n, address, id, func(conn *grpc.ClientConn) (*pb.LendResponse, error) {
				return pb.NewStageServiceClient(conn).Lend(ctx, req)
			})
		},
	})
	if err != nil {
		return err
	}
	ep, err := endpoint.New(endpoint.Config{
		Plans: co, Transport: n.Host(), Address: n.Address(), Log: c.Log, Silence: c.Config.Transport.SilenceLimit, Allow: mayRun,
		Hello: &pb.Hello{
			Node: n.ID(), Incarnation: n.Incarnation(), OpSet: graph.OpSet,
			ProtocolMin: node.ProtocolMin, ProtocolMax: node.ProtocolMax,
		},
	})
	if err != nil {
		return err
	}
	brought, err := patches.New(patches.Config{Deployments: co, Dir: filepath.Join(c.Dir.Path(), "patches", "kept"), Log: c.Log})
	if err != nil {
		return room(c.Dir, err)
	}
	clients := web.NewDirectory()
	ws, err := web.New(web.Config{
		Control: co, Forwards: ep, Clients: clients, BlobDir: filepath.Join(c.Dir.Path(), "blobs"), LoRAs: brought, Log: c.Log,
	})
	if err != nil {
		return room(c.Dir, err)
	}
	ui.serve(co)
	pb.RegisterControlServer(n.Server(), co)
	pb.RegisterPatchesServer(n.Server(), brought)
	pb.RegisterEndpointServer(n.Server(), ep)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.Run(gctx) })
	g.Go(func() error { return co.Run(gctx) })
	g.Go(func() error { return ui.run(gctx) })
	g.Go(func() error { return ep.Run(gctx) })
	g.Go(func() error { return brought.Run(gctx) })
	if c.Brought != nil {
		c.Brought(brought)
	}
	g.Go(func() error { return clients.Run(gctx, st) })
	g.Go(func() error { return ws.Run(gctx, n.Web()) })
	if c.Ready != nil {
		g.Go(func() error { c.Ready(gctx, n.Address()); return nil })
	}
	return g.Wait()
}

// ask calls the agent at an address.
func ask[A any](n *node.Node, address, id string, call func(*grpc.ClientConn) (*A, error)) (*A, error) {
	conn, err := n.Host().Dial(address, transport.NodeID(id))
	if err != nil {
		return nil, err
	}
	return call(conn)
}

// room says what to do about a full disk.
func room(dir identity.Dir, err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the disk of %s is full; free space there or use another --data-dir: %w", dir.Path(), err)
	}
	return err
}

// mayRun admits to the endpoint those who make pictures.
func mayRun(ctx context.Context) error {
	if _, ok := coordinator.Client(ctx); ok {
		return nil
	}
	p, err := identity.PeerFromContext(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if p.Role != identity.RoleOperator && p.Role != identity.RoleClient {
		return status.Errorf(codes.PermissionDenied, "%s may not run a deployment; use an operator's or a client's identity", p)
	}
	return nil
}

// addresses are where others reach this coordinator.
func (c Coordinator) addresses(n *node.Node) []string {
	if a := c.Config.Coordinator.Advertise; len(a) > 0 {
		return a
	}
	return []string{n.Address()}
}

// etcd starts the embedded server, unless there is another one.
func (c Coordinator) etcd(ctx context.Context, ca *identity.CA) (urls []string, stop func() error, err error) {
	e := c.Config.Coordinator.Etcd
	if len(e.Endpoints) > 0 {
		return e.Endpoints, func() error { return nil }, nil
	}
	em, err := store.StartEmbedded(ctx, store.EmbeddedConfig{
		Dir: filepath.Join(c.Dir.Path(), "etcd"), Address: e.ClientListen, Cluster: ca.Cluster(), Logger: c.Log,
		CertFile: c.Dir.CertFile(identity.SlotEtcd), KeyFile: c.Dir.KeyFile(identity.SlotEtcd), CAFile: c.Dir.CAFile(),
		Volatile: c.Volatile,
	})
	if err != nil {
		return nil, nil, err
	}
	return em.Endpoints(), em.Close, nil
}

func (c Coordinator) openStore(ctx context.Context, creds *identity.Credentials, urls []string) (*store.Store, error) {
	tls := creds.ClientTLS(identity.ALPNControl, identity.Expect{Roles: []identity.Role{identity.RoleEtcd}})
	e := c.Config.Coordinator.Etcd
	if len(e.Endpoints) > 0 && e.CAFile != "" {
		var err error
		if tls, err = externalTLS(e); err != nil {
			return nil, err
		}
	}
	return store.Open(ctx, store.Config{Endpoints: urls, TLS: tls, Logger: c.Log})
}

// node opens the port, which also answers joins.
func (c Coordinator) node(ctx context.Context, ca *identity.CA, creds *identity.Credentials, st *store.Store, urls []string) (*node.Node, error) {
	key, err := c.Dir.GossipKey()
	if err != nil {
		return nil, err
	}
	var n *node.Node
	join, err := identity.NewJoinServer(identity.JoinConfig{
		CA: ca, Tokens: st, GossipKey: key, Logger: c.Log,
		Cluster: func() identity.Cluster {
			return identity.Cluster{ID: ca.Cluster(), Etcd: urls, Coordinators: c.addresses(n)}
		},
	})
	if err != nil {
		return nil, err
	}
	advertise := ""
	if a := c.Config.Coordinator.Advertise; len(a) > 0 {
		advertise = a[0]
	}
	n, err = node.New(ctx, node.Config{
		Credentials: creds, Listen: c.Config.Coordinator.Listen, Advertise: advertise, GossipKey: key, Join: join, Web: true,
		Seeds:            func(ctx context.Context) ([]gossip.Seed, error) { return seeds(ctx, st) },
		HandshakeTimeout: c.Config.Transport.HandshakeTimeout, RedialFor: c.Config.Transport.RedialFor, Log: c.Log,
	})
	return n, err
}

func seeds(ctx context.Context, st *store.Store) ([]gossip.Seed, error) {
	snap, err := store.List(ctx, st, store.Nodes())
	if err != nil {
		return nil, err
	}
	var out []gossip.Seed
	for _, e := range snap.Entries {
		out = append(out, gossip.Seed{Node: e.Value.Id, Addr: e.Value.Address})
	}
	return out, nil
}
