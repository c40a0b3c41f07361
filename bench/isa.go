// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/bench/peak"
	"github.com/distorch/distorch/model/tensor"
)

// isaFigures holds the AVX2 path against the AVX-512 path, each as a share of
// what its vectors can do at all, and AVX2's bf16 against its f32.
func isaFigures(ctx context.Context, o *options, r *report) error {
	has := isa.Supported()
	if !slices.Contains(has, isa.AVX2) {
		return errors.New("this CPU has no AVX2")
	}
	path := filepath.Join(o.dir, "isa.safetensors")
	if err := writeBlock(path, "single"); err != nil {
		return err
	}
	defer os.Remove(path)
	open := func(set isa.ISA, d tensor.DType) (*block, error) {
		b, err := openBlock(ctx, path, "single", d, set, o.threads)
		if err != nil {
			return nil, err
		}
		return b, b.set(o.dir, "single")
	}
	f32, err := open(isa.AVX2, tensor.F32)
	if err != nil {
		return err
	}
	defer f32.close()
	bf16, err := open(isa.AVX2, tensor.BF16)
	if err != nil {
		return err
	}
	defer bf16.close()
	r.note("single block, hidden %d, %d tokens, %d threads; rates are per second of CPU time", blockHidden, blockText+blockPixels/16*blockPixels/16, o.threads)
	sides := []side{byCPU(f32.forward), byCPU(bf16.forward)}
	if slices.Contains(has, isa.AVX512) {
		wide, err := open(isa.AVX512, tensor.F32)
		if err != nil {
			return err
		}
		defer wide.close()
		sides = append(sides, byCPU(wide.forward), atPeak(wide, isa.AVX2, o.threads), atPeak(wide, isa.AVX512, o.threads))
	} else {
		r.note("AVX2's share is held against AVX-512's where the CPU has AVX-512; this one has not")
	}
	times, err := alternate(ctx, o.rounds, sides...)
	if err != nil {
		return err
	}
	rate := func(d time.Duration) float64 { return f32.flops() * float64(o.threads) / d.Seconds() / 1e9 }
	if len(times) > 2 {
		ratios := make([]float64, o.rounds)
		for i := range ratios {
			ratios[i] = share(times[3][i], times[0][i]) / share(times[4][i], times[2][i])
		}
		narrow, wide, peak2, peak512 := median(times[0]), median(times[2]), median(times[3]), median(times[4])
		r.figure("AVX2 F32 share of peak ÷ AVX-512's", median(ratios), target{want: 0.85}, "%.0f of %.0f GFLOP/s (%.0f %%), AVX-512 %.0f of %.0f (%.0f %%)",
			rate(narrow), rate(peak2), 100*share(peak2, narrow), rate(wide), rate(peak512), 100*share(peak512, wide))
	}
	r.figure("AVX2 BF16 rate ÷ its F32 rate", medianRatio(times[1], times[0]), target{want: 0.85}, "%.0f and %.0f GFLOP/s",
		rate(median(times[1])), rate(median(times[0])))
	return nil
}

// byCPU measures a side in CPU time: it compares kernels, and what else the
// machine does must not show.
func byCPU(do side) side {
	return func(ctx context.Context) (time.Duration, error) {
		before := cpuTime()
		_, err := do(ctx)
		return cpuTime() - before, err
	}
}

// atPeak is how much CPU time the block would take if it were multiply-adds on
// registers alone.
func atPeak(b *block, set isa.ISA, threads int) side {
	return func(context.Context) (time.Duration, error) {
		before := cpuTime()
		flops := peak.F32(set, threads)
		return time.Duration(b.flops() / flops * float64(cpuTime()-before)), nil
	}
}

func share(ideal, real time.Duration) float64 { return float64(ideal) / float64(real) }
