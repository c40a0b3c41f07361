// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// ErrNotSupported is in every refusal of a file that may be sound, but not of
// an architecture or variant that this build runs.
var ErrNotSupported = errors.New("not supported")

// ErrMalformed is in every refusal of a file of a known architecture that
// lacks something or contradicts itself.
var ErrMalformed = errors.New("malformed model")

// Refusal says why a file is not a model that can run. Is matches
// ErrNotSupported or ErrMalformed.
type Refusal struct {
	kind    error
	Reason  string // short and constant: "tensor-missing", "axes", "family"
	Message string
}

func (e *Refusal) Error() string { return fmt.Sprintf("%v: %s", e.kind, e.Message) }

// Unwrap is ErrNotSupported or ErrMalformed.
func (e *Refusal) Unwrap() error { return e.kind }

func unsupported(reason, format string, args ...any) error {
	return &Refusal{ErrNotSupported, reason, fmt.Sprintf(format, args...)}
}

func malformed(reason, format string, args ...any) error {
	return &Refusal{ErrMalformed, reason, fmt.Sprintf(format, args...)}
}

// Tensor is what a checkpoint's header says of one tensor.
type Tensor struct {
	Shape tensor.Shape
	DType tensor.DType
}

// Options choose between graphs of the same weights.
type Options struct {
	// OmitGuidance leaves the guidance embedding out, as ComfyUI does when a
	// request has none.
	OmitGuidance bool
}

// Params are the hyper-parameters of an architecture.
type Params interface {
	Arch() string
	Build(Options) *graph.Model
}

// Recognised is a checkpoint's architecture and what belongs to it.
type Recognised struct {
	Arch    string // "flux"
	Variant string // "FLUX.1 dev"
	Prefix  string // in front of the model's own names in the file: "model.diffusion_model." or ""
	Params  Params
	// Stored is the dtype of every weight of the model, by name without Prefix.
	Stored map[string]tensor.DType
	// Unknown are tensors under Prefix that the architecture does not know;
	// they are not used. Foreign are the file's tensors beside a prefixed model.
	Unknown []string
	Foreign []string
	// Sources are the weights that are not one tensor of the file of the same
	// name, by name without Prefix; see Source.
	Sources map[string]Source
}

// Source says how a weight of the graph is made from tensors of the file: the
// rows of the slices one after another, all of one dtype, times Scale.
type Source struct {
	Slices []Slice
	// Scale names a tensor of one element that multiplies every value in
	// float32; "" for none.
	Scale string
}

// Slice is rows of a tensor of the file, under its name there. Rows 0 are all
// from First on.
type Slice struct {
	Tensor      string
	First, Rows int64
}

// Source is where the weight of that name (of the graph, without Prefix) comes
// from.
func (r *Recognised) Source(name string) Source {
	if s, ok := r.Sources[name]; ok {
		return s
	}
	return Source{Slices: []Slice{{Tensor: r.Prefix + name}}}
}

// ComputeDType is the family's default.
func (r *Recognised) ComputeDType() tensor.DType { return tensor.BF16 }

// diffusionPrefix stands before the diffusion model's names in checkpoints
// that hold more than one model.
const diffusionPrefix = "model.diffusion_model."

// Limits on a file's header, which a reader has bounded already.
const (
	maxTensors = 100_000
	maxListed  = 6
)

// Recognise says which architecture the tensors of a checkpoint make up. What
// shapes do not tell comes from the file's metadata. The error is a *Refusal.
func Recognise(tensors map[string]Tensor, metadata map[string]string) (*Recognised, error) {
	if len(tensors) == 0 {
		return nil, malformed("empty", "the file has no tensors")
	}
	if len(tensors) > maxTensors {
		return nil, malformed("size", "the file has %d tensors, more than %d", len(tensors), maxTensors)
	}
	own, foreign, prefix := strip(tensors)
	own, scales, err := takeScales(own, metadata)
	if err != nil {
		return nil, err
	}
	var sources map[string]Source
	if looksLikeDiffusersFlux(own) {
		if own, sources, err = fromDiffusers(own); err != nil {
			return nil, err
		}
	}
	if !looksLikeFlux(own) {
		return nil, refuseFamily(own)
	}
	r, err := recogniseFlux(own, metadata)
	if err != nil {
		return nil, err
	}
	r.Prefix, r.Foreign = prefix, foreign
	r.rename(sources)
	if err := r.scale(scales); err != nil {
		return nil, err
	}
	if err := graph.Validate(r.Params.Build(Options{})); err != nil {
		return nil, malformed("size", "%v", err)
	}
	return r, nil
}

// rename notes where weights come from that have other names in the file.
func (r *Recognised) rename(sources map[string]Source) {
	for name, s := range sources {
		for i := range s.Slices {
			s.Slices[i].Tensor = r.Prefix + s.Slices[i].Tensor
		}
		sources[name] = s
	}
	r.Sources = sources
}

// strip takes the prefix off; without a prefix the whole file is the model.
func strip(tensors map[string]Tensor) (own map[string]Tensor, foreign []string, prefix string) {
	own = make(map[string]Tensor, len(tensors))
	for name, t := range tensors {
		if rest, ok := strings.CutPrefix(name, diffusionPrefix); ok {
			own[rest] = t
		} else {
			foreign = append(foreign, name)
		}
	}
	if len(own) == 0 {
		return tensors, nil, ""
	}
	slices.Sort(foreign)
	return own, foreign, diffusionPrefix
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// quote makes a name from a file safe and short enough to print.
func quote(name string) string {
	const limit = 120
	if len(name) > limit {
		name = name[:limit] + "…"
	}
	return fmt.Sprintf("%q", name)
}

// list is the first few names and how many more there are.
func list(names []string) string {
	var b strings.Builder
	for i, n := range names {
		if i == maxListed {
			fmt.Fprintf(&b, " and %d more", len(names)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(n))
	}
	return b.String()
}
