// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// endpoint answers branch 0 with half of x and branch 1 with a quarter. A step
// of two branches is answered only when both are in flight.
type endpoint struct {
	mu       sync.Mutex
	puts     int
	ended    []string
	missing  int // so many forwards find no conditioning
	fail     error
	together int // branches that must be in flight at once
	inFlight int
	both     chan struct{}
	names    []string // of the conditioning's tensors
	branches int      // that were asked for
	began    map[string][]string
	off      map[string]float32 // added to a value of each answer, by run
}

func (e *endpoint) BeginRun(_ context.Context, r *pb.BeginRunRequest, _ ...grpc.CallOption) (*pb.BeginRunResponse, error) {
	if r.Deployment == "gone" {
		return nil, status.Error(codes.NotFound, "no deployment gone")
	}
	if e.began == nil {
		e.began = map[string][]string{}
	}
	e.began[r.Deployment] = append(e.began[r.Deployment], fmt.Sprint(r.Dims))
	return &pb.BeginRunResponse{Run: r.Deployment, Plan: &pb.Plan{Forecast: &pb.Forecast{StepSeconds: 2, PairSeconds: 3}}}, nil
}

func (e *endpoint) PutConditioning(_ context.Context, r *pb.PutConditioningRequest, _ ...grpc.CallOption) (*pb.PutConditioningResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.puts++
	e.names = nil
	for _, t := range r.Tensors {
		e.names = append(e.names, t.Name)
	}
	return &pb.PutConditioningResponse{Digest: "d"}, nil
}

func (e *endpoint) Forward(ctx context.Context, r *pb.ForwardRequest, _ ...grpc.CallOption) (*pb.ForwardResponse, error) {
	e.mu.Lock()
	if e.missing > 0 {
		e.missing--
		e.mu.Unlock()
		return nil, status.Error(codes.FailedPrecondition, "conditioning is missing")
	}
	if e.fail != nil {
		e.mu.Unlock()
		return nil, e.fail
	}
	both := e.both
	if e.inFlight++; e.inFlight == e.together {
		close(both)
		e.inFlight, e.both = 0, make(chan struct{})
	}
	e.mu.Unlock()
	if e.together > 1 {
		select {
		case <-both:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	x := make([]float32, len(r.Tensors[0].Data)/4)
	if err := tensor.ToF32(x, r.Tensors[0].Data, tensor.F32); err != nil {
		return nil, err
	}
	for i := range x {
		x[i] /= float32(2 + 2*r.Branch)
	}
	e.mu.Lock()
	e.branches = max(e.branches, int(r.Branch)+1)
	e.mu.Unlock()
	if off := e.off[r.Run]; off != 0 {
		x[1] = off + x[1]
	}
	out := f32("out", r.Tensors[0].Shape, x)
	return &pb.ForwardResponse{Out: out, Total: durationpb.New(5 * time.Millisecond), Stages: []*pb.StageTiming{
		{Node: "a", Compute: durationpb.New(3 * time.Millisecond), Waiting: durationpb.New(time.Millisecond)},
	}}, nil
}

func (e *endpoint) EndRun(ctx context.Context, r *pb.EndRunRequest, _ ...grpc.CallOption) (*pb.EndRunResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = append(e.ended, r.Run)
	return &pb.EndRunResponse{Stages: []*pb.StageStats{{NodeName: "a"}}}, ctx.Err()
}

func request(t *testing.T) Request {
	t.Helper()
	positive, negative, err := Prompt("large red circle on blue")
	if err != nil {
		t.Fatal(err)
	}
	return Request{
		Deployment: "d", Model: Model{Channels: 16, Guidance: true, Demo: true}, Width: 16, Height: 24, Seed: 1, Steps: 4, CFG: 1, Guidance: 3.5,
		Scheduler: sampling.Simple, Shift: sampling.DefaultFluxShift, Text: positive, Negative: &negative,
	}
}

func TestSample(t *testing.T) {
	r := request(t)
	e := &endpoint{together: 1, both: make(chan struct{})}
	one, err := Sample(t.Context(), e, r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tensor.Shape{1, 16, 3, 2}, one.Shape); diff != "" || len(one.Latent) != 96 || len(one.Steps) != 4 || one.Forwards != 4 {
		t.Errorf("shape %v, %d values, %d steps, %d forwards", one.Shape, len(one.Latent), len(one.Steps), one.Forwards)
	}
	if diff := cmp.Diff([]string{"context", "y", "guidance"}, e.names); diff != "" {
		t.Errorf("conditioning (-want +got):\n%s", diff)
	}
	if want := (Time{12 * time.Millisecond, 4 * time.Millisecond, 4 * time.Millisecond}); one.Time != want || one.PerNode["a"].Compute != want.Compute {
		t.Errorf("time %v, %v", one.Time, one.PerNode)
	}
	if r.Forecast(one.Plan) != 2 || len(one.Stages) != 1 || len(e.ended) != 1 {
		t.Errorf("forecast %g, stages %v, ended %v", r.Forecast(one.Plan), one.Stages, e.ended)
	}

	r.CFG = 3
	two := &endpoint{together: 2, both: make(chan struct{})}
	guided, err := Sample(t.Context(), two, r)
	if err != nil {
		t.Fatal(err)
	}
	if guided.Digest == one.Digest || two.puts != 2 || guided.Forwards != 8 || r.Forecast(guided.Plan) != 3 {
		t.Errorf("digest %s, %d conditionings, %d forwards", guided.Digest, two.puts, guided.Forwards)
	}
}

// TestCheck: every second step goes to the other deployment too, whose time is
// not the picture's and whose run is ended.
func TestCheck(t *testing.T) {
	for _, cfg := range []float64{1, 3} {
		r := request(t)
		r.CFG, r.Steps = cfg, 5
		plain, err := Sample(t.Context(), &endpoint{together: 1, both: make(chan struct{})}, r)
		if err != nil {
			t.Fatal(err)
		}
		e := &endpoint{together: 1, both: make(chan struct{}), off: map[string]float32{"one": 0.5}}
		r.Check = &Checking{Every: 2, Deployment: "one"}
		got, err := Sample(t.Context(), e, r)
		if err != nil {
			t.Fatal(err)
		}
		begun := len(e.began["d"])
		if got.Digest != plain.Digest || got.Forwards != plain.Forwards || len(got.Steps) != 5 || len(e.ended) != 2 {
			t.Errorf("cfg %g: digest %s, was %s; %d forwards, %d steps, ended %v", cfg, got.Digest, plain.Digest, got.Forwards, len(got.Steps), e.ended)
		}
		if diff := cmp.Diff(e.began["d"], e.began["one"]); diff != "" || begun != 1 {
			t.Errorf("cfg %g: runs begun with other sizes:\n%s", cfg, diff)
		}
		var steps []int
		for _, c := range got.Checks {
			steps = append(steps, c.Step)
			if c.EqualBits || math.Abs(float64(c.MaxError)-0.5) > 1e-6 || c.Values != int64(96*e.branches) || c.Differing != int64(e.branches) {
				t.Errorf("cfg %g: %+v", cfg, c)
			}
		}
		if diff := cmp.Diff([]int{2, 4}, steps); diff != "" {
			t.Errorf("checked steps (-want +got):\n%s", diff)
		}
	}
}

func TestCheckFails(t *testing.T) {
	r := request(t)
	r.Check = &Checking{Every: 1, Deployment: "gone"}
	e := &endpoint{together: 1, both: make(chan struct{})}
	if _, err := Sample(t.Context(), e, r); err == nil || !strings.Contains(err.Error(), "check: ") || len(e.ended) != 1 {
		t.Errorf("ended %v, %v", e.ended, err)
	}
}

// TestState: each step's latent is shown, and a failure to keep it ends the run.
func TestState(t *testing.T) {
	r := request(t)
	var last string
	var steps []int
	r.State = func(step int, latent []float32) error {
		steps, last = append(steps, step), Digest(latent)
		return nil
	}
	got, err := Sample(t.Context(), &endpoint{together: 1, both: make(chan struct{})}, r)
	if err != nil || last != got.Digest || !cmp.Equal(steps, []int{1, 2, 3, 4}) {
		t.Errorf("steps %v, last %s, want %v, %v", steps, last, got, err)
	}
	full := errors.New("the disk is full")
	for _, at := range []int{2, 4} {
		e := &endpoint{together: 1, both: make(chan struct{})}
		r.State = func(step int, _ []float32) error {
			if step >= at {
				return full
			}
			return nil
		}
		if _, err := Sample(t.Context(), e, r); !errors.Is(err, full) || len(e.ended) != 1 {
			t.Errorf("failed after step %d: ended %v, %v", at, e.ended, err)
		}
	}
}

func TestSingleClass(t *testing.T) {
	for want, classes := range map[string][]string{"a": {"a", "a"}, "": {"a", "b"}, "x": {"x"}} {
		p := &pb.Plan{}
		for _, c := range classes {
			p.Stages = append(p.Stages, &pb.Stage{NumericsClass: c})
		}
		if got := SingleClass(p); got != want {
			t.Errorf("%v: %q", classes, got)
		}
	}
	if SingleClass(&pb.Plan{Stages: []*pb.Stage{{}, {NumericsClass: "a"}}}) != "" {
		t.Error("a stage of no class counts")
	}
}

// TestOneBitChangesTheDigest: the digest is what equal bits are judged by.
func TestOneBitChangesTheDigest(t *testing.T) {
	x := []float32{1, 2, 3}
	before := Digest(x)
	x[1] = 2.0000002 // the next float32
	if Digest(x) == before || len(before) != 64 {
		t.Errorf("digest %s stays", before)
	}
}

func TestMissingConditioningIsSentOnce(t *testing.T) {
	e := &endpoint{together: 1, both: make(chan struct{}), missing: 1}
	if _, err := Sample(t.Context(), e, request(t)); err != nil || e.puts != 2 {
		t.Errorf("%d conditionings, %v", e.puts, err)
	}
	e = &endpoint{missing: 2}
	if _, err := Sample(t.Context(), e, request(t)); status.Code(err) != codes.FailedPrecondition || e.puts != 2 || len(e.ended) != 1 {
		t.Errorf("%d conditionings, ended %v, %v", e.puts, e.ended, err)
	}
}

// TestRunIsEnded: after a failure and after the caller has gone.
func TestRunIsEnded(t *testing.T) {
	e := &endpoint{fail: status.Error(codes.Unavailable, "node b is gone")}
	if _, err := Sample(t.Context(), e, request(t)); err == nil || !strings.Contains(err.Error(), "step 1 of 4") || len(e.ended) != 1 {
		t.Errorf("ended %v, %v", e.ended, err)
	}
	gone := errors.New("the caller has gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	e = &endpoint{together: 3, both: make(chan struct{})} // nobody answers
	r := request(t)
	r.Planned = func(*pb.Plan) { cancel(gone) }
	if _, err := Sample(ctx, e, r); !errors.Is(err, gone) || len(e.ended) != 1 {
		t.Errorf("ended %v, %v", e.ended, err)
	}
}

func TestRefusals(t *testing.T) {
	for want, change := range map[string]func(*Request){
		"negative text": func(r *Request) { r.CFG, r.Negative = 2, nil },
		"steps 0":       func(r *Request) { r.Steps = 0 },
		"0x24 pixels":   func(r *Request) { r.Width = 0 },
		"scheduler":     func(r *Request) { r.Scheduler = "x" },
		"shift":         func(r *Request) { r.Shift = 1e9 },
	} {
		r := request(t)
		change(&r)
		e := &endpoint{}
		if _, err := Sample(t.Context(), e, r); err == nil || !strings.Contains(err.Error(), want) || e.puts > 0 {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}

// What stands beside the noise has the picture's size, and a mask for Fill alone.
func TestInputFiles(t *testing.T) {
	image := safetensors.FromFloat32s("latent_tensor", tensor.Shape{1, 2, 1, 2}, make([]float32, 4))
	mask := func(height, width int64) safetensors.Data {
		return safetensors.FromFloat32s("mask", tensor.Shape{1, 1, height, width}, make([]float32, height*width))
	}
	for name, tc := range map[string]struct {
		concat  int64
		tensors []safetensors.Data
		want    string
	}{
		"control":            {2, []safetensors.Data{image}, ""},
		"control and a mask": {2, []safetensors.Data{image, mask(8, 16)}, "takes no mask, and the file has one"},
		"fill":               {66, []safetensors.Data{image, mask(8, 16)}, ""},
		"fill and no mask":   {66, []safetensors.Data{image}, "takes a tensor mask [1,1,8,16], 1 where the picture is to be made anew; the file has none"},
		"mask of latents":    {66, []safetensors.Data{image, mask(1, 2)}, "tensor mask is [1,1,1,2], a picture of 16x8 pixels takes [1,1,8,16]"},
		"no latent":          {2, []safetensors.Data{mask(8, 16)}, "latent_tensor is missing"},
	} {
		path := filepath.Join(t.TempDir(), "i.safetensors")
		if err := safetensors.WriteFile(path, tc.tensors, nil); err != nil {
			t.Fatal(err)
		}
		l, err := ReadInput(path, Model{Channels: 2, Concat: tc.concat}, 16, 8)
		switch {
		case tc.want == "" && (err != nil || l.Shape[1] != tc.concat || int64(len(l.Values)) != 2*tc.concat):
			t.Errorf("%s: %v of %d values, %v", name, l.Shape, len(l.Values), err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path)):
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

func TestConditioningFiles(t *testing.T) {
	file := func(tensors ...safetensors.Data) string {
		path := filepath.Join(t.TempDir(), "c.safetensors")
		if err := safetensors.WriteFile(path, tensors, nil); err != nil {
			t.Fatal(err)
		}
		return path
	}
	f := func(name string, shape ...int64) safetensors.Data {
		n, err := tensor.Shape(shape).Elements()
		if err != nil {
			t.Fatal(err)
		}
		return safetensors.FromFloat32s(name, shape, make([]float32, n))
	}
	positive, negative, err := Conditioning(file(f("context", 1, 5, 8), f("y", 1, 4)))
	if err != nil || negative != nil || positive.Tokens() != 5 {
		t.Errorf("%v, %v, %v", positive.ContextShape, negative, err)
	}
	if _, negative, err = Conditioning(file(f("context", 1, 5, 8), f("y", 1, 4), f("negative.context", 1, 5, 8), f("negative.y", 1, 4))); err != nil || negative == nil {
		t.Errorf("%v, %v", negative, err)
	}
	for want, path := range map[string]string{
		"tensor y is missing":          file(f("context", 1, 5, 8)),
		"tensor negative.y is missing": file(f("context", 1, 5, 8), f("y", 1, 4), f("negative.context", 1, 5, 8)),
		"3 dimensions":                 file(f("context", 5, 8), f("y", 1, 4)),
		"the first of them 1":          file(f("context", 2, 5, 8), f("y", 1, 4)),
		"pad them":                     file(f("context", 1, 5, 8), f("y", 1, 4), f("negative.context", 1, 6, 8), f("negative.y", 1, 4)),
	} {
		if _, _, err := Conditioning(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}
