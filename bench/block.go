// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// FLUX.1's size, and a request of 256 text and 16×16 image tokens.
const (
	blockHidden = 3072
	blockHeads  = 24
	blockText   = 256
	blockPixels = 256
	blockSeed   = 1
)

// fluxOf is FLUX.1 dev of another width and depth.
func fluxOf(hidden, heads, double, single int64) arch.Flux {
	return arch.Flux{
		Channels: 16, Hidden: hidden, Heads: heads, MLP: 4 * hidden, Context: 4096, Vector: 768,
		Double: double, Single: single, Axes: []int64{16, 56, 56}, Guidance: true,
	}
}

// modelOf is the graph of FLUX.1 dev of another width and depth.
func modelOf(hidden, heads, double, single int64) *graph.Model {
	return fluxOf(hidden, heads, double, single).Build(arch.Options{})
}

// specialise is a model at a request's size.
func specialise(m *graph.Model, compute tensor.DType, pixelsWide, pixelsHigh, text int64) (*graph.Program, error) {
	dims, err := m.Request(map[string]int64{"batch": 1, "text_tokens": text, "width": pixelsWide, "height": pixelsHigh})
	if err != nil {
		return nil, err
	}
	return graph.Specialise(m, dims, compute)
}

// runOf is the number of a kind of block in a FLUX model.
func runOf(kind string) int {
	if kind == "single" {
		return 1
	}
	return 0
}

// writeBlock writes one block's weights in f32 and says what they are called.
func writeBlock(path, kind string) error {
	m := fluxOf(blockHidden, blockHeads, 1, 1).Build(arch.Options{})
	var entries []safetensors.Entry
	for _, e := range entriesOf(m, func(string) tensor.DType { return tensor.F32 }) {
		if strings.HasPrefix(e.Name, kind+"_blocks.") {
			entries = append(entries, e)
		}
	}
	return writeCheckpoint(path, entries)
}

// block is one block on the native engine, bound and ready to run.
type block struct {
	session  engine.Session
	segment  *graph.Segment
	program  engine.Program
	weights  engine.Buffer
	scratch  engine.Buffer
	bindings []engine.Binding
}

// openBlock loads a block's weights from the file. Close it after use.
func openBlock(ctx context.Context, path, kind string, compute tensor.DType, set isa.ISA, threads int) (_ *block, err error) {
	e, err := native.New(native.Config{ISA: set, Threads: threads})
	if err != nil {
		return nil, err
	}
	b := &block{}
	if b.session, err = e.Open(ctx, native.CPU); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	p, err := specialise(fluxOf(blockHidden, blockHeads, 1, 1).Build(arch.Options{}), compute, blockPixels, blockPixels, blockText)
	if err != nil {
		return nil, err
	}
	b.segment = p.Runs[runOf(kind)].Block
	if b.program, err = b.session.Compile(ctx, b.segment); err != nil {
		return nil, err
	}
	if b.scratch, err = b.session.Buffer(b.program.Scratch()); err != nil {
		return nil, err
	}
	if err := b.bind(p); err != nil {
		return nil, err
	}
	return b, b.load(ctx, path)
}

func (b *block) bind(p *graph.Program) error {
	seg := b.segment
	for _, ids := range [][]graph.ValueID{seg.Inputs, seg.Constants, seg.Outputs} {
		for _, id := range ids {
			v := &seg.Values[id]
			buf, err := b.session.Buffer(v.Bytes)
			if err != nil {
				return err
			}
			b.bindings = append(b.bindings, engine.Binding{Name: v.Name, Buffer: buf})
		}
	}
	for i, id := range seg.Constants {
		values, err := p.Constant(seg.Values[id].Name)
		if err != nil {
			return err
		}
		copy(floats(b.bindings[len(seg.Inputs)+i].Buffer.Host()), values)
	}
	return nil
}

func (b *block) load(ctx context.Context, path string) error {
	f, err := checkpoint.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var found []checkpoint.Tensor
	for _, w := range b.segment.Weights {
		t, ok := f.Lookup(graph.Resolve(w.Name, 0))
		if !ok {
			return fmt.Errorf("%s has no tensor %s", path, graph.Resolve(w.Name, 0))
		}
		found = append(found, t)
	}
	spans, size := checkpoint.Pack(found, int64(graph.Align))
	raw, err := b.session.Buffer(size)
	if err != nil {
		return err
	}
	defer raw.Free()
	if err := checkpoint.ReadArena(ctx, f, raw.Host(), spans, 2); err != nil {
		return err
	}
	var weights []engine.Weight
	for i, t := range found {
		weights = append(weights, engine.Weight{Name: t.Name, DType: t.DType, Shape: t.Shape, Offset: tensor.Bytes(spans[i].At)})
	}
	if b.weights, err = b.session.Buffer(b.program.PackedBytes()); err != nil {
		return err
	}
	return b.session.Wait(context.WithoutCancel(ctx), b.session.Pack(b.program, b.weights, 0, raw, weights))
}

// forward runs the block once.
func (b *block) forward(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	err := b.session.Wait(ctx, b.session.Run(b.program, b.weights, 0, b.scratch, b.bindings))
	return time.Since(began), err
}

func (b *block) close() {
	for _, x := range b.bindings {
		x.Buffer.Free()
	}
	for _, x := range []engine.Buffer{b.weights, b.scratch} {
		if x != nil {
			x.Free()
		}
	}
	_ = b.session.Close() // nothing is running
}

// flops of one forward.
func (b *block) flops() float64 {
	return float64(b.segment.Cost.LinearFLOPs + b.segment.Cost.AttentionFLOPs)
}

// set fills the inputs with random values of a normal's size, the same for
// every block, and writes them to dir for the other side.
func (b *block) set(dir, kind string) error {
	for i, id := range b.segment.Inputs {
		v := &b.segment.Values[id]
		n, err := v.Shape.Elements()
		if err != nil {
			return err
		}
		values := make([]float32, n)
		key := streamOf(v.Name, blockSeed)
		for j := range values {
			values[j] = 1.7 * uniform(mix(key, uint64(j)))
		}
		if err := writeFloats(filepath.Join(dir, torchName(kind, v.Name)+".bin"), values); err != nil {
			return err
		}
		host := b.bindings[i].Buffer.Host()
		if v.DType == tensor.F32 {
			copy(floats(host), values)
			continue
		}
		for j, x := range values {
			binary.LittleEndian.PutUint16(host[2*j:], tensor.BF16FromF32(x))
		}
	}
	return nil
}

// compare is the largest max|a−b|/max|b| over the outputs, b being what the
// other side wrote to dir.
func (b *block) compare(dir, kind string) (float64, error) {
	worst := 0.0
	for i, id := range b.segment.Outputs {
		v := &b.segment.Values[id]
		state := b.segment.Values[b.segment.Inputs[i]].Name // outputs take the places of the inputs
		want, err := readFloats(filepath.Join(dir, torchName(kind, state)+".bin"))
		if err != nil {
			return 0, err
		}
		host := b.bindings[len(b.segment.Inputs)+len(b.segment.Constants)+i].Buffer.Host()
		got := floats(host)
		if v.DType != tensor.F32 {
			got = make([]float32, len(host)/2)
			if err := tensor.ToF32(got, host, v.DType); err != nil {
				return 0, err
			}
		}
		if len(got) != len(want) {
			return 0, fmt.Errorf("output %s has %d elements, PyTorch's %d", v.Name, len(got), len(want))
		}
		worst = max(worst, relative(got, want))
	}
	return worst, nil
}

func relative(a, b []float32) float64 {
	diff, size := 0.0, 0.0
	for i := range a {
		d := math.Abs(float64(a[i]) - float64(b[i]))
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		diff, size = max(diff, d), max(size, math.Abs(float64(b[i])))
	}
	return diff / size
}

// torchName is what torch_block.py calls a value.
func torchName(kind, name string) string {
	if kind == "single" && name == "joint" {
		return "x"
	}
	return name
}

func floats(b []byte) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/4)
}

func writeFloats(path string, v []float32) error {
	raw := make([]byte, 4*len(v))
	copy(floats(raw), v)
	return os.WriteFile(path, raw, 0o600)
}

func readFloats(path string) ([]float32, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return floats(raw), nil
}
