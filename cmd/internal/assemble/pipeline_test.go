// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/agent/serve"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/coordinator/endpoint"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/demo"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
	"github.com/distorch/distorch/transport/node"
)

const demoFile = "../../../demo/demo.safetensors"

// rig is an endpoint and agents over real ports with mutual TLS, without a
// store: the plan is given.
type rig struct {
	t      testing.TB
	ca     *identity.CA
	server *endpoint.Server
	plan   *pb.Plan
	graph  *graph.Model
	agents []*rigAgent
	node   *node.Node // the coordinator's
	group  *errgroup.Group
	ctx    context.Context
	cancel context.CancelFunc
}

type rigAgent struct {
	node    *node.Node
	serve   *serve.Server
	session engine.Session
	cancel  context.CancelFunc
	ended   chan struct{}
}

func (r *rig) Deployment(context.Context, string) (endpoint.Deployment, error) {
	return endpoint.Deployment{Plan: r.plan, Graph: r.graph, Ready: true}, nil
}

func (r *rig) newNode(ctx context.Context, role identity.Role, name string) *node.Node {
	r.t.Helper()
	creds, err := r.ca.Issue(identity.Subject{Role: role, Name: name}, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	n, err := node.New(ctx, node.Config{Credentials: creds, Listen: "127.0.0.1:0", GossipKey: make([]byte, 32)})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// newRig places the demo's six blocks by counts, one agent each, with the
// instruction sets and thread counts by turns. more are further words of the
// workload.
func newRig(t testing.TB, dtype string, counts []int, wrap func(int, engine.Engine) engine.Engine, more ...map[string]int64) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	group, gctx := errgroup.WithContext(ctx)
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ca: ca, group: group, cancel: cancel}
	record, err := catalog.Describe(demoFile)
	if err != nil {
		t.Fatal(err)
	}
	if r.graph, err = wire.FromProto(record.Graph); err != nil {
		t.Fatal(err)
	}
	r.plan = &pb.Plan{
		Deployment: "demo", DeploymentId: strings.Repeat("ab", 16), Epoch: 3, Dtype: dtype,
		Workload: &pb.Workload{Dims: map[string]int64{"width": 128, "height": 128, "text_tokens": 5, "batch": 1}, InFlight: 2},
	}
	for _, words := range more {
		maps.Copy(r.plan.Workload.Dims, words)
	}
	sets := isa.Supported()
	first := 0
	for i, n := range counts {
		var e engine.Engine
		set := sets[len(sets)-1-i%(len(sets)-1)]
		if torchtest.Chosen() {
			e = suite.Engine(t, 0)
		} else if e, err = native.New(native.Config{ISA: set, Threads: 1 + i%2}); err != nil {
			t.Fatal(err)
		}
		if wrap != nil {
			e = wrap(i, e)
		}
		a := r.newAgent(gctx, i, e)
		r.plan.Stages = append(r.plan.Stages, &pb.Stage{
			Node: a.node.ID(), NodeName: fmt.Sprintf("n%d", i), Address: a.node.Address(), Incarnation: a.node.Incarnation(),
			FirstBlock: uint32(first), Blocks: uint32(n), Head: i == 0, Tail: i == len(counts)-1, NumericsClass: class(t, e, dtype),
		})
		first += n
	}
	for i := range r.agents {
		r.load(i)
	}
	t.Cleanup(r.close)
	r.node, r.server = r.newEndpoint(gctx)
	r.ctx = gctx
	return r
}

// class is the numerics class of an engine's first device.
func class(t testing.TB, e engine.Engine, dtype string) string {
	t.Helper()
	devices, err := e.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := tensor.ParseDType(strings.ToUpper(dtype))
	if err != nil {
		t.Fatal(err)
	}
	return devices[0].Class(d)
}

// newEndpoint runs one more coordinator's endpoint.
func (r *rig) newEndpoint(ctx context.Context) (*node.Node, *endpoint.Server) {
	r.t.Helper()
	n := r.newNode(ctx, identity.RoleCoordinator, "coordinator")
	s, err := endpoint.New(endpoint.Config{Plans: r, Transport: n.Host(), Address: n.Address(), Hello: hello(n)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.group.Go(func() error { return n.Run(ctx) })
	r.group.Go(func() error { return s.Run(ctx) })
	return n, s
}

func hello(n *node.Node) *pb.Hello {
	return &pb.Hello{Node: n.ID(), Incarnation: n.Incarnation(), ProtocolMin: 1, ProtocolMax: 1, OpSet: graph.OpSet}
}

func (r *rig) close() {
	r.cancel()
	for _, a := range r.agents {
		<-a.ended
	}
	if err := r.group.Wait(); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) newAgent(ctx context.Context, i int, e engine.Engine) *rigAgent {
	r.t.Helper()
	n := r.newNode(ctx, identity.RoleAgent, fmt.Sprintf("n%d", i))
	s, err := serve.New(serve.Config{
		Transport: n.Host(), PeerFrom: node.PeerFrom, Facts: serve.Facts{NodeName: fmt.Sprintf("n%d", i)},
		Hello: &pb.Hello{Node: n.ID(), Incarnation: n.Incarnation(), ProtocolMin: 1, ProtocolMax: 1, OpSet: graph.OpSet},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	pb.RegisterStageServiceServer(n.Server(), s)
	session, err := e.Open(ctx, native.CPU)
	if err != nil {
		r.t.Fatal(err)
	}
	actx, cancel := context.WithCancel(ctx)
	a := &rigAgent{node: n, serve: s, session: session, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(a.ended)
		g, actx := errgroup.WithContext(actx)
		g.Go(func() error { return n.Run(actx) })
		g.Go(func() error { return s.Run(actx) })
		if err := g.Wait(); err != nil {
			r.t.Error(err)
		}
	}()
	r.agents = append(r.agents, a)
	return a
}

func (r *rig) load(i int) {
	r.t.Helper()
	f, err := safetensors.Open(demoFile)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	dtype, err := tensor.ParseDType(strings.ToUpper(r.plan.Dtype))
	if err != nil {
		r.t.Fatal(err)
	}
	dims, err := r.graph.Request(r.plan.Workload.Dims)
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := graph.Specialise(r.graph, dims, dtype)
	if err != nil {
		r.t.Fatal(err)
	}
	s := r.plan.Stages[i]
	st, err := stage.Load(r.t.Context(), stage.Config{
		Session: r.agents[i].session, Checkpoint: stage.Checkpoint{File: checkpoint.Safetensors(f)}, Program: p, FirstBlock: int(s.FirstBlock),
		Blocks: int(s.Blocks), Head: s.Head, Tail: s.Tail, InFlight: int(r.plan.Workload.InFlight),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	h, err := r.agents[i].serve.Host(r.plan, i, st, r.agents[i].session)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		h.Close()
		if err := r.agents[i].session.Close(); err != nil {
			r.t.Error(err)
		}
	})
}

func floats(v ...float32) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

// request is the demo's tensors for a prompt and a step.
func request(t testing.TB, prompt string) (conditioning, step []*pb.Tensor) {
	t.Helper()
	words, err := demo.Words()
	if err != nil {
		t.Fatal(err)
	}
	c, err := words.Encode(prompt)
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float32, 16*16*16)
	for i := range x {
		x[i] = float32(math.Sin(float64(i)))
	}
	return []*pb.Tensor{
			{Name: "context", Dtype: "F32", Shape: []int64{1, 5, 64}, Data: floats(c.Context...)},
			{Name: "y", Dtype: "F32", Shape: []int64{1, 64}, Data: floats(c.Y...)},
			{Name: "guidance", Dtype: "F32", Shape: []int64{1}, Data: floats(3.5)},
		}, []*pb.Tensor{
			{Name: "x", Dtype: "F32", Shape: []int64{1, 16, 16, 16}, Data: floats(x...)},
			{Name: "timestep", Dtype: "F32", Shape: []int64{1}, Data: floats(0.75)},
		}
}

// forward runs one whole forward, with a run of its own.
func (r *rig) forward(ctx context.Context) ([]byte, []*pb.StageStats, error) {
	begun, err := r.server.BeginRun(ctx, &pb.BeginRunRequest{Deployment: "demo", Dims: r.plan.Workload.Dims})
	if err != nil {
		return nil, nil, err
	}
	cond, step := request(r.t, "large red circle on blue")
	put, err := r.server.PutConditioning(ctx, &pb.PutConditioningRequest{Run: begun.Run, Tensors: cond})
	if err != nil {
		return nil, nil, err
	}
	res, err := r.server.Forward(ctx, &pb.ForwardRequest{Run: begun.Run, Conditioning: put.Digest, Tensors: step})
	if err != nil {
		return nil, nil, err
	}
	end, err := r.server.EndRun(ctx, &pb.EndRunRequest{Run: begun.Run})
	if err != nil {
		return nil, nil, err
	}
	return res.Out.Data, end.Stages, nil
}

func TestThreeAgentsGiveTheBitsOfOne(t *testing.T) {
	for _, dtype := range []string{"bf16", "f32"} {
		t.Run(dtype, func(t *testing.T) {
			one, stats, err := newRig(t, dtype, []int{6}, nil).forward(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(stats) != 1 || stats[0].BlocksRun != 6 {
				t.Errorf("one agent counted %v", stats)
			}
			three, stats, err := newRig(t, dtype, []int{1, 2, 3}, nil).forward(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range []uint64{1, 2, 3} {
				if stats[i].BlocksRun != want {
					t.Errorf("agent %d counted %d blocks, want %d", i, stats[i].BlocksRun, want)
				}
			}
			if string(one) != string(three) {
				t.Error("the outputs of one and three agents differ")
			}
		})
	}
}
