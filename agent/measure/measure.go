// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package measure finds a device's rates by running small programs on it, so
// that a forecast rests on this machine and not on a data sheet.
//
// Imported by the agent, by the calibrate command and by benches. It uses the
// engine's contract alone, so every engine is measured alike; it must not
// import the wire or placement.
package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// Rates of one compute dtype on one device, at one size of activations.
type Rates struct {
	DType       tensor.DType
	Tokens      int64   // of the measured activation
	Elements    int64   // of it: tokens times hidden size
	Linear      float64 // FLOP/s in matrix products with weights
	Attention   float64 // FLOP/s in attention
	Elementwise float64 // bytes/s read and written by all other operations
	Expand      float64 // fp8 weights expanded and packed, in packed bytes/s
	Uncertainty Uncertainty
}

// Uncertainty is the relative one of each rate: half of the distance from the
// tenth to the ninetieth percentile of the repetitions, over the median.
type Uncertainty struct{ Linear, Attention, Elementwise, Expand float64 }

// size is the shape of what is measured.
type size struct{ tokens, hidden int64 }

// headSize is that of the heads in all sizes.
const headSize = 128

// sizes are those of a small test model and of a model at 512×512 pixels.
// Beyond them a rate changes little: enough for an agent that starts.
func sizes() []size { return []size{{256, 256}, {1024, 1024}} }

// curve has sizes between and above: the last is FLUX at 1024×1024 pixels.
func curve() []size { return []size{{256, 256}, {512, 512}, {1024, 1024}, {2048, 2048}, {4096, 3072}} }

// bound is how much time measuring takes.
type bound struct {
	rounds, most int           // least and most executions of a program
	each         time.Duration // of a program, when the least are done
	// longest is what one execution may take: a size above, by the rates of the
	// one before, is left out.
	longest time.Duration
}

// brief is about 2 s for a dtype on any machine.
func brief() bound { return bound{rounds: 5, most: 200, each: 200 * time.Millisecond} }

// full is about 10 s on a machine with many cores and a minute on one with
// two.
func full() bound {
	return bound{rounds: 5, most: 200, each: 500 * time.Millisecond, longest: 3 * time.Second}
}

// Bytes is what Measure takes of memory while it runs, at most.
const Bytes = 64 * tensor.MB

// Measure runs the programs of one dtype, one after another, at two sizes. It
// takes about two seconds.
func Measure(ctx context.Context, s engine.Session, d tensor.DType) ([]Rates, error) {
	at := sizes()
	if dev := s.Device(); !dev.Unified && !dev.Simulated {
		at[1] = size{2048, 2048} // a GPU is done with less before it is busy
	}
	return along(ctx, s, d, at, brief(), nil)
}

// Programs is how often Curve reports.
func Programs() int { return len(curve()) * programs }

// Curve measures one dtype at up to five sizes, with more repetitions. It
// takes up to a minute and 1 GB. Sizes whose programs would take longer than
// three seconds each are left out. step is called when another program is done.
func Curve(ctx context.Context, s engine.Session, d tensor.DType, step func()) ([]Rates, error) {
	return along(ctx, s, d, curve(), full(), step)
}

func along(ctx context.Context, s engine.Session, d tensor.DType, sizes []size, lim bound, step func()) ([]Rates, error) {
	if step == nil {
		step = func() {}
	}
	var out []Rates
	for i, sz := range sizes {
		if i > 0 && lim.longest > 0 && longest(d, sz, out[i-1]) > lim.longest.Seconds() {
			break
		}
		r, err := at(ctx, s, d, sz, lim, step)
		if i > 0 && errors.Is(err, engine.ErrNoMemory) {
			break // a small device is known by small activations
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// longest is what the slowest program of a size would take, in seconds.
func longest(d tensor.DType, sz size, by Rates) float64 {
	return max(
		float64(linear(d, sz).Cost.LinearFLOPs)/by.Linear,
		float64(attention(d, sz).Cost.AttentionFLOPs)/by.Attention,
		float64(elementwise(d, sz).Cost.MovedBytes)/by.Elementwise,
	)
}

// programs are run at each size: three, and the packing of weights.
const programs = 4

func at(ctx context.Context, s engine.Session, d tensor.DType, sz size, lim bound, step func()) (Rates, error) {
	r := Rates{DType: d, Tokens: sz.tokens, Elements: sz.tokens * sz.hidden}
	b := bench{session: s, dtype: d, bound: lim}
	for _, p := range []struct {
		name string
		seg  *graph.Segment
		work func(graph.Cost) float64
		to   *float64
		off  *float64
	}{
		{"linear", linear(d, sz), func(c graph.Cost) float64 { return float64(c.LinearFLOPs) }, &r.Linear, &r.Uncertainty.Linear},
		{"attention", attention(d, sz), func(c graph.Cost) float64 { return float64(c.AttentionFLOPs) }, &r.Attention, &r.Uncertainty.Attention},
		{"elementwise", elementwise(d, sz), func(c graph.Cost) float64 { return float64(c.MovedBytes) }, &r.Elementwise, &r.Uncertainty.Elementwise},
	} {
		t, err := b.run(ctx, p.seg)
		if err != nil {
			return r, fmt.Errorf("measure %s in %v: %w", p.name, d, err)
		}
		*p.to, *p.off = p.work(p.seg.Cost)/t.median, t.uncertainty()
		step()
	}
	t, bytes, err := b.expand(ctx, sz)
	if err != nil {
		return r, fmt.Errorf("measure expanding weights to %v: %w", d, err)
	}
	r.Expand, r.Uncertainty.Expand = float64(bytes)/t.median, t.uncertainty()
	step()
	return r, nil
}

// bench runs segments on a session.
type bench struct {
	session engine.Session
	dtype   tensor.DType
	bound   bound
}

// run is the time of one execution, from many.
func (b *bench) run(ctx context.Context, seg *graph.Segment) (timing, error) {
	p, err := b.session.Compile(ctx, seg)
	if err != nil {
		return timing{}, err
	}
	var held []engine.Buffer
	defer func() {
		for _, h := range held {
			h.Free()
		}
	}()
	take := func(n tensor.Bytes, d tensor.DType) (engine.Buffer, error) {
		buf, err := b.filled(ctx, n, d)
		if err == nil {
			held = append(held, buf)
		}
		return buf, err
	}
	weights, err := take(p.PackedBytes(), b.dtype)
	if err != nil {
		return timing{}, err
	}
	scratch, err := take(p.Scratch(), b.dtype)
	if err != nil {
		return timing{}, err
	}
	var bindings []engine.Binding
	for _, ids := range [][]graph.ValueID{seg.Inputs, seg.Constants, seg.Outputs} {
		for _, id := range ids {
			v := &seg.Values[id]
			buf, err := take(v.Bytes, v.DType)
			if err != nil {
				return timing{}, err
			}
			bindings = append(bindings, engine.Binding{Name: v.Name, Buffer: buf})
		}
	}
	return b.time(ctx, func() engine.Event { return b.session.Run(p, weights, 0, scratch, bindings) })
}

// filled is memory of the device that holds small ordinary numbers.
func (b *bench) filled(ctx context.Context, n tensor.Bytes, d tensor.DType) (engine.Buffer, error) {
	buf, err := b.session.Buffer(n)
	if err != nil {
		return nil, err
	}
	if h := buf.Host(); h != nil {
		fill(h, d)
		return buf, nil
	}
	host, err := b.session.HostBuffer(n)
	if err != nil {
		buf.Free()
		return nil, err
	}
	defer host.Free()
	fill(host.Host(), d)
	if err := b.session.Wait(context.WithoutCancel(ctx), b.session.Copy(buf, 0, host, 0, n)); err != nil {
		buf.Free()
		return nil, err
	}
	return buf, nil
}

func (b *bench) time(ctx context.Context, issue func() engine.Event) (timing, error) {
	return clocked(ctx, b.bound, func() (time.Duration, error) {
		e := issue()
		// Memory is freed afterwards, so what was issued has to end.
		if err := b.session.Wait(context.WithoutCancel(ctx), e); err != nil {
			return 0, err
		}
		if c, ok := b.session.(deviceClock); ok {
			if d, known := c.Took(e); known {
				return d, nil
			}
		}
		return 0, nil
	})
}

// deviceClock is a session of a device that is told what to do from afar: the
// way there is no part of a rate, since forwards issue ahead.
type deviceClock interface {
	Took(e engine.Event) (time.Duration, bool)
}

// expand times packing of a stored fp8 matrix, in packed bytes.
func (b *bench) expand(ctx context.Context, sz size) (timing, tensor.Bytes, error) {
	seg := linear(b.dtype, sz)
	p, err := b.session.Compile(ctx, seg)
	if err != nil {
		return timing{}, 0, err
	}
	var weights []engine.Weight
	var stored tensor.Bytes
	for _, w := range seg.Weights {
		n, err := w.Shape.Bytes(tensor.F8E4M3)
		if err != nil {
			return timing{}, 0, err
		}
		weights = append(weights, engine.Weight{Name: w.Name, DType: tensor.F8E4M3, Shape: w.Shape, Offset: stored})
		stored += (n + graph.Align - 1) / graph.Align * graph.Align
	}
	src, err := b.session.Buffer(stored)
	if err != nil {
		return timing{}, 0, err
	}
	defer src.Free()
	dst, err := b.session.Buffer(p.PackedBytes())
	if err != nil {
		return timing{}, 0, err
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
