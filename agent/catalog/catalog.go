// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package catalog finds the checkpoints of this node and describes them for
// the cluster: identity, architecture, graph and weights.
//
// Imported by the agent. It reads headers and samples, never whole files; it
// must not import the store, the transport or an engine.
package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph/wire"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Entry is one checkpoint of this node.
type Entry struct {
	Path   string
	Record *pb.ModelRecord
	Stamp  Stamp
}

// Stamp tells a file from what it was: its identity samples the bytes, so it
// does not see every change.
type Stamp struct {
	Bytes    int64     // of all parts
	Modified time.Time // the last part's
}

// StampOf reads the stamp of a checkpoint with all its parts.
func StampOf(path string) (Stamp, error) {
	var s Stamp
	for _, part := range checkpoint.Parts(path) {
		info, err := os.Stat(part)
		if err != nil {
			return Stamp{}, err
		}
		s.Bytes += info.Size()
		if info.ModTime().After(s.Modified) {
			s.Modified = info.ModTime()
		}
	}
	return s, nil
}

// Skipped is a file that is no model this build can run, and why.
type Skipped struct {
	Path string
	Err  error
}

// maxFiles bounds the files of one folder tree.
const maxFiles = 10_000

// Scan describes every .safetensors and .gguf file below dirs, sorted by path;
// of a split one the first part stands for all. A folder that cannot be read is
// an error; a file that is no model is Skipped.
func Scan(dirs []string) ([]Entry, []Skipped, error) {
	var entries []Entry
	var skipped []Skipped
	seen := map[string]bool{}
	for _, dir := range dirs {
		paths, err := files(dir)
		if err != nil {
			return nil, nil, fmt.Errorf("models.dirs: %w", err)
		}
		for _, p := range paths {
			if seen[p] {
				continue
			}
			seen[p] = true
			e, err := describe(p)
			if err != nil {
				skipped = append(skipped, Skipped{p, err})
				continue
			}
			entries = append(entries, e)
		}
	}
	return entries, skipped, nil
}

func describe(path string) (Entry, error) {
	stamp, gone := StampOf(path) // before the bytes: a change meanwhile shows
	r, err := Describe(path)
	if err == nil { // which says better what is missing
		err = gone
	}
	return Entry{path, r, stamp}, err
}

func files(dir string) ([]string, error) {
	var out []string
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil && path == root:
			return err
		case err != nil:
			return nil // a folder below that may not be read holds nothing for us
		case d.IsDir() || !checkpoint.Named(path):
			return nil
		case len(out) == maxFiles:
			return fmt.Errorf("%s holds more than %d checkpoints; name a folder with fewer", dir, maxFiles)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			out = append(out, path)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist; create it or correct models.dirs", dir)
	}
	slices.Sort(out)
	return out, err
}

// Describe is the record of one file. The error of a file that is no model
// this build can run is an *arch.Refusal, a *safetensors.FormatError or a
// *gguf.FormatError.
func Describe(path string) (*pb.ModelRecord, error) {
	f, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if looksLikeLoRA(f) {
		return describeLoRA(f)
	}
	r, err := Recognise(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	id, err := f.QuickID()
	if err != nil {
		return nil, err
	}
	model := r.Params.Build(arch.Options{})
	record := &pb.ModelRecord{
		Id: id, Name: filepath.Base(path), Architecture: r.Arch, Variant: r.Variant, Prefix: r.Prefix,
		Graph: wire.ToProto(model), FileBytes: uint64(f.Size()),
		DefaultDtype: strings.ToLower(r.ComputeDType().String()),
	}
	if record.HyperParameters, err = arch.HyperParameters(r.Params); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	shapes := model.Weights()
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		n, err := shapes[name].Elements()
		if err != nil {
			return nil, fmt.Errorf("%s: weight %q: %w", path, name, err)
		}
		record.Parameters += uint64(n)
		record.Weights = append(record.Weights, &pb.WeightEntry{Name: name, Dtype: r.Stored[name].String(), Shape: shapes[name]})
	}
	return record, nil
}

// Recognise is arch.Recognise on a file's header.
func Recognise(f checkpoint.File) (*arch.Recognised, error) {
	tensors := map[string]arch.Tensor{}
	for _, t := range f.Tensors() {
		tensors[t.Name] = arch.Tensor{Shape: t.Shape, DType: t.DType}
	}
	return arch.Recognise(tensors, f.Metadata())
}

// Largest is the entry with the largest file; nil without entries.
func Largest(entries []Entry) *Entry {
	var largest *Entry
	for i := range entries {
		if largest == nil || entries[i].Record.FileBytes > largest.Record.FileBytes {
			largest = &entries[i]
		}
	}
	return largest
}
