// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

// loraPass is one output of a case with a LoRA.
type loraPass struct {
	pass
	strength float32
	modes    []lora.Mode // none: without the LoRA
}

// loraPasses are the outputs of a case: out.plain, out.strength.S, and out.f32
// and out.bf16 at the one strength of a case in bf16, whose merged weights are
// rounded, so that adding in float32 gives another result than out.f32.
func (c *goldenCase) loraPasses() (out []loraPass, err error) {
	both := []lora.Mode{lora.Merge, lora.Add}
	for _, t := range c.io.Tensors() {
		p := loraPass{pass: pass{output: t.Name, compute: tensor.F32}, modes: both}
		text, ok := strings.CutPrefix(t.Name, "out.strength.")
		switch {
		case ok:
			s, err := strconv.ParseFloat(text, 32)
			if err != nil {
				return nil, fmt.Errorf("output %q: %w", t.Name, err)
			}
			p.strength = float32(s)
		case t.Name == "out.plain":
			p.modes = nil
		case t.Name == "out.f32" && len(c.Strengths) == 1:
			p.strength, p.modes = float32(c.Strengths[0]), both[:1]
		case t.Name == "out.bf16" && len(c.Strengths) == 1:
			p.strength, p.compute = float32(c.Strengths[0]), tensor.BF16
		case strings.HasPrefix(t.Name, "in.") || strings.HasPrefix(t.Name, "merged."):
			continue
		default:
			return nil, fmt.Errorf("not supported: output %q of a case with a LoRA", t.Name)
		}
		out = append(out, p)
	}
	return out, nil
}

// lora runs a case with a LoRA: every output in both modes, and the merged
// weights. What of the file cannot be applied is in the notes.
func (v *verifier) lora(c *goldenCase) error {
	var name string
	if err := json.Unmarshal(c.LoRA, &name); err != nil {
		return fmt.Errorf("lora: %w", err)
	}
	passes, err := c.loraPasses()
	if err != nil {
		return err
	}
	given := c.given()
	guidance := slices.Contains(given, "guidance")
	cp, m, err := c.model(guidance, given)
	if err != nil {
		return err
	}
	defer cp.File.Close() //nolint:errcheck // was only read
	path := filepath.Join(c.dir, filepath.FromSlash(name))
	patch, err := readPatch(path, m, cp.params)
	if err != nil {
		return err
	}
	base := lora.Base{Graph: m, Params: cp.params, Options: arch.Options{OmitGuidance: !guidance}, Stored: map[string]tensor.DType{}}
	for w := range m.Weights() {
		t, ok := cp.File.Lookup(cp.Source(w).Slices[0].Tensor)
		if !ok {
			return fmt.Errorf("weight %s is missing", w)
		}
		base.Stored[w] = t.DType
	}
	l := &loraCase{v, c, cp, base, path, patch, false}
	for _, p := range passes {
		if len(p.modes) == 0 {
			l.record(v.loraless(c, cp, m, given, p.pass))
		}
		for _, mode := range p.modes {
			r, err := l.with(given, p, mode)
			r.Output += " (" + string(mode) + ")"
			l.record(r, err)
		}
	}
	return l.merged()
}

func (v *verifier) loraless(c *goldenCase, cp modelFile, m *graph.Model, given []string, p pass) (Record, error) {
	in, at, err := c.inputs(m, given)
	if err != nil {
		return Record{Output: p.output}, err
	}
	return v.compare(c, cp.Checkpoint, m, at, in, p)
}

// compare runs the model and says how far its output is off.
func (v *verifier) compare(c *goldenCase, cp stage.Checkpoint, m *graph.Model, at graph.Dims, in Tensors, p pass) (Record, error) {
	r := Record{Output: p.output, DType: dtypeName(p.compute)}
	r.Tolerance, _ = c.tolerance(p.output)
	raw, err := v.once(graph.Specialise, modelFile{Checkpoint: cp}, m, at, in, p.compute, nil)
	if err != nil {
		return r, err
	}
	got, err := floats(raw)
	if err != nil {
		return r, err
	}
	want, err := c.values(p.output)
	r.Error, r.Digest = relative(got, want), digest(raw)
	return r, err
}

// loraCase is a case with its LoRA.
type loraCase struct {
	*verifier
	c     *goldenCase
	cp    modelFile
	base  lora.Base
	path  string
	patch *lora.Patch
	noted bool // what cannot be applied was said
}

func (l *loraCase) record(r Record, err error) {
	r.Case = l.c.Name
	if err != nil {
		r.Failure = err.Error()
	}
	var notes []string
	for _, n := range l.patch.Unused {
		notes = append(notes, n.String())
	}
	if len(notes) > 0 && !l.noted { // once, not with every output
		l.noted = true
		r.Note = "not applied: " + strings.Join(notes, "; ")
	}
	l.emit(r)
}

// open puts the LoRA on the case's model; the caller closes the overlay.
func (l *loraCase) open(mode lora.Mode, strength float32, compute tensor.DType) (*lora.Model, *lora.Overlay, error) {
	m, err := lora.Apply(l.base, compute, []lora.Use{{Name: filepath.Base(l.path), Patch: l.patch, Mode: mode, Strength: strength}})
	if err != nil {
		return nil, nil, err
	}
	f, err := checkpoint.Open(l.path)
	if err != nil {
		return nil, nil, err
	}
	o, err := lora.NewOverlay(l.cp.File, l.cp.Source, m, []checkpoint.File{f})
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return m, o, nil
}

func (l *loraCase) with(given []string, p loraPass, mode lora.Mode) (Record, error) {
	m, o, err := l.open(mode, p.strength, p.compute)
	if err != nil {
		return Record{Output: p.output}, err
	}
	defer o.Close() //nolint:errcheck // was only read
	own := *m.Graph // what the case brings; the strength comes from here
	own.Inputs = slices.DeleteFunc(slices.Clone(own.Inputs), func(v graph.Value) bool { return v.Name == lora.StrengthInput })
	in, at, err := l.c.inputs(&own, given)
	if err != nil {
		return Record{Output: p.output}, err
	}
	if mode == lora.Add {
		in[lora.StrengthInput] = []float32{p.strength}
	}
	return l.compare(l.c, stage.Checkpoint{File: o, Source: o.Source, Open: o.Reopen}, m.Graph, at, in, p.pass)
}

// merged compares the weights that the case has as merged at its first strength.
func (l *loraCase) merged() error {
	names := l.c.names("merged.")
	if len(names) == 0 {
		return nil
	}
	if len(l.c.Strengths) == 0 {
		return errors.New("case.json has no strengths")
	}
	_, o, err := l.open(lora.Merge, float32(l.c.Strengths[0]), tensor.F32)
	if err != nil {
		return err
	}
	defer o.Close() //nolint:errcheck // was only read
	for _, name := range names {
		r := Record{Output: "merged." + name}
		r.Tolerance, _ = l.c.tolerance(r.Output)
		if r.Tolerance == 0 {
			r.Tolerance, _ = l.c.tolerance("out")
		}
		got, _, err := o.Float32s(name)
		if err == nil {
			var want []float32
			want, err = l.c.values(r.Output)
			r.Error, r.Digest = relative(got, want), digest(bytesOf(got))
			r.DType = l.base.Stored[name].String()
		}
		l.record(r, err)
	}
	return nil
}

// readPatch reads a LoRA's header and matches it with a model.
func readPatch(path string, m *graph.Model, p arch.Params) (*lora.Patch, error) {
	f, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // was only read
	var tensors []lora.Tensor
	for _, t := range f.Tensors() {
		tensors = append(tensors, lora.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape})
	}
	parsed, err := lora.Parse(tensors)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return lora.Match(m, p, parsed), nil
}
