// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// PatchesKey is the key of a file's metadata that lists its patches: such a file
// is what a client sends, one LoRA loader's patches as ComfyUI has them.
const PatchesKey = "distorch_lora"

// maxPatches bounds the text of the list.
const maxPatches = 16 << 20

// The kinds of a patch.
const (
	patchLoRA = "lora" // tensors up [n,r] and down [r,k]
	patchDiff = "diff" // one tensor of the shape of the weight's rows
)

// swapScaleShift is the one function of a patch that is known: the halves of a
// modulation's rows change places (ComfyUI comfy/utils.py, flux_to_diffusers).
const swapScaleShift = "swap_scale_shift"

// WeightPatch is what a file of patches has for one weight.
type WeightPatch struct {
	Key      string // the weight, under ComfyUI's name without "diffusion_model."
	Kind     string
	Offset   *[3]int64 // dimension, first, count of what is changed; nil: all
	Function string    // what the difference goes through; "": nothing
	Alpha    *float32  // nil: a factor of 1
	Tensors  []Tensor
	// Foreign is a property that is not known, of which nothing can be said.
	Foreign string
}

// keys are how a patch is named to people.
func (p *WeightPatch) keys() []string { return []string{p.Key} }

// Read is Parse for a file of any kind: its metadata says whether it lists
// patches.
func Read(tensors []Tensor, metadata map[string]string) (*File, error) {
	if text, ok := metadata[PatchesKey]; ok {
		return ParsePatches(text, tensors)
	}
	return Parse(tensors)
}

// ParsePatches reads the list of patches of a file with these tensors: JSON, a
// list of objects with key, type, offset, function, alpha and tensors. What a
// patch means to a model is Match's to say.
func ParsePatches(text string, tensors []Tensor) (*File, error) {
	switch {
	case len(text) > maxPatches:
		return nil, fmt.Errorf("a list of patches of %d bytes, at most %d", len(text), maxPatches)
	case len(tensors) > maxTensors:
		return nil, fmt.Errorf("%d tensors, at most %d", len(tensors), maxTensors)
	}
	var list []map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("%s is no list of patches: %w", PatchesKey, err)
	}
	if len(list) == 0 {
		return nil, errors.New("its list of patches is empty")
	}
	known := make(map[string]Tensor, len(tensors))
	for _, t := range tensors {
		known[t.Name] = t
	}
	f := &File{Style: "client", Patches: make([]WeightPatch, 0, min(len(list), maxTensors))}
	used := map[string]bool{}
	for i, fields := range list {
		if i == maxTensors {
			return nil, fmt.Errorf("%d patches, at most %d", len(list), maxTensors)
		}
		p, err := readPatch(fields, known)
		if err != nil {
			return nil, fmt.Errorf("patch %d of %s: %w", i, quote(p.Key), err)
		}
		for _, t := range p.Tensors {
			used[t.Name] = true
		}
		if p.Kind == patchLoRA && len(p.Tensors) > 1 && len(p.Tensors[1].Shape) > 0 {
			f.Rank = max(f.Rank, p.Tensors[1].Shape[0])
		}
		f.Patches = append(f.Patches, p)
	}
	for _, t := range tensors {
		if !used[t.Name] {
			f.Loose = append(f.Loose, t)
		}
	}
	return f, nil
}

// readPatch reads one object of the list.
func readPatch(fields map[string]json.RawMessage, known map[string]Tensor) (p WeightPatch, err error) {
	var names []string
	var alpha *float64
	var offset []int64
	into := map[string]any{"key": &p.Key, "type": &p.Kind, "offset": &offset, "function": &p.Function, "alpha": &alpha, "tensors": &names}
	var foreign []string
	for name, raw := range fields {
		to, ok := into[name]
		if !ok {
			if string(raw) != "null" {
				foreign = append(foreign, name)
			}
			continue
		}
		if e := json.Unmarshal(raw, to); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, e))
		}
	}
	slices.Sort(foreign)
	p.Foreign = strings.Join(foreign, ", ")
	switch {
	case err != nil:
		return p, err
	case p.Key == "":
		return p, errors.New("it names no weight")
	case offset != nil && len(offset) != 3:
		return p, fmt.Errorf("offset %v: dimension, first and count are taken", offset)
	case len(names) == 0:
		return p, errors.New("it has no tensor")
	}
	if offset != nil {
		p.Offset = (*[3]int64)(offset)
	}
	if alpha != nil {
		a := float32(*alpha)
		if math.IsInf(float64(a), 0) {
			return p, fmt.Errorf("alpha %g is no float32", *alpha)
		}
		p.Alpha = &a
	}
	for _, n := range names {
		t, ok := known[n]
		if !ok {
			return p, fmt.Errorf("tensor %s is not in the file", quote(n))
		}
		p.Tensors = append(p.Tensors, t)
	}
	return p, nil
}

// matchPatches says what a file of patches changes. A client's model has the
// weights that it patches, so what does not fit is refused, not listed.
func (m *model) matchPatches(f *File, out *Patch) {
	refuse := func(keys []string, format string, args ...any) {
		out.Refused = append(out.Refused, Note{keys, fmt.Sprintf(format, args...)})
	}
	for i := range f.Patches {
		if err := m.patch(&f.Patches[i], out); err != nil {
			refuse(f.Patches[i].keys(), "%v", err)
		} else {
			out.Layers++
		}
	}
	for _, t := range f.Loose {
		refuse([]string{t.Name}, "no patch has this tensor")
	}
	slices.SortStableFunc(out.Refused, func(a, b Note) int { return cmp.Compare(a.Keys[0], b.Keys[0]) })
}

// patch adds one weight's change.
func (m *model) patch(p *WeightPatch, out *Patch) error {
	shape, ok := m.shapes[p.Key]
	switch {
	case !ok || len(shape) == 0:
		return errors.New("this model has no weight of that name")
	case p.Foreign != "":
		return fmt.Errorf("%s of a patch", p.Foreign)
	}
	to, err := patchedRows(p, shape)
	if err != nil {
		return err
	}
	switch want := map[string]int{patchLoRA: 2, patchDiff: 1}[p.Kind]; {
	case want == 0:
		return fmt.Errorf("patches of type %s", quote(p.Kind))
	case p.Kind == patchLoRA && len(p.Tensors) == 3:
		return errors.New("a convolution's LoRA (mid)")
	case len(p.Tensors) != want:
		return fmt.Errorf("a patch of type %s has %d tensors, %d are taken", p.Kind, len(p.Tensors), want)
	case p.Kind == patchDiff:
		return m.patchDiff(p, to, out)
	}
	pairs, err := m.pair(&Change{Layer: p.Key, Tensors: map[Role]Tensor{Up: p.Tensors[0], Down: p.Tensors[1]}}, to)
	if err != nil {
		return err
	}
	for _, r := range to {
		x := pairs[r]
		x.Given = p.Alpha
		out.Pairs[r.weight] = append(out.Pairs[r.weight], x)
	}
	return nil
}

func (m *model) patchDiff(p *WeightPatch, to []rows, out *Patch) error {
	if p.Alpha != nil {
		return fmt.Errorf("alpha of a patch of type %s", p.Kind)
	}
	full, err := m.full(p.Tensors[0], to)
	if err != nil {
		return err
	}
	for _, f := range full {
		out.Full[f.weight] = append(out.Full[f.weight], f.Full)
	}
	return nil
}

// patchedRows are the rows of a weight that a patch changes, and which of the
// difference's they are.
func patchedRows(p *WeightPatch, shape tensor.Shape) ([]rows, error) {
	all := rows{weight: p.Key, count: shape[0]}
	if o := p.Offset; o != nil {
		switch {
		case o[0] != 0:
			return nil, fmt.Errorf("an offset in dimension %d; rows, dimension 0, can be patched", o[0])
		case o[1] < 0 || o[2] < 1 || o[1] > shape[0] || o[2] > shape[0]-o[1]:
			return nil, fmt.Errorf("rows %d to %d of a weight of %d rows", o[1], o[1]+o[2], shape[0])
		}
		all.first, all.count = o[1], o[2]
	}
	switch half := all.count / 2; {
	case p.Function == "":
		return []rows{all}, nil
	case p.Function != swapScaleShift:
		return nil, fmt.Errorf("the function %s of a patch", quote(p.Function))
	case all.count%2 != 0 || p.Offset != nil:
		return nil, fmt.Errorf("the function %s on %d rows of %d", swapScaleShift, all.count, shape[0])
	default:
		return []rows{
			{weight: p.Key, first: 0, from: half, count: half},
			{weight: p.Key, first: half, from: 0, count: half},
		}, nil
	}
}
