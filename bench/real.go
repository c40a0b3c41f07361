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
	"time"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/tensor"
)

// FLUX.1-dev as it is published in fp8, and what it has to fit.
const (
	realTensors = 780
	realText    = 512
	realPixels  = 512
	realMemory  = tensor.Bytes(6_000_000_000)
	realSlots   = 2
	realMargin  = 0.1
)

// realFigures runs one forward of a model of FLUX.1-dev's size on three agents
// that could none of them hold it.
func realFigures(ctx context.Context, o *options, r *report) (err error) {
	models := filepath.Join(o.dir, "models")
	if err := os.Mkdir(models, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(models)
	entries := entriesOf(fluxOf(blockHidden, blockHeads, 19, 38).Build(arch.Options{}), func(string) tensor.DType { return tensor.F8E4M3 })
	if len(entries) != realTensors {
		return fmt.Errorf("FLUX.1-dev has %d tensors, this graph %d", realTensors, len(entries))
	}
	began := time.Now()
	path := filepath.Join(models, "flux1-dev-random-fp8.safetensors")
	if err := writeCheckpoint(path, entries); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	r.note("%d tensors, %v, written in %v", len(entries), tensor.Bytes(info.Size()), time.Since(began).Round(time.Second))
	conditioning := filepath.Join(o.dir, "conditioning.safetensors")
	if err := writeConditioning(conditioning, realText); err != nil {
		return err
	}
	var members []member
	for _, name := range []string{"a", "b", "c"} {
		members = append(members, member{name: name, threads: o.threads, memory: realMemory})
	}
	c, err := startCluster(ctx, o, models, 0, members...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	began = time.Now()
	if _, err := c.command(ctx, "deploy", "real", "--wait", "--model", filepath.Base(path), "--dtype", "bf16",
		"--workload", fmt.Sprintf("%dx%d,tokens=%d", realPixels, realPixels, realText)); err != nil {
		return err
	}
	r.note("placed and loaded in %v", time.Since(began).Round(time.Second))
	answer, err := c.step(ctx, "real", conditioning)
	if err != nil {
		return err
	}
	r.note("one forward at %d×%d with %d text tokens; digest %s", realPixels, realPixels, realText, answer.Digest)
	r.figure("forecast off", math.Abs(answer.Forecast/answer.Steps[0]-1), target{0.15, true}, "forecast %.1f s, measured %.1f s", answer.Forecast, answer.Steps[0])
	return realPeaks(r, c, answer)
}

// realPeaks holds each agent's peak memory against the plan's.
func realPeaks(r *report, c *cluster, answer *runAnswer) error {
	for _, s := range answer.Plan.Stages {
		if s.Slots > realSlots {
			return fmt.Errorf("agent %s has %d slots, at most %d were wanted", s.Node, s.Slots, realSlots)
		}
		peak, err := c.peak(s.Node)
		if err != nil {
			return err
		}
		rest := "packed"
		if s.Stored {
			rest = fmt.Sprintf("stored, %d slots", s.Slots)
		}
		r.figure("VmHWM ÷ forecast, agent "+s.Node, float64(peak)/float64(s.Peak), target{1 + realMargin, true}, "%v, forecast %v of %v; %d blocks, %s",
			peak, tensor.Bytes(s.Peak), realMemory, s.Blocks, rest)
		if float64(peak) < (1-realMargin)*float64(s.Peak) {
			r.note("agent %s: the forecast is more than %.0f %% above what was used", s.Node, 100*realMargin)
		}
	}
	return nil
}
