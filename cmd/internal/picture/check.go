// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/distorch/distorch/model/compare"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Checking says which steps are computed a second time, and where.
type Checking struct {
	Every      int    // every so many-th step
	Deployment string // that computes them as well: the same model placed otherwise
}

// Check is what a step's second computation came to: A are the predictions of
// the deployment, B those of the other, of all branches together.
type Check struct {
	Step int // from 1
	compare.Result
	Took time.Duration // of the second computation
}

// checked is predict, with every so many-th step computed by the other
// deployment as well. end ends the other run.
func (s *session) checked(ctx context.Context, result *Result) (predict sampling.Predict, end func() error, err error) {
	c := s.request.Check
	if c == nil {
		return s.predict, func() error { return nil }, nil
	}
	r := s.request
	r.Deployment = c.Deployment
	other, _, err := begin(ctx, s.endpoint, r, s.levels)
	if err != nil {
		return nil, nil, fmt.Errorf("check: %w", err)
	}
	end = func() error {
		if _, err := other.end(ctx); err != nil {
			return fmt.Errorf("check: %w", err)
		}
		return nil
	}
	if err := other.condition(ctx); err != nil {
		_ = end() // the first error says more
		return nil, nil, fmt.Errorf("check: %w", err)
	}
	return func(ctx context.Context, step int, sigma float32, x []float32) ([]float32, []float32, error) {
		cond, uncond, err := s.predict(ctx, step, sigma, x)
		if err != nil || (step+1)%c.Every != 0 {
			return cond, uncond, err
		}
		began := time.Now()
		check, err := other.compare(ctx, step, sigma, x, cond, uncond)
		if err != nil {
			return nil, nil, fmt.Errorf("check of step %d: %w", step+1, err)
		}
		check.Step = step + 1
		result.Checks = append(result.Checks, check)
		s.checking = time.Since(began)
		return cond, uncond, nil
	}, end, nil
}

// compare computes a step and holds what another computed against it.
func (s *session) compare(ctx context.Context, step int, sigma float32, x, cond, uncond []float32) (Check, error) {
	began := time.Now()
	ownCond, ownUncond, err := s.predict(ctx, step, sigma, x)
	if err != nil {
		return Check{}, err
	}
	took := time.Since(began)
	shape := append(tensor.Shape{int64(len(s.branches))}, s.request.Model.LatentShape(s.request.Width, s.request.Height)[1:]...)
	side := func(parts ...[]float32) compare.Tensor {
		return compare.FromFloat32s("prediction", shape, slices.Concat(parts...))
	}
	r, err := compare.Tensors(side(cond, uncond), side(ownCond, ownUncond))
	return Check{Result: r, Took: took}, err
}

// SingleClass is the numerics class of a plan that has one, "" otherwise. Two
// plans of one class give the same bits.
func SingleClass(p *pb.Plan) string {
	class := ""
	for _, st := range p.GetStages() {
		if class == "" {
			class = st.GetNumericsClass()
		}
		if st.GetNumericsClass() != class || class == "" {
			return ""
		}
	}
	return class
}
