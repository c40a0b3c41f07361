// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/numeric"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
)

// Tolerances of the tables, whose case.json states them in words.
const (
	frequencyTolerance = 2e-7 // of each entry
	embeddingTolerance = 1e-6
	bf16Tolerance      = 2e-2
	noiseTolerance     = 5e-7
)

// tables compares frequency tables, the embeddings that the engine makes with
// them, and, where the file is there, noise.
func (v *verifier) tables(c *goldenCase) error {
	for _, t := range c.io.Tensors() {
		var r Record
		var err error
		switch kind, rest, _ := strings.Cut(t.Name, "."); kind {
		case "freq":
			r, err = c.frequencies(rest)
		case "emb":
			r, err = v.embedding(c, rest)
		default:
			continue
		}
		r.Case, r.Output = c.Name, t.Name
		if err != nil {
			r.Failure = err.Error()
		}
		v.emit(r)
	}
	return v.noise(c)
}

func (c *goldenCase) frequencies(name string) (Record, error) {
	r := Record{DType: "f32", Tolerance: frequencyTolerance}
	form, size, _ := strings.Cut(name, ".")
	want, err := c.values("freq." + name)
	if err != nil {
		return r, err
	}
	half, err := strconv.Atoi(size)
	if err != nil || half != len(want) {
		return r, fmt.Errorf("%q: want freq.<form>.<entries>", name)
	}
	got, err := frequencies(form, half)
	if err != nil {
		return r, err
	}
	for i := range got {
		r.Error = max(r.Error, math.Abs(float64(got[i])-float64(want[i]))/math.Abs(float64(want[i])))
	}
	r.Digest = digest(bytesOf(got))
	return r, nil
}

// frequencies is the constant that graphs use, or the power form 10000^(-k/half).
func frequencies(form string, half int) ([]float32, error) {
	const period = 10000
	switch form {
	case "exp":
		p := graph.Program{Model: &graph.Model{Constants: []graph.Constant{
			{Name: form, Recipe: graph.Sinusoid, Period: period, Half: int64(half)},
		}}}
		return p.Constant(form)
	case "pow":
		f := make([]float32, half)
		for k := range f {
			f[k] = float32(1 / numeric.Pow(period, float64(k)/float64(half)))
		}
		return f, nil
	}
	return nil, fmt.Errorf("not supported: frequencies of form %q", form)
}

// embeddings says, by name, what is embedded with which table.
func embeddings() map[string]embedding {
	return map[string]embedding{
		"flux.sigma":         {in: "sigma", factor: 1000, table: "exp.128"},
		"flux.guidance":      {in: "guidance", factor: 1000, table: "exp.128"},
		"flux.guidance_bf16": {in: "guidance", factor: 1000, table: "exp.128", bf16: true},
		"hunyuan.ms":         {in: "ms", factor: 1, table: "exp.128"},
		"ltxv.ms":            {in: "sigma", factor: 1000, table: "exp.128"}, // LTX-Video scales by itself
		"sd3_lumina.ms":      {in: "ms", factor: 1, table: "exp.128"},
		"wan.ms":             {in: "ms", factor: 1, table: "pow.128"},
		"chroma.sigma":       {in: "sigma", factor: 1000, table: "exp.8"},
		"chroma.index":       {factor: 1000, table: "exp.16"},
		"qwen.sigma":         {in: "sigma", factor: 1000, after: true, table: "exp.128"},
	}
}

// embedding is cos and sin of (factor·v)·f_k, or of factor·(v·f_k) with after.
type embedding struct {
	in     string // "in.<in>"; empty: the indices 0, 1, …
	table  string // "freq.<table>"
	factor float32
	after  bool
	bf16   bool // v, factor·v and the result are rounded to bf16
}

func (v *verifier) embedding(c *goldenCase, name string) (Record, error) {
	r := Record{DType: "f32", Tolerance: embeddingTolerance}
	e, ok := embeddings()[name]
	if !ok {
		return r, fmt.Errorf("not supported: this build does not know the embedding %q", name)
	}
	if e.bf16 {
		r.DType, r.Tolerance = "bf16", bf16Tolerance
	}
	want, shape, err := c.io.Float32s("emb." + name)
	if err != nil {
		return r, err
	}
	table, err := c.values("freq." + e.table)
	if err != nil {
		return r, err
	}
	if len(shape) != 2 {
		return r, fmt.Errorf("emb.%s has shape %v, not [values, 2·frequencies]", name, shape)
	}
	given, err := e.inputs(c, int(shape[0]))
	if err != nil {
		return r, err
	}
	s, err := v.session()
	if err != nil {
		return r, err
	}
	defer s.Close() //nolint:errcheck // frees only
	var got []float32
	for _, x := range given {
		freq := table
		if e.after {
			freq = make([]float32, len(table))
			for i, f := range table {
				freq[i] = float32(x*f) * e.factor
			}
			x = 1
		} else {
			x *= e.factor
		}
		if e.bf16 {
			x = roundBF16(x)
		}
		row, err := v.embed(s, x, freq)
		if err != nil {
			return r, err
		}
		got = append(got, row...)
	}
	if e.bf16 {
		for i := range got {
			got[i] = roundBF16(got[i])
		}
	}
	r.Error, r.Digest = relative(got, want), digest(bytesOf(got))
	return r, nil
}

func roundBF16(x float32) float32 { return tensor.F32FromBF16(tensor.BF16FromF32(x)) }

func (e embedding) inputs(c *goldenCase, n int) ([]float32, error) {
	if e.in != "" {
		v, err := c.values("in." + e.in)
		if err == nil && len(v) != n {
			err = fmt.Errorf("in.%s has %d values for %d rows", e.in, len(v), n)
		}
		if e.bf16 {
			for i := range v {
				v[i] = roundBF16(v[i])
			}
		}
		return v, err
	}
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(i)
	}
	return v, nil
}

// session opens the first engine's first device.
func (v *verifier) session() (engine.Session, error) {
	if len(v.layout.Engines) == 0 {
		return nil, errors.New("no engine to run on")
	}
	e := v.layout.Engines[0]
	devices, err := e.Devices(v.ctx)
	if err != nil {
		return nil, err
	}
	if len(devices) == 0 {
		return nil, errors.New("the engine has no device")
	}
	return e.Open(v.ctx, devices[0].ID)
}

// embed runs the engine's timestep embedding on one value.
func (v *verifier) embed(s engine.Session, x float32, table []float32) ([]float32, error) {
	n := int64(len(table))
	value := func(name string, space graph.Space, index int, strides []int64, shape ...int64) graph.Tensor {
		b, _ := tensor.Shape(shape).Bytes(tensor.F32) // a few hundred elements
		return graph.Tensor{Name: name, Shape: shape, DType: tensor.F32, Bytes: b, Place: graph.Place{Space: space, Index: index, Strides: strides}}
	}
	p, err := s.Compile(v.ctx, &graph.Segment{
		Name: "embedding", Compute: tensor.F32,
		Values: []graph.Tensor{
			value("v", graph.SpaceInput, 0, []int64{1}, 1), value("f", graph.SpaceInput, 1, []int64{1}, n),
			value("out", graph.SpaceOutput, 0, []int64{2 * n, 1}, 1, 2*n),
		},
		Inputs: []graph.ValueID{0, 1}, Outputs: []graph.ValueID{2},
		Steps: []graph.Step{{Node: graph.Node{Op: graph.OpTimestepEmbedding, In: []graph.ValueID{0, 1}, Out: []graph.ValueID{2}}}},
	})
	if err != nil {
		return nil, err
	}
	at := map[string]tensor.Bytes{"v": 0, "f": graph.Align, "out": graph.Align + tensor.Bytes(4*n)}
	end := at["out"] + tensor.Bytes(8*n)
	host, err := s.HostBuffer(end)
	if err != nil {
		return nil, err
	}
	defer host.Free()
	b, err := s.Buffer(end)
	if err != nil {
		return nil, err
	}
	defer b.Free()
	tensor.PutF32(host.Host(), []float32{x})
	tensor.PutF32(host.Host()[at["f"]:], table)
	var bindings []engine.Binding
	for _, name := range []string{"v", "f", "out"} {
		bindings = append(bindings, engine.Binding{Name: name, Buffer: b, Offset: at[name]})
	}
	scratch, err := s.Buffer(p.Scratch())
	if err != nil {
		return nil, err
	}
	defer scratch.Free()
	e := s.Run(p, nil, 0, scratch, bindings, s.Copy(b, 0, host, 0, at["out"]))
	if err := s.Wait(v.ctx, s.Copy(host, 0, b, 0, end, e)); err != nil {
		return nil, err
	}
	return floats(host.Host()[at["out"]:end])
}

// noise compares randn.safetensors: tensors seed<S>.<anything>.
func (v *verifier) noise(c *goldenCase) error {
	f, err := safetensors.Open(filepath.Join(c.dir, "randn.safetensors"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // was only read
	for _, t := range f.Tensors() {
		r := Record{Case: c.Name, Output: "randn." + t.Name, DType: "f32", Tolerance: noiseTolerance}
		want, _, err := f.Float32s(t.Name)
		text, _, _ := strings.Cut(strings.TrimPrefix(t.Name, "seed"), ".")
		seed, parse := strconv.ParseUint(text, 10, 64)
		if err = errors.Join(err, parse); err != nil {
			r.Failure = err.Error()
		} else {
			got := sampling.Randn(seed, len(want))
			r.Error, r.Digest = relative(got, want), digest(bytesOf(got))
		}
		v.emit(r)
	}
	return nil
}
