// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

// process is one part of a cluster in this process, with a context of its own.
type process struct {
	t       testing.TB
	cancel  context.CancelFunc
	done    chan error
	address string
	dir     identity.Dir
}

func start(t testing.TB, what string, run func(ctx context.Context, ready func(string)) error) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, cancel: cancel, done: make(chan error, 1)}
	ready := make(chan string, 1)
	go func() { p.done <- run(ctx, func(a string) { ready <- a }) }()
	select {
	case p.address = <-ready:
	case err := <-p.done:
		t.Fatalf("%s ended at its start: %v", what, err)
	case <-time.After(60 * time.Second):
		t.Fatalf("%s was not ready in a minute", what)
	}
	t.Cleanup(func() { p.stop() })
	return p
}

func (p *process) stop() {
	p.cancel()
	select {
	case err := <-p.done:
		if err != nil && !errors.Is(err, context.Canceled) {
			p.t.Error(err)
		}
	case <-time.After(60 * time.Second):
		p.t.Error("a process did not end in a minute")
	}
	p.done <- nil // a second stop finds it ended
}

func testConfig(dir string) *config.Config {
	c := config.Default()
	c.DataDir = dir
	c.Coordinator.Listen, c.Coordinator.Etcd.ClientListen = "127.0.0.1:0", "127.0.0.1:0"
	c.Agent.Listen = "127.0.0.1:0"
	c.Agent.Threads = 1
	c.Agent.Memory = 2e9
	c.Models.Dirs = []string{filepath.Dir(demoFile)}
	c.Agent.Engine = "native"
	if torchtest.Chosen() {
		c.Agent.Engine, c.Agent.Torch.Python = "torch", os.Getenv(torchtest.Variable)
	}
	return &c
}

func openDir(t testing.TB, path string) identity.Dir {
	t.Helper()
	d, err := identity.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func startCoordinator(t testing.TB, cfg *config.Config, change ...func(*Coordinator)) *process {
	t.Helper()
	dir := openDir(t, cfg.DataDir)
	p := start(t, "coordinator", func(ctx context.Context, ready func(string)) error {
		c := Coordinator{
			Config: cfg, Dir: dir, Version: "test", Log: slog.New(slog.DiscardHandler), Volatile: true,
			Ready: func(_ context.Context, a string) { ready(a) },
		}
		for _, f := range change {
			f(&c)
		}
		return c.Run(ctx)
	})
	p.dir = dir
	return p
}

func startAgent(t testing.TB, name, token, dataDir string) *process {
	t.Helper()
	return startAgentWith(t, name, token, testConfig(dataDir))
}

func startAgentWith(t testing.TB, name, token string, cfg *config.Config) *process {
	t.Helper()
	cfg.Agent.Name = name
	dir := openDir(t, cfg.DataDir)
	p := start(t, "agent "+name, func(ctx context.Context, ready func(string)) error {
		if token != "" {
			if err := JoinCluster(ctx, dir, token, name); err != nil {
				return err
			}
		}
		return Agent{Config: cfg, Dir: dir, Version: "test", Log: slog.New(slog.DiscardHandler), Measure: rates, Ready: ready}.Run(ctx)
	})
	p.dir = dir
	return p
}

// rates saves the seconds of measuring.
func rates(_ context.Context, _ engine.Session, d tensor.DType) ([]measure.Rates, error) {
	return []measure.Rates{{DType: d, Elements: 1 << 20, Linear: 1e11, Attention: 5e10, Elementwise: 5e9, Expand: 2e9}}, nil
}

// operator connects as the machine of the coordinator does.
func operator(t testing.TB, co *process) *grpc.ClientConn {
	t.Helper()
	creds, err := co.dir.Load(identity.SlotOperator)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(co.address, grpc.WithTransportCredentials(
		creds.ClientCredentials(identity.Expect{Roles: []identity.Role{identity.RoleCoordinator}})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func token(t testing.TB, conn *grpc.ClientConn) string {
	t.Helper()
	res, err := pb.NewControlClient(conn).CreateToken(t.Context(), &pb.CreateTokenRequest{Ttl: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return res.Token
}

var demoDims = map[string]int64{"width": 128, "height": 128, "text_tokens": 5, "batch": 1}

func deploy(t testing.TB, conn *grpc.ClientConn, pins ...*pb.Pin) {
	t.Helper()
	_, err := pb.NewControlClient(conn).Deploy(t.Context(), &pb.DeployRequest{Spec: &pb.DeploymentSpec{
		Name: "demo", Model: "demo.safetensors", Workload: &pb.Workload{Dims: demoDims, InFlight: 2}, Pins: pins,
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// await polls a deployment's status until ok says yes.
func await(t testing.TB, conn *grpc.ClientConn, what string, ok func(*pb.DeploymentStatus) bool) *pb.DeploymentStatus {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last *pb.DeploymentStatus
	for time.Now().Before(deadline) {
		res, err := pb.NewControlClient(conn).Status(t.Context(), &pb.StatusRequest{Name: "demo"})
		if err == nil && len(res.Deployments) == 1 {
			if last = res.Deployments[0]; ok(last) {
				return last
			}
		}
		<-tick.C
	}
	t.Fatalf("waited a minute for %s; the deployment is %v", what, last)
	return nil
}

func ready(s *pb.DeploymentStatus) bool { return s.Ready }

// picture runs one forward through the endpoint.
func picture(t testing.TB, conn *grpc.ClientConn) ([]byte, []*pb.StageStats, error) {
	t.Helper()
	ep := pb.NewEndpointClient(conn)
	run, err := ep.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims})
	if err != nil {
		return nil, nil, err
	}
	cond, step := request(t, "large red circle on blue")
	put, err := ep.PutConditioning(t.Context(), &pb.PutConditioningRequest{Run: run.Run, Tensors: cond})
	if err != nil {
		return nil, nil, err
	}
	res, err := ep.Forward(t.Context(), &pb.ForwardRequest{Run: run.Run, Conditioning: put.Digest, Tensors: step})
	if err != nil {
		return nil, nil, err
	}
	end, err := ep.EndRun(t.Context(), &pb.EndRunRequest{Run: run.Run})
	return res.Out.GetData(), end.GetStages(), err
}

func TestCluster(t *testing.T) {
	whole := t // what a subtest starts outlives it
	coCfg := testConfig(t.TempDir())
	co := startCoordinator(t, coCfg)
	// A restart has to come back at the same addresses.
	coCfg.Coordinator.Listen = co.address
	conn := operator(t, co)
	dirs := map[string]string{}
	agents := map[string]*process{}
	for _, name := range []string{"a", "b", "c"} {
		dirs[name] = t.TempDir()
		agents[name] = startAgent(t, name, token(t, conn), dirs[name])
	}
	deploy(t, conn, &pb.Pin{Node: "a", Blocks: 1}, &pb.Pin{Node: "b", FirstBlock: 1, Blocks: 2}, &pb.Pin{Node: "c", FirstBlock: 3, Blocks: 3})
	status := await(t, conn, "three stages", ready)
	if len(status.Plan.Stages) != 3 {
		t.Fatalf("the plan has %d stages", len(status.Plan.Stages))
	}
	if status.Plan.Numerics != "equals one device ("+plainClass(t)+")" {
		t.Errorf("numerics: %q", status.Plan.Numerics)
	}
	three, stats, err := picture(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint64{1, 2, 3} {
		if stats[i].BlocksRun != want {
			t.Errorf("stage %d counted %d blocks, want %d", i, stats[i].BlocksRun, want)
		}
	}

	t.Run("every port refuses a stranger", func(t *testing.T) {
		cluster, err := co.dir.Cluster()
		if err != nil {
			t.Fatal(err)
		}
		ports := []string{co.address, agents["a"].address, agents["b"].address, agents["c"].address}
		for _, u := range cluster.Etcd {
			ports = append(ports, strings.TrimPrefix(u, "https://"))
		}
		for _, port := range ports {
			for _, alpn := range [][]string{nil, {identity.ALPNWeb}, {identity.ALPNControl}, {identity.ALPNBulk}, {identity.ALPNGossip}, {identity.ALPNControl, identity.ALPNJoin}} {
				err := stranger(port, alpn)
				if port == co.address && (alpn == nil || alpn[0] == identity.ALPNWeb) {
					err = wantsToken(dialer(port)) // the endpoint, which knows clients by their tokens
				}
				if err == nil {
					t.Errorf("%s served %v to a client without a certificate", port, alpn)
				}
			}
		}
	})

	t.Run("a lost agent is placed again when it returns", func(t *testing.T) {
		agents["b"].stop()
		await(t, conn, "the plan to lose b", func(s *pb.DeploymentStatus) bool {
			return !s.Ready && (s.Plan.GetInfeasible() != "" || s.Plan.GetEpoch() > status.Plan.Epoch)
		})
		agents["b"] = startAgent(whole, "b", "", dirs["b"])
		again := await(t, conn, "b to come back", ready)
		if again.Plan.Epoch <= status.Plan.Epoch {
			t.Errorf("epoch %d after %d", again.Plan.Epoch, status.Plan.Epoch)
		}
		out, _, err := picture(t, conn)
		if err != nil {
			t.Fatal(err)
		}
		if string(out) != string(three) {
			t.Error("the picture changed")
		}
	})

	t.Run("a coordinator restart forgets nothing", func(t *testing.T) {
		before := await(t, conn, "ready", ready)
		cluster, err := co.dir.Cluster()
		if err != nil {
			t.Fatal(err)
		}
		coCfg.Coordinator.Etcd.ClientListen = strings.TrimPrefix(cluster.Etcd[0], "https://")
		co.stop()
		co = startCoordinator(whole, coCfg)
		conn = operator(whole, co)
		after := await(t, conn, "ready after the restart", ready)
		if after.Plan.Epoch != before.Plan.Epoch {
			t.Errorf("epoch %d became %d by a restart", before.Plan.Epoch, after.Plan.Epoch)
		}
		out, _, err := picture(t, conn)
		if err != nil {
			t.Fatal(err)
		}
		if string(out) != string(three) {
			t.Error("the picture changed")
		}
	})

	t.Run("another cut gives the same bits", func(t *testing.T) {
		deploy(t, conn, &pb.Pin{Node: "c", Blocks: 6})
		s := await(t, conn, "one stage", func(s *pb.DeploymentStatus) bool { return s.Ready && len(s.Plan.Stages) == 1 })
		if s.Plan.Stages[0].NodeName != "c" {
			t.Errorf("placed on %s", s.Plan.Stages[0].NodeName)
		}
		out, _, err := picture(t, conn)
		if err != nil {
			t.Fatal(err)
		}
		if string(out) != string(three) {
			t.Error("one stage gives other bits than three")
		}
	})

	t.Run("undeploy frees", func(t *testing.T) {
		if _, err := pb.NewControlClient(conn).Undeploy(t.Context(), &pb.UndeployRequest{Name: "demo"}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := picture(t, conn); err == nil {
			t.Error("an undeployed deployment made a picture")
		}
	})
}

// stranger dials without a certificate and asks for something; nil means that
// it was served.
func stranger(addr string, alpn []string) error { return strangerVia(dialer(addr), alpn) }

func dialer(addr string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return net.DialTimeout("tcp", addr, 5*time.Second) }
}

// wantsToken asks the HTTPS endpoint for its lists without a token; nil means
// that it was served.
func wantsToken(dial func() (net.Conn, error)) error {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		raw, err := dial()
		if err != nil {
			return nil, err
		}
		return tls.Client(raw, &tls.Config{InsecureSkipVerify: true}), nil
	}}}
	defer c.CloseIdleConnections()
	res, err := c.Get("https://coordinator/v1/nodes")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusUnauthorized {
		return errors.New(res.Status)
	}
	return nil
}

func strangerVia(dial func() (net.Conn, error), alpn []string) error {
	raw, err := dial()
	if err != nil {
		return err
	}
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: alpn})
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	// In TLS 1.3 a client learns with its first read that its certificate is missing.
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func TestTokensThatAreRefused(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	used := token(t, conn)
	if err := JoinCluster(t.Context(), openDir(t, t.TempDir()), used, "first"); err != nil {
		t.Fatal(err)
	}
	other := startCoordinator(t, testConfig(t.TempDir()))
	foreign := token(t, operator(t, other))
	foreignToken, err := identity.ParseToken(foreign)
	if err != nil {
		t.Fatal(err)
	}
	foreignToken.Addresses = []string{co.address}
	if foreign, err = foreignToken.Text(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ token, node, want string }{
		"used":                {used, "second", "used"},
		"malformed":           {"distorch-join-1.nonsense", "second", "token"},
		"for another cluster": {foreign, "second", "cluster"},
		"name that is taken":  {token(t, conn), "first", "node name first is already used"},
	} {
		err := JoinCluster(t.Context(), openDir(t, t.TempDir()), c.token, c.node)
		if err == nil || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
	}
}
