// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/tensor"
)

// best is the fastest instruction set of this CPU.
func best() isa.ISA { return slices.Max(isa.Supported()) }

// blockFigures compares whole blocks (modulation, norms, rotary embedding,
// attention, gates) with PyTorch, and their outputs.
func blockFigures(ctx context.Context, o *options, r *report) (err error) {
	t, err := startTorch(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := t.close(); err == nil && cerr != nil {
			err = fmt.Errorf("stop PyTorch: %w", cerr)
		}
	}()
	r.note("PyTorch %s (%s), native %s, %d threads each; hidden %d, %d heads, %d tokens", t.Version, t.CPU, best(), o.threads,
		blockHidden, blockHeads, blockText+blockPixels/16*blockPixels/16)
	var failed []error
	for _, kind := range []string{"single", "double"} {
		path := filepath.Join(o.dir, kind+".safetensors")
		if err := writeBlock(path, kind); err != nil {
			return err
		}
		for _, c := range []struct {
			compute   tensor.DType
			want      float64
			tolerance float64
		}{{tensor.F32, 1.3, 1e-5}, {tensor.BF16, 0.9, 2e-2}} {
			if c.compute == tensor.BF16 && best() != isa.AVX512BF16 {
				r.note("bf16 is compared where the CPU has AVX512-BF16; this one has not")
				continue
			}
			if err := blockFigure(ctx, o, r, t, path, kind, c.compute, c.want, c.tolerance); err != nil {
				failed = append(failed, err)
			}
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

func blockFigure(ctx context.Context, o *options, r *report, t *torch, path, kind string, compute tensor.DType, want, tolerance float64) error {
	name := kind + " block " + compute.String()
	b, err := openBlock(ctx, path, kind, compute, best(), o.threads)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer b.close()
	dtype := map[tensor.DType]string{tensor.F32: "f32", tensor.BF16: "bf16"}[compute]
	dir, err := os.MkdirTemp(o.dir, "block-")
	if err != nil {
		return err
	}
	if err := b.set(dir, kind); err != nil {
		return fmt.Errorf("%s: inputs: %w", name, err)
	}
	load := map[string]any{
		"op": "load", "block": kind, "dtype": dtype, "hidden": blockHidden, "heads": blockHeads, "text": blockText,
		"rows": blockPixels / 16, "cols": blockPixels / 16, "weights": path,
	}
	for _, request := range []map[string]any{load, {"op": "inputs", "dir": dir}} {
		if err := t.ask(request, nil); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	times, err := alternate(ctx, o.rounds, b.forward, t.forward)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := t.ask(map[string]any{"op": "outputs", "dir": dir}, nil); err != nil {
		return err
	}
	off, err := b.compare(dir, kind)
	if err != nil {
		return fmt.Errorf("%s: outputs: %w", name, err)
	}
	ours, theirs := median(times[0]), median(times[1])
	r.figure(name+" ÷ PyTorch", medianRatio(times[0], times[1]), target{want: want}, "%s (%.0f GFLOP/s), PyTorch %s; outputs differ by %.2g",
		seconds(ours), b.flops()/ours.Seconds()/1e9, seconds(theirs), off)
	if off > tolerance {
		return fmt.Errorf("%s: outputs differ by %.3g, at most %.3g is right", name, off, tolerance)
	}
	return nil
}
