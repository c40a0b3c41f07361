// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// modelFile is a model file and what it was recognised as.
type modelFile struct {
	stage.Checkpoint
	params arch.Params
	note   string // what was done to it
}

// openModel recognises a checkpoint; the caller closes its file.
func openModel(path string) (modelFile, *arch.Recognised, error) {
	f, err := checkpoint.Open(path)
	if err != nil {
		return modelFile{}, nil, err
	}
	tensors := map[string]arch.Tensor{}
	for _, t := range f.Tensors() {
		tensors[t.Name] = arch.Tensor{Shape: t.Shape, DType: t.DType}
	}
	r, err := arch.Recognise(tensors, f.Metadata())
	if err != nil {
		return modelFile{}, nil, errors.Join(fmt.Errorf("%s: %w", filepath.Base(path), err), f.Close())
	}
	return modelFile{stage.Checkpoint{File: f, Source: r.Source}, r.Params, ""}, r, nil
}

// model opens the case's model and builds its graph for the inputs given, with
// the guidance embedding where it has one and guidance says so.
func (c *goldenCase) model(guidance bool, given []string) (modelFile, *graph.Model, error) {
	cp, _, err := openModel(filepath.Join(c.dir, filepath.FromSlash(c.Model)))
	if err != nil {
		return cp, nil, err
	}
	cp.note = mend(&cp)
	m := cp.params.Build(arch.Options{OmitGuidance: !guidance})
	if err = graph.Validate(m); err == nil {
		for _, name := range given {
			if !slices.ContainsFunc(m.Inputs, func(v graph.Value) bool { return v.Name == name }) {
				err = fmt.Errorf("not supported: %s takes no input %q in this build", m.Arch, name)
			}
		}
	}
	if c.Architecture != m.Arch && err == nil {
		err = fmt.Errorf("not supported: the case is of architecture %q, its model was recognised as %q", c.Architecture, m.Arch)
	}
	if err != nil {
		return cp, nil, errors.Join(err, cp.File.Close())
	}
	return cp, m, nil
}

// pass is one forward of a case: which output it makes, in which dtype, and
// under which prefix its inner values are.
type pass struct {
	output, taps string
	compute      tensor.DType
}

func (v *verifier) forward(c *goldenCase) error {
	given := c.given()
	cp, m, err := c.model(slices.Contains(given, "guidance"), given)
	if err != nil {
		return err
	}
	defer cp.File.Close() //nolint:errcheck // was only read
	in, at, err := c.inputs(m, given)
	if err != nil {
		return err
	}
	if len(c.names("fill.")) > 0 {
		if err := v.behind(c); err != nil {
			return err
		}
	}
	known := []pass{{"out", "tap.", tensor.F32}, {"out.f32", "tap.", tensor.F32}, {"out.bf16", "tap_bf16.", tensor.BF16}}
	for _, p := range known {
		if _, ok := c.io.Lookup(p.output); ok {
			if err := v.pass(c, cp, m, at, in, p); err != nil {
				v.emit(Record{Case: c.Name, Output: p.output, DType: dtypeName(p.compute), Failure: err.Error()})
			}
		}
	}
	return c.unknownOutputs(known)
}

// otherProgram begins the names of outputs that tell how far off another
// program is; they are no outputs of the model.
const otherProgram = "out.comfyui"

// unknownOutputs refuses a case with an output that has a tolerance and that no
// pass makes.
func (c *goldenCase) unknownOutputs(known []pass) error {
	for _, t := range c.io.Tensors() {
		_, judged := c.tolerance(t.Name)
		if !judged || strings.HasPrefix(t.Name, "in.") || strings.HasPrefix(t.Name, otherProgram) {
			continue
		}
		if !slices.ContainsFunc(known, func(p pass) bool { return t.Name == p.output || strings.HasPrefix(t.Name, p.taps) }) {
			return fmt.Errorf("not supported: output %q of the case", t.Name)
		}
	}
	return nil
}

// pass computes an output twice: as an agent does, which is what is judged, and
// with every inner value kept, which must give the same bytes.
func (v *verifier) pass(c *goldenCase, cp modelFile, m *graph.Model, at graph.Dims, in Tensors, p pass) error {
	out, err := v.once(graph.Specialise, cp, m, at, in, p.compute, nil)
	if err != nil {
		return err
	}
	t := tapCheck{c: c, pass: p, seen: map[string]bool{}}
	kept, err := v.once(graph.SpecialiseKept, cp, m, at, in, p.compute, t.see)
	if err != nil {
		return err
	}
	t.missing()
	rec := Record{Case: c.Name, Output: p.output, DType: dtypeName(p.compute), FirstTapOff: t.firstOff, Digest: digest(out)}
	rec.Tolerance, _ = c.tolerance(p.output)
	rec.Note = cp.note
	if n := m.Blocks(); v.layout.Stages > n {
		rec.Note = fmt.Sprintf("%d stages, as there are no more blocks", n)
	}
	want, err := c.values(p.output)
	if err != nil {
		return err
	}
	got, err := floats(out)
	if err != nil {
		return err
	}
	rec.Error = relative(got, want)
	if !bytes.Equal(out, kept) {
		rec.Failure = "the output depends on where inner values lie in memory"
	}
	v.emit(rec)
	for _, r := range t.records {
		v.emit(r)
	}
	return nil
}

type specialise func(*graph.Model, graph.Dims, tensor.DType) (*graph.Program, error)

func (v *verifier) once(s specialise, cp modelFile, m *graph.Model, at graph.Dims, in Tensors, compute tensor.DType, tap Tap) (out []byte, err error) {
	p, err := s(m, at, compute)
	if err != nil {
		return nil, err
	}
	pl, err := NewPipeline(v.ctx, v.layout, cp.Checkpoint, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pl.Close()) }()
	return pl.Forward(v.ctx, at, in, tap)
}

// tapCheck compares the inner values of a pass as they come.
type tapCheck struct {
	c        *goldenCase
	pass     pass
	seen     map[string]bool
	firstOff string
	records  []Record
}

func (t *tapCheck) see(name string, values []float32, raw []byte, _ tensor.DType) error {
	name = t.pass.taps + name
	if _, ok := t.c.io.Lookup(name); !ok || t.seen[name] {
		return nil
	}
	t.seen[name] = true
	want, err := t.c.values(name)
	if err != nil {
		return err
	}
	r := Record{Case: t.c.Name, Output: name, DType: dtypeName(t.pass.compute), Error: relative(values, want), Digest: digest(raw)}
	tol, ok := t.c.tolerance(name)
	if r.Tolerance = tol; !ok {
		return nil
	}
	if !r.OK() && t.firstOff == "" {
		t.firstOff = name
	}
	t.records = append(t.records, r)
	return nil
}

// missing records the inner values that the graph does not show.
func (t *tapCheck) missing() {
	for _, name := range t.c.names(t.pass.taps) {
		name = t.pass.taps + name
		if tol, ok := t.c.tolerance(name); ok && !t.seen[name] {
			t.records = append(t.records, Record{
				Case: t.c.Name, Output: name, DType: dtypeName(t.pass.compute), Tolerance: tol, Failure: "the graph shows no such inner value",
			})
		}
	}
}
