// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"

	"google.golang.org/grpc"

	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	sampled "github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/model/compare"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// TestSplitsSeenByClients: a client of the HTTPS endpoint gets the same bytes
// however the model is cut, with however many threads each agent has, and
// whichever way the conditioning came; and a run that is checked on one device
// finds equal bits.
func TestSplitsSeenByClients(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	for name, threads := range map[string]int{"a": 1, "b": 2, "c": 1} {
		cfg := testConfig(t.TempDir())
		if !torchtest.Chosen() { // whose class has the threads in its name
			cfg.Agent.Threads = threads
		}
		startAgentWith(t, name, token(t, conn), cfg)
	}
	c := newWebClient(t, conn, "comfy")
	splits := map[string][]*pb.Pin{
		"one":   {{Node: "a", Blocks: 6}},
		"two":   {{Node: "b", Blocks: 1}, {Node: "a", FirstBlock: 1, Blocks: 5}},
		"three": {{Node: "c", Blocks: 2}, {Node: "b", FirstBlock: 2, Blocks: 3}, {Node: "a", FirstBlock: 5, Blocks: 1}},
		"other": {{Node: "b", Blocks: 6}},
		"f32":   {{Node: "b", Blocks: 4}, {Node: "c", FirstBlock: 4, Blocks: 2}},
	}
	for name, pins := range splits {
		dtype := ""
		if name == "f32" {
			dtype = name
		}
		_, err := pb.NewControlClient(conn).Deploy(t.Context(), &pb.DeployRequest{Spec: &pb.DeploymentSpec{
			Name: name, Model: "demo.safetensors", Workload: &pb.Workload{Dims: demoDims, InFlight: 2}, Pins: pins, Dtype: dtype,
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, pins := range splits {
		v := c.json("GET", "/v1/deployments/"+name+"?wait=60s", nil)
		if stages, _ := v["plan"].([]any); v["state"] != "ready" || len(stages) != len(pins) {
			t.Fatalf("deployment %s: %v", name, v)
		}
	}
	t.Run("forwards", func(t *testing.T) { (&webClient{t, c.connection, c.http}).splits() })
	t.Run("checked run", func(t *testing.T) { checkedRun(t, conn) })
	t.Run("as in ComfyUI", func(t *testing.T) { asInComfyUI(t, conn) })
}

// splits compares the answers of all deployments.
func (c *webClient) splits() {
	c.Helper()
	for i, prompt := range []string{"large red circle on blue", "small green square on white"} {
		cond, step := request(c, prompt)
		blob := safetensorsOf(c, tensor.F32, nil, cond...)
		digest := digestOf(blob)
		if code, out := c.do("PUT", "/v1/blobs/"+digest, blob); code >= 300 {
			c.Fatalf("blob: %d %s", code, out)
		}
		for _, d := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F16} {
			var want []byte
			for _, name := range []string{"one", "two", "three", "other"} {
				for _, way := range []string{"blob", "inline"} {
					metadata := map[string]string{"run": fmt.Sprintf("%s-%s-%v-%d", name, way, d, i), "branch": "1", "conditioning": digest}
					tensors := step
					if way == "inline" {
						delete(metadata, "conditioning")
						tensors = append(slices.Clone(step), cond...)
					}
					got := c.out(name, latentIn(c, d, metadata, tensors))
					if want == nil {
						want = got
					}
					if !bytes.Equal(got, want) {
						c.Errorf("%s in %v, conditioning by %s: deployment %s gives other bytes than one stage", prompt, d, way, name)
					}
				}
			}
			if want == nil || bytes.Equal(want, make([]byte, len(want))) {
				c.Errorf("%s in %v: the output is all zero", prompt, d)
			}
		}
	}
}

// sampledBy makes a picture of the demo with a deployment.
func sampledBy(t *testing.T, conn *grpc.ClientConn, deployment string, seed uint64, steps int, check *sampled.Checking) *sampled.Result {
	t.Helper()
	positive, negative, err := sampled.Prompt("large red circle on blue")
	if err != nil {
		t.Fatal(err)
	}
	result, err := sampled.Sample(t.Context(), pb.NewEndpointClient(conn), sampled.Request{
		Deployment: deployment, Model: sampled.Model{Channels: 16, Guidance: true, Demo: true}, Width: 128, Height: 128, Seed: seed, Steps: steps, CFG: 3, Guidance: 3.5,
		Scheduler: sampling.Simple, Shift: sampling.DefaultFluxShift, Text: positive, Negative: &negative, Check: check,
	})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// checkedRun samples over three agents and checks steps on one.
func checkedRun(t *testing.T, conn *grpc.ClientConn) {
	result := sampledBy(t, conn, "three", 3, 4, &sampled.Checking{Every: 2, Deployment: "other"})
	if len(result.Checks) != 2 {
		t.Fatalf("%d steps checked, want 2", len(result.Checks))
	}
	for _, check := range result.Checks {
		if !check.EqualBits || check.Values != 2*16*16*16 {
			t.Errorf("step %d: %+v", check.Step, check.Result)
		}
	}
	if sampled.SingleClass(result.Plan) == "" {
		t.Errorf("the plan is of several classes: %v", result.Plan.Stages)
	}
}

// asInComfyUI holds a picture against the file that SaveLatent of ComfyUI 0.3.64
// wrote of it: KSampler with the node pack's MODEL, euler, simple, seed 7, 12
// steps, CFG 3, f32.
func asInComfyUI(t *testing.T, conn *grpc.ClientConn) {
	result := sampledBy(t, conn, "f32", 7, 12, nil)
	sampling.FluxLatents().Out(result.Latent)
	var own bytes.Buffer
	if err := safetensors.Encode(&own, []safetensors.Data{safetensors.FromFloat32s("latent_tensor", result.Shape, result.Latent)}, nil); err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile("testdata/comfyui-0.3.64.latent")
	if err != nil {
		t.Fatal(err)
	}
	var sides [2]*compare.File
	for i, raw := range [][]byte{own.Bytes(), theirs} {
		if sides[i], err = compare.Open(bytes.NewReader(raw)); err != nil {
			t.Fatal(err)
		}
	}
	m, err := compare.Match(sides[0], sides[1], nil)
	if err != nil || len(m.Pairs) != 1 {
		t.Fatalf("%d tensors matched, %v", len(m.Pairs), err)
	}
	r, err := compare.Tensors(m.Pairs[0].A, m.Pairs[0].B)
	if err != nil || !r.Within(1e-5) || r.NoSSIM != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// out is the bytes of a forward's output.
func (c *webClient) out(deployment string, body []byte) []byte {
	c.Helper()
	code, raw := c.do("POST", "/v1/deployments/"+deployment+"/forward", body)
	if code != http.StatusOK {
		c.Fatalf("forward of %s: %d %s", deployment, code, raw)
	}
	f, err := safetensors.Parse(bytes.NewReader(raw))
	if err != nil {
		c.Fatal(err)
	}
	out, _, err := f.Read("out")
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// latentIn is a forward's body with x in a dtype and all else in float32.
func latentIn(t testing.TB, d tensor.DType, metadata map[string]string, tensors []*pb.Tensor) []byte {
	t.Helper()
	var all []safetensors.Data
	for _, p := range tensors {
		entry := safetensors.Entry{Name: p.Name, DType: tensor.F32, Shape: p.Shape}
		raw := p.Data
		if p.Name == "x" {
			v := make([]float32, len(p.Data)/4)
			if err := tensor.ToF32(v, p.Data, tensor.F32); err != nil {
				t.Fatal(err)
			}
			entry.DType, raw = d, make([]byte, len(v)*d.Size())
			if err := tensor.PutFloats(raw, v, d); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, safetensors.Data{Entry: entry, Bytes: raw})
	}
	var b bytes.Buffer
	if err := safetensors.Encode(&b, all, metadata); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
