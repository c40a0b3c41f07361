// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package measure finds a device's rates by running small programs on it, so
// that a forecast rests on this machine and not on a data sheet.
//
// Imported by the agent and by benches. It uses the engine's contract alone,
// so every engine is measured alike; it must not import the wire or placement.
package measure

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// Rates of one compute dtype on one device, at one size of activations.
type Rates struct {
	DType       tensor.DType
	Elements    int64   // of an activation: tokens times hidden size
	Linear      float64 // FLOP/s in matrix products with weights
	Attention   float64 // FLOP/s in attention
	Elementwise float64 // bytes/s read and written by all other operations
	Expand      float64 // fp8 weights expanded and packed, in packed bytes/s
}

// size is the shape of what is measured.
type size struct{ tokens, hidden int64 }

// headSize is that of the heads in all sizes.
const headSize = 128

// sizes are those of a small test model and of a model at 512×512 pixels.
// Beyond them a rate changes little.
func sizes() []size { return []size{{256, 256}, {1024, 1024}} }

// minRounds and the time per program bound the measuring: about 2 s for a
// dtype.
const (
	minRounds = 5
	maxRounds = 200
	perRun    = 200 * time.Millisecond
)

// Measure runs the programs of one dtype, one after another, at each size.
func Measure(ctx context.Context, s engine.Session, d tensor.DType) ([]Rates, error) {
	var out []Rates
	for _, sz := range sizes() {
		r, err := at(ctx, s, d, sz)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func at(ctx context.Context, s engine.Session, d tensor.DType, sz size) (Rates, error) {
	r := Rates{DType: d, Elements: sz.tokens * sz.hidden}
	b := bench{session: s, dtype: d}
	for _, p := range []struct {
		name string
		seg  *graph.Segment
		work func(graph.Cost) float64
		to   *float64
	}{
		{"linear", linear(d, sz), func(c graph.Cost) float64 { return float64(c.LinearFLOPs) }, &r.Linear},
		{"attention", attention(d, sz), func(c graph.Cost) float64 { return float64(c.AttentionFLOPs) }, &r.Attention},
		{"elementwise", elementwise(d, sz), func(c graph.Cost) float64 { return float64(c.MovedBytes) }, &r.Elementwise},
	} {
		t, err := b.run(ctx, p.seg)
		if err != nil {
			return r, fmt.Errorf("measure %s in %v: %w", p.name, d, err)
		}
		*p.to = p.work(p.seg.Cost) / t.Seconds()
	}
	t, bytes, err := b.expand(ctx, sz)
	if err != nil {
		return r, fmt.Errorf("measure expanding weights to %v: %w", d, err)
	}
	r.Expand = float64(bytes) / t.Seconds()
	return r, nil
}

// bench runs segments on a session.
type bench struct {
	session engine.Session
	dtype   tensor.DType
}

// run is the time of one execution: the median of many.
func (b *bench) run(ctx context.Context, seg *graph.Segment) (time.Duration, error) {
	p, err := b.session.Compile(ctx, seg)
	if err != nil {
		return 0, err
	}
	var held []engine.Buffer
	defer func() {
		for _, h := range held {
			h.Free()
		}
	}()
	take := func(n tensor.Bytes) (engine.Buffer, error) {
		buf, err := b.session.Buffer(n)
		if err == nil {
			held = append(held, buf)
			fill(buf.Host(), b.dtype)
		}
		return buf, err
	}
	weights, err := take(p.PackedBytes())
	if err != nil {
		return 0, err
	}
	scratch, err := take(p.Scratch())
	if err != nil {
		return 0, err
	}
	var bindings []engine.Binding
	for _, ids := range [][]graph.ValueID{seg.Inputs, seg.Constants, seg.Outputs} {
		for _, id := range ids {
			v := &seg.Values[id]
			buf, err := take(v.Bytes)
			if err != nil {
				return 0, err
			}
			if v.DType == tensor.F32 {
				fill(buf.Host(), tensor.F32)
			}
			bindings = append(bindings, engine.Binding{Name: v.Name, Buffer: buf})
		}
	}
	return b.time(ctx, func() engine.Event { return b.session.Run(p, weights, 0, scratch, bindings) })
}

func (b *bench) time(ctx context.Context, issue func() engine.Event) (time.Duration, error) {
	var took []time.Duration
	began := time.Now()
	for len(took) < minRounds || time.Since(began) < perRun && len(took) < maxRounds {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		t := time.Now()
		// Memory is freed afterwards, so what was issued has to end.
		if err := b.session.Wait(context.WithoutCancel(ctx), issue()); err != nil {
			return 0, err
		}
		took = append(took, time.Since(t))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// expand times packing of a stored fp8 matrix, in packed bytes.
func (b *bench) expand(ctx context.Context, sz size) (time.Duration, tensor.Bytes, error) {
	seg := linear(b.dtype, sz)
	p, err := b.session.Compile(ctx, seg)
	if err != nil {
		return 0, 0, err
	}
	var weights []engine.Weight
	var stored tensor.Bytes
	for _, w := range seg.Weights {
		n, err := w.Shape.Bytes(tensor.F8E4M3)
		if err != nil {
			return 0, 0, err
		}
		weights = append(weights, engine.Weight{Name: w.Name, DType: tensor.F8E4M3, Shape: w.Shape, Offset: stored})
		stored += (n + graph.Align - 1) / graph.Align * graph.Align
	}
	src, err := b.session.Buffer(stored)
	if err != nil {
		return 0, 0, err
	}
	defer src.Free()
	dst, err := b.session.Buffer(p.PackedBytes())
	if err != nil {
		return 0, 0, err
	}
	defer dst.Free()
	t, err := b.time(ctx, func() engine.Event { return b.session.Pack(p, dst, 0, src, weights) })
	return t, p.PackedBytes(), err
}

// fill writes small ordinary numbers, so that nothing is denormal or infinite.
func fill(b []byte, d tensor.DType) {
	lane := [4]byte{0x00, 0x00, 0x80, 0x3d} // 0.0625 in f32
	if d == tensor.BF16 {
		lane = [4]byte{0x80, 0x3d, 0x80, 0x3d}
	}
	for i := range b {
		b[i] = lane[i%4]
	}
}
