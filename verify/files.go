// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/gguf"
	"github.com/distorch/distorch/model/safetensors"
)

// refusals: every file of a folder bad/<kind> has to be refused; one that is
// only to be reported is named in reported.
func (v *verifier) refusals(dir string) {
	name := "bad/" + filepath.Base(dir)
	faults := faults(filepath.Dir(dir))
	for _, file := range files(dir) {
		r := Record{Case: name, Output: file}
		why, err := refusal(filepath.Join(dir, file))
		switch {
		case err != nil:
			r.Failure = err.Error()
		case why == "":
			r.Failure = "the file was taken for a sound one"
			if fault := faults[filepath.Base(dir)+"/"+file]; fault != "" {
				r.Failure += "; it has this fault: " + fault
			}
		default:
			r.Note = why
		}
		v.emit(r)
	}
}

// faults is index.json of a folder of malformed files: fault by path. It is
// only used to explain.
func faults(dir string) (m map[string]string) {
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil || len(text) > maxCase || json.Unmarshal(text, &m) != nil {
		return nil
	}
	return m
}

// reported is the file of bad/model that may be used when its fault is said.
const reported = "tensor-unknown.safetensors"

// refusal is why a file is refused, or what is reported of it; empty where it
// is taken for sound. The error says why the file could not be judged.
func refusal(path string) (string, error) {
	f, err := checkpoint.Open(path)
	if why := formatError(err); why != "" {
		return why, nil
	}
	if err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	cp, r, err := openModel(path)
	if err != nil {
		if filepath.Base(filepath.Dir(path)) != "model" {
			return "", nil // the format's reader has to find the fault
		}
		return err.Error(), nil
	}
	defer cp.File.Close() //nolint:errcheck // was only read
	if filepath.Base(path) == reported && len(r.Unknown) > 0 {
		return "reported: unknown tensors " + strings.Join(r.Unknown, ", "), nil
	}
	return "", nil
}

// formatError is what a format's reader refuses a file for; "" for any other
// error.
func formatError(err error) string {
	if f, ok := errors.AsType[*safetensors.FormatError](err); ok {
		return f.Error()
	}
	if f, ok := errors.AsType[*gguf.FormatError](err); ok {
		return f.Error()
	}
	return ""
}

// asF32 ends the name of a file with another's values.
const asF32 = "-as-f32.safetensors"

// dtypes: a folder with files X.safetensors and their values X-as-f32.safetensors.
func (v *verifier) dtypes(dir string) {
	name := filepath.Base(dir)
	for _, file := range files(dir) {
		stem, ok := strings.CutSuffix(file, asF32)
		var err error
		switch {
		case ok:
			err = v.expanded(name, filepath.Join(dir, stem+".safetensors"), filepath.Join(dir, file))
		case filepath.Ext(file) == ".safetensors":
			err = v.readable(name, filepath.Join(dir, file))
		}
		if err != nil {
			v.emit(Record{Case: name, Output: file, Failure: err.Error()})
		}
	}
}

// expanded compares every tensor of a file with its values; NaN equals NaN.
func (v *verifier) expanded(name, stored, values string) error {
	s, err := safetensors.Open(stored)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // was only read
	w, err := safetensors.Open(values)
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // was only read
	for _, t := range w.Tensors() {
		want, _, err := w.Float32s(t.Name)
		if err != nil {
			return err
		}
		r := Record{Case: name, Output: t.Name}
		got, _, err := s.Float32s(t.Name)
		if err != nil {
			r.Failure = err.Error()
		} else {
			r.Error, r.Digest = unequal(got, want), digest(bytesOf(got))
		}
		if in, ok := s.Lookup(t.Name); ok {
			r.DType = in.DType.String()
		}
		v.emit(r)
	}
	return nil
}

// unequal is 0 where all values are equal, the sign of a zero aside.
func unequal(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	for i, g := range got {
		if w := want[i]; g != w && !(g != g && w != w) {
			return math.Inf(1)
		}
	}
	return 0
}

// unusual are the values of golden data's unusual.safetensors (its README).
func unusual() map[string][]float64 {
	return map[string][]float64{"z": {1.5, -2.25}, "a": {1.5}, "odd": {7, 8, 9}, "m": {0.125}, "empty": {}}
}

// readable reads every tensor of a file that is sound, and compares those whose
// values are known.
func (v *verifier) readable(name, path string) error {
	f, err := safetensors.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // was only read
	base := strings.TrimSuffix(filepath.Base(path), ".safetensors")
	for _, t := range f.Tensors() {
		raw, _, err := f.Read(t.Name)
		r := Record{Case: name, Output: base + "." + t.Name, DType: t.DType.String(), Digest: digest(raw)}
		if err != nil {
			r.Failure = err.Error()
		}
		if want, known := unusual()[t.Name]; known && base == "unusual" {
			got, err := numbers(f, t)
			if err != nil || len(got) != len(want) {
				r.Error = math.Inf(1)
			}
			for i := range min(len(got), len(want)) {
				r.Error = max(r.Error, math.Abs(got[i]-want[i]))
			}
		}
		v.emit(r)
	}
	return nil
}

// numbers reads a float tensor or one of bytes.
func numbers(f *safetensors.File, t safetensors.Tensor) ([]float64, error) {
	var out []float64
	if t.DType.Float() {
		v, _, err := f.Float32s(t.Name)
		for _, x := range v {
			out = append(out, float64(x))
		}
		return out, err
	}
	raw, _, err := f.Read(t.Name)
	if t.DType.Size() != 1 {
		return nil, fmt.Errorf("tensor %q is %v", t.Name, t.DType)
	}
	for _, x := range raw {
		out = append(out, float64(x))
	}
	return out, err
}
