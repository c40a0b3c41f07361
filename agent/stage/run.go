// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// ErrStopped is the error of a forward that was cancelled between segments.
var ErrStopped = errors.New("the forward was cancelled")

// Run is a stage at the dimensions of one request.
type Run struct {
	stage     *Stage
	program   *graph.Program
	input     graph.Layout
	output    graph.Layout
	launches  []graph.Launch
	programs  []engine.Program
	constants map[string]engine.Buffer
	issued    atomic.Uint64 // the last event on the queue
}

// NewRun specialises the stage for a request that fits its workload. The
// constants are computed here, once.
func (st *Stage) NewRun(ctx context.Context, dims graph.Dims) (_ *Run, err error) {
	p, err := st.cfg.Program.Within(dims)
	if err != nil {
		return nil, err
	}
	r := &Run{stage: st, program: p, constants: map[string]engine.Buffer{}}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if r.launches, err = p.Stage(st.cfg.FirstBlock, st.cfg.Blocks, st.cfg.Head, st.cfg.Tail); err != nil {
		return nil, err
	}
	compiled := map[*graph.Segment]engine.Program{}
	for _, l := range r.launches {
		if compiled[l.Segment] == nil {
			if compiled[l.Segment], err = st.session.Compile(ctx, l.Segment); err != nil {
				return nil, err
			}
		}
		c := compiled[l.Segment]
		if c.Scratch() > st.scratch.Bytes() {
			return nil, fmt.Errorf("segment %s needs %v of scratch at these dimensions, the stage has %v", l.Segment.Name, c.Scratch(), st.scratch.Bytes())
		}
		r.programs = append(r.programs, c)
		if err := r.makeConstants(l.Segment); err != nil {
			return nil, err
		}
	}
	if r.input, err = st.inputLayout(p); err != nil {
		return nil, err
	}
	if r.output, err = st.outputLayout(p); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Run) makeConstants(s *graph.Segment) error {
	for _, id := range s.Constants {
		name := s.Values[id].Name
		if r.constants[name] != nil {
			continue
		}
		values, err := r.program.Constant(name)
		if err != nil {
			return err
		}
		b, err := r.stage.upload(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), 4*len(values)))
		if err != nil {
			return fmt.Errorf("memory for constant %s: %w", name, err)
		}
		r.constants[name] = b
	}
	return nil
}

// upload is a new buffer of the device that holds bytes.
func (st *Stage) upload(from []byte) (engine.Buffer, error) {
	n := tensor.Bytes(len(from))
	b, err := st.session.Buffer(n)
	if err != nil {
		return nil, err
	}
	if h := b.Host(); h != nil {
		copy(h, from)
		return b, nil
	}
	host, err := st.session.HostBuffer(n)
	if err != nil {
		b.Free()
		return nil, err
	}
	defer host.Free()
	copy(host.Host(), from)
	if err := st.session.Wait(context.Background(), st.session.Copy(b, 0, host, 0, n)); err != nil {
		b.Free()
		return nil, err
	}
	return b, nil
}

// Close gives the run's memory back. A segment that a cancelled forward left
// running is waited for: after Close nothing reads the forward's conditioning.
func (r *Run) Close() {
	r.stage.drain(&r.issued)
	for _, b := range r.constants {
		b.Free()
	}
	r.constants = nil
}

// Program is the specialisation.
func (r *Run) Program() *graph.Program { return r.program }

// InputBytes and OutputBytes are the lengths of what arrives and leaves.
func (r *Run) InputBytes() tensor.Bytes { return r.input.Bytes }

// OutputBytes is the length of what leaves.
func (r *Run) OutputBytes() tensor.Bytes { return r.output.Bytes }

// Output is how what leaves is laid out.
func (r *Run) Output() graph.Layout { return r.output }

// Forward is one execution of the stage.
type Forward struct {
	Slot int
	// Conditioning is the first stage's in host memory, laid out as
	// graph.ConditioningLayout. It is read until Do returns without an error, or until the next Do or Close.
	Conditioning engine.Buffer
	// Stop is asked before each segment; true ends the forward with ErrStopped.
	Stop func() bool
	// Tap sees the segment's values after each launch; may be nil. A value is
	// sure to be there only in a program made by graph.SpecialiseKept.
	Tap func(l graph.Launch, value Value) error
}

// Value is the memory of a segment's value from its first element on, laid out
// with its Place's strides; nil where the host cannot see it.
type Value func(id graph.ValueID) []byte

// Result says what a forward did.
type Result struct {
	Blocks  uint64 // executed
	Compute time.Duration
}

// ahead is how many segments are on the compute queue beside the one that is
// waited for: the device need not wait for the host between two.
const ahead = 2

// pending is a segment on the compute queue.
type pending struct {
	event  engine.Event
	staged *offload.Staged // nil: its weights are resident
}

// Do runs one forward: from the slot's input to the slot's output. When ctx
// ends the caller is released at once; the segments that are on the queue end
// by themselves, and the next call waits for them. After any other error none
// runs any more.
func (r *Run) Do(ctx context.Context, f Forward) (res Result, err error) {
	st := r.stage
	st.rewind()
	defer func() {
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			st.drain(&r.issued)
		}
		st.rewind()
	}()
	began := time.Now()
	last := r.bringIn(f)
	env := r.environment(f)
	var queue []pending
	for i := range r.launches {
		if f.Stop != nil && f.Stop() {
			return res, ErrStopped
		}
		if ctx.Err() != nil {
			return res, context.Cause(ctx)
		}
		p, bound, err := r.issue(ctx, i, env, last)
		if err != nil {
			return res, err
		}
		last = p.event
		queue = append(queue, p)
		for len(queue) > ahead || f.Tap != nil && len(queue) > 0 {
			if err := r.waitFor(ctx, queue[0]); err != nil {
				return res, err
			}
			queue = queue[1:]
		}
		if f.Tap != nil {
			if err := r.tap(ctx, f, i, bound); err != nil {
				return res, err
			}
		}
		if r.launches[i].Block >= 0 {
			res.Blocks++
		}
	}
	for _, p := range queue {
		if err := r.waitFor(ctx, p); err != nil {
			return res, err
		}
	}
	if err := r.passOn(ctx, f, env, last); err != nil {
		return res, err
	}
	res.Compute = time.Since(began)
	return res, nil
}

// waitFor waits for a segment. What went wrong with bringing its weights names
// the block and where it rests.
func (r *Run) waitFor(ctx context.Context, p pending) error {
	session := r.stage.session
	err := session.Wait(ctx, p.event)
	if err == nil || ctx.Err() != nil || p.staged == nil {
		return err
	}
	if copied := session.Wait(ctx, p.staged.Ready); copied != nil {
		return p.staged.Block.Fail(session.Device().ID, copied)
	}
	return err
}

// environment maps value names to where they lie now.
type environment map[string]engine.Binding

func (r *Run) environment(f Forward) environment {
	env := environment{}
	put := func(l graph.Layout, b engine.Buffer) {
		for _, v := range l.Values {
			env[v.Name] = engine.Binding{Name: v.Name, Buffer: b, Offset: v.Place.Offset}
		}
	}
	input, conditioning, output := r.stage.Inputs[f.Slot], f.Conditioning, r.stage.Outputs[f.Slot]
	if n := r.stage.near; n != nil {
		input, conditioning, output = n.input, n.conditioning, n.output
	}
	put(r.input, input)
	if r.stage.cfg.Head {
		put(graph.ConditioningLayout(r.program), conditioning)
	}
	for name, b := range r.constants {
		env[name] = engine.Binding{Name: name, Buffer: b}
	}
	return env.withOutput(output)
}

// bringIn copies what a forward reads to a device of its own memory.
func (r *Run) bringIn(f Forward) (e engine.Event) {
	st := r.stage
	if st.near == nil {
		return 0
	}
	e = st.session.Copy(st.near.input, 0, st.Inputs[f.Slot], 0, r.input.Bytes)
	r.note(e)
	if st.cfg.Head && f.Conditioning != nil {
		e = st.session.Copy(st.near.conditioning, 0, f.Conditioning, 0, graph.ConditioningLayout(r.program).Bytes, e)
		r.note(e)
	}
	return e
}

// outputKey is where the environment keeps the output region; no value has
// this name.
const outputKey = ""

func (e environment) withOutput(b engine.Buffer) environment {
	e[outputKey] = engine.Binding{Buffer: b}
	return e
}

// tap shows the values of launch i, brought to the host where it cannot see them.
func (r *Run) tap(ctx context.Context, f Forward, i int, bound []engine.Binding) error {
	seg := r.launches[i].Segment
	var failed error
	err := f.Tap(r.launches[i], func(id graph.ValueID) []byte {
		at := seg.Values[id].Place
		from := engine.Binding{Buffer: r.stage.scratch}
		switch at.Space {
		case graph.SpaceInput:
			from = bound[at.Index]
		case graph.SpaceConstant:
			from = bound[len(seg.Inputs)+at.Index]
		case graph.SpaceOutput:
			from = bound[len(seg.Inputs)+len(seg.Constants)+at.Index]
		}
		if host := from.Buffer.Host(); host != nil {
			return host[from.Offset+at.Offset:]
		}
		host, err := r.stage.download(ctx, from.Buffer, from.Offset+at.Offset, extent(&seg.Values[id]))
		failed = errors.Join(failed, err)
		return host
	})
	return errors.Join(err, failed)
}

// extent is the bytes from a value's first element to the end of its last.
func extent(v *graph.Tensor) tensor.Bytes {
	last := int64(0)
	for d, n := range v.Shape {
		if n == 0 {
			return 0
		}
		stride := int64(1)
		if d < len(v.Place.Strides) {
			stride = v.Place.Strides[d]
		}
		last += (n - 1) * stride
	}
	return tensor.Bytes((last + 1) * int64(v.DType.Size()))
}

// download is a copy of the device's bytes.
func (st *Stage) download(ctx context.Context, from engine.Buffer, at, n tensor.Bytes) ([]byte, error) {
	host, err := st.session.HostBuffer(n)
	if err != nil {
		return nil, err
	}
	defer host.Free()
	if err := st.session.Wait(context.WithoutCancel(ctx), st.session.Copy(host, 0, from, at, n)); err != nil {
		return nil, err
	}
	return slices.Clone(host.Host()), nil
}

// issue starts launch i, records where its outputs lie and says what it bound.
func (r *Run) issue(ctx context.Context, i int, env environment, before engine.Event) (p pending, bindings []engine.Binding, err error) {
	seg := r.launches[i].Segment
	for _, ids := range [][]graph.ValueID{seg.Inputs, seg.Constants} {
		for _, id := range ids {
			b, ok := env[seg.Values[id].Name]
			if !ok || b.Buffer == nil {
				return p, nil, fmt.Errorf("segment %s: nothing made its input %s", seg.Name, seg.Values[id].Name)
			}
			bindings = append(bindings, b)
		}
	}
	made := r.outputs(i, env)
	for k, id := range seg.Outputs {
		bindings = append(bindings, engine.Binding{Name: seg.Values[id].Name, Buffer: made[k].Buffer, Offset: made[k].Offset})
	}
	if p, err = r.launch(ctx, i, bindings, before); err != nil {
		return p, nil, err
	}
	for _, b := range made {
		env[b.Name] = b
	}
	return p, bindings, nil
}

// launch puts launch i on the queue. Blocks do not change their place meanwhile.
func (r *Run) launch(ctx context.Context, i int, bindings []engine.Binding, before engine.Event) (p pending, err error) {
	st := r.stage
	st.mu.Lock()
	defer st.mu.Unlock()
	weights, staged, err := st.weightsOf(ctx, i)
	if err != nil {
		return p, err
	}
	p.staged = staged
	after := []engine.Event{before}
	if staged != nil {
		after = append(after, staged.Ready)
	}
	p.event = st.session.Run(r.programs[i], weights, 0, st.scratch, bindings, after...)
	if staged != nil {
		st.staging.ring.Used(p.event, before)
	}
	r.note(p.event)
	st.next = i + 1
	return p, nil
}

// note remembers the last event that was issued.
func (r *Run) note(e engine.Event) {
	r.issued.Store(uint64(e))
	r.stage.issued.Store(uint64(e))
}

// outputs places what launch i makes: state in the two state buffers by turns,
// travelling values in theirs, and what leaves the stage in the slot's output.
func (r *Run) outputs(i int, env environment) []engine.Binding {
	l := r.launches[i]
	var out []engine.Binding
	if i == len(r.launches)-1 {
		for k, v := range l.State {
			out = append(out, engine.Binding{Name: v.Name, Buffer: env[outputKey].Buffer, Offset: r.output.Values[k].Place.Offset})
		}
		return out
	}
	travel := map[string]tensor.Bytes{}
	if l.Run < 0 {
		for _, v := range layoutOf(r.program.Travel).Values {
			travel[v.Name] = v.Place.Offset
		}
	}
	for _, v := range layoutOf(l.State).Values {
		if at, ok := travel[v.Name]; ok {
			out = append(out, engine.Binding{Name: v.Name, Buffer: r.stage.travel, Offset: at})
			continue
		}
		out = append(out, engine.Binding{Name: v.Name, Buffer: r.stage.state[i%2], Offset: v.Place.Offset})
	}
	return out
}

// passOn copies the travelling values behind the state that leaves, and all of
// it to the host.
func (r *Run) passOn(ctx context.Context, f Forward, env environment, after engine.Event) error {
	st, out := r.stage, env[outputKey].Buffer
	travel := map[string]bool{}
	if !st.cfg.Tail {
		for _, v := range r.program.Travel {
			travel[v.Name] = true
		}
	}
	for _, v := range r.output.Values {
		from := env[v.Name]
		if !travel[v.Name] || from.Buffer == out {
			continue
		}
		after = st.session.Copy(out, v.Place.Offset, from.Buffer, from.Offset, v.Bytes, after)
		r.note(after)
	}
	if st.near != nil {
		after = st.session.Copy(st.Outputs[f.Slot], 0, out, 0, r.output.Bytes, after)
		r.note(after)
	}
	return st.session.Wait(ctx, after)
}

// Program is the model at the workload that the stage is made for.
func (st *Stage) Program() *graph.Program { return st.cfg.Program }

// Request turns a request's words (width, height, …) into dimensions that fit
// the workload.
func (st *Stage) Request(words map[string]int64) (graph.Dims, error) {
	dims, err := st.cfg.Program.Model.Request(words)
	if err != nil {
		return nil, err
	}
	return dims, st.cfg.Program.Model.Within(dims, st.cfg.Program.Dims)
}
