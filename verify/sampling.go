// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
)

// goldenGuidance is what the sampling cases embed (their inputs' meaning says so).
const goldenGuidance = 3.5

// ways are the runs of a sampling case by their names in it.
func ways() map[string]way {
	return map[string]way{
		"cfg1":          {cfg: 1, denoise: 1},
		"cfg3_batched":  {cfg: 3, denoise: 1, uncond: "uncond", batched: true},
		"cfg3_separate": {cfg: 3, denoise: 1, uncond: "uncond_short"},
		"img2img":       {cfg: 1, denoise: 0.6, latent: true},
	}
}

type way struct {
	cfg     float64
	denoise float64
	uncond  string // "in.<uncond>.context"
	batched bool   // both conditionings in one forward
	latent  bool   // starts from in.latent
}

// sampler is one sampling case with its model loaded.
type sampler struct {
	*goldenCase
	pl       *Pipeline
	guidance bool
	shape    tensor.Shape // of x
}

func (v *verifier) sampling(c *goldenCase) (err error) {
	compute := tensor.F32
	if c.Weights == "bf16" {
		compute = tensor.BF16
	}
	cp, m, err := c.model(true, []string{"x", "timestep", "context", "y"})
	if err != nil {
		return err
	}
	defer cp.File.Close() //nolint:errcheck // was only read
	s := &sampler{goldenCase: c, guidance: slices.ContainsFunc(m.Inputs, func(in graph.Value) bool { return in.Name == "guidance" })}
	noise, ok := c.io.Lookup("in.noise")
	context, found := c.io.Lookup("in.cond.context")
	if !ok || !found || len(noise.Shape) != 4 || len(context.Shape) != 3 {
		return errors.New("in.noise and in.cond.context are not there with 4 and 3 dimensions")
	}
	s.shape = noise.Shape
	workload := graph.Dims{"B": 2 * noise.Shape[0], "h": noise.Shape[2], "w": noise.Shape[3], "S_txt": context.Shape[1]}
	p, err := graph.Specialise(m, workload, compute)
	if err != nil {
		return err
	}
	if s.pl, err = NewPipeline(v.ctx, v.layout, cp.Checkpoint, p); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.pl.Close()) }()
	for _, name := range c.runs() {
		w, ok := ways()[name]
		var got map[string][]float32
		err := fmt.Errorf("not supported: this build does not know the run %q of the case; it knows %s", name, strings.Join(sorted(ways()), ", "))
		if ok {
			got, err = s.sample(v.ctx, w)
		}
		if err != nil {
			v.emit(Record{Case: c.Name, Output: name, DType: dtypeName(compute), Failure: err.Error()})
			continue
		}
		if err := v.compareRun(c, name, dtypeName(compute), got); err != nil {
			return err
		}
	}
	return nil
}

// runs are the first parts of the outputs' names.
func (c *goldenCase) runs() []string {
	found := map[string]bool{}
	for _, t := range c.io.Tensors() {
		if run, _, ok := strings.Cut(t.Name, "."); ok && run != "in" {
			found[run] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// compareRun judges every output of a run whose kind case.json names.
func (v *verifier) compareRun(c *goldenCase, run, dtype string, got map[string][]float32) error {
	for _, name := range c.names(run + ".") {
		tol, ok := c.tolerance(name)
		if !ok {
			continue
		}
		want, err := c.values(run + "." + name)
		if err != nil {
			return err
		}
		r := Record{Case: c.Name, Output: run + "." + name, DType: dtype, Tolerance: tol}
		if values, ok := got[name]; ok {
			r.Error, r.Digest = relative(values, want), digest(bytesOf(values))
		} else {
			r.Failure = "the run makes no such output"
		}
		v.emit(r)
	}
	return nil
}

// sample does one run with ComfyUI's Euler sampler and scheduler simple, and
// returns its outputs by their names within the run.
func (s *sampler) sample(ctx context.Context, w way) (map[string][]float32, error) {
	steps := 0
	for _, name := range s.names("cfg1.step.") {
		if n, err := strconv.Atoi(name); err == nil {
			steps = max(steps, n+1)
		}
	}
	sigmas, err := sampling.FluxLevels(sampling.DefaultFluxShift).DenoiseSigmas(sampling.Simple, steps, w.denoise)
	if err != nil {
		return nil, err
	}
	noise, err := s.values("in.noise")
	if err != nil {
		return nil, err
	}
	var latent []float32
	if w.latent {
		if latent, err = s.values("in.latent"); err != nil {
			return nil, err
		}
		sampling.FluxLatents().In(latent)
	}
	cond, err := s.conditioning("cond")
	if err != nil {
		return nil, err
	}
	var uncond conditioning
	if w.uncond != "" {
		if uncond, err = s.conditioning(w.uncond); err != nil {
			return nil, err
		}
	}
	got := map[string][]float32{"sigmas": sigmas}
	x := sampling.Start(noise, latent, sigmas[0])
	cfg := sampling.Config{Sigmas: sigmas, CFG: w.cfg, OnStep: func(step int, x, _ []float32) {
		got["step."+strconv.Itoa(step)] = slices.Clone(x)
	}}
	err = sampling.Euler(ctx, x, cfg, func(ctx context.Context, _ int, sigma float32, x []float32) ([]float32, []float32, error) {
		switch {
		case w.batched:
			both, err := s.predict(ctx, sigma, append(slices.Clone(x), x...), cond, uncond)
			return both[:len(both)/2], both[len(both)/2:], err
		case w.uncond != "":
			u, err := s.predict(ctx, sigma, x, uncond)
			if err != nil {
				return nil, nil, err
			}
			c, err := s.predict(ctx, sigma, x, cond)
			return c, u, err
		}
		c, err := s.predict(ctx, sigma, x, cond)
		return c, nil, err
	})
	if err != nil {
		return nil, err
	}
	sampling.Finish(x, sigmas[len(sigmas)-1])
	sampling.FluxLatents().Out(x)
	got["samples"] = x
	return got, nil
}

// conditioning is one prompt's, for a batch of one.
type conditioning struct {
	context, y []float32
	tokens     int64
}

func (s *sampler) conditioning(name string) (conditioning, error) {
	context, shape, err := s.io.Float32s("in." + name + ".context")
	if err != nil {
		return conditioning{}, err
	}
	y, err := s.values("in." + name + ".y")
	if err == nil && len(shape) != 3 {
		err = fmt.Errorf("in.%s.context has shape %v", name, shape)
	}
	if err != nil {
		return conditioning{}, err
	}
	return conditioning{context, y, shape[1]}, nil
}

// predict runs one forward: every prompt for as many pictures as there are.
func (s *sampler) predict(ctx context.Context, sigma float32, x []float32, prompts ...conditioning) ([]float32, error) {
	pictures := s.shape[0]
	in := Tensors{"x": x}
	for _, p := range prompts {
		for range pictures {
			in["context"], in["y"] = append(in["context"], p.context...), append(in["y"], p.y...)
			in["timestep"] = append(in["timestep"], sigma)
			if s.guidance {
				in["guidance"] = append(in["guidance"], goldenGuidance)
			}
		}
	}
	at := graph.Dims{"B": pictures * int64(len(prompts)), "h": s.shape[2], "w": s.shape[3], "S_txt": prompts[0].tokens}
	out, err := s.pl.Forward(ctx, at, in, nil)
	if err != nil {
		return nil, err
	}
	return floats(out)
}

// schedules compares noise levels: outputs are <model>.<scheduler>.<steps>.
func (v *verifier) schedules(c *goldenCase) error {
	tol, ok := c.tolerances["sigmas"]
	if !ok {
		return errors.New("case.json has no tolerance for sigmas")
	}
	for _, t := range c.io.Tensors() {
		want, err := c.values(t.Name)
		if err != nil {
			return err
		}
		r := Record{Case: c.Name, Output: t.Name, DType: "f32", Tolerance: tol}
		got, err := c.levels(t.Name)
		if err != nil {
			r.Failure = err.Error()
		} else {
			r.Error, r.Digest = relative(got, want), digest(bytesOf(got))
		}
		v.emit(r)
	}
	return nil
}

func (c *goldenCase) levels(output string) ([]float32, error) {
	parts := strings.Split(output, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%q is not <model>.<scheduler>.<steps>", output)
	}
	shift, ok := c.Shift[parts[0]]
	steps, err := strconv.Atoi(parts[2])
	if !ok || err != nil {
		return nil, fmt.Errorf("%q: no shift for the model, or no number of steps", output)
	}
	l := sampling.FluxLevels(shift)
	if size, ok := strings.CutPrefix(parts[0], "node_"); ok { // the node ModelSamplingFlux at its defaults
		var width, height int
		if _, err := fmt.Sscanf(size, "%dx%d", &width, &height); err != nil {
			return nil, fmt.Errorf("%q: no size: %w", output, err)
		}
		l = sampling.FluxLevels(sampling.FluxShift(width, height, 0.5, sampling.DefaultFluxShift))
	} else if parts[0] == "schnell" {
		l = sampling.DiscreteFlowLevels(shift, 1)
	}
	return l.Sigmas(sampling.Scheduler(parts[1]), steps)
}
