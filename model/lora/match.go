// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package lora

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// Pair is a low-rank difference of rows of one weight: rows First to First+Rows
// change by strength·Alpha/rank·Up·Down, of which Up's rows From on are taken.
type Pair struct {
	Up, Down          Tensor
	Alpha             string   // tensor of one number; "" for a factor of 1
	Given             *float32 // the alpha, where it is no tensor
	First, From, Rows int64
}

// Rank is the number of rows of Down.
func (p Pair) Rank() int64 { return p.Down.Shape[0] }

// Full is a difference of a weight's shape: rows First to First+Rows change by
// strength times rows From on.
type Full struct {
	Tensor            Tensor
	First, From, Rows int64
}

// rank is that of the difference of a matrix as a pair: one side is ones on the
// diagonal.
func (f Full) rank() int64 { return min(f.Rows, f.Tensor.Shape[1]) }

// Patch is what one file changes of one model, by the model's weights.
type Patch struct {
	Pairs map[string][]Pair
	Full  map[string][]Full
	Set   map[string]Tensor
	// Wider are weights that get further columns, zero before the difference.
	Wider map[string]tensor.Shape
	// Refused are tensors whose kind is not supported, Unused those that fit
	// nothing of this model: both listed by key, with the reason.
	Refused, Unused []Note
	// Layers is how many of the file's layers are applied.
	Layers int
}

// Note is tensors of a file that are not applied, and why.
type Note struct {
	Keys   []string
	Reason string
}

func (n Note) String() string { return list(n.Keys) + ": " + n.Reason }

// ErrUnsupported is in the chain of a refusal of kinds of differences.
var ErrUnsupported = errors.New("not supported")

// Err refuses a file of unsupported kinds, or one that changes nothing.
func (p *Patch) Err() error {
	if len(p.Refused) > 0 {
		var texts []string
		for i, n := range p.Refused {
			if i == maxListed {
				texts = append(texts, fmt.Sprintf("and %d more layers", len(p.Refused)-i))
				break
			}
			texts = append(texts, n.String())
		}
		return fmt.Errorf("%w: %s; convert the file to plain LoRA pairs (up, down, alpha)", ErrUnsupported, strings.Join(texts, "; "))
	}
	if p.Layers == 0 {
		why := "it has no layer"
		if len(p.Unused) > 0 {
			why = p.Unused[0].String()
		}
		return fmt.Errorf("none of its layers fits this model (%s)", why)
	}
	return nil
}

const maxListed = 6

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

// rows is a stretch of a layer's rows and the weight's rows that they are.
type rows struct {
	weight      string
	first, from int64
	count       int64
}

// model is what names of a file may mean.
type model struct {
	shapes map[string]tensor.Shape // of every weight of the graph
	layers map[string][]rows       // by dotted name: of a layer without ".weight", or of another weight's whole name
	flat   map[string]string       // dotted name by that with underscores
}

// diffuser is an architecture whose diffusers names differ from its own.
type diffuser interface {
	Diffusers() map[string]arch.Source
}

func newModel(g *graph.Model, p arch.Params) *model {
	m := &model{shapes: g.Weights(), layers: map[string][]rows{}, flat: map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(m.shapes)) {
		if s := m.shapes[name]; len(s) > 0 {
			m.add(strings.TrimSuffix(name, ".weight"), rows{weight: name, count: s[0]})
		}
	}
	d, ok := p.(diffuser)
	if !ok {
		return m
	}
	sources := d.Diffusers()
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		if _, ok := m.shapes[name]; !ok {
			continue
		}
		at := int64(0)
		for _, s := range sources[name].Slices {
			m.add(strings.TrimSuffix(s.Tensor, ".weight"), rows{weight: name, first: at, from: s.First, count: s.Rows})
			at += s.Rows
		}
	}
	return m
}

func (m *model) add(layer string, r rows) {
	m.layers[layer] = append(m.layers[layer], r)
	m.flat[strings.ReplaceAll(layer, ".", "_")] = layer
}

// find is the weight's rows that a layer's name means.
func (m *model) find(layer string) []rows {
	for _, prefix := range []string{"", "diffusion_model.", "model.diffusion_model.", "transformer.", "base_model.model.", "base_model.model.transformer.", "unet."} {
		if name, ok := strings.CutPrefix(layer, prefix); ok {
			if r := m.layers[name]; r != nil {
				return r
			}
		}
	}
	for _, prefix := range []string{"lora_unet_", "lora_transformer_", "lycoris_"} {
		if name, ok := strings.CutPrefix(layer, prefix); ok {
			return m.layers[m.flat[name]]
		}
	}
	return nil
}

// textEncoder says whether a layer is one of a text encoder.
func textEncoder(layer string) bool {
	for _, prefix := range []string{"lora_te", "text_encoder", "clip_l.", "clip_g.", "t5xxl.", "te1.", "te2."} {
		if strings.HasPrefix(layer, prefix) {
			return true
		}
	}
	return false
}

// Match says what the file changes of a model. What it cannot apply it lists.
func Match(g *graph.Model, p arch.Params, f *File) *Patch {
	m := newModel(g, p)
	out := &Patch{Pairs: map[string][]Pair{}, Full: map[string][]Full{}, Set: map[string]Tensor{}, Wider: map[string]tensor.Shape{}}
	if f.Patches != nil {
		m.matchPatches(f, out)
		return out
	}
	for i := range f.Changes {
		c := &f.Changes[i]
		note := func(format string, args ...any) Note { return Note{c.Keys, fmt.Sprintf(format, args...)} }
		switch to := m.find(c.Layer); {
		case c.Kind != "" && (to != nil || !textEncoder(c.Layer)):
			out.Refused = append(out.Refused, note("%s", c.Kind))
		case to == nil && textEncoder(c.Layer):
			out.Unused = append(out.Unused, note("a layer of a text encoder, which distorch does not run"))
		case to == nil:
			out.Unused = append(out.Unused, note("this model has no layer of that name"))
		default:
			if err := m.apply(c, to, out); err != nil {
				out.Unused = append(out.Unused, note("%v", err))
			} else {
				out.Layers++
			}
		}
	}
	for _, t := range f.Loose {
		if err := m.loose(t, out); err != nil {
			out.Unused = append(out.Unused, Note{[]string{t.Name}, err.Error()})
		} else {
			out.Layers++
		}
	}
	slices.SortStableFunc(out.Unused, func(a, b Note) int { return cmp.Compare(a.Keys[0], b.Keys[0]) })
	return out
}

// loose takes a tensor under a norm's own name for its replacement, as BFL's
// control LoRAs have it.
func (m *model) loose(t Tensor, out *Patch) error {
	s, ok := m.shapes[t.Name]
	switch {
	case !ok || !strings.HasSuffix(t.Name, "_norm.scale"):
		return errors.New("it is named as no tensor of a LoRA")
	case !s.Equal(t.Shape):
		return fmt.Errorf("shape %v, the weight has %v", t.Shape, s)
	}
	out.Set[t.Name] = t
	return nil
}

// apply adds one layer's change. All of it fits or none is taken.
func (m *model) apply(c *Change, to []rows, out *Patch) error {
	pair, err := m.pair(c, to)
	if err != nil {
		return err
	}
	full, err := m.full(c.Tensors[Diff], to)
	if err != nil {
		return err
	}
	var bias []rows
	for _, r := range to {
		if _, ok := c.Tensors[DiffBias]; ok {
			if r.weight, ok = strings.CutSuffix(r.weight, ".weight"); !ok {
				return fmt.Errorf("%s has no bias", c.Layer)
			}
			r.weight += ".bias"
			bias = append(bias, r)
		}
	}
	more, err := m.full(c.Tensors[DiffBias], bias)
	if err != nil {
		return err
	}
	set, given := c.Tensors[Set]
	if given {
		if len(to) != 1 || !m.shapes[to[0].weight].Equal(set.Shape) {
			return fmt.Errorf("%s %v replaces no whole weight", quote(set.Name), set.Shape)
		}
	}
	if len(pair)+len(full)+len(more) == 0 && !given {
		return errors.New("nothing but " + list(c.Keys))
	}
	for w, p := range pair {
		if k := p.Down.Shape[1]; k > m.shapes[w.weight][1] {
			out.Wider[w.weight] = tensor.Shape{m.shapes[w.weight][0], k}
		}
		out.Pairs[w.weight] = append(out.Pairs[w.weight], p)
	}
	for _, f := range slices.Concat(full, more) {
		out.Full[f.weight] = append(out.Full[f.weight], f.Full)
	}
	if given {
		out.Set[to[0].weight] = set
	}
	return nil
}

// pair is the low-rank difference of every stretch of rows.
func (m *model) pair(c *Change, to []rows) (map[rows]Pair, error) {
	up, hasUp := c.Tensors[Up]
	down, hasDown := c.Tensors[Down]
	switch {
	case !hasUp && !hasDown:
		return nil, nil
	case !hasUp:
		return nil, fmt.Errorf("%s has no up beside it", quote(down.Name))
	case !hasDown:
		return nil, fmt.Errorf("%s has no down beside it", quote(up.Name))
	case len(up.Shape) != 2 || len(down.Shape) != 2:
		return nil, fmt.Errorf("up %v and down %v must be matrices", up.Shape, down.Shape)
	case up.Shape[1] != down.Shape[0]:
		return nil, fmt.Errorf("rank %d of up %v is not rank %d of down %v", up.Shape[1], up.Shape, down.Shape[0], down.Shape)
	case down.Shape[0] < 1 || down.Shape[0] > maxRank:
		return nil, fmt.Errorf("rank %d: must be 1 to %d", down.Shape[0], maxRank)
	}
	for _, t := range []Tensor{up, down} {
		if err := plain(t); err != nil {
			return nil, err
		}
	}
	alpha := ""
	if a, ok := c.Tensors[Alpha]; ok {
		if n, err := a.Shape.Elements(); err != nil || n != 1 || plain(a) != nil {
			return nil, fmt.Errorf("%s is %v %v: must be one number", quote(a.Name), a.DType, a.Shape)
		}
		alpha = a.Name
	}
	_, wider := c.Tensors[Reshape]
	wider = wider || c.Layer == "img_in" // BFL's control LoRAs announce it by the shape alone
	out := map[rows]Pair{}
	if n := total(to); up.Shape[0] != n {
		return nil, fmt.Errorf("up %v has %d rows, the layer %d", up.Shape, up.Shape[0], n)
	}
	for _, r := range to {
		s := m.shapes[r.weight]
		if len(s) != 2 {
			return nil, fmt.Errorf("%s %v is no matrix", r.weight, s)
		}
		if k := down.Shape[1]; k != s[1] && !(wider && k > s[1]) {
			return nil, fmt.Errorf("down %v has %d columns, the layer %d", down.Shape, k, s[1])
		}
		out[r] = Pair{Up: up, Down: down, Alpha: alpha, First: r.first, From: r.from, Rows: r.count}
	}
	return out, nil
}

type weightFull struct {
	Full
	weight string
}

// full is a whole difference of every stretch of rows; t without a name is none.
func (m *model) full(t Tensor, to []rows) (out []weightFull, err error) {
	if t.Name == "" {
		return nil, nil
	}
	if err := plain(t); err != nil {
		return nil, err
	}
	for _, r := range to {
		want, ok := m.shapes[r.weight]
		if !ok {
			return nil, fmt.Errorf("this model has no %s", r.weight)
		}
		want = want.Clone()
		want[0] = total(to)
		if !t.Shape.Equal(want) {
			return nil, fmt.Errorf("%s is %v, the layer %v", quote(t.Name), t.Shape, want)
		}
		out = append(out, weightFull{Full{t, r.first, r.from, r.count}, r.weight})
	}
	return out, nil
}

func total(to []rows) (n int64) {
	for _, r := range to {
		n += r.count
	}
	return n
}

// plain refuses dtypes that no LoRA has.
func plain(t Tensor) error {
	switch t.DType {
	case tensor.F32, tensor.BF16, tensor.F16, tensor.F8E4M3, tensor.F8E5M2:
		return nil
	}
	return fmt.Errorf("%s is stored as %v: must be F32, BF16, F16, F8_E4M3 or F8_E5M2", quote(t.Name), t.DType)
}
