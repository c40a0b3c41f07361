// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

var (
	dev  = arch.Flux{Channels: 16, Hidden: 3072, Heads: 24, MLP: 12288, Context: 4096, Vector: 768, Double: 19, Single: 38, Axes: []int64{16, 56, 56}, Guidance: true}
	tiny = arch.Flux{Channels: 4, Hidden: 128, Heads: 4, MLP: 512, Context: 64, Vector: 32, Double: 3, Single: 5, Axes: []int64{8, 12, 12}, Guidance: true}
)

func modelRecord(id, name string, f arch.Flux, stored tensor.DType) *pb.ModelRecord {
	g := f.Build(arch.Options{})
	r := &pb.ModelRecord{Id: id, Name: name, Architecture: "flux", Graph: wire.ToProto(g), DefaultDtype: "bf16"}
	add := func(gr *graph.Graph, count int64) {
		for i := range count {
			for _, w := range gr.Weights {
				r.Weights = append(r.Weights, &pb.WeightEntry{Name: graph.Resolve(w.Name, int(i)), Dtype: stored.String(), Shape: w.Shape})
			}
		}
	}
	add(&g.Head, 1)
	add(&g.Tail, 1)
	for i := range g.Runs {
		add(&g.Runs[i].Block, g.Runs[i].Count)
	}
	return r
}

func nodeRecord(name string, memory float64) *pb.NodeRecord {
	return &pb.NodeRecord{
		Id: "n-" + name, Name: name, Incarnation: name + "1", Address: name + ":7800", ProtocolMin: 1, ProtocolMax: 1, OpSet: graph.OpSet,
		LoadBytesPerSecond: 1e9, Devices: []*pb.Device{{
			Name: "cpu", MemoryAllocatableBytes: uint64(memory), NumericsClasses: []string{"native/1/f32", "native/1/bf16"},
			Rates: []*pb.Rates{
				{Dtype: "f32", LinearFlopsPerSecond: 1e11, AttentionFlopsPerSecond: 5e10, ExpandBytesPerSecond: 5e9, ElementwiseBytesPerSecond: 1e10},
				{Dtype: "bf16", LinearFlopsPerSecond: 2e11, AttentionFlopsPerSecond: 1e11, ExpandBytesPerSecond: 5e9, ElementwiseBytesPerSecond: 1e10},
			},
		}},
	}
}

func linkRecord(name string) *pb.LinkRecord {
	return &pb.LinkRecord{Node: "n-" + name, NicBytesPerSecond: 1.18e9, Latency: durationpb.New(100 * time.Microsecond)}
}

// cluster is an etcd with what agents would have written into it.
type cluster struct {
	*testing.T
	ca    *identity.CA
	store *store.Store
	open  func() *store.Store
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	dir, err := identity.OpenDir(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := dir.InitCluster(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Ensure(ca, identity.SlotEtcd, identity.Subject{Role: identity.RoleEtcd, Name: "etcd"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	e, err := store.StartEmbedded(t.Context(), store.EmbeddedConfig{
		Dir: filepath.Join(dir.Path(), "etcd"), Address: "127.0.0.1:0", Cluster: ca.Cluster(), Volatile: true,
		CertFile: dir.CertFile(identity.SlotEtcd), KeyFile: dir.KeyFile(identity.SlotEtcd), CAFile: dir.CAFile(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{T: t, ca: ca}
	c.open = func() *store.Store {
		t.Helper()
		s, err := store.Open(t.Context(), store.Config{
			Endpoints: e.Endpoints(),
			TLS:       c.credentials().ClientTLS(identity.ALPNControl, identity.Expect{Roles: []identity.Role{identity.RoleEtcd}}),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	c.store = c.open()
	return c
}

func (c *cluster) credentials() *identity.Credentials {
	c.Helper()
	creds, err := c.ca.Issue(identity.Subject{Role: identity.RoleCoordinator, Name: "coordinator"}, time.Now())
	if err != nil {
		c.Fatal(err)
	}
	return creds
}

// as is a call by a peer of a role.
func (c *cluster) as(role identity.Role) context.Context {
	c.Helper()
	key, err := identity.NewKey()
	if err != nil {
		c.Fatal(err)
	}
	cert, err := c.ca.Sign(key.Public(), identity.Subject{Role: role, Name: "someone"}, time.Now())
	if err != nil {
		c.Fatal(err)
	}
	state := tls.ConnectionState{HandshakeComplete: true, VerifiedChains: [][]*x509.Certificate{{cert}}}
	return peer.NewContext(c.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}})
}

// new returns a coordinator that does not run.
func (c *cluster) new(address string) *Coordinator {
	c.Helper()
	co, err := New(Config{
		Store: c.open(), Credentials: c.credentials(), Addresses: []string{address}, Version: "test",
		ProtocolMin: 1, ProtocolMax: 1, LeaseTTL: 2 * time.Second,
	})
	if err != nil {
		c.Fatal(err)
	}
	return co
}

// run runs a coordinator until the test ends or the result is called.
func (c *cluster) run(address string) (*Coordinator, func()) {
	c.Helper()
	co := c.new(address)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- co.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			c.Error(err)
		}
	}
	c.Cleanup(stop)
	return co, stop
}

func put[T proto.Message](c *cluster, key store.Key[T], value T) {
	c.Helper()
	if _, err := store.Put(c.Context(), c.store, key, value); err != nil {
		c.Fatal(err)
	}
}

// join registers nodes that hold a model.
func (c *cluster) join(model string, memory map[string]float64) {
	c.Helper()
	for name, m := range memory {
		put(c, store.LinkKey("n-"+name), linkRecord(name))
		put(c, store.HolderKey(model, "n-"+name), &pb.HolderRecord{Model: model, Node: "n-" + name})
		put(c, store.NodeKey("n-"+name), nodeRecord(name, m))
	}
}

// until waits for a state.
func (c *cluster) until(what string, is func(*store.State) bool) *store.State {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	var got *store.State
	stop := context.Canceled
	err := c.store.WatchState(ctx, func(st *store.State) error {
		got = st
		if is(st) {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		c.Fatalf("%s did not come (%v): %v", what, err, got)
	}
	return got
}

// loads answers for the agents: every stage of a plan is loaded.
func (c *cluster) loads(p *pb.Plan, state pb.Observed_State, message string) {
	c.Helper()
	for _, s := range p.GetStages() {
		put(c, store.ObservedKey(p.Deployment, s.Node), &pb.Observed{
			Deployment: p.Deployment, DeploymentId: p.DeploymentId, Node: s.Node, Epoch: p.Epoch, Incarnation: s.Incarnation,
			State: state, Message: message, LoadedBytes: 1e9, TotalBytes: 3e9,
		})
	}
}

func spec(name, model string, change ...func(*pb.DeploymentSpec)) *pb.DeploymentSpec {
	s := &pb.DeploymentSpec{Name: name, Model: model, Workload: &pb.Workload{
		Dims: map[string]int64{"width": 512, "height": 512, "text_tokens": 512, "batch": 1},
	}}
	for _, f := range change {
		f(s)
	}
	return s
}

func stageNames(p *pb.Plan) []string {
	var out []string
	for _, s := range p.GetStages() {
		out = append(out, s.NodeName)
	}
	slices.Sort(out)
	return out
}
