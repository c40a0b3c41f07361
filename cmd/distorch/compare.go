// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/model/compare"
	byposition "github.com/distorch/distorch/model/source"
)

// errApart is the error of a comparison that found more than was allowed.
var errApart = errors.New("beyond the tolerance")

// compareFlags are what `distorch compare` can be told.
type compareFlags struct {
	tensors   []string
	tolerance *float64 // nil: none was given
}

func newCompare(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compare A B",
		Short: "Say how far apart two latents, files of tensors or pictures are",
		Long: `Compares two safetensors files (latents of --save-latent or ComfyUI's SaveLatent,
or any other tensors), two pictures (PNG or JPEG), or two folders of such files,
as run --save-steps writes them. B is what A is held against: the relative L2 is
the norm of A-B over that of B.

Tensors are paired by name, files of folders likewise. Of two latents the tensor
latent is compared (the model's space) where both have it, and latent_tensor
otherwise. Different dtypes are said and their values compared; different shapes
are an error.

With --tolerance the exit code is 1 when a relative L2 is larger than it, when a
value is NaN or infinite on one side alone, or when a tensor or file is missing
on one side; --tolerance 0 asks for equal bits. Files that cannot be compared end
with 2.`,
		Args: arguments(2, "A", "B"),
	}
	var f compareFlags
	tolerance := cmd.Flags().Float64("tolerance", 0, "exit with 1 when a relative L2 is larger; 0: when a bit differs")
	cmd.Flags().StringArrayVar(&f.tensors, "tensor", nil, "compare the tensor of that name; may be given again")
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("tolerance") {
			if !(*tolerance >= 0) || math.IsInf(*tolerance, 0) {
				return usage(fmt.Errorf("--tolerance %g: want 0 or more", *tolerance))
			}
			f.tolerance = tolerance
		}
		v, err := compareSides(cmd.Context(), args[0], args[1], f)
		if err != nil {
			if isInterrupt(err) {
				return err
			}
			return usage(err)
		}
		if err := v.print(a.stdout, *format); err != nil {
			return err
		}
		return v.apart()
	}
	return cmd
}

// compareSides compares two files, or the files of two folders.
func compareSides(ctx context.Context, a, b string, f compareFlags) (*compareView, error) {
	v := &compareView{A: a, B: b, Tensors: []comparedView{}, OnlyA: []string{}, OnlyB: []string{}, Notes: []string{}, Tolerance: f.tolerance}
	folders := 0
	for _, path := range []string{a, b} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			folders++
		}
	}
	switch folders {
	case 1:
		return nil, fmt.Errorf("of %s and %s one is a folder and one a file; give two of a kind", a, b)
	case 0:
		if err := v.files(ctx, "", a, b, f); err != nil {
			return nil, err
		}
		v.conclude()
		return v, nil
	}
	namesA, err := filesIn(a)
	if err != nil {
		return nil, err
	}
	namesB, err := filesIn(b)
	if err != nil {
		return nil, err
	}
	both, onlyA, onlyB := compare.Names(namesA, namesB)
	if len(both) == 0 {
		return nil, fmt.Errorf("%s and %s have no file of the same name", a, b)
	}
	v.OnlyA, v.OnlyB = append(v.OnlyA, onlyA...), append(v.OnlyB, onlyB...)
	for _, name := range both {
		if err := v.files(ctx, name, filepath.Join(a, name), filepath.Join(b, name), f); err != nil {
			return nil, err
		}
	}
	v.conclude()
	return v, nil
}

// filesIn are the names of a folder's regular files, hidden ones left out.
func filesIn(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(folder, e.Name())) // a link's file
		if errors.Is(err, fs.ErrNotExist) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.Mode().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// files adds what two files hold. name is theirs within two folders.
func (v *compareView) files(ctx context.Context, name, pathA, pathB string, f compareFlags) error {
	a, closeA, err := openSide(ctx, pathA)
	if err != nil {
		return err
	}
	defer closeA()
	b, closeB, err := openSide(ctx, pathB)
	if err != nil {
		return err
	}
	defer closeB()
	m, err := compare.Match(a, b, f.tensors)
	if err != nil {
		return fmt.Errorf("compare A %s with B %s: %w", pathA, pathB, err)
	}
	within := func(tensor string) string {
		if name == "" {
			return tensor
		}
		return name + ": " + tensor
	}
	for _, n := range m.Notes {
		v.Notes = append(v.Notes, within(n))
	}
	for _, n := range m.OnlyA {
		v.OnlyA = append(v.OnlyA, within(n))
	}
	for _, n := range m.OnlyB {
		v.OnlyB = append(v.OnlyB, within(n))
	}
	for _, p := range m.Pairs {
		r, err := compare.Tensors(p.A, p.B)
		if err != nil {
			return fmt.Errorf("compare A %s with B %s: %w", pathA, pathB, err)
		}
		v.Tensors = append(v.Tensors, newComparedView(name, p, r))
	}
	return nil
}

// openSide opens a file whose reading ends with ctx.
func openSide(ctx context.Context, path string) (*compare.File, func(), error) {
	src, err := byposition.Open(path)
	if err != nil {
		return nil, nil, err
	}
	end := func() { _ = src.Close() } // was only read
	f, err := compare.Open(interruptible{ctx, src})
	if err != nil {
		end()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, end, nil
}

// interruptible is a source that is read until ctx ends.
type interruptible struct {
	ctx context.Context
	byposition.Source
}

func (s interruptible) ReadAt(dst []byte, at int64) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.Source.ReadAt(dst, at)
}

// apart is the error of a comparison beyond its tolerance.
func (v *compareView) apart() error {
	if v.Within == nil || *v.Within {
		return nil
	}
	if n := len(v.OnlyA) + len(v.OnlyB); n > 0 {
		return fmt.Errorf("%w %g: %d tensors or files are on one side alone", errApart, *v.Tolerance, n)
	}
	worst, far := v.Tensors[0], 0
	for _, t := range v.Tensors {
		if t.Within(*v.Tolerance) {
			continue
		}
		if far++; far == 1 || t.Unlike > worst.Unlike || t.Unlike == worst.Unlike && t.Relative > worst.Relative {
			worst = t
		}
	}
	what := fmt.Sprintf("a relative L2 of %s", showError(worst.Relative))
	switch {
	case worst.Unlike > 0:
		what = fmt.Sprintf("%d values that are NaN or infinite on one side alone", worst.Unlike)
	case *v.Tolerance == 0:
		what = fmt.Sprintf("%d of %d values differ, relative L2 %s", worst.Differing, worst.Values, showError(worst.Relative))
	}
	return fmt.Errorf("%w %g: %s: %s", errApart, *v.Tolerance, output.Clean(worst.label()), what)
}
