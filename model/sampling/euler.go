// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

import (
	"context"
	"fmt"
	"math"
)

// Predict runs the model on x at sigma and returns its raw prediction of
// noise - x0 for the positive and, where Config.NeedsUncond says so, the
// negative conditioning, each as long as x. It may run both at once. It must
// not keep or change x.
type Predict func(ctx context.Context, step int, sigma float32, x []float32) (cond, uncond []float32, err error)

// Config is what an Euler run needs besides the model.
type Config struct {
	Sigmas []float32 // noise levels, largest first; one more than steps
	CFG    float64   // 1: the positive conditioning alone
	// OnStep, if not nil, sees the state after each step and the step's
	// estimate of x0. Both belong to the sampler and change with the next step.
	OnStep func(step int, x, denoised []float32)
}

// NeedsUncond says whether Predict has to return uncond.
func (c Config) NeedsUncond() bool { return math.Abs(c.CFG-1) > 1e-9*max(math.Abs(c.CFG), 1) }

// Euler takes x from the first noise level to the last, in place, and keeps it
// in float32 between steps. CFG acts on the estimates of x0:
// x0 = u + (c-u)*cfg, x += (x-x0)/sigma * (next-sigma).
func Euler(ctx context.Context, x []float32, cfg Config, predict Predict) error {
	if len(cfg.Sigmas) < 2 {
		return fmt.Errorf("sample: %d noise levels, at least 2 needed", len(cfg.Sigmas))
	}
	denoised := make([]float32, len(x))
	for step := range len(cfg.Sigmas) - 1 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		sigma, next := cfg.Sigmas[step], cfg.Sigmas[step+1]
		if !(sigma > 0) {
			return fmt.Errorf("sample: noise level %g of step %d is not above 0", sigma, step)
		}
		cond, uncond, err := predict(ctx, step, sigma, x)
		if err != nil {
			return fmt.Errorf("sample step %d of %d: %w", step+1, len(cfg.Sigmas)-1, err)
		}
		if len(cond) != len(x) || cfg.NeedsUncond() && len(uncond) != len(x) {
			return fmt.Errorf("sample step %d: predictions of %d and %d values for %d", step+1, len(cond), len(uncond), len(x))
		}
		if !cfg.NeedsUncond() {
			uncond = nil
		}
		Denoised(denoised, x, sigma, cond, uncond, float32(cfg.CFG))
		dt := next - sigma
		for i, v := range x {
			d := (v - denoised[i]) / sigma
			x[i] = v + float32(d*dt)
		}
		if cfg.OnStep != nil {
			cfg.OnStep(step, x, denoised)
		}
	}
	return nil
}

// Denoised is the estimate of x0 into dst: x - sigma*v for each prediction,
// combined by cfg; a nil uncond leaves cond alone.
func Denoised(dst, x []float32, sigma float32, cond, uncond []float32, cfg float32) {
	for i, v := range x {
		c := v - float32(cond[i]*sigma)
		if uncond != nil {
			u := v - float32(uncond[i]*sigma)
			c = u + float32((c-u)*cfg)
		}
		dst[i] = c
	}
}
