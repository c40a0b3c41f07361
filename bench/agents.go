// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

const gigabit = 1_000_000_000

// agentFigures holds three agents against one, on loopback and over links of
// 1 Gbit/s, and the forecasts against what was measured.
func agentFigures(ctx context.Context, o *options, r *report) error {
	models := filepath.Join(o.dir, "models")
	if err := os.Mkdir(models, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(models)
	if err := writeSmall(filepath.Join(models, "small.safetensors")); err != nil {
		return err
	}
	conditioning := filepath.Join(o.dir, "conditioning.safetensors")
	if err := writeConditioning(conditioning, smallText); err != nil {
		return err
	}
	r.note("hidden %d, %d+%d blocks, %d text tokens, %d×%d pixels, %v; %d threads each", smallHidden, smallDouble, smallSingle, smallText,
		smallWidth, smallHeight, smallCompute(), o.threads)
	var failed []error
	for _, network := range []struct {
		name          string
		bitsPerSecond uint64
	}{{"loopback", 0}, {"1 Gbit/s", gigabit}} {
		if err := networkFigures(ctx, o, r, models, conditioning, network.name, network.bitsPerSecond); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", network.name, err))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errors.Join(failed...)
}

// writeConditioning writes random text features of FLUX.1's widths.
func writeConditioning(path string, tokens int64) error {
	return writeCheckpoint(path, []safetensors.Entry{
		{Name: "context", DType: tensor.F32, Shape: tensor.Shape{1, tokens, 4096}},
		{Name: "y", DType: tensor.F32, Shape: tensor.Shape{1, 768}},
	})
}

// deployment is one way to run the small model.
type deployment struct {
	name string
	pins []string
}

func networkFigures(ctx context.Context, o *options, r *report, models, conditioning, network string, bitsPerSecond uint64) (err error) {
	c, err := startCluster(ctx, o, models, bitsPerSecond,
		member{name: "a", threads: o.threads}, member{name: "b", threads: o.threads},
		member{name: "c", threads: o.threads}, member{name: "alone", threads: o.threads})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	cuts := smallCuts()
	three := deployment{"three", []string{
		fmt.Sprintf("a=%d", cuts[0]), fmt.Sprintf("b=%d", cuts[1]-cuts[0]), fmt.Sprintf("c=%d", smallDouble+smallSingle-cuts[1]),
	}}
	one := deployment{"one", []string{fmt.Sprintf("alone=%d", smallDouble+smallSingle)}}
	var sides []side
	runs := map[string]*runAnswer{}
	for _, d := range []deployment{three, one} {
		args := []string{
			"deploy", d.name, "--wait", "--model", "small.safetensors", "--dtype", strings.ToLower(smallCompute().String()),
			"--workload", fmt.Sprintf("%dx%d,tokens=%d", smallWidth, smallHeight, smallText), "--pin", strings.Join(d.pins, ","),
		}
		if _, err := c.command(ctx, args...); err != nil {
			return err
		}
		sides = append(sides, func(ctx context.Context) (time.Duration, error) {
			answer, err := c.step(ctx, d.name, conditioning)
			if err != nil {
				return 0, err
			}
			runs[d.name] = answer
			return time.Duration(answer.Steps[0] * float64(time.Second)), nil
		})
	}
	times, err := alternate(ctx, o.rounds, sides...)
	if err != nil {
		return err
	}
	if runs["three"].Digest != runs["one"].Digest {
		return fmt.Errorf("three agents give digest %s, one %s", runs["three"].Digest, runs["one"].Digest)
	}
	r.figure("overhead of three agents, "+network, 1/medianRatio(times[0], times[1])-1, target{0.1, true}, "%s and %s per step (hops %.3g s); equal bits",
		seconds(median(times[0])), seconds(median(times[1])), runs["three"].PerForward.Hops)
	for i, d := range []deployment{three, one} {
		measured, forecast := median(times[i]).Seconds(), runs[d.name].Forecast
		r.figure(fmt.Sprintf("forecast off, %s, %s", d.name, network), math.Abs(forecast/measured-1), target{0.15, true}, "forecast %.4g s, measured %.4g s per step",
			forecast, measured)
	}
	return nil
}

// runAnswer is what the bench reads of `distorch run -o json`.
type runAnswer struct {
	Forecast   float64   `json:"forecast_seconds"`
	Steps      []float64 `json:"steps_seconds"`
	Digest     string    `json:"digest"`
	PerForward struct {
		Compute float64 `json:"compute_seconds"`
		Hops    float64 `json:"hop_seconds"`
	} `json:"per_forward"`
	Plan struct {
		Stages []struct {
			Node   string  `json:"node"`
			Blocks int     `json:"blocks"`
			Stored bool    `json:"stored"`
			Slots  int     `json:"slots"`
			Peak   int64   `json:"peak_bytes"`
			Expand float64 `json:"expand_seconds"`
		} `json:"stages"`
	} `json:"plan"`
}

// step samples one step with a deployment.
func (c *cluster) step(ctx context.Context, deployment, conditioning string) (*runAnswer, error) {
	var answers []*runAnswer
	if err := c.query(ctx, &answers, "run", deployment, "--steps", "1", "--conditioning", conditioning); err != nil {
		return nil, err
	}
	if len(answers) != 1 || len(answers[0].Steps) != 1 {
		return nil, fmt.Errorf("a run of one step answered %d runs", len(answers))
	}
	return answers[0], nil
}
