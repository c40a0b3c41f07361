// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/coordinator/endpoint"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

var tiny = arch.Flux{Channels: 4, Hidden: 128, Heads: 4, MLP: 512, Context: 8, Vector: 6, Double: 3, Single: 5, Axes: []int64{8, 12, 12}, Guidance: true}

// cluster is a coordinator and its endpoint, without a store and agents.
type cluster struct {
	mu       sync.Mutex
	newer    chan struct{}
	specs    map[string]*pb.DeploymentSpec
	plan     *pb.Plan
	notReady string
	graph    *graph.Model

	begun     []*pb.BeginRunRequest
	put       []*pb.PutConditioningRequest
	forwards  []*pb.ForwardRequest
	ended     []string
	open      map[string]bool
	onForward func(ctx context.Context, n int, r *pb.ForwardRequest) error
	beginFull bool
}

func newCluster() *cluster {
	return &cluster{newer: make(chan struct{}), specs: map[string]*pb.DeploymentSpec{}, plan: planOf(1, "native/1/f32", "a", "b"), graph: tiny.Build(arch.Options{}), open: map[string]bool{}}
}

// planOf has the model's blocks on nodes, four each.
func planOf(epoch uint64, class string, nodes ...string) *pb.Plan {
	p := &pb.Plan{Deployment: "d", DeploymentId: "id", Epoch: epoch, Generation: 1, Numerics: "equals one device (native/1)", Forecast: &pb.Forecast{StepSeconds: 0.5}}
	for i, n := range nodes {
		p.Stages = append(p.Stages, &pb.Stage{Node: "n-" + n, NodeName: n, Device: "cpu", FirstBlock: uint32(4 * i), Blocks: 4, NumericsClass: class})
	}
	return p
}

func (c *cluster) change(fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
	close(c.newer)
	c.newer = make(chan struct{})
}

func (c *cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newer
}

func (c *cluster) Deployment(_ context.Context, name string) (endpoint.Deployment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name != "d" {
		return endpoint.Deployment{}, status.Errorf(codes.NotFound, "no deployment %q here", name)
	}
	return endpoint.Deployment{Plan: c.plan, Graph: c.graph, Ready: c.notReady == "", Message: c.notReady}, nil
}

func (c *cluster) Version(context.Context, *pb.VersionRequest) (*pb.VersionResponse, error) {
	return &pb.VersionResponse{Version: "v9", Cluster: "testcluster"}, nil
}

func (c *cluster) ListNodes(context.Context, *pb.ListNodesRequest) (*pb.ListNodesResponse, error) {
	return &pb.ListNodesResponse{Nodes: []*pb.NodeStatus{{Record: &pb.NodeRecord{
		Name: "a", Id: "n-a", Address: "a:7800", Devices: []*pb.Device{{Name: "cpu", MemoryAllocatableBytes: 100, NumericsClasses: []string{"native/1/f32"}}},
		Lost: []*pb.LostDevice{{Name: "cuda:0", Reason: "the driver stopped answering"}},
	}}}}, nil
}

func (c *cluster) ListModels(_ context.Context, r *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	params, err := arch.HyperParameters(tiny)
	if err != nil {
		return nil, err
	}
	model := func(id, name string) *pb.ModelStatus {
		m := &pb.ModelStatus{Blocks: 8, Holders: []string{"a"}, Record: &pb.ModelRecord{Id: id, Name: name, Architecture: "flux", Variant: "FLUX.1 dev", DefaultDtype: "bf16", HyperParameters: params}}
		if r.GraphOf == id {
			m.Record.Graph = wire.ToProto(c.graph)
			m.Record.Weights = []*pb.WeightEntry{{Name: "img_in.weight", Dtype: "BF16", Shape: []int64{128, 16}}}
		}
		return m
	}
	return &pb.ListModelsResponse{Models: []*pb.ModelStatus{model("m1", "tiny.safetensors"), model("m2", "twice.gguf"), model("m3", "twice.gguf")}}, nil
}

func (c *cluster) Plan(_ context.Context, r *pb.PlanRequest) (*pb.PlanResponse, error) {
	switch r.Spec.Model {
	case "":
		return nil, status.Error(codes.InvalidArgument, "the deployment names no model")
	case "huge":
		return &pb.PlanResponse{Plan: &pb.Plan{Infeasible: "needs 23.8 GB, nodes offer 18.2 GB"}, Explanation: "needs 23.8 GB, nodes offer 18.2 GB\n"}, nil
	case "tiny":
		return &pb.PlanResponse{Plan: c.plan, Explanation: "two stages\n", Report: []byte(`{"version":1}`)}, nil
	}
	return nil, status.Errorf(codes.NotFound, "no model %q here", r.Spec.Model)
}

func (c *cluster) Deploy(ctx context.Context, r *pb.DeployRequest) (*pb.DeployResponse, error) {
	client, _ := coordinator.Client(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.specs[r.Spec.Name]
	if before != nil && before.Client == "" {
		return nil, status.Errorf(codes.PermissionDenied, "deployment %s was made by an operator", r.Spec.Name)
	}
	r.Spec.Client, r.Spec.Id, r.Spec.Generation = client, "id", before.GetGeneration()+1
	c.specs[r.Spec.Name] = r.Spec
	return &pb.DeployResponse{Spec: r.Spec}, nil
}

func (c *cluster) Status(_ context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &pb.StatusResponse{}
	for name, s := range c.specs {
		if r.Name == "" || r.Name == name {
			out.Deployments = append(out.Deployments, &pb.DeploymentStatus{Spec: s, Plan: c.plan, Ready: c.notReady == "", Message: "ready"})
		}
	}
	if r.Name != "" && len(out.Deployments) == 0 {
		return nil, status.Errorf(codes.NotFound, "no deployment %q here", r.Name)
	}
	return out, nil
}

func (c *cluster) Undeploy(_ context.Context, r *pb.UndeployRequest) (*pb.UndeployResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s := c.specs[r.Name]; {
	case s == nil:
		return nil, status.Errorf(codes.NotFound, "no deployment %q here", r.Name)
	case s.Client == "":
		return nil, status.Errorf(codes.PermissionDenied, "deployment %s was made by an operator", r.Name)
	}
	delete(c.specs, r.Name)
	return &pb.UndeployResponse{}, nil
}

func (c *cluster) Lend(_ context.Context, r *pb.LendRequest) (*pb.LendResponse, error) {
	if r.Node != "a" {
		return nil, status.Errorf(codes.NotFound, "no node %q here", r.Node)
	}
	return &pb.LendResponse{Node: "a", Device: r.Device, LentBytes: r.Bytes, Took: durationpb.New(time.Second), Stages: []*pb.LentStage{{MovedBytes: 7}}}, nil
}

func (c *cluster) BeginRun(_ context.Context, r *pb.BeginRunRequest) (*pb.BeginRunResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.beginFull {
		return nil, status.Error(codes.ResourceExhausted, "64 runs are open, the limit of this endpoint; end one or wait")
	}
	if _, err := c.graph.Request(r.Dims); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c.begun = append(c.begun, r)
	run := hex.EncodeToString([]byte{byte(len(c.begun))})
	c.open[run] = true
	return &pb.BeginRunResponse{Run: run, Plan: c.plan}, nil
}

func (c *cluster) PutConditioning(_ context.Context, r *pb.PutConditioningRequest) (*pb.PutConditioningResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put = append(c.put, r)
	return &pb.PutConditioningResponse{Digest: endpoint.Digest(r.Tensors)}, nil
}

// Forward answers with x, doubled.
func (c *cluster) Forward(ctx context.Context, r *pb.ForwardRequest) (*pb.ForwardResponse, error) {
	c.mu.Lock()
	c.forwards = append(c.forwards, r)
	n, hook, open := len(c.forwards), c.onForward, c.open[r.Run]
	c.mu.Unlock()
	if !open {
		return nil, status.Errorf(codes.NotFound, "run %s is not open here", r.Run)
	}
	if hook != nil {
		if err := hook(ctx, n, r); err != nil {
			return nil, err
		}
	}
	out := &pb.Tensor{Name: "out", Dtype: "F32"}
	for _, t := range r.Tensors {
		if t.Name == "x" {
			v := make([]float32, len(t.Data)/4)
			if err := tensor.ToF32(v, t.Data, tensor.F32); err != nil {
				return nil, err
			}
			for i := range v {
				v[i] *= 2
			}
			out.Shape, out.Data = t.Shape, make([]byte, len(t.Data))
			tensor.PutF32(out.Data, v)
		}
	}
	return &pb.ForwardResponse{
		Out: out, Total: durationpb.New(time.Millisecond), Queued: durationpb.New(time.Microsecond),
		Stages: []*pb.StageTiming{{Node: "a", Compute: durationpb.New(time.Millisecond)}, {Node: "b"}},
	}, nil
}

func (c *cluster) EndRun(_ context.Context, r *pb.EndRunRequest) (*pb.EndRunResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = append(c.ended, r.Run)
	delete(c.open, r.Run)
	return &pb.EndRunResponse{}, nil
}

// clients are known by their secrets, which are their names.
type clients map[[sha256.Size]byte]Client

func (c clients) Client(hash [sha256.Size]byte) (Client, bool) {
	client, ok := c[hash]
	return client, ok
}

func testClients() clients {
	all := clients{}
	add := func(name string, expires time.Duration, scopes ...coordinator.Scope) {
		all[identity.SecretHash(name)] = Client{Name: name, Scopes: scopes, Expires: time.Now().Add(expires)}
	}
	add("all", time.Hour, coordinator.Scopes()...)
	add("other", time.Hour, coordinator.Scopes()...)
	add("none", time.Hour)
	add("run", time.Hour, coordinator.ScopeRun)
	add("old", -time.Hour, coordinator.Scopes()...)
	return all
}

// rig is a server on a port, without TLS, and a client of it.
type rig struct {
	*testing.T
	*cluster
	server  *Server
	address string
	api     *api
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	cfg := Config{Clients: testClients(), BlobDir: t.TempDir()}
	c := newCluster()
	cfg.Control, cfg.Forwards = c, c
	for _, fn := range change {
		fn(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return &rig{T: t, cluster: c, server: s, address: ln.Addr().String(), api: readAPI(t)}
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r *rig) request(ctx context.Context, token, method, path string, body []byte) *http.Request {
	r.Helper()
	var from io.Reader
	if body != nil {
		from = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.address+path, from)
	if err != nil {
		r.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req
}

// do makes a call and holds the answer against openapi.yaml.
func (r *rig) do(token, method, path string, body []byte) reply {
	r.Helper()
	return r.send(r.request(r.Context(), token, method, path, body))
}

func (r *rig) send(req *http.Request) reply {
	r.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatalf("%s %s: %v", req.Method, req.URL.Path, err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		r.Fatal(err)
	}
	a := reply{res.StatusCode, res.Header, out}
	r.api.check(r.T, req.Method, req.URL.Path, a)
	return a
}

// failure is the error of an answer that is none.
func (a reply) failure(t testing.TB) Error {
	t.Helper()
	var v struct{ Error Error }
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%d %.200s: %v", a.status, a.body, err)
	}
	return v.Error
}

// input is a tensor of a forward.
type input struct {
	name  string
	dtype tensor.DType
	shape tensor.Shape
}

func usualInputs() []input {
	return []input{
		{"x", tensor.F32, tensor.Shape{1, 4, 16, 8}}, {"timestep", tensor.F32, tensor.Shape{1}},
		{"context", tensor.F32, tensor.Shape{1, 5, 8}}, {"y", tensor.F32, tensor.Shape{1, 6}}, {"guidance", tensor.F32, tensor.Shape{1}},
	}
}

// pack is a safetensors file of tensors with small values.
func pack(t testing.TB, metadata map[string]string, inputs ...input) []byte {
	t.Helper()
	var all []safetensors.Data
	for _, in := range inputs {
		n, err := in.shape.Elements()
		if err != nil {
			t.Fatal(err)
		}
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(i%64) / 8
		}
		raw := make([]byte, int(n)*in.dtype.Size())
		if in.dtype.Float() {
			if err := tensor.PutFloats(raw, v, in.dtype); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, safetensors.Data{Entry: safetensors.Entry{Name: in.name, DType: in.dtype, Shape: in.shape}, Bytes: raw})
	}
	var b bytes.Buffer
	if err := safetensors.Encode(&b, all, metadata); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

const forwardPath = "/v1/deployments/d/forward"

// forward is one with all of its inputs in the body.
func (r *rig) forward(metadata map[string]string) reply {
	r.Helper()
	return r.do("all", "POST", forwardPath, pack(r, metadata, usualInputs()...))
}

// metadata is that of an answer.
func (a reply) metadata(t testing.TB) map[string]string {
	t.Helper()
	f, err := safetensors.Parse(bytes.NewReader(a.body))
	if err != nil {
		t.Fatalf("%d %.300s: %v", a.status, a.body, err)
	}
	return f.Metadata()
}

// until waits for what must become true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	over := time.NewTimer(patience)
	defer over.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-over.C:
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}
