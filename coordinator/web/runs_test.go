// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/coordinator/endpoint"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// TestRunsAndConditioning: one run at the endpoint for each size, its
// conditioning sent once, whatever came with the forward or from a blob.
func TestRunsAndConditioning(t *testing.T) {
	r := newRig(t)
	cond := pack(t, nil, usualInputs()[2:]...)
	if a := r.do("all", "PUT", "/v1/blobs/"+digestOf(cond), cond); a.status != http.StatusCreated {
		t.Fatalf("%s", a.body)
	}
	long := usualInputs()
	long[2].shape = tensor.Shape{1, 9, 8}
	for step := range 3 {
		m := map[string]string{"run": "r", "step": fmt.Sprint(step), "conditioning": digestOf(cond)}
		if a := r.do("all", "POST", forwardPath, pack(t, m, usualInputs()[:2]...)); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		m = map[string]string{"run": "r", "step": fmt.Sprint(step), "branch": "1"}
		if a := r.do("all", "POST", forwardPath, pack(t, m, long...)); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if len(r.begun) != 2 || len(r.put) != 2 || len(r.forwards) != 6 {
		t.Fatalf("%d runs, %d conditionings, %d forwards", len(r.begun), len(r.put), len(r.forwards))
	}
	if d := r.begun[0].Dims; d["width"] != 64 || d["height"] != 128 || d["text_tokens"] != 5 || d["batch"] != 1 || r.begun[1].Dims["text_tokens"] != 9 {
		t.Errorf("sizes %v and %v", d, r.begun[1].Dims)
	}
	if f := r.forwards[5]; f.Step != 2 || f.Branch != 1 {
		t.Errorf("step %d, branch %d", f.Step, f.Branch)
	}
	// Another client's run of the same name is another run.
	if a := r.do("other", "POST", forwardPath, pack(t, map[string]string{"run": "r"}, usualInputs()...)); a.status != 200 || len(r.begun) != 3 {
		t.Errorf("%d, %d runs", a.status, len(r.begun))
	}
	if a := r.do("all", "DELETE", "/v1/runs/r", nil); a.status != 200 || len(r.ended) != 2 {
		t.Errorf("%d, %d runs ended", a.status, len(r.ended))
	}
}

// TestDTypes: out has x's dtype, everything between is float32.
func TestDTypes(t *testing.T) {
	r := newRig(t)
	for _, d := range []tensor.DType{tensor.F32, tensor.BF16, tensor.F16} {
		in := usualInputs()
		for i := range in {
			if in[i].name != "timestep" {
				in[i].dtype = d
			}
		}
		a := r.do("all", "POST", forwardPath, pack(t, map[string]string{"run": "r"}, in...))
		f, err := safetensors.Parse(bytes.NewReader(a.body))
		if err != nil {
			t.Fatalf("%d %s", a.status, a.body)
		}
		e, _ := f.Lookup("out")
		v, _, err := f.Float32s("out")
		if err != nil || e.DType != d || !e.Shape.Equal(in[0].shape) || v[9] != 2.25 {
			t.Errorf("%v: out %v %v, %v; %v", d, e.DType, e.Shape, v[9], err)
		}
	}
	for _, f := range r.forwards {
		for _, in := range f.Tensors {
			if in.Dtype != "F32" {
				t.Errorf("%s went on as %s", in.Name, in.Dtype)
			}
		}
	}
}

// TestConcatChannels: what is behind the latent's channels in x is the model's
// input concat, and conditioning.
func TestConcatChannels(t *testing.T) {
	r := newRig(t)
	wide := tiny
	wide.Concat = 4
	r.graph = wide.Build(arch.Options{})
	in := usualInputs()
	in[0].shape = tensor.Shape{1, 8, 16, 8}
	a := r.do("all", "POST", forwardPath, pack(t, map[string]string{"run": "r"}, in...))
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for _, x := range r.forwards[0].Tensors {
		if x.Name == "x" && (x.Shape[1] != 4 || len(x.Data) != 4*4*16*8) {
			t.Errorf("x %v of %d bytes", x.Shape, len(x.Data))
		}
	}
	found := false
	for _, c := range r.put[0].Tensors {
		found = found || c.Name == "concat" && c.Shape[1] == 4 && len(c.Data) == 4*4*16*8
	}
	if !found {
		t.Errorf("conditioning %v", r.put[0].Tensors)
	}
}

// lost is what the endpoint says of a stage that is gone.
func lost(kind pb.StageFault_Kind) error {
	return &endpoint.Fault{Deployment: "d", Stage: 1, Node: "b", Blocks: "blocks 4-7", Kind: kind, Reason: "is gone"}
}

// TestLostStage: a forward whose stage is lost is repeated on the next plan, and
// the numerics sentence says what that changed, until the run ends.
func TestLostStage(t *testing.T) {
	for name, c := range map[string]struct {
		class, want string
	}{
		"the same class": {"native/1/f32", "equals one device (native/1)"},
		"another class":  {"torch/2.9/cpu/f32", "changed at step 7 (native/1/f32 → torch/2.9/cpu/f32, blocks 0-7, node b lost)"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if m := r.forward(map[string]string{"run": "r", "step": "6"}).metadata(t); m["numerics"] != "equals one device (native/1)" || m["epoch"] != "1" {
				t.Errorf("before: %v", m)
			}
			r.onForward = func(_ context.Context, n int, _ *pb.ForwardRequest) error {
				if n != 2 {
					return nil
				}
				go r.change(func() { r.notReady = "stage 1 on b: the node left the cluster" })
				go func() {
					until(t, "an attempt on what is not ready", func() bool {
						r.mu.Lock()
						defer r.mu.Unlock()
						return r.notReady != ""
					})
					r.change(func() { r.plan, r.notReady = planOf(2, c.class, "a", "c"), "" })
				}()
				return lost(pb.StageFault_PEER_UNREACHABLE)
			}
			m := r.forward(map[string]string{"run": "r", "step": "7"}).metadata(t)
			if m["numerics"] != c.want || m["epoch"] != "2" || m["attempt"] == "1" {
				t.Errorf("repeated: %v", m)
			}
			m = r.forward(map[string]string{"run": "r", "step": "8"}).metadata(t)
			if m["numerics"] != c.want || m["attempt"] != "1" {
				t.Errorf("afterwards: %v", m)
			}
			m = r.forward(map[string]string{"run": "next"}).metadata(t)
			if m["numerics"] != r.plan.Numerics {
				t.Errorf("the next run: %v", m)
			}
		})
	}
}

// TestRepeats: which errors are worth another attempt.
func TestRepeats(t *testing.T) {
	for name, c := range map[string]struct {
		errs []error // of the first attempts
		want Code    // empty: an answer
		n    int     // attempts

		begun, put int // runs at the endpoint, conditionings sent; 0: whatever
	}{
		"a run that is not open":      {[]error{status.Error(codes.NotFound, "run is not open here")}, "", 2, 2, 2},
		"conditioning that is gone":   {[]error{status.Error(codes.FailedPrecondition, "no conditioning")}, "", 2, 1, 2},
		"a stage that moved on":       {[]error{lost(pb.StageFault_STALE_EPOCH)}, "", 2, 0, 0},
		"an engine once":              {[]error{lost(pb.StageFault_ENGINE)}, "", 2, 0, 0},
		"an engine always":            {[]error{lost(pb.StageFault_ENGINE), lost(pb.StageFault_ENGINE), lost(pb.StageFault_ENGINE), lost(pb.StageFault_ENGINE)}, CodeUnavailable, 3, 0, 0},
		"a request that is bad":       {[]error{status.Error(codes.InvalidArgument, "tensor x")}, CodeBadRequest, 1, 0, 0},
		"an error of the coordinator": {[]error{fmt.Errorf("out of luck")}, CodeInternal, 1, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.onForward = func(_ context.Context, n int, _ *pb.ForwardRequest) error {
				if n <= len(c.errs) {
					return c.errs[n-1]
				}
				return nil
			}
			req := r.request(t.Context(), "all", "POST", forwardPath, pack(t, map[string]string{"run": "r"}, usualInputs()...))
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			want := 200
			if c.want != "" {
				want = c.want.Status()
			}
			if res.StatusCode != want || len(r.forwards) != c.n {
				t.Errorf("%d after %d attempts, want %d after %d", res.StatusCode, len(r.forwards), want, c.n)
			}
			if c.begun > 0 && len(r.begun) != c.begun || c.put > 0 && len(r.put) != c.put {
				t.Errorf("%d runs begun, %d conditionings sent", len(r.begun), len(r.put))
			}
			open := 0
			until(t, "old runs to end", func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				open = len(r.open)
				return open <= 1
			})
		})
	}
}

// TestClosingCancels: a client that closes its connection ends its forward.
func TestClosingCancels(t *testing.T) {
	r := newRig(t)
	began, ended := make(chan struct{}), make(chan error, 1)
	r.onForward = func(ctx context.Context, _ int, _ *pb.ForwardRequest) error {
		close(began)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return status.FromContextError(ctx.Err()).Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		cancel()
	}()
	if res, err := http.DefaultClient.Do(r.request(ctx, "all", "POST", forwardPath, pack(t, map[string]string{"run": "r"}, usualInputs()...))); err == nil {
		_ = res.Body.Close()
		t.Errorf("answered %d", res.StatusCode)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the forward goes on without its client")
	}
	until(t, "the forward to be forgotten", func() bool {
		r.server.mu.Lock()
		defer r.server.mu.Unlock()
		return r.server.forwards == 0 && len(r.server.flying) == 0
	})
}

// TestTogether: cond and uncond are in flight at the same time, on one run.
func TestTogether(t *testing.T) {
	r := newRig(t)
	var both sync.WaitGroup
	both.Add(2)
	r.onForward = func(context.Context, int, *pb.ForwardRequest) error {
		both.Done()
		both.Wait()
		return nil
	}
	var calls sync.WaitGroup
	for branch := range 2 {
		calls.Go(func() {
			r.forward(map[string]string{"run": "r", "branch": fmt.Sprint(branch)})
		})
	}
	calls.Wait()
	if len(r.begun) != 1 || len(r.put) != 1 {
		t.Errorf("%d runs, %d conditionings", len(r.begun), len(r.put))
	}
}

// TestRunLimits: the run that was idle longest makes room, whoever has the limit.
func TestRunLimits(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Runs = 2 })
	for _, run := range []string{"1", "2", "3"} {
		if a := r.forward(map[string]string{"run": run}); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if len(r.ended) != 1 || r.ended[0] != "01" {
		t.Errorf("ended %v", r.ended)
	}
	r.beginFull = true
	if a := r.forward(map[string]string{"run": "4"}); a.status != http.StatusTooManyRequests || !strings.Contains(a.failure(t).Message, "64 runs are open") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if len(r.ended) != 3 {
		t.Errorf("ended %v", r.ended)
	}
}

// TestIdleRunsEnd by themselves.
func TestIdleRunsEnd(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.RunIdle = 20 * time.Millisecond })
	r.forward(map[string]string{"run": "r"})
	until(t, "the run to end", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.ended) == 1
	})
}

// brought makes the plan have LoRAs.
type brought struct {
	*cluster
	asked [][]string
}

func (b *brought) Ensure(_ context.Context, _ string, digests []string, file func(string) (string, error)) error {
	b.asked = append(b.asked, digests)
	plan := planOf(b.plan.Epoch+1, "native/1/f32", "a", "b")
	plan.Loras = append(plan.Loras, b.plan.Loras...)
	changed := false
	for _, d := range digests {
		if has(b.plan, []loraUse{{Digest: d}}) {
			continue
		}
		if _, err := file(d); err != nil {
			return err
		}
		changed = true
		plan.Loras = append(plan.Loras, &pb.LoRA{Id: d, Name: d, Brought: true})
	}
	if changed {
		b.change(func() { b.plan = plan })
	}
	return nil
}

// TestLoRAs of clients: by digest, each forward with its own strengths, zero for
// those of others.
func TestLoRAs(t *testing.T) {
	var b *brought
	r := newRig(t, func(c *Config) {
		b = &brought{cluster: c.Control.(*cluster)}
		c.LoRAs = b
	})
	var all []string
	for i := range 2 {
		blob := pack(t, map[string]string{"distorch_lora": fmt.Sprint(i)}, input{"0.up", tensor.F32, tensor.Shape{4, 2}})
		all = append(all, digestOf(blob))
		m := map[string]string{"run": "r", "loras": `[{"digest":"` + digestOf(blob) + `","strength":0.5}]`}
		a := r.forward(m)
		if e := a.failure(t); e.Code != CodeMissingBlobs || fmt.Sprint(e.Details["missing"]) != "["+digestOf(blob)+"]" {
			t.Errorf("before its blob: %d %s", a.status, a.body)
		}
		r.do("all", "PUT", "/v1/blobs/"+digestOf(blob), blob)
		if a := r.forward(m); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if got := r.forwards[1].LoraStrengths; len(got) != 2 || got[all[0]] != 0 || got[all[1]] != 0.5 {
		t.Errorf("strengths %v", got)
	}
	if a := r.forward(map[string]string{"run": "r"}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if got := r.forwards[2].LoraStrengths; len(got) != 2 || got[all[0]] != 0 || got[all[1]] != 0 {
		t.Errorf("strengths without LoRAs: %v", got)
	}
	if len(b.asked) != 2 {
		t.Errorf("asked for %v", b.asked)
	}
}
