// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// Layout says on what and in how many pieces a model is run.
type Layout struct {
	Engines []engine.Engine // stage i runs on the first device of Engines[i mod len]
	Stages  int             // as evenly as possible by blocks, at most one per block; 0: 1
	Stored  bool            // weights rest as in the file and are expanded for every block
}

// Tensors are named values of a request, row-major float32.
type Tensors map[string][]float32

// Pipeline is a model cut into stages of one process. What leaves a stage is
// copied to where the next one reads, byte for byte, as a transport would.
type Pipeline struct {
	program  *graph.Program
	stages   []*stage.Stage
	sessions []engine.Session
}

// Cut is the number of blocks of each of n stages, as even as possible, the
// larger ones first; n is at most blocks.
func Cut(blocks, n int) []int {
	n = max(1, min(n, blocks))
	cut := make([]int, n)
	for i := range cut {
		cut[i] = blocks / n
		if i < blocks%n {
			cut[i]++
		}
	}
	return cut
}

// NewPipeline loads the checkpoint into stages. p is at the largest dimensions
// that will be run.
func NewPipeline(ctx context.Context, l Layout, c stage.Checkpoint, p *graph.Program) (_ *Pipeline, err error) {
	if len(l.Engines) == 0 {
		return nil, errors.New("no engine to run on")
	}
	pl := &Pipeline{program: p}
	defer func() {
		if err != nil {
			err = errors.Join(err, pl.Close())
		}
	}()
	first, cut := 0, Cut(p.Model.Blocks(), l.Stages)
	for i, n := range cut {
		e := l.Engines[i%len(l.Engines)]
		devices, err := e.Devices(ctx)
		if err != nil {
			return nil, err
		}
		if len(devices) == 0 {
			return nil, fmt.Errorf("the engine of stage %d has no device", i)
		}
		session, err := e.Open(ctx, devices[0].ID)
		if err != nil {
			return nil, err
		}
		pl.sessions = append(pl.sessions, session)
		st, err := stage.Load(ctx, stage.Config{
			Session: session, Checkpoint: c, Program: p, FirstBlock: first, Blocks: n,
			Head: i == 0, Tail: i == len(cut)-1, Stored: l.Stored, Slots: 2,
		})
		if err != nil {
			return nil, fmt.Errorf("stage %d of %d: %w", i, len(cut), err)
		}
		pl.stages = append(pl.stages, st)
		first += n
	}
	return pl, nil
}

// Close frees the stages and their sessions.
func (pl *Pipeline) Close() error {
	for _, st := range pl.stages {
		st.Close()
	}
	var errs []error
	for _, s := range pl.sessions {
		errs = append(errs, s.Close())
	}
	pl.stages, pl.sessions = nil, nil
	return errors.Join(errs...)
}

// Tap sees a tap of a forward with its resolved name: its values as float32
// and its bytes as computed, row-major.
type Tap func(name string, values []float32, raw []byte, d tensor.DType) error

// Forward runs the model once on in, which holds every input of the graph, and
// returns the output, row-major. tap may be nil; with one the program must be
// of graph.SpecialiseKept.
func (pl *Pipeline) Forward(ctx context.Context, dims graph.Dims, in Tensors, tap Tap) (out []byte, err error) {
	var conditioning engine.Buffer
	runs := make([]*stage.Run, len(pl.stages))
	defer func() {
		for _, r := range runs {
			if r != nil {
				r.Close()
			}
		}
		if conditioning != nil {
			conditioning.Free()
		}
	}()
	for i, st := range pl.stages {
		if runs[i], err = st.NewRun(ctx, dims); err != nil {
			return nil, err
		}
	}
	p := runs[0].Program()
	step, _ := graph.StepLayout(p)
	if err := fill(pl.stages[0].Inputs[0].Host(), step, in); err != nil {
		return nil, err
	}
	given := graph.ConditioningLayout(p)
	if conditioning, err = pl.sessions[0].HostBuffer(given.Bytes); err != nil {
		return nil, err
	}
	if err := fill(conditioning.Host(), given, in); err != nil {
		return nil, err
	}
	for i, r := range runs {
		f := stage.Forward{Conditioning: conditioning}
		if tap != nil {
			f.Tap = func(l graph.Launch, value stage.Value) error { return show(l, value, tap) }
		}
		if _, err := r.Do(ctx, f); err != nil {
			return nil, fmt.Errorf("stage %d: %w", i, err)
		}
		left := pl.stages[i].Outputs[0].Host()[:r.OutputBytes()]
		if i == len(runs)-1 {
			return append([]byte(nil), left[:p.Output.Bytes]...), nil
		}
		if want := runs[i+1].InputBytes(); want != r.OutputBytes() {
			return nil, fmt.Errorf("stage %d gives %v, the next takes %v", i, r.OutputBytes(), want)
		}
		copy(pl.stages[i+1].Inputs[0].Host(), left)
	}
	return nil, errors.New("the pipeline has no stage")
}

// fill writes inputs where a layout wants them.
func fill(dst []byte, l graph.Layout, in Tensors) error {
	for _, v := range l.Values {
		values, ok := in[v.Name]
		if !ok && v.Bytes > 0 {
			return fmt.Errorf("input %s is missing", v.Name)
		}
		n, err := v.Shape.Elements()
		if err != nil {
			return err
		}
		if v.DType != tensor.F32 || int64(len(values)) != n {
			return fmt.Errorf("input %s has %d values; %v %v is taken", v.Name, len(values), v.DType, v.Shape)
		}
		tensor.PutF32(dst[v.Place.Offset:v.Place.Offset+v.Bytes], values)
	}
	return nil
}

// show gives every tap of a launch to tap.
func show(l graph.Launch, value stage.Value, tap Tap) error {
	for _, t := range l.Segment.Taps {
		parts := make([][]byte, len(t.Values))
		v := &l.Segment.Values[t.Values[0]]
		shape := v.Shape
		for i, id := range t.Values {
			data := value(id)
			if data == nil {
				return fmt.Errorf("the engine does not show the value of tap %s", t.Name)
			}
			parts[i] = gather(data, shape, l.Segment.Values[id].Place.Strides, v.DType.Size())
		}
		raw := parts[0]
		switch t.Layout {
		case graph.TapHeadsFirst:
			swapped := tensor.Shape{shape[0], shape[2], shape[1], shape[3]}
			raw = gather(raw, swapped, []int64{shape[1] * shape[2] * shape[3], shape[3], shape[2] * shape[3], 1}, v.DType.Size())
		case graph.TapRotation:
			raw = rotation(parts[0], parts[1])
		}
		values := make([]float32, len(raw)/v.DType.Size())
		if err := tensor.ToF32(values, raw, v.DType); err != nil {
			return err
		}
		if err := tap(graph.Resolve(t.Name, l.Index), values, raw, v.DType); err != nil {
			return err
		}
	}
	return nil
}

// gather is a strided tensor in row-major order; the last dimension is dense.
func gather(data []byte, shape tensor.Shape, strides []int64, size int) []byte {
	last := len(shape) - 1
	row := int(shape[last]) * size
	var out []byte
	if slices.Contains(shape, 0) {
		return nil
	}
	index := make([]int64, last)
	for {
		at := int64(0)
		for d, i := range index {
			at += i * strides[d]
		}
		out = append(out, data[at*int64(size):][:row]...)
		d := last - 1
		for ; d >= 0; d-- {
			if index[d]++; index[d] < shape[d] {
				break
			}
			index[d] = 0
		}
		if d < 0 {
			return out
		}
	}
}

// rotation is [[cos, -sin], [sin, cos]] for every element of float32 tables.
func rotation(cos, sin []byte) []byte {
	var out []byte
	for i := 0; i < len(cos); i += 4 {
		c, s := cos[i:i+4], sin[i:i+4]
		out = append(append(out, c...), s[0], s[1], s[2], s[3]^0x80)
		out = append(append(out, s...), c...)
	}
	return out
}
