// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/cmd/internal/child"
	"github.com/distorch/distorch/cmd/internal/client"
	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/internal/netns"
	"github.com/distorch/distorch/model/demo"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

const (
	startTimeout = 60 * time.Second // of one process
	callTimeout  = 20 * time.Second
	stopGrace    = 8 * time.Second
	tailLines    = 15
	agentMemory  = "1GB"
	clusterHost  = 0 // of the network: the coordinator's
)

// performer is an agent of the quickstart.
type performer struct {
	name    string
	host    int // of the network
	isa     isa.ISA
	threads int
	blocks  int
}

// performers are n agents with as many instruction sets as this CPU has, and
// one and two threads in turn. Three cut the demo inside both of its runs of
// blocks: 0, 1-3, 4-5 of two double and four single ones.
func performers(n int) []performer {
	sets := instructionSets()
	counts := []int{1, 3, 2}
	if n != len(counts) {
		counts = make([]int, n)
		for b := range demoBlocks {
			counts[b*n/demoBlocks]++
		}
	}
	agents := make([]performer, n)
	for i := range agents {
		agents[i] = performer{
			name: string(rune('a' + i)), host: clusterHost + 1 + i, isa: sets[i%len(sets)], threads: 1 + i%2, blocks: counts[i],
		}
	}
	return agents
}

// soloist is the agent that makes all pictures alone, after n others.
func soloist(n int) performer {
	return performer{name: string(rune('a' + n)), host: clusterHost + 1 + n, isa: instructionSets()[0], threads: 2, blocks: demoBlocks}
}

// instructionSets are this CPU's, best first. Pure Go is left out where there
// is another: it is slow.
func instructionSets() []isa.ISA {
	var sets []isa.ISA
	for _, i := range isa.Supported() {
		if i != isa.Generic {
			sets = append([]isa.ISA{i}, sets...)
		}
	}
	if len(sets) == 0 {
		sets = []isa.ISA{isa.Generic}
	}
	return sets
}

// show is a running quickstart: the processes, the network they are in, and the
// connection to their coordinator.
type show struct {
	app      *app
	exe      string
	dir      string // of state, logs and tokens
	models   string
	progress *output.Progress
	network  *netns.Network // nil: loopback

	coordinator *child.Process
	agents      []*child.Process
	operator    *operator
	modelID     string
	model       picture.Model
}

func newShow(a *app, f quickstartFlags, models string) (*show, error) {
	s := &show{app: a, models: models, progress: output.NewProgress(a.stderr)}
	var err error
	if s.exe, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find this program's own file: %w", err)
	}
	if f.keep == "" {
		if s.dir, err = os.MkdirTemp("", "distorch-quickstart-"); err == nil {
			a.scratch.Store(&s.dir)
		}
	} else if s.dir, err = filepath.Abs(f.keep); err == nil {
		if exists(filepath.Join(s.dir, "coordinator")) {
			return nil, usage(fmt.Errorf("--keep %s holds an earlier quickstart; name an empty folder", f.keep))
		}
		err = os.MkdirAll(s.dir, 0o700)
	}
	if err != nil {
		return nil, err
	}
	if f.netns {
		if s.network, err = netns.New(netns.Options{Hosts: f.agents + 2}); err != nil {
			return nil, errors.Join(err, s.stop(f.keep == ""))
		}
	}
	return s, nil
}

// address is where a process on a host of the network listens: any free port.
func (s *show) address(host int) string {
	if s.network == nil {
		return "127.0.0.1:0"
	}
	return net.JoinHostPort(s.network.Hosts()[host].Addr().String(), "0")
}

// start starts this program again with settings from the environment, which
// are of no concern to what the caller has set for itself.
func (s *show) start(ctx context.Context, name string, host int, settings map[string]string, args ...string) (*child.Process, readyFile, error) {
	ready := filepath.Join(s.dir, name+".ready")
	// The process ends by Stop and not with ctx, which would kill it.
	cmd := exec.Command(s.exe, append(args, "--ready-file", ready)...) //nolint:noctx
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DISTORCH_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	for k, v := range settings {
		cmd.Env = append(cmd.Env, "DISTORCH_"+k+"="+v)
	}
	cmd.Env = append(cmd.Env, "DISTORCH_DATA_DIR="+filepath.Join(s.dir, name))
	var starter func(*exec.Cmd) error
	if s.network != nil {
		starter = s.network.Hosts()[host].Start
	}
	p, err := child.Start(name, cmd, filepath.Join(s.dir, name+".log"), starter)
	if err != nil {
		return nil, readyFile{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no sign of it in %s", startTimeout))
	defer cancel()
	var at readyFile
	raw, err := p.AwaitFile(ctx, ready)
	if err == nil {
		err = json.Unmarshal(raw, &at)
	}
	return p, at, err
}

func (s *show) startCoordinator(ctx context.Context) error {
	listen := s.address(clusterHost)
	p, at, err := s.start(ctx, "coordinator", clusterHost, map[string]string{
		"COORDINATOR_LISTEN": listen, "COORDINATOR_ETCD_CLIENT_LISTEN": listen,
	}, "up", "--no-agent")
	s.coordinator = p
	if err != nil {
		return err
	}
	c := client.Config{DataDir: at.DataDir, Address: at.Address, Timeout: callTimeout}
	if s.network != nil {
		c.Dial = s.network.Hosts()[clusterHost].Dial
	}
	conn, err := client.Connect(ctx, c)
	if err != nil {
		return err
	}
	s.operator = &operator{Conn: conn, log: slog.New(slog.DiscardHandler), timeout: callTimeout}
	s.progress.Line("coordinator at %s, process %d", at.Address, p.PID())
	return nil
}

func (s *show) startAgent(ctx context.Context, g performer) error {
	answer, err := ask(ctx, s.operator, "create token", s.operator.Control.CreateToken, &pb.CreateTokenRequest{Ttl: durationpb.New(startTimeout)})
	if err != nil {
		return err
	}
	token := filepath.Join(s.dir, g.name+".token")
	if err := os.WriteFile(token, []byte(answer.Token+"\n"), 0o600); err != nil {
		return err
	}
	p, at, err := s.start(ctx, g.name, g.host, map[string]string{
		"AGENT_NAME": g.name, "AGENT_LISTEN": s.address(g.host), "AGENT_CPU_ISA": g.isa.String(), "AGENT_THREADS": fmt.Sprint(g.threads),
		"AGENT_MEMORY": agentMemory, "MODELS_DIRS": s.models,
	}, "agent", "--join-file", token)
	if p != nil {
		s.agents = append(s.agents, p)
	}
	if err != nil {
		return err
	}
	s.progress.Line("agent %s at %s, process %d: %s, %d threads", g.name, at.Address, p.PID(), g.isa, g.threads)
	return s.findDemo(ctx)
}

// findDemo learns the demo's id from the agents, which have it.
func (s *show) findDemo(ctx context.Context) error {
	answer, err := ask(ctx, s.operator, "list models", s.operator.Control.ListModels, &pb.ListModelsRequest{})
	if err != nil {
		return err
	}
	for _, m := range answer.Models {
		if r := m.GetRecord(); r.GetName() == demoFile {
			s.modelID = r.Id
			s.model, err = picture.NewModel(r)
			return err
		}
	}
	return notFound(fmt.Errorf("the agents found no %s in %s", demoFile, s.models))
}

// explain shows the end of the log of every process that ended by itself.
func (s *show) explain() {
	s.progress.Done()
	for _, p := range append([]*child.Process{s.coordinator}, s.agents...) {
		if p == nil || !p.Ended() {
			continue
		}
		s.progress.Line("%s ended by itself; the end of its log:", p.Name)
		for _, line := range p.Tail(tailLines) {
			s.progress.Line("  %s: %s", p.Name, output.Clean(line))
		}
	}
}

// stopAgents asks all agents to end, then waits for them.
func (s *show) stopAgents() error {
	for _, p := range s.agents {
		p.Ask()
	}
	var errs []error
	for _, p := range s.agents {
		errs = append(errs, p.Stop(stopGrace))
	}
	s.agents = nil
	return errors.Join(errs...)
}

// stop ends all that was started, agents first. It may be called at any point.
func (s *show) stop(remove bool) error {
	errs := []error{s.stopAgents()}
	if s.operator != nil {
		s.operator.close()
	}
	if s.coordinator != nil {
		errs = append(errs, s.coordinator.Stop(stopGrace))
	}
	if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	if remove {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

func encodeSheet(results []*picture.Result) ([]byte, error) {
	var pictures []*image.NRGBA
	for _, r := range results {
		img, err := demo.Decode(r.Latent, int(r.Shape[2]), int(r.Shape[3]))
		if err != nil {
			return nil, err
		}
		pictures = append(pictures, demo.Enlarge(img, demo.Zoom))
	}
	sheet, err := demo.Sheet(pictures, sheetColumns, sheetGap)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = demo.EncodePNG(&b, sheet)
	return b.Bytes(), err
}
