// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Request is a picture to make.
type Request struct {
	Deployment    string
	Model         Model
	Width, Height int // pixels
	Seed          uint64
	Steps         int
	CFG           float64
	Guidance      float64
	Scheduler     sampling.Scheduler
	Shift         float64 // of FLUX.1 dev's noise levels
	Text          Text
	Negative      *Text    // needed unless CFG is 1
	References    []Latent // placed as RefMethod says
	RefMethod     string   // of RefMethods
	Input         *Latent  // [1, Model.Concat, …], for models that take one
	LoRAs         []LoRA
	// Planned, if not nil, sees the plan before the first step. Stepped sees
	// each step when it is done, from 1.
	Planned func(*pb.Plan)
	Stepped func(step, steps int, took time.Duration)
	// State, if not nil, sees the latent after each step, from 1, in the model's
	// space; it must not keep it. An error ends the picture.
	State func(step int, latent []float32) error
	Check *Checking // nil: no step is computed a second time
}

// Dims are the request in the words of a workload.
func (r Request) Dims() map[string]int64 {
	words := map[string]int64{"width": int64(r.Width), "height": int64(r.Height), "text_tokens": r.Text.Tokens(), "batch": 1}
	for i, l := range r.References {
		words[fmt.Sprintf("ref%d_height", i)] = l.Shape[2] * pixels
		words[fmt.Sprintf("ref%d_width", i)] = l.Shape[3] * pixels
	}
	if len(r.References) > 0 {
		words["ref_method"] = int64(max(0, slices.Index(RefMethods(), r.RefMethod)))
	}
	if r.masked() {
		words["attention_mask"] = 1
	}
	return words
}

// masked says whether any branch has an attention mask: then all take one.
func (r Request) masked() bool {
	return r.Text.Mask != nil || r.NeedsNegative() && r.Negative != nil && r.Negative.Mask != nil
}

// NeedsNegative says whether a negative text takes part.
func (r Request) NeedsNegative() bool { return sampling.Config{CFG: r.CFG}.NeedsUncond() }

// MaxShift bounds a request's shift, up and down.
const MaxShift = 10

func (r Request) check() error {
	switch {
	case r.Width < 1 || r.Height < 1 || r.Width > 1<<16 || r.Height > 1<<16:
		return fmt.Errorf("picture of %dx%d pixels", r.Width, r.Height)
	case math.IsNaN(r.CFG) || math.IsInf(r.CFG, 0):
		return fmt.Errorf("cfg %g is not a number to scale by", r.CFG)
	case math.IsNaN(r.Guidance) || math.IsInf(r.Guidance, 0):
		return fmt.Errorf("guidance %g is not a number", r.Guidance)
	case !(math.Abs(r.Shift) <= MaxShift):
		return fmt.Errorf("shift %g is not between -%d and %[2]d", r.Shift, MaxShift)
	case r.Model.Concat > 0 && r.Input == nil:
		return fmt.Errorf("%s takes an image beside the noise; give --input FILE", r.Model.Variant)
	case r.Model.Concat == 0 && r.Input != nil:
		return fmt.Errorf("%s takes no --input; Fill and Control models do", r.Model.Variant)
	case len(r.References) > 0 && !slices.Contains(RefMethods(), r.RefMethod):
		return fmt.Errorf("reference method %q: known are %v", r.RefMethod, RefMethods())
	case r.NeedsNegative() && r.Negative == nil:
		return errors.New("cfg other than 1 needs a negative text: tensors negative.context and negative.y")
	}
	return nil
}

// Time is where the time of the forwards went, added up over a picture.
type Time struct {
	Compute time.Duration `json:"compute"`
	Hops    time.Duration `json:"hops"`
	Waiting time.Duration `json:"waiting"`
}

// Result is a picture and what it took.
type Result struct {
	Run      string
	Plan     *pb.Plan
	Latent   []float32 // in the model's space
	Shape    tensor.Shape
	Digest   string          // BLAKE3 of Latent's bytes, float32 little-endian, row-major
	Steps    []time.Duration // wall-clock time of each
	Forwards int
	Time     Time
	PerNode  map[string]Time  // by node name; hops are between nodes and not counted here
	Stages   []*pb.StageStats // what the stages counted, in order
	Checks   []Check
}

// Median is the median time of a step.
func (r *Result) Median() time.Duration { return median(r.Steps) }

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// Forecast is the plan's time of a step in seconds: of one forward, or of two
// in flight where the picture takes two.
func (r Request) Forecast(p *pb.Plan) float64 {
	if r.NeedsNegative() {
		return p.GetForecast().GetPairSeconds()
	}
	return p.GetForecast().GetStepSeconds()
}

const endTimeout = 5 * time.Second

// Sample makes the picture. It ends the run at the endpoint in any case.
func Sample(ctx context.Context, endpoint pb.EndpointClient, r Request) (_ *Result, err error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	levels := r.Model.levels(r.Shift)
	sigmas, err := levels.Sigmas(r.Scheduler, r.Steps)
	if err != nil {
		return nil, err
	}
	s, plan, err := begin(ctx, endpoint, r, levels)
	if err != nil {
		return nil, err
	}
	result := &Result{Run: s.run, Plan: plan, Shape: r.Model.LatentShape(r.Width, r.Height)}
	defer func() {
		stages, endErr := s.end(ctx)
		if result.Stages = stages; err == nil {
			err = endErr
		}
	}()
	if r.Planned != nil {
		r.Planned(plan)
	}
	if err := s.condition(ctx); err != nil {
		return result, err
	}
	predict, end, err := s.checked(ctx, result)
	if err != nil {
		return result, err
	}
	defer func() {
		if endErr := end(); err == nil {
			err = endErr
		}
	}()
	elements, err := result.Shape.Elements()
	if err != nil {
		return result, err
	}
	x := sampling.Start(sampling.Randn(r.Seed, int(elements)), nil, sigmas[0])
	began := time.Now()
	var failed error
	config := sampling.Config{Sigmas: sigmas, CFG: r.CFG, OnStep: func(step int, x, _ []float32) {
		took := time.Since(began) - s.checking
		if s.checking = 0; r.State != nil && failed == nil {
			failed = r.State(step+1, x)
		}
		began = time.Now()
		result.Steps = append(result.Steps, took)
		if r.Stepped != nil {
			r.Stepped(step+1, len(sigmas)-1, took)
		}
	}}
	err = sampling.Euler(ctx, x, config, func(ctx context.Context, step int, sigma float32, x []float32) ([]float32, []float32, error) {
		if failed != nil {
			return nil, nil, failed
		}
		return predict(ctx, step, sigma, x)
	})
	if failed != nil {
		err = failed
	}
	if err != nil {
		return result, err
	}
	sampling.Finish(x, sigmas[len(sigmas)-1])
	result.Latent, result.Digest = x, Digest(x)
	result.Forwards, result.Time, result.PerNode = s.forwards, s.time, s.stages
	return result, nil
}

// Digest is BLAKE3, in hexadecimal, of values as float32 little-endian.
func Digest(latents ...[]float32) string {
	h := blake3.New()
	for _, x := range latents {
		raw := make([]byte, 4*len(x))
		tensor.PutF32(raw, x)
		_, _ = h.Write(raw) // a hash takes every write
	}
	return hex.EncodeToString(h.Sum(nil)[:32])
}

// session is one run. Its methods are called one after another, the forwards
// of one step at once.
type session struct {
	endpoint pb.EndpointClient
	request  Request
	run      string
	levels   *sampling.Levels
	branches []branch

	forwards int
	time     Time
	stages   map[string]Time
	checking time.Duration // of the step under way, by another deployment
}

// branch is one text of the run.
type branch struct {
	tensors []*pb.Tensor
	digest  string
}

// begin begins a run of the request's deployment. The session must be ended.
func begin(ctx context.Context, endpoint pb.EndpointClient, r Request, levels *sampling.Levels) (*session, *pb.Plan, error) {
	begun, err := endpoint.BeginRun(ctx, &pb.BeginRunRequest{Deployment: r.Deployment, Dims: r.Dims(), LoraStrengths: r.strengths(0)})
	if err != nil {
		return nil, nil, err
	}
	return &session{endpoint: endpoint, request: r, run: begun.Run, levels: levels, stages: map[string]Time{}}, begun.Plan, nil
}

// end ends the run, also, and above all, when ctx has ended.
func (s *session) end(ctx context.Context) ([]*pb.StageStats, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	ended, err := s.endpoint.EndRun(ctx, &pb.EndRunRequest{Run: s.run})
	if err != nil {
		return nil, fmt.Errorf("end run: %w", err)
	}
	return ended.Stages, nil
}

// condition sends what all steps have in common.
func (s *session) condition(ctx context.Context) error {
	texts := []Text{s.request.Text}
	if s.request.NeedsNegative() {
		texts = append(texts, *s.request.Negative)
	}
	for _, t := range texts {
		b := branch{tensors: []*pb.Tensor{f32("context", t.ContextShape, t.Context), f32("y", t.YShape, t.Y)}}
		if s.request.Model.Guidance {
			b.tensors = append(b.tensors, f32("guidance", tensor.Shape{1}, []float32{float32(s.request.Guidance)}))
		}
		extra, err := s.request.images(t)
		if err != nil {
			return err
		}
		b.tensors = append(b.tensors, extra...)
		if b.digest, err = s.put(ctx, b); err != nil {
			return err
		}
		s.branches = append(s.branches, b)
	}
	return nil
}

// images are the tensors of a branch that come from images, and its mask.
func (r Request) images(t Text) (out []*pb.Tensor, err error) {
	if r.Input != nil {
		out = append(out, f32("concat", r.Input.Shape, r.Input.Values))
	}
	for i, l := range r.References {
		out = append(out, f32(fmt.Sprintf("ref.%d", i), l.Shape, l.Values))
	}
	if !r.masked() {
		return out, nil
	}
	tokens := r.tokens()
	want := tensor.Shape{1, tokens, tokens}
	mask, shape := t.Mask, t.MaskShape
	if mask == nil {
		mask, shape = make([]float32, tokens*tokens), want
	}
	if !shape.Equal(want) {
		return nil, fmt.Errorf("attention_mask is %v, must be %v: %d text tokens, then those of the picture and of the references", shape, want, r.Text.Tokens())
	}
	return append(out, f32("attention_mask", want, mask)), nil
}

// tokens is the length of the joint sequence: a token is 2x2 cells.
func (r Request) tokens() int64 {
	of := func(s tensor.Shape) int64 { return (s[2] + 1) / 2 * ((s[3] + 1) / 2) }
	n := r.Text.Tokens() + of(r.Model.LatentShape(r.Width, r.Height))
	for _, l := range r.References {
		n += of(l.Shape)
	}
	return n
}

func (s *session) put(ctx context.Context, b branch) (string, error) {
	answer, err := s.endpoint.PutConditioning(ctx, &pb.PutConditioningRequest{Run: s.run, Tensors: b.tensors})
	if err != nil {
		return "", err
	}
	return answer.Digest, nil
}

func f32(name string, shape tensor.Shape, values []float32) *pb.Tensor {
	raw := make([]byte, 4*len(values))
	tensor.PutF32(raw, values)
	return &pb.Tensor{Name: name, Dtype: tensor.F32.String(), Shape: shape, Data: raw}
}

// predict runs one step: the forwards of all branches at once.
func (s *session) predict(ctx context.Context, step int, sigma float32, x []float32) (cond, uncond []float32, err error) {
	inputs := []*pb.Tensor{
		f32("x", s.request.Model.LatentShape(s.request.Width, s.request.Height), x),
		f32("timestep", tensor.Shape{1}, []float32{s.levels.Timestep(sigma)}),
	}
	answers := make([]*pb.ForwardResponse, len(s.branches))
	g, gctx := errgroup.WithContext(ctx)
	for i := range s.branches {
		g.Go(func() (err error) {
			answers[i], err = s.forward(gctx, step, i, inputs)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		return nil, nil, err
	}
	outputs := make([][]float32, 2)
	for i, a := range answers {
		if outputs[i], err = values(a.Out, len(x)); err != nil {
			return nil, nil, err
		}
		s.count(a)
	}
	return outputs[0], outputs[1], nil
}

// forward sends the conditioning once more if the first stage has dropped it.
func (s *session) forward(ctx context.Context, step, i int, inputs []*pb.Tensor) (*pb.ForwardResponse, error) {
	b := s.branches[i]
	request := &pb.ForwardRequest{Run: s.run, Step: uint32(step), Branch: uint32(i), Conditioning: b.digest, Tensors: inputs, LoraStrengths: s.request.changing(step)}
	answer, err := s.endpoint.Forward(ctx, request)
	if status.Code(err) != codes.FailedPrecondition {
		return answer, err
	}
	if request.Conditioning, err = s.put(ctx, b); err != nil {
		return nil, fmt.Errorf("send the conditioning again: %w", err)
	}
	return s.endpoint.Forward(ctx, request)
}

func values(t *pb.Tensor, want int) ([]float32, error) {
	if t.GetDtype() != tensor.F32.String() || len(t.GetData()) != 4*want {
		return nil, fmt.Errorf("the endpoint answered %d bytes of %q, want %d values of F32", len(t.GetData()), t.GetDtype(), want)
	}
	out := make([]float32, want)
	return out, tensor.ToF32(out, t.Data, tensor.F32)
}

func (s *session) count(a *pb.ForwardResponse) {
	s.forwards++
	var compute, waiting time.Duration
	for _, t := range a.Stages {
		compute += t.Compute.AsDuration()
		waiting += t.Waiting.AsDuration()
		of := s.stages[t.Node]
		of.Compute += t.Compute.AsDuration()
		of.Waiting += t.Waiting.AsDuration()
		s.stages[t.Node] = of
	}
	s.time.Compute += compute
	s.time.Waiting += waiting
	s.time.Hops += max(0, a.Total.AsDuration()-compute-waiting)
}
