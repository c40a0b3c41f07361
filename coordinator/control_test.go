// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/placement"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

func TestRefusals(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "tiny.safetensors", tiny, tensor.F32))
	put(c, store.ModelKey("m2"), modelRecord("m2", "twice.safetensors", tiny, tensor.F32))
	put(c, store.ModelKey("m3"), modelRecord("m3", "twice.safetensors", tiny, tensor.BF16))
	broken := modelRecord("m4", "broken.safetensors", tiny, tensor.F32)
	broken.Weights[0].Dtype = "F77"
	put(c, store.ModelKey("m4"), broken)
	put(c, store.ModelKey("m5"), &pb.ModelRecord{Id: "m5", Name: "style.safetensors", Architecture: lora.Architecture})
	c.join("m1", map[string]float64{"a": 1e9})
	co, op := c.new("one:1"), c.as(identity.RoleOperator)
	change := func(f func(*pb.DeploymentSpec)) *pb.DeploymentSpec { return spec("demo", "m1", f) }
	for name, tc := range map[string]struct {
		spec *pb.DeploymentSpec
		code codes.Code
		text string
	}{
		"no spec":       {nil, codes.InvalidArgument, "no deployment"},
		"name":          {change(func(s *pb.DeploymentSpec) { s.Name = "a/b" }), codes.InvalidArgument, "a/b"},
		"no name":       {change(func(s *pb.DeploymentSpec) { s.Name = "" }), codes.InvalidArgument, "deployment: name"},
		"no model":      {change(func(s *pb.DeploymentSpec) { s.Model = "" }), codes.InvalidArgument, "names no model"},
		"unknown model": {change(func(s *pb.DeploymentSpec) { s.Model = "tyni" }), codes.NotFound, "did you mean \"tiny.safetensors\"?"},
		"LoRA as model": {change(func(s *pb.DeploymentSpec) { s.Model = "style" }), codes.InvalidArgument, "style.safetensors is a LoRA"},
		"its id":        {change(func(s *pb.DeploymentSpec) { s.Model = "m5" }), codes.InvalidArgument, "style.safetensors is a LoRA"},
		"model as LoRA": {change(func(s *pb.DeploymentSpec) { s.Loras = []*pb.LoRA{{Name: "tiny"}} }), codes.InvalidArgument, "tiny.safetensors is a model (flux), not a LoRA"},
		"unknown LoRA":  {change(func(s *pb.DeploymentSpec) { s.Loras = []*pb.LoRA{{Name: "stile"}} }), codes.NotFound, "did you mean \"style.safetensors\"? (`distorch models` lists them)"},
		"two models":    {change(func(s *pb.DeploymentSpec) { s.Model = "twice" }), codes.InvalidArgument, "m2, m3"},
		"broken model":  {change(func(s *pb.DeploymentSpec) { s.Model = "broken" }), codes.InvalidArgument, "F77"},
		"objective":     {change(func(s *pb.DeploymentSpec) { s.Objective = "throughput" }), codes.InvalidArgument, "throughput"},
		"dtype":         {change(func(s *pb.DeploymentSpec) { s.Dtype = "f16" }), codes.InvalidArgument, "f32 or bf16"},
		"in flight":     {change(func(s *pb.DeploymentSpec) { s.Workload.InFlight = 65 }), codes.InvalidArgument, "1 to 64"},
		"no workload":   {change(func(s *pb.DeploymentSpec) { s.Workload = nil }), codes.InvalidArgument, "workload"},
		"large":         {change(func(s *pb.DeploymentSpec) { s.Workload.Dims["width"] = 1 << 20 }), codes.InvalidArgument, "1048576"},
		"word":          {change(func(s *pb.DeploymentSpec) { s.Workload.Dims["frames"] = 2 }), codes.InvalidArgument, "frames"},
		"pin node":      {change(func(s *pb.DeploymentSpec) { s.Pins = []*pb.Pin{{Node: "aa", Blocks: 8}} }), codes.NotFound, "did you mean \"a\"?"},
		"exclude":       {change(func(s *pb.DeploymentSpec) { s.Excludes = []string{"a", "aa"} }), codes.NotFound, "exclude: no node \"aa\" here; did you mean \"a\"? (`distorch nodes` lists them)"},
		"pin blocks":    {change(func(s *pb.DeploymentSpec) { s.Pins = []*pb.Pin{{Node: "a", Blocks: 7}} }), codes.InvalidArgument, "blocks 7-7"},
		"pin far":       {change(func(s *pb.DeploymentSpec) { s.Pins = []*pb.Pin{{Node: "a", Blocks: 1 << 31}} }), codes.InvalidArgument, "no model has block"},
	} {
		_, err := co.Deploy(op, &pb.DeployRequest{Spec: tc.spec})
		if status.Code(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.text) {
			t.Errorf("%s: %v, want %v with %q", name, err, tc.code, tc.text)
		}
	}
	st, err := c.store.ReadState(t.Context())
	if err != nil || len(st.Specs) != 0 {
		t.Errorf("specs %v, %v", st.Specs, err)
	}
}

// TestOperatorsOnly: every call takes an operator's certificate.
func TestOperatorsOnly(t *testing.T) {
	c := newCluster(t)
	co := c.new("one:1")
	for name, call := range map[string]func(context.Context) error{
		"Version":     func(ctx context.Context) error { _, err := co.Version(ctx, &pb.VersionRequest{}); return err },
		"CreateToken": func(ctx context.Context) error { _, err := co.CreateToken(ctx, &pb.CreateTokenRequest{}); return err },
		"ListTokens":  func(ctx context.Context) error { _, err := co.ListTokens(ctx, &pb.ListTokensRequest{}); return err },
		"RevokeToken": func(ctx context.Context) error { _, err := co.RevokeToken(ctx, &pb.RevokeTokenRequest{}); return err },
		"ListNodes":   func(ctx context.Context) error { _, err := co.ListNodes(ctx, &pb.ListNodesRequest{}); return err },
		"RemoveNode":  func(ctx context.Context) error { _, err := co.RemoveNode(ctx, &pb.RemoveNodeRequest{}); return err },
		"ListModels":  func(ctx context.Context) error { _, err := co.ListModels(ctx, &pb.ListModelsRequest{}); return err },
		"Plan":        func(ctx context.Context) error { _, err := co.Plan(ctx, &pb.PlanRequest{}); return err },
		"Deploy":      func(ctx context.Context) error { _, err := co.Deploy(ctx, &pb.DeployRequest{}); return err },
		"Status":      func(ctx context.Context) error { _, err := co.Status(ctx, &pb.StatusRequest{}); return err },
		"Undeploy":    func(ctx context.Context) error { _, err := co.Undeploy(ctx, &pb.UndeployRequest{}); return err },
		"AddComfyWorker": func(ctx context.Context) error {
			_, err := co.AddComfyWorker(ctx, &pb.AddComfyWorkerRequest{})
			return err
		},
		"ListComfyWorkers": func(ctx context.Context) error {
			_, err := co.ListComfyWorkers(ctx, &pb.ListComfyWorkersRequest{})
			return err
		},
		"RemoveComfyWorker": func(ctx context.Context) error {
			_, err := co.RemoveComfyWorker(ctx, &pb.RemoveComfyWorkerRequest{})
			return err
		},
	} {
		if err := call(t.Context()); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s by nobody: %v", name, err)
		}
		for _, role := range []identity.Role{identity.RoleAgent, identity.RoleClient, identity.RoleCoordinator} {
			if err := call(c.as(role)); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s by a %s: %v", name, role, err)
			}
		}
		err := call(OnBehalf(t.Context(), "client"))
		if may := name != "CreateToken" && name != "ListTokens" && name != "RevokeToken" && name != "RemoveNode"; may == (status.Code(err) == codes.PermissionDenied) {
			t.Errorf("%s for a client of the endpoint: %v", name, err)
		}
		if err := call(c.as(identity.RoleOperator)); status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unauthenticated {
			t.Errorf("%s by an operator: %v", name, err)
		}
	}
}

func TestTokens(t *testing.T) {
	c := newCluster(t)
	co, op := c.new("one:1"), c.as(identity.RoleOperator)
	got, err := co.CreateToken(op, &pb.CreateTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := identity.ParseToken(got.Token)
	if err != nil || token.Addresses[0] != "one:1" || token.Cluster != c.ca.Cluster() {
		t.Fatalf("%v, %v", token, err)
	}
	use := identity.Redemption{TokenID: token.ID, SecretHash: token.SecretHash(), NodeID: "n-x", Name: "x", KeyHash: "sha256:00"}
	if err := c.store.RedeemToken(t.Context(), use); err != nil {
		t.Error(err)
	}
	for _, ttl := range []time.Duration{0, -time.Hour, time.Millisecond, 1000 * time.Hour} {
		if _, err := co.CreateToken(op, &pb.CreateTokenRequest{Ttl: durationpb.New(ttl)}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("lifetime %v: %v", ttl, err)
		}
	}
}

func TestLists(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "tiny.safetensors", tiny, tensor.F32))
	c.join("m1", map[string]float64{"b": 1e9, "a": 1e9})
	co, op := c.new("one:1"), c.as(identity.RoleOperator)
	nodes, err := co.ListNodes(op, &pb.ListNodesRequest{})
	if err != nil || len(nodes.Nodes) != 2 || nodes.Nodes[0].Record.Name != "a" || nodes.Nodes[1].Models[0] != "tiny.safetensors" || nodes.Nodes[0].Link.GetNicBytesPerSecond() == 0 {
		t.Errorf("%v, %v", nodes, err)
	}
	models, err := co.ListModels(op, &pb.ListModelsRequest{})
	if err != nil || len(models.Models) != 1 || models.Models[0].Record.Graph != nil || !cmp.Equal(models.Models[0].Holders, []string{"a", "b"}) {
		t.Errorf("%v, %v", models, err)
	}
	one, err := co.ListModels(op, &pb.ListModelsRequest{GraphOf: models.Models[0].Record.Id})
	if err != nil || one.Models[0].Record.Graph == nil || len(one.Models[0].Record.Weights) == 0 {
		t.Errorf("the graph that was asked for: %v, %v", one, err)
	}
	if v, err := co.Version(op, &pb.VersionRequest{}); err != nil || v.Cluster != c.ca.Cluster() || v.Version != "test" {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := co.RemoveNode(op, &pb.RemoveNodeRequest{Name: "bb"}); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "did you mean \"b\"") {
		t.Errorf("remove an unknown node: %v", err)
	}
	if _, err := co.Diagnose(op, &pb.DiagnoseRequest{Node: "living-room"}); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "look there with `distorch doctor`") {
		t.Errorf("diagnose an unknown node: %v", err)
	}
	creds, err := c.ca.Issue(identity.Subject{Role: identity.RoleAgent, Name: "pc"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	self := creds.Self()
	if err := c.store.ClaimName(t.Context(), "pc", self.KeyHash); err != nil {
		t.Fatal(err)
	}
	put(c, store.NodeKey(self.ID), nodeRecord("pc", 1e9))
	if _, err := co.RemoveNode(op, &pb.RemoveNodeRequest{Name: "pc"}); err != nil {
		t.Fatal(err)
	}
	if nodes, err = co.ListNodes(op, &pb.ListNodesRequest{}); err != nil || len(nodes.Nodes) != 2 {
		t.Errorf("%v, %v", nodes, err)
	}
}

// TestPlanRoundTrip: every field of a plan survives the record.
func TestPlanRoundTrip(t *testing.T) {
	var p reconcile.Plan
	n := 0
	fill(reflect.ValueOf(&p).Elem(), &n)
	if diff := cmp.Diff(p, planFromProto(p.Deployment, planToProto(&p))); diff != "" {
		t.Error(diff)
	}
}

// fill gives every field another value.
func fill(v reflect.Value, n *int) {
	*n++
	if v.Type() == reflect.TypeFor[placement.TierKind]() {
		kinds := []placement.TierKind{placement.TierDevice, placement.TierDonor, placement.TierRAM, placement.TierRemote, placement.TierDisk}
		v.SetString(string(kinds[*n%len(kinds)]))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(float64(*n))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), n)
	case reflect.Map:
		value := reflect.New(v.Type().Elem()).Elem()
		fill(value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("width"), value)
	case reflect.Struct:
		for _, f := range v.Fields() {
			fill(f, n)
		}
	}
}

func TestStatusCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{store.ErrNotFound, codes.NotFound}, {store.ErrExists, codes.AlreadyExists}, {store.ErrConflict, codes.Aborted},
		{store.ErrNotLeader, codes.Aborted}, {store.ErrFull, codes.ResourceExhausted}, {store.ErrUnavailable, codes.Unavailable},
		{store.ErrDenied, codes.PermissionDenied}, {identity.ErrNoIdentity, codes.Unauthenticated},
		{context.Canceled, codes.Canceled}, {context.DeadlineExceeded, codes.DeadlineExceeded}, {errors.New("x"), codes.Internal},
		{&UnknownError{Kind: "node"}, codes.NotFound}, {invalid("x"), codes.InvalidArgument},
	} {
		err := tc.err
		if err != nil {
			err = fmt.Errorf("call: %w", err)
		}
		if got := status.Code(toStatus(err)); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"demo", "flux1-dev.safetensors", "flux1-schnell.safetensors"}
	for name, want := range map[string]string{
		"dmeo": "demo", "Demo": "demo", "flux1-dev.safetensor": "flux1-dev.safetensors", "schnell": "flux1-schnell.safetensors",
		"xyz": "", "": "", strings.Repeat("z", 10000): "",
	} {
		if got := nearest(name, known); got != want {
			t.Errorf("%.40q: %q, want %q", name, got, want)
		}
	}
	if got := (&UnknownError{Kind: "model", Name: "x"}).Error(); got != "no model \"x\" here" {
		t.Error(got)
	}
}

// FuzzDeploymentSpec: no spec from outside panics or takes long; one that is
// placed covers the model.
func FuzzDeploymentSpec(f *testing.F) {
	record := modelRecord("m1", "tiny.safetensors", tiny, tensor.F8E4M3)
	st := &store.State{
		Nodes:   map[string]store.Entry[*pb.NodeRecord]{"n-a": {Value: nodeRecord("a", 1e9)}, "n-b": {Value: nodeRecord("b", 1e6)}},
		Links:   map[string]store.Entry[*pb.LinkRecord]{"n-a": {Value: linkRecord("a")}, "n-b": {Value: linkRecord("b")}},
		Models:  map[string]store.Entry[*pb.ModelRecord]{"m1": {Value: record}},
		Holders: map[store.NodeOf]store.Entry[*pb.HolderRecord]{{Of: "m1", Node: "n-a"}: {}, {Of: "m1", Node: "n-b"}: {}},
	}
	for _, s := range []*pb.DeploymentSpec{
		spec("demo", "tiny"), spec("demo", "m1", func(s *pb.DeploymentSpec) { s.Pins = []*pb.Pin{{Node: "a", Blocks: 8}} }),
		spec("demo", "m1", func(s *pb.DeploymentSpec) { s.Workload.Dims["width"] = -1 }), {},
	} {
		raw, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		var s pb.DeploymentSpec
		if proto.Unmarshal(raw, &s) != nil {
			return
		}
		co := &Coordinator{cfg: Config{ProtocolMin: 1, ProtocolMax: 1}}
		_, p, err := co.propose(st, &s)
		if err != nil {
			return
		}
		blocks := 0
		for _, stage := range p.Plan.Stages {
			blocks += stage.Blocks
		}
		if (p.Err == nil) != (blocks == 8) {
			t.Errorf("%d blocks, %v", blocks, p.Err)
		}
	})
}

// TestTierWords: each kind of tier has a word in the record.
func TestTierWords(t *testing.T) {
	for word := range pb.BlockTier_Kind_name {
		kind := pb.BlockTier_Kind(word)
		if kind == pb.BlockTier_KIND_UNSPECIFIED {
			continue
		}
		in := []*pb.BlockTier{{Kind: kind, Blocks: 1}}
		if out := tiersToProto(tiersFromProto(in)); out[0].Kind != kind {
			t.Errorf("%s came back as %s", kind, out[0].Kind)
		}
	}
}
