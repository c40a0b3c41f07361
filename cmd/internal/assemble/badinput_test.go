// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/cmd/internal/config"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// runAgent runs an agent that is expected to end at its start.
func runAgent(t *testing.T, token, name string, cfg *config.Config) error {
	t.Helper()
	dir := openDir(t, cfg.DataDir)
	cfg.Agent.Name = name
	if err := JoinCluster(t.Context(), dir, token, name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return Agent{
		Config: cfg, Dir: dir, Version: "test", Log: slog.New(slog.DiscardHandler), Measure: rates,
		Ready: func(string) { t.Error("the agent registered"); cancel() },
	}.Run(ctx)
}

// wants compares an error with what a person has to read in it.
func wants(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want an error with %q", err, w)
		}
	}
}

// taken is a port that another program has.
func taken(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String()
}

func runCoordinator(t *testing.T, cfg *config.Config) error {
	t.Helper()
	return Coordinator{
		Config: cfg, Dir: openDir(t, cfg.DataDir), Version: "test", Log: slog.New(slog.DiscardHandler), Volatile: true,
		Ready: func(context.Context, string) { t.Error("the coordinator is ready") },
	}.Run(t.Context())
}

func TestPortsThatAreTaken(t *testing.T) {
	port := taken(t)
	t.Run("coordinator", func(t *testing.T) {
		cfg := testConfig(t.TempDir())
		cfg.Coordinator.Listen = port
		wants(t, runCoordinator(t, cfg), port, "address already in use", "choose another with --listen")
		// Nothing is lost: with another port the same directory serves.
		cfg.Coordinator.Listen = "127.0.0.1:0"
		startCoordinator(t, cfg)
	})
	t.Run("etcd", func(t *testing.T) {
		cfg := testConfig(t.TempDir())
		cfg.Coordinator.Etcd.ClientListen = port
		wants(t, runCoordinator(t, cfg), port, "address already in use", "--etcd-listen")
	})
}

func TestAgentsThatCannotStart(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	for _, c := range []struct {
		name   string
		change func(*config.Config)
		want   []string
	}{
		{"port", func(c *config.Config) { c.Agent.Listen = taken(t) }, []string{"address already in use", "choose another with --listen"}},
		{"models", func(c *config.Config) { c.Models.Dirs = []string{filepath.Join(c.DataDir, "nowhere")} }, []string{"nowhere", "does not exist", "models.dirs"}},
		{"memory", func(c *config.Config) { c.Agent.Memory = 1 << 60 }, []string{"agent.memory", "lower it"}},
		{"reserve", func(c *config.Config) { c.Agent.Reserve = c.Agent.Memory }, []string{"agent.reserve", "nothing is left"}},
		{"unspecified address", func(c *config.Config) { c.Agent.Listen = "0.0.0.0:0" }, []string{"--advertise"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t.TempDir())
			c.change(cfg)
			wants(t, runAgent(t, token(t, conn), "agent-"+strings.Split(c.name, " ")[0], cfg), c.want...)
		})
	}
	t.Run("expired token", func(t *testing.T) {
		res, err := pb.NewControlClient(conn).CreateToken(t.Context(), &pb.CreateTokenRequest{Ttl: durationpb.New(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(1100 * time.Millisecond)
		wants(t, runAgent(t, res.Token, "late", testConfig(t.TempDir())), "expired", "token")
	})
	nodes, err := pb.NewControlClient(conn).ListNodes(t.Context(), &pb.ListNodesRequest{})
	if err != nil || len(nodes.Nodes) != 0 {
		t.Errorf("agents that did not start left %v (%v)", nodes, err)
	}
}

func TestAgentWithTooLittleMemory(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	cfg := testConfig(t.TempDir())
	cfg.Agent.Memory = 98e6 // the process's own need takes nearly all of it
	startAgentWith(t, "tiny", token(t, conn), cfg)
	res, err := pb.NewControlClient(conn).Plan(t.Context(), &pb.PlanRequest{Spec: &pb.DeploymentSpec{
		Name: "demo", Model: "demo.safetensors", Workload: &pb.Workload{Dims: demoDims, InFlight: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"needs", "MB", "tiny"} {
		if !strings.Contains(res.Explanation, w) || res.Plan.Infeasible == "" {
			t.Errorf("the plan says %q (%q), want %q", res.Explanation, res.Plan.Infeasible, w)
		}
	}
}

// The file is not what the agent found at its start.
func TestFilesThatChange(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	good, err := os.ReadFile(demoFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t.TempDir())
	models := t.TempDir()
	path := filepath.Join(models, "demo.safetensors")
	write := func(b []byte) {
		if b == nil {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	cfg.Models.Dirs = []string{models}
	a := startAgentWith(t, "a", token(t, conn), cfg)
	changed := bytes.Clone(good)
	changed[len(changed)-1] ^= 1
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"changed", changed, "was changed since this agent started"},
		{"truncated", good[:len(good)/2], path + " was changed"},
		{"removed", nil, "the checkpoint is gone"},
	} {
		write(c.file)
		deploy(t, conn)
		s := await(t, conn, c.name, func(s *pb.DeploymentStatus) bool {
			return !s.Ready && (strings.Contains(s.Message, c.want) || strings.Contains(s.Plan.GetInfeasible(), c.want))
		})
		t.Logf("%s: %s %s", c.name, s.Message, s.Plan.GetInfeasible())
		if _, err := pb.NewControlClient(conn).Undeploy(t.Context(), &pb.UndeployRequest{Name: "demo"}); err != nil {
			t.Fatal(err)
		}
		awaitGone(t, conn)
	}
	write(good)
	a.stop()
	startAgentWith(t, "a", "", cfg)
	deploy(t, conn)
	await(t, conn, "the file to be right again", ready)
	if _, _, err := picture(t, conn); err != nil {
		t.Error(err)
	}
}

// awaitGone waits until nothing is known of the deployment.
func awaitGone(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		res, err := pb.NewControlClient(conn).Status(t.Context(), &pb.StatusRequest{})
		if err == nil && len(res.Deployments) == 0 {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("the deployment stayed: %v (%v)", res, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
