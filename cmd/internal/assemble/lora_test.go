// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// demoLoRA writes a LoRA for three layers of the demo, and a tensor of a text
// encoder.
func demoLoRA(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	writeLoRA(t, filepath.Join(dir, "style.safetensors"), 5, "double_blocks.0.img_attn.qkv", "single_blocks.2.linear2", "img_in")
	return dir
}

// writeLoRA writes a LoRA of rank 4 and alpha 2 for layers of the demo.
func writeLoRA(t *testing.T, path string, seed uint64, layers ...string) {
	t.Helper()
	record, err := catalog.Describe(demoFile)
	if err != nil {
		t.Fatal(err)
	}
	shapes := map[string][]int64{}
	for _, w := range record.Weights {
		shapes[w.Name] = w.Shape
	}
	rng := rand.New(rand.NewPCG(seed, 9))
	random := func(name string, shape ...int64) safetensors.Data {
		v := make([]float32, shape[0]*shape[1])
		for i := range v {
			v[i] = float32(rng.NormFloat64()) / 8
		}
		return safetensors.FromFloat32s(name, tensor.Shape(shape), v)
	}
	var all []safetensors.Data
	for _, layer := range layers {
		s := shapes[layer+".weight"]
		name := "lora_unet_" + strings.ReplaceAll(layer, ".", "_")
		all = append(all, random(name+".lora_up.weight", s[0], 4), random(name+".lora_down.weight", 4, s[1]),
			safetensors.FromFloat32s(name+".alpha", tensor.Shape{}, []float32{2}))
	}
	all = append(all, random("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", 4, 4))
	var b bytes.Buffer
	if err := safetensors.Encode(&b, all, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func deployLoRA(t *testing.T, conn *grpc.ClientConn, mode string, strength float32, pins ...*pb.Pin) (*pb.DeploymentStatus, error) {
	t.Helper()
	answer, err := pb.NewControlClient(conn).Deploy(t.Context(), &pb.DeployRequest{Spec: &pb.DeploymentSpec{
		Name: "demo", Model: "demo.safetensors", Workload: &pb.Workload{Dims: demoDims, InFlight: 2}, Pins: pins,
		Loras: []*pb.LoRA{{Name: "style", Mode: mode, Strength: strength}},
	}})
	if err != nil {
		return nil, err
	}
	return await(t, conn, "a plan with a LoRA", func(s *pb.DeploymentStatus) bool {
		return s.Plan.GetGeneration() == answer.Spec.Generation && (s.Ready || s.Plan.GetInfeasible() != "")
	}), nil
}

// withStrengths makes one forward, with the run's strengths and the step's.
func withStrengths(t *testing.T, conn *grpc.ClientConn, run, step map[string]float32) []byte {
	t.Helper()
	ep := pb.NewEndpointClient(conn)
	r, err := ep.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims, LoraStrengths: run})
	if err != nil {
		t.Fatal(err)
	}
	cond, x := request(t, "large red circle on blue")
	put, err := ep.PutConditioning(t.Context(), &pb.PutConditioningRequest{Run: r.Run, Tensors: cond})
	if err != nil {
		t.Fatal(err)
	}
	res, err := ep.Forward(t.Context(), &pb.ForwardRequest{Run: r.Run, Conditioning: put.Digest, Tensors: x, LoraStrengths: step})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ep.EndRun(t.Context(), &pb.EndRunRequest{Run: r.Run}); err != nil {
		t.Fatal(err)
	}
	return res.Out.Data
}

func apart(t *testing.T, a, b []byte) float64 {
	t.Helper()
	x, y := make([]float32, len(a)/4), make([]float32, len(b)/4)
	if err := tensor.ToF32(x, a, tensor.F32); err != nil {
		t.Fatal(err)
	}
	if err := tensor.ToF32(y, b, tensor.F32); err != nil {
		t.Fatal(err)
	}
	diff, top := 0.0, 0.0
	for i := range x {
		diff, top = max(diff, math.Abs(float64(x[i]-y[i]))), max(top, math.Abs(float64(y[i])))
	}
	return diff / top
}

// A LoRA of a deployment: its strength changes between runs and steps without a
// reload, a cut does not show, merging gives about the same, and nodes without
// the file are not used.
func TestLoRAOfADeployment(t *testing.T) {
	dir := demoLoRA(t)
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	for _, name := range []string{"a", "b"} {
		cfg := testConfig(t.TempDir())
		cfg.Models.Dirs = append(cfg.Models.Dirs, dir)
		startAgentWith(t, name, token(t, conn), cfg)
	}
	startAgent(t, "c", token(t, conn), t.TempDir())
	models, err := pb.NewControlClient(conn).ListModels(t.Context(), &pb.ListModelsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	listed := ""
	for _, m := range models.Models {
		listed += m.Record.Name + " " + m.Record.Architecture + " " + m.Record.Variant + " " + strings.Join(m.Holders, ",") + "\n"
	}
	if !strings.Contains(listed, "style.safetensors lora kohya names, rank 4 a,b\n") {
		t.Errorf("models:\n%s", listed)
	}
	if s, err := deployLoRA(t, conn, "", 0.5, &pb.Pin{Node: "c", Blocks: 6}); err != nil || !strings.Contains(s.Plan.Infeasible, "style.safetensors") {
		t.Errorf("on a node without the file: %v, %v", s, err)
	}

	s, err := deployLoRA(t, conn, "", 0.5, &pb.Pin{Node: "a", Blocks: 3}, &pb.Pin{Node: "b", FirstBlock: 3, Blocks: 3})
	if err != nil || !s.Ready {
		t.Fatalf("%v, %v", s, err)
	}
	if l := s.Plan.Loras[0]; s.Plan.Numerics != "equals one device ("+plainClass(t)+"+lora)" || l.Layers != 3 || len(l.Notes) != 1 || !strings.Contains(l.Notes[0], "text encoder") {
		t.Errorf("numerics %q, LoRA %v", s.Plan.Numerics, l)
	}
	half := withStrengths(t, conn, nil, nil)
	none, full := withStrengths(t, conn, map[string]float32{"style.safetensors": 0}, nil), withStrengths(t, conn, map[string]float32{s.Plan.Loras[0].Id: 1}, nil)
	if apart(t, none, half) < 1e-3 || apart(t, full, half) < 1e-3 {
		t.Error("the strength changes nothing")
	}
	for step, want := range map[float32][]byte{0: none, 0.5: half, 1: full} {
		if got := withStrengths(t, conn, map[string]float32{"style.safetensors": 0.3}, map[string]float32{"style.safetensors": step}); !bytes.Equal(got, want) {
			t.Errorf("strength %g of a step differs from that of a run", step)
		}
	}
	ep := pb.NewEndpointClient(conn)
	for _, bad := range []map[string]float32{{"other": 1}, {"style.safetensors": float32(math.NaN())}} {
		if _, err := ep.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims, LoraStrengths: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("strengths %v: %v", bad, err)
		}
	}

	if s, err = deployLoRA(t, conn, "add", 1, &pb.Pin{Node: "b", Blocks: 6}); err != nil || !s.Ready {
		t.Fatalf("%v, %v", s, err)
	}
	if !bytes.Equal(withStrengths(t, conn, nil, nil), full) {
		t.Error("one stage gives other bits than two")
	}
	if s, err = deployLoRA(t, conn, "merge", 1, &pb.Pin{Node: "a", Blocks: 2}, &pb.Pin{Node: "b", FirstBlock: 2, Blocks: 4}); err != nil || !s.Ready {
		t.Fatalf("%v, %v", s, err)
	}
	if s.Plan.Numerics != "equals one device ("+plainClass(t)+"+lora-merge)" {
		t.Errorf("numerics %q", s.Plan.Numerics)
	}
	if e := apart(t, withStrengths(t, conn, nil, nil), full); e > 2e-2 {
		t.Errorf("merged is %.2g off from added", e)
	}
	_, err = ep.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims, LoraStrengths: map[string]float32{"style.safetensors": 0.3}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "merged") {
		t.Errorf("another strength of a merged LoRA: %v", err)
	}
}
