// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
	"github.com/distorch/distorch/transport/identity"
)

const (
	demoID  = "e533b1c66868cbaa781f4e32750e6e288cce1cd75bdce2b51e2e2b63966d0700"
	otherID = "e533b1ffffffcbaa781f4e32750e6e288cce1cd75bdce2b51e2e2b63966d0700"
)

// fakeServer answers as a coordinator with two nodes and two models would. A
// deployment's name says what happens to it: "broken" fails to load, "lossy"
// loses a node at the second step, "slow" never answers a forward. Node b alone has
// room for the whole model, but not for that of "large"; there "odd" and "mixed" give
// other values from the second step on, "mixed" in another numerics class.
type fakeServer struct {
	pb.UnimplementedControlServer
	pb.UnimplementedEndpointServer

	address, dataDir string
	forwarding       chan struct{} // a forward of "slow" has begun

	mu     sync.Mutex
	specs  map[string]*pb.DeploymentSpec
	asked  map[string]int // of Status, by name
	runs   map[string]string
	begun  int
	ended  int
	forgot bool // one forward has been answered that its conditioning is missing
}

// startFake serves until ctx ends; done is closed when all of it has ended.
func startFake(ctx context.Context, dir string) (_ *fakeServer, done <-chan struct{}, err error) {
	f := &fakeServer{
		dataDir: filepath.Join(dir, "data"), forwarding: make(chan struct{}, 16), specs: map[string]*pb.DeploymentSpec{}, asked: map[string]int{}, runs: map[string]string{},
	}
	now := time.Now()
	d, err := identity.OpenDir(f.dataDir)
	if err != nil {
		return nil, nil, err
	}
	ca, err := d.InitCluster(now)
	if err != nil {
		return nil, nil, err
	}
	if _, err := d.Ensure(ca, identity.SlotOperator, identity.Subject{Role: identity.RoleOperator, Name: "operator"}, now); err != nil {
		return nil, nil, err
	}
	creds, err := d.Ensure(ca, identity.SlotCoordinator, identity.Subject{Role: identity.RoleCoordinator, Name: "coordinator"}, now)
	if err != nil {
		return nil, nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	f.address = ln.Addr().String()
	mux, err := identity.NewMux(identity.MuxConfig{Listener: ln, TLS: creds.ServerTLS([]string{identity.ALPNControl})})
	if err != nil {
		return nil, nil, err
	}
	control, err := mux.Listen(identity.ALPNControl, identity.RoleOperator)
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer(append(transport.ServerOptions(), grpc.Creds(identity.AcceptedCredentials()))...)
	pb.RegisterControlServer(server, f)
	pb.RegisterEndpointServer(server, f)
	var wg sync.WaitGroup
	wg.Go(func() { _ = mux.Run(ctx) })
	wg.Go(func() { _ = server.Serve(control) })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		server.Stop()
		wg.Wait()
	}()
	return f, ended, nil
}

func (f *fakeServer) Version(context.Context, *pb.VersionRequest) (*pb.VersionResponse, error) {
	return &pb.VersionResponse{Version: "v9.9.9", ProtocolMin: 1, ProtocolMax: 2, Cluster: "testcluster"}, nil
}

func (f *fakeServer) CreateToken(_ context.Context, r *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	if r.Ttl.AsDuration() < time.Second {
		return nil, status.Errorf(codes.InvalidArgument, "token lifetime %v: use 1s to 720h", r.Ttl.AsDuration())
	}
	if r.Client != "" {
		return &pb.CreateTokenResponse{Token: fmt.Sprintf("distorch1.%s.%v.%s", r.Client, r.Scopes, r.Ttl.AsDuration())}, nil
	}
	return &pb.CreateTokenResponse{Token: "distorch-join-1.secret." + r.Ttl.AsDuration().String()}, nil
}

func (f *fakeServer) ListTokens(context.Context, *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	return &pb.ListTokensResponse{Clients: []*pb.ClientRecord{
		{Name: "comfy", Scopes: []string{"run", "deploy", "lend"}, CreatedUnix: 1_800_000_000, ExpiresUnix: 4_000_000_000},
		{Name: "old", Scopes: []string{"run"}, CreatedUnix: 1_600_000_000, ExpiresUnix: 1_600_000_001},
	}}, nil
}

func (f *fakeServer) RevokeToken(_ context.Context, r *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	if r.Client != "comfy" {
		return nil, status.Errorf(codes.NotFound, "no client's token %q here", r.Client)
	}
	return &pb.RevokeTokenResponse{}, nil
}

func fakeNode(name string, address string) *pb.NodeStatus {
	return &pb.NodeStatus{
		Record: &pb.NodeRecord{
			Id: "n-" + name, Name: name, Address: address, Version: "v1", Platform: "linux/amd64", Engine: "native", Pid: 42,
			Devices: []*pb.Device{{
				Name: "cpu", MemoryTotalBytes: 32e9, MemoryAllocatableBytes: 16e9, Threads: 8, Isa: "avx2",
				Rates: []*pb.Rates{{
					Dtype: "bf16", LinearFlopsPerSecond: 4e11, AttentionFlopsPerSecond: 2e11, ElementwiseBytesPerSecond: 2e10, ExpandBytesPerSecond: 5e9, Elements: 1 << 20,
				}},
			}},
		},
		Link:   &pb.LinkRecord{NicBytesPerSecond: 125e6, Latency: durationpb.New(100 * time.Microsecond)},
		Models: []string{"demo.safetensors"},
	}
}

func (f *fakeServer) ListNodes(context.Context, *pb.ListNodesRequest) (*pb.ListNodesResponse, error) {
	b := fakeNode("b", "10.0.0.2:7800")
	b.Record.SeenDevices = []*pb.SeenDevice{
		{Vendor: "nvidia", Model: "NVIDIA GeForce RTX 3090", Uuid: "GPU-1", PciAddress: "0000:65:00.0", MemoryTotalBytes: 24 << 30, Sources: []string{"sysfs", "nvidia-smi"}, UsedAs: "cuda:0"},
		{Vendor: "nvidia", Model: "Tesla P40", PciAddress: "0000:17:00.0", MemoryTotalBytes: 24 << 30, Sources: []string{"sysfs"}, Reason: "held by the driver nouveau, which does not compute", Blocked: true},
	}
	return &pb.ListNodesResponse{Nodes: []*pb.NodeStatus{fakeNode("a", "10.0.0.1:7800"), b}}, nil
}

// Diagnose: a is in order and does not reach b, where a card is not used.
func (f *fakeServer) Diagnose(_ context.Context, r *pb.DiagnoseRequest) (*pb.DiagnoseResponse, error) {
	out := &pb.DiagnoseResponse{UnixNanos: time.Now().UnixNano()}
	switch r.Node {
	case "n-a":
		out.Peers = []*pb.PeerReach{{Node: "n-b", Name: "b", Address: "10.0.0.2:7800", Failure: "silent"}}
		out.Findings = []*pb.Finding{{Severity: pb.Finding_OK, Check: "memory", Text: "32.0 GB, 16.0 GB free"}}
		out.Facts = []byte(`{"node":"a"}`)
	case "n-b":
		out.UnixNanos += 30e9
		out.Findings = []*pb.Finding{{Severity: pb.Finding_BROKEN, Check: "card", Subject: "Tesla P40 0000:17:00.0", Text: "held by the driver nouveau, which does not compute", Mend: "sudo reboot", Unused: true}}
	default:
		return nil, status.Errorf(codes.NotFound, "no node %q here; did you mean \"b\"?", r.Node)
	}
	return out, nil
}

// Lend: a has a card of 8 GB, of which a stage's 5 GB of blocks can leave.
func (f *fakeServer) Lend(_ context.Context, r *pb.LendRequest) (*pb.LendResponse, error) {
	if r.Node != "a" {
		return nil, status.Errorf(codes.NotFound, "no node %q here; did you mean \"a\"?", r.Node)
	}
	if r.Device != "cuda:0" {
		return nil, status.Errorf(codes.NotFound, "node a: device %q is not one of this node (cpu, cuda:0)", r.Device)
	}
	if r.Bytes > 7e9 {
		return nil, status.Error(codes.ResourceExhausted, "device cuda:0 of node a has 8.0 GB for distorch, of which it can lend 7.0 GB at most: 2.0 GB are free and blocks of 5.0 GB can leave it; asked 9.0 GB")
	}
	s := &pb.LentStage{Deployment: "flux", Epoch: 2, MovedBytes: 4e9, StreamedBytes: 4e9, ComputeSeconds: 0.25, BeforeSeconds: 0.25, AfterSeconds: 0.4}
	out := &pb.LendResponse{Node: "a", Device: "cuda:0", LentBytes: r.Bytes, FreeBytes: r.Bytes, Took: durationpb.New(420 * time.Millisecond), Left: r.Duration, Stages: []*pb.LentStage{s}}
	if r.Restore {
		out.LentBytes, out.FreeBytes, s.StreamedBytes, s.BeforeSeconds, s.AfterSeconds = 0, 2e9, 0, 0, 0
	}
	return out, nil
}

func (f *fakeServer) MeasureLink(_ context.Context, r *pb.MeasureLinkRequest) (*pb.PeerLink, error) {
	if r.Node == "b" {
		return nil, status.Error(codes.FailedPrecondition, "node b runs or loads something")
	}
	return &pb.PeerLink{Node: "n-b", BytesPerSecond: 1.18e9, RoundTrip: durationpb.New(200 * time.Microsecond)}, nil
}

func (f *fakeServer) RemoveNode(_ context.Context, r *pb.RemoveNodeRequest) (*pb.RemoveNodeResponse, error) {
	if r.Name != "b" {
		return nil, status.Errorf(codes.NotFound, "no node %q here; did you mean %q? (`distorch nodes` lists them)", r.Name, "b")
	}
	return &pb.RemoveNodeResponse{}, nil
}

// withGraph adds what the demo's node registered of it.
func withGraph(m *pb.ModelRecord) error {
	h, err := openHeader(filepath.Join("..", "..", "demo", "demo.safetensors"))
	if err != nil {
		return err
	}
	m.Graph = wire.ToProto(h.graph)
	for name, d := range h.stored {
		w := &pb.WeightEntry{Name: name, Dtype: d.String(), Shape: []int64{1}}
		if h.wide[name] != nil {
			w.Shape = append(w.Shape, 1)
		}
		m.Weights = append(m.Weights, w)
	}
	m.HyperParameters["heads"] = strconv.Itoa(h.heads)
	return nil
}

func (f *fakeServer) ListModels(_ context.Context, r *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	models := fakeModels()
	if r.GraphOf == demoID {
		if err := withGraph(models.Models[0].Record); err != nil {
			return nil, err
		}
	}
	return models, nil
}

func fakeModels() *pb.ListModelsResponse {
	return &pb.ListModelsResponse{Models: []*pb.ModelStatus{
		{Record: &pb.ModelRecord{
			Id: demoID, Name: "demo.safetensors", Architecture: "flux", Variant: "FLUX.1 dev", FileBytes: 18e6, Parameters: 9e6, DefaultDtype: "bf16",
			HyperParameters: map[string]string{"channels": "16", "context": "64", "vector": "64", "guidance_embed": "true"},
		}, Holders: []string{"a", "b"}},
		{Record: &pb.ModelRecord{
			Id: otherID, Name: "schnell.safetensors", Architecture: "flux", Variant: "FLUX.1 schnell", FileBytes: 23e9, Parameters: 12e9, DefaultDtype: "bf16",
			HyperParameters: map[string]string{"channels": "16", "context": "4096", "vector": "768", "guidance_embed": "false"},
		}, Holders: []string{"a"}},
	}}
}

func (f *fakeServer) plan(s *pb.DeploymentSpec) *pb.Plan {
	p := &pb.Plan{
		Deployment: s.Name, DeploymentId: s.Id, Epoch: 1, Generation: s.Generation, Model: demoID, ModelName: "demo.safetensors", Dtype: "bf16", Workload: s.Workload,
		Stages: []*pb.Stage{
			{Node: "n-a", NodeName: "a", Device: "cpu", Blocks: 3, Head: true, NumericsClass: "native/1/bf16", Forecast: &pb.StageForecast{ComputeSeconds: 0.5, HopSeconds: 0.01, PeakBytes: 10e6}},
			{Node: "n-b", NodeName: "b", Device: "cpu", FirstBlock: 3, Blocks: 3, Tail: true, Stored: true, Slots: 2, NumericsClass: "native/1/bf16", Forecast: &pb.StageForecast{ComputeSeconds: 0.4, HopSeconds: 0.02, PeakBytes: 9e6}},
		},
		Forecast:    &pb.Forecast{StepSeconds: 0.94, PairSeconds: 1.5, ComputeSeconds: 0.9, HopSeconds: 0.04, LoadSeconds: 1},
		Unused:      []*pb.UnusedNode{{Node: "n-c", Reason: "does not have the file"}},
		IfLost:      []*pb.NodeLoss{{Node: "n-a", Consequence: "continues at 9.8 s/it"}, {Node: "n-b", Consequence: "stops: 5.1 GB short"}},
		Certificate: &pb.Certificate{Optimal: true, LowerBoundSeconds: 0.94}, Numerics: "equals one device (native/1)",
	}
	for _, l := range s.Loras {
		p.Loras = append(p.Loras, &pb.LoRA{Name: l.Name, Id: "1f", Mode: l.Mode, Strength: l.Strength, Layers: 8, Notes: []string{"foo: why"}})
	}
	if s.Allocation != "" || s.VirtualVramBytes > 0 {
		withTiers(p)
	}
	if len(s.Pins) == 1 { // the whole model on one device
		p.Stages = p.Stages[:1]
		p.Stages[0].Tail = true
		if s.Pins[0].Node == "n-b" {
			p.Stages[0].Node, p.Stages[0].NodeName = "n-b", "b"
		}
		if strings.HasPrefix(s.Name, "check-mixed-") {
			p.Stages[0].NumericsClass = "torch/2.11.0/GPU/bf16"
		}
	}
	for i, pin := range s.Pins {
		p.Stages[i].FirstBlock, p.Stages[i].Blocks = pin.FirstBlock, pin.Blocks
	}
	return p
}

// withTiers puts everything on one device, with blocks in every tier.
func withTiers(p *pb.Plan) {
	p.Fit, p.Notes = "strict", []string{"1 of 1 stages run on simulated devices, whose memory and speeds are made up"}
	p.Stages = []*pb.Stage{{
		Node: "n-a", NodeName: "a", Device: "sim:0", Blocks: 6, Head: true, Tail: true, NumericsClass: "native/1/bf16", Ring: 2,
		Forecast: &pb.StageForecast{ComputeSeconds: 0.4, HopSeconds: 0.02, PeakBytes: 9e6, HostPeakBytes: 7e6, StreamSeconds: 0.5, StallSeconds: 0.1},
		Tiers: []*pb.BlockTier{
			{FirstBlock: 1, Blocks: 1, Kind: pb.BlockTier_RAM, Bytes: 3e6}, {FirstBlock: 2, Blocks: 1, Kind: pb.BlockTier_DONOR, Device: "sim:1", Bytes: 3e6},
			{FirstBlock: 3, Blocks: 2, Kind: pb.BlockTier_RAM, Bytes: 4e6}, {FirstBlock: 5, Blocks: 1, Kind: pb.BlockTier_REMOTE, Node: "n-b", NodeName: "b", Bytes: 2e6},
		},
	}}
}

// tierStats is what the agent says of that.
func tierStats() []*pb.StageStats {
	return []*pb.StageStats{{
		Node: "n-a", NodeName: "a", Device: "sim:0", Blocks: 6, Forwards: 4, ForwardSeconds: 0.52, Stall: durationpb.New(400 * time.Millisecond),
		AccountPeakBytes: 8.8e6, HostPeakBytes: 7e6,
		Tiers: []*pb.TierStats{
			{Kind: pb.BlockTier_DEVICE, Where: "sim:0", Blocks: 1, Bytes: 4e6},
			{Kind: pb.BlockTier_RAM, Blocks: 3, Bytes: 7e6, StreamedBytes: 28e6, StreamedBlocks: 12, Hits: 9, Stall: durationpb.New(300 * time.Millisecond)},
			{Kind: pb.BlockTier_REMOTE, Where: "b", Blocks: 1, Bytes: 2e6, StreamedBytes: 8e6, StreamedBlocks: 4, Stall: durationpb.New(100 * time.Millisecond)},
		},
	}}
}

func (f *fakeServer) Plan(_ context.Context, r *pb.PlanRequest) (*pb.PlanResponse, error) {
	for _, node := range r.Spec.Excludes {
		if node != "a" && node != "b" {
			return nil, status.Errorf(codes.NotFound, "exclude: no node %q here", node)
		}
	}
	if strings.HasPrefix(r.Spec.Name, "check-") && (strings.HasPrefix(r.Spec.Name, "check-large-") || r.Spec.Pins[0].Node == "n-a") {
		return &pb.PlanResponse{Plan: &pb.Plan{Infeasible: fmt.Sprintf("deployment %s: pin %q: 9.1 GB short", r.Spec.Name, r.Spec.Pins[0].Node)}}, nil
	}
	switch r.Spec.Model {
	case "huge":
		return &pb.PlanResponse{Plan: &pb.Plan{Infeasible: "deployment x: needs 23.8 GB, nodes offer 18.2 GB (a: 11.1, b: 7.1); add a donor or use fp8"}}, nil
	case "demo.safetensors": // what a coordinator of this version answers
		return &pb.PlanResponse{Plan: f.plan(r.Spec), Report: []byte(`{"schema": "distorch.plan/1", "model": "demo.safetensors", "objective": "latency", "step_seconds": 0.94}`)}, nil
	case demoID, "demo": // the version before
		return &pb.PlanResponse{Plan: f.plan(r.Spec)}, nil
	}
	return nil, status.Errorf(codes.NotFound, "no model %q here; did you mean %q?", r.Spec.Model, "demo.safetensors")
}

func (f *fakeServer) Deploy(_ context.Context, r *pb.DeployRequest) (*pb.DeployResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := proto.CloneOf(r.Spec)
	s.Generation, s.Id, s.Model, s.ModelName, s.Dtype = 1, "id-"+s.Name, demoID, "demo.safetensors", "bf16"
	f.specs[s.Name] = s
	return &pb.DeployResponse{Spec: s}, nil
}

func (f *fakeServer) Status(_ context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &pb.StatusResponse{Leader: "coordinator"}
	for name, s := range f.specs {
		if r.Name != "" && r.Name != name {
			continue
		}
		f.asked[name]++
		d := &pb.DeploymentStatus{Spec: s, Plan: f.plan(s), Ready: f.asked[name] > 2, Message: "stage 1 on b: loading"}
		state, loaded := pb.Observed_READY, uint64(9e6)
		switch {
		case name == "broken":
			state = pb.Observed_FAILED
		case !d.Ready:
			state, loaded = pb.Observed_LOADING, 4e6
		}
		d.Observed = []*pb.Observed{{Deployment: name, DeploymentId: s.Id, Node: "n-b", Epoch: 1, State: state, LoadedBytes: loaded, TotalBytes: 9e6}}
		if state == pb.Observed_FAILED {
			d.Ready, d.Observed[0].Message = false, "read demo.safetensors: file is shorter than when it was opened"
		}
		if d.Ready && len(d.Plan.Stages) == 1 {
			d.Stages = tierStats()
		}
		out.Deployments = append(out.Deployments, d)
	}
	if r.Name != "" && len(out.Deployments) == 0 {
		return nil, status.Errorf(codes.NotFound, "no deployment %q here: deploy one with `distorch deploy`", r.Name)
	}
	return out, nil
}

func (f *fakeServer) Undeploy(_ context.Context, r *pb.UndeployRequest) (*pb.UndeployResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.specs[r.Name] == nil {
		return nil, status.Errorf(codes.NotFound, "no deployment %q here", r.Name)
	}
	delete(f.specs, r.Name)
	return &pb.UndeployResponse{}, nil
}

func (f *fakeServer) BeginRun(_ context.Context, r *pb.BeginRunRequest) (*pb.BeginRunResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.specs[r.Deployment]
	for _, word := range slices.Sorted(maps.Keys(r.Dims)) {
		if w, most := r.Dims[word], s.Workload.Dims[word]; w > most && word != "ref_method" {
			return nil, status.Errorf(codes.InvalidArgument, "deployment %s: %s %d is more than the %d that this deployment is placed for; deploy it again with a larger workload", r.Deployment, word, w, most)
		}
	}
	f.begun++
	run := fmt.Sprintf("run-%d", f.begun)
	f.runs[run] = r.Deployment
	return &pb.BeginRunResponse{Run: run, Plan: f.plan(s)}, nil
}

func (f *fakeServer) PutConditioning(_ context.Context, r *pb.PutConditioningRequest) (*pb.PutConditioningResponse, error) {
	return &pb.PutConditioningResponse{Digest: fmt.Sprint(len(r.Tensors))}, nil
}

// Forward answers half of x.
func (f *fakeServer) Forward(ctx context.Context, r *pb.ForwardRequest) (*pb.ForwardResponse, error) {
	f.mu.Lock()
	name := f.runs[r.Run]
	first := !f.forgot
	f.forgot = true
	f.mu.Unlock()
	switch {
	case first:
		return nil, status.Error(codes.FailedPrecondition, "the conditioning is missing; send it again")
	case name == "slow":
		f.forwarding <- struct{}{}
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	case name == "lossy" && r.Step == 1:
		return nil, status.Error(codes.Unavailable, "deployment lossy: stage 1 on node b (blocks 3-5): is gone: it ended the session")
	}
	x := r.Tensors[0]
	values := make([]float32, len(x.Data)/4)
	if err := tensor.ToF32(values, x.Data, tensor.F32); err != nil {
		return nil, err
	}
	for i := range values {
		values[i] *= 0.5
	}
	if r.Step > 0 && (strings.HasPrefix(name, "check-odd-") || strings.HasPrefix(name, "check-mixed-")) {
		values[3] += 0.25
	}
	out := &pb.Tensor{Name: "out", Dtype: "F32", Shape: x.Shape, Data: make([]byte, len(x.Data))}
	tensor.PutF32(out.Data, values)
	ms := func(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Millisecond) }
	return &pb.ForwardResponse{Out: out, Total: ms(10), Stages: []*pb.StageTiming{
		{Node: "a", Compute: ms(4), Waiting: ms(1), Blocks: 3}, {Node: "b", Compute: ms(3), Blocks: 3},
	}}, nil
}

func (f *fakeServer) EndRun(context.Context, *pb.EndRunRequest) (*pb.EndRunResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended++
	return &pb.EndRunResponse{Stages: []*pb.StageStats{
		{Node: "n-a", NodeName: "a", Pid: 11, Isa: "avx2", Threads: 2, BlocksRun: 60, Forwards: 20, Blocks: 3,
			Feedback: &pb.Feedback{Dtype: "bf16", Ratio: 1.31, Samples: 10, Event: "node a, cpu: 31 % slower than its calibration for 10 steps; measuring again"}},
		{Node: "n-b", NodeName: "b", Pid: 12, Isa: "avx512", Threads: 1, BlocksRun: 60, Forwards: 20, FirstBlock: 3, Blocks: 3},
	}}, nil
}

// open is how many runs were begun and not ended.
func (f *fakeServer) open() (begun, open int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.begun, f.begun - f.ended
}

func (f *fakeServer) AddComfyWorker(_ context.Context, r *pb.AddComfyWorkerRequest) (*pb.AddComfyWorkerResponse, error) {
	if r.Url == "http://nobody:8188" && !r.Unchecked {
		return nil, status.Error(codes.InvalidArgument, "no ComfyUI answers at http://nobody:8188")
	}
	name, version := "den-8188", "0.3.64"
	if r.Name != "" {
		name = r.Name
	}
	if r.Unchecked {
		version = ""
	}
	return &pb.AddComfyWorkerResponse{Worker: &pb.ComfyWorker{Record: &pb.ComfyWorkerRecord{Name: name, Url: r.Url}, Live: !r.Unchecked, Version: version}}, nil
}

func (f *fakeServer) ListComfyWorkers(context.Context, *pb.ListComfyWorkersRequest) (*pb.ListComfyWorkersResponse, error) {
	return &pb.ListComfyWorkersResponse{Listen: "127.0.0.1:8188", Workers: []*pb.ComfyWorker{
		{
			Record: &pb.ComfyWorkerRecord{Name: "den", Url: "http://den:8188", AddedUnix: 1790000000}, Live: true, Busy: true, Version: "0.3.64", Classes: 612,
			Prompts: 7, Lost: 1, Replaces: true, Devices: []string{"cuda:0 NVIDIA GeForce RTX 3090"},
		},
		{Record: &pb.ComfyWorkerRecord{Name: "loft", Url: "http://loft:8188"}, Problem: "connection refused"},
	}}, nil
}

func (f *fakeServer) RemoveComfyWorker(_ context.Context, r *pb.RemoveComfyWorkerRequest) (*pb.RemoveComfyWorkerResponse, error) {
	if r.Name != "den" {
		return nil, status.Errorf(codes.NotFound, "no ComfyUI worker %q here; did you mean \"den\"? (`distorch comfy list` lists them)", r.Name)
	}
	return &pb.RemoveComfyWorkerResponse{}, nil
}
