// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// verifier is one call of Run.
type verifier struct {
	ctx    context.Context //nolint:containedctx // lives as long as one call of Run
	layout Layout
	emit   func(Record)
}

// Run runs every case in the folders, themselves or anywhere below, in order of
// their paths, and gives emit one record per case and output. The error is
// about the folders or ctx; what is wrong with a case is in its record.
func Run(ctx context.Context, l Layout, dirs []string, emit func(Record)) error {
	v := &verifier{ctx: ctx, layout: l, emit: emit}
	for _, dir := range dirs {
		found, err := find(dir)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("%s: no golden case there (a folder with case.json, or bad/safetensors, bad/gguf, bad/model, safetensors)", dir)
		}
		for _, f := range found {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			f.run(v, f.dir)
		}
	}
	return nil
}

// folder is something to verify.
type folder struct {
	dir string
	run func(*verifier, string)
}

// find lists what there is in dir and below, in order.
func find(dir string) ([]folder, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a folder; give the folder of a case", dir)
	}
	var found []folder
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if run := kindOf(path); run != nil {
			found = append(found, folder{path, run})
		}
		return nil
	})
	return found, err
}

// kindOf says how to verify a folder; nil where there is nothing of its own.
func kindOf(dir string) func(*verifier, string) {
	if _, err := os.Stat(filepath.Join(dir, "case.json")); !errors.Is(err, fs.ErrNotExist) {
		return (*verifier).runCase
	}
	if filepath.Base(filepath.Dir(dir)) == "bad" && len(files(dir)) > 0 {
		return (*verifier).refusals
	}
	if slices.ContainsFunc(files(dir), func(name string) bool { return strings.HasSuffix(name, asF32) }) {
		return (*verifier).dtypes
	}
	return nil
}

// files are the names of the plain files in a folder, in order.
func files(dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
