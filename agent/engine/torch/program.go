// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// program is a segment that the worker has compiled.
type program struct {
	session *session
	id      uint64
	segment *graph.Segment
	temp    tensor.Bytes
	packed  tensor.Bytes
	budget  time.Duration
}

// Segment is what was compiled.
func (p *program) Segment() *graph.Segment { return p.segment }

// Scratch is the arena and, after it, what PyTorch allocates while the segment
// runs: results of operations that cannot be told where to write.
func (p *program) Scratch() tensor.Bytes { return alignUp(p.segment.Arena) + p.temp }

// packAlign is where worker/program.py lets weights begin.
const packAlign = 256

// PackedBytes is one block's weights: row-major in the compute dtype, each at a
// multiple of 256 bytes.
func (p *program) PackedBytes() tensor.Bytes { return p.packed }

// Placed is where a weight lies in a packed block.
func (p *program) Placed(i int) (offset, n tensor.Bytes) {
	for k := range i + 1 {
		offset = (offset + n + packAlign - 1) / packAlign * packAlign
		n, _ = p.segment.Weights[k].Shape.Bytes(p.segment.Compute) // the worker has compiled it
	}
	return offset, n
}

func alignUp(n tensor.Bytes) tensor.Bytes { return (n + graph.Align - 1) &^ (graph.Align - 1) }

// The slowest that a worker is believed to be at work.
const (
	slowestFLOPS = 1e9  // a second
	slowestBytes = 10e6 // a second
	leastBudget  = time.Minute
)

func budgetOf(n tensor.Bytes) time.Duration {
	return leastBudget + time.Duration(float64(n)/slowestBytes*float64(time.Second))
}

// The segment's JSON: everything resolved, as worker/program.py reads it.
type wireValue struct {
	Shape   []int64  `json:"s"`
	DType   string   `json:"d"`
	Place   [3]int64 `json:"p"` // space, index, offset in bytes
	Strides []int64  `json:"t"`
}

type wireStep struct {
	Op      string      `json:"op"`
	In      []int32     `json:"in"`
	Out     []int32     `json:"out"`
	Weights []int32     `json:"w"`
	Attrs   graph.Attrs `json:"a"`
	View    bool        `json:"view"`
	InPlace []bool      `json:"inplace"`
}

type wireSegment struct {
	Compute   string      `json:"compute"`
	Values    []wireValue `json:"values"`
	Inputs    []int32     `json:"inputs"`
	Constants []int32     `json:"constants"`
	Outputs   []int32     `json:"outputs"`
	Weights   [][]int64   `json:"weights"`
	Steps     []wireStep  `json:"steps"`
	Arena     int64       `json:"arena"`
	Kept      bool        `json:"kept"`
}

func numbers[T ~int32](in []T) []int32 {
	out := make([]int32, len(in))
	for i, x := range in {
		out[i] = int32(x)
	}
	return out
}

func toWire(s *graph.Segment) wireSegment {
	w := wireSegment{
		Compute: s.Compute.String(), Inputs: numbers(s.Inputs), Constants: numbers(s.Constants), Outputs: numbers(s.Outputs),
		Arena: int64(s.Arena), Kept: s.Kept, Weights: [][]int64{},
	}
	for _, v := range s.Values {
		w.Values = append(w.Values, wireValue{
			Shape: slices.Concat([]int64{}, v.Shape), DType: v.DType.String(), Strides: slices.Concat([]int64{}, v.Place.Strides),
			Place: [3]int64{int64(v.Place.Space), int64(v.Place.Index), int64(v.Place.Offset)},
		})
	}
	for _, x := range s.Weights {
		w.Weights = append(w.Weights, x.Shape)
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		w.Steps = append(w.Steps, wireStep{
			Op: string(st.Op), In: numbers(st.In), Out: numbers(st.Out), Weights: numbers(st.Weights),
			Attrs: st.Attrs, View: st.View, InPlace: st.InPlace,
		})
	}
	return w
}

// Compile lets the worker write the segment's program.
func (s *session) Compile(ctx context.Context, seg *graph.Segment) (engine.Program, error) {
	if !slices.Contains(s.device.DTypes, seg.Compute) {
		return nil, fmt.Errorf("segment %s: %s does not compute in %v; it has %v", seg.Name, s.device.ID, seg.Compute, s.device.DTypes)
	}
	if err := s.usable(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.programs++
	p := &program{session: s, id: s.programs, segment: seg}
	s.mu.Unlock()
	a, err := s.worker.ask(ctx, map[string]any{"op": "compile", "s": s.id, "p": p.id, "segment": toWire(seg)}, nil)
	if err != nil {
		return nil, fmt.Errorf("segment %s: %w", seg.Name, err)
	}
	p.temp, p.packed = tensor.Bytes(a.Temp), tensor.Bytes(a.Packed)
	work := float64(seg.Cost.LinearFLOPs+seg.Cost.AttentionFLOPs) / slowestFLOPS
	p.budget = budgetOf(tensor.Bytes(seg.Cost.MovedBytes)) + time.Duration(work*float64(time.Second))
	return p, nil
}

func (s *session) own(ep engine.Program, what string) (*program, error) {
	p, ok := ep.(*program)
	if !ok || p.session != s {
		return nil, fmt.Errorf("%s: the program was compiled by another session", what)
	}
	return p, nil
}

// Copy moves bytes between buffers on the compute queue.
func (s *session) Copy(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after ...engine.Event) engine.Event {
	return s.move(computing, dst, dstOffset, src, srcOffset, n, after)
}

// Fetch moves bytes between buffers of any sessions of the engine on the copy
// queue.
func (s *session) Fetch(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after ...engine.Event) engine.Event {
	return s.move(copying, dst, dstOffset, src, srcOffset, n, after)
}

func (s *session) move(queue int, dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after []engine.Event) engine.Event {
	return s.issue(queue, after, func() (order, error) {
		to, err := s.window(dst, dstOffset, n, "copy to")
		if err != nil {
			return order{}, err
		}
		from, err := s.window(src, srcOffset, n, "copy from")
		if err != nil {
			return order{}, err
		}
		if n == 0 {
			return order{fields: map[string]any{"op": "nothing"}, budget: leastBudget, what: "nothing"}, nil
		}
		return order{fields: map[string]any{"op": "copy", "d": to, "f": from, "n": int64(n)}, budget: budgetOf(n), what: "a copy"}, nil
	})
}

// Run executes the program once.
func (s *session) Run(ep engine.Program, weights engine.Buffer, weightsOffset tensor.Bytes, scratch engine.Buffer, bindings []engine.Binding, after ...engine.Event) engine.Event {
	return s.issue(computing, after, func() (order, error) {
		p, err := s.own(ep, "run")
		if err != nil {
			return order{}, err
		}
		fields, err := p.bind(weights, weightsOffset, scratch, bindings)
		if err != nil {
			return order{}, fmt.Errorf("run segment %s: %w", p.segment.Name, err)
		}
		return order{fields: fields, budget: p.budget, what: "segment " + p.segment.Name}, nil
	})
}

func (p *program) bind(weights engine.Buffer, at tensor.Bytes, scratch engine.Buffer, bindings []engine.Binding) (map[string]any, error) {
	s := p.session
	var w, t [2]int64
	var err error
	if p.packed > 0 {
		if w, err = s.window(weights, at, p.packed, "weights"); err != nil {
			return nil, err
		}
		if at%graph.Align != 0 {
			return nil, fmt.Errorf("weights at %d, no multiple of %d", int64(at), int64(graph.Align))
		}
	}
	if p.Scratch() > 0 {
		if t, err = s.window(scratch, 0, p.Scratch(), "scratch"); err != nil {
			return nil, err
		}
	}
	var bound [][2]int64
	for _, ids := range [][]graph.ValueID{p.segment.Inputs, p.segment.Constants, p.segment.Outputs} {
		for _, id := range ids {
			v := &p.segment.Values[id]
			i := slices.IndexFunc(bindings, func(b engine.Binding) bool { return b.Name == v.Name })
			if i < 0 {
				return nil, fmt.Errorf("%s is not bound", v.Name)
			}
			b, err := s.window(bindings[i].Buffer, bindings[i].Offset, v.Bytes, v.Name)
			if err != nil {
				return nil, err
			}
			if size := int64(v.DType.Size()); b[1]%size != 0 {
				return nil, fmt.Errorf("%s at %d, no multiple of %d", v.Name, b[1], size)
			}
			bound = append(bound, b)
		}
	}
	if bound == nil {
		bound = [][2]int64{}
	}
	return map[string]any{"op": "run", "p": p.id, "w": w, "t": t[0], "b": bound}, nil
}

// What PyTorch takes of the device while it expands stored weights, in pieces.
const (
	expandBytes    = 24 // an element
	expandElements = 4 << 20
	expandOnCPU    = 256 << 10
)

// Pack lays one block's weights out. Stored dtypes are expanded exactly, on the
// device, or rounded once where the compute dtype is narrower.
func (s *session) Pack(ep engine.Program, dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, weights []engine.Weight, after ...engine.Event) engine.Event {
	return s.issue(copying, after, func() (order, error) {
		p, err := s.own(ep, "pack")
		if err != nil {
			return order{}, err
		}
		fields, n, err := p.pack(dst, dstOffset, src, weights)
		if err != nil {
			return order{}, err
		}
		return order{fields: fields, budget: budgetOf(n), what: "the weights of segment " + p.segment.Name}, nil
	})
}

func (p *program) pack(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, weights []engine.Weight) (fields map[string]any, moved tensor.Bytes, err error) {
	s, seg := p.session, p.segment
	to, err := s.window(dst, dstOffset, p.packed, "packed weights")
	if err != nil {
		return nil, 0, err
	}
	if len(weights) != len(seg.Weights) {
		return nil, 0, fmt.Errorf("segment %s takes %d weights, %d given", seg.Name, len(seg.Weights), len(weights))
	}
	var from [2]int64
	var need tensor.Bytes
	stored := [][3]any{}
	for i := range weights {
		in := &weights[i]
		if in.Kept {
			stored = append(stored, [3]any{})
			continue
		}
		size, err := p.stored(i, in)
		if err == nil {
			from, err = s.window(src, in.Offset, size, "stored weight")
		}
		if err != nil {
			return nil, 0, fmt.Errorf("segment %s: weight %s: %w", seg.Name, in.Name, err)
		}
		moved += size
		scale := float64(in.Scale)
		if scale == 0 {
			scale = 1
		}
		stored = append(stored, [3]any{in.DType.String(), int64(in.Offset), scale})
		need = max(need, s.expansionOf(in, size, seg.Compute, src.Host() != nil && !s.device.Unified))
	}
	if len(weights) == 0 {
		return map[string]any{"op": "nothing"}, 0, nil
	}
	if err := s.need(need); err != nil {
		return nil, 0, err
	}
	return map[string]any{"op": "pack", "p": p.id, "d": to, "f": from[0], "w": stored}, moved, nil
}

// Expansion is what the session takes of the device to pack weights like these,
// beside buffers.
func (p *program) Expansion(weights []engine.Weight) tensor.Bytes {
	var n tensor.Bytes
	for i := range weights {
		if size, err := p.stored(i, &weights[i]); err == nil {
			n = max(n, p.session.expansionOf(&weights[i], size, p.segment.Compute, !p.session.device.Unified))
		}
	}
	return n
}

// stored checks weight i as it is stored and gives its size.
func (p *program) stored(i int, in *engine.Weight) (tensor.Bytes, error) {
	if want := p.segment.Weights[i].Shape; !in.Shape.Equal(want) {
		return 0, fmt.Errorf("shape %v, the program takes %v", in.Shape, want)
	}
	if !in.DType.Float() {
		return 0, fmt.Errorf("stored as %v, which is no type of weights", in.DType)
	}
	return in.Shape.Bytes(in.DType)
}

// expansionOf is what the device needs beside buffers for one weight: the bytes
// as stored where they come from the host, and the pieces' values.
func (s *session) expansionOf(in *engine.Weight, size tensor.Bytes, compute tensor.DType, staged bool) tensor.Bytes {
	plain := in.DType == tensor.F32 || in.DType == tensor.BF16 || in.DType == tensor.F16 || in.DType == tensor.F64
	scaled := in.Scale != 0 && in.Scale != 1
	if plain && !scaled && in.DType == compute {
		return 0
	}
	var n tensor.Bytes
	if staged {
		n = size
	}
	if plain && !scaled {
		return n
	}
	most := int64(expandElements)
	if s.device.Unified {
		most = expandOnCPU
	}
	elements, _ := in.Shape.Elements() // its size was found
	return n + tensor.Bytes(expandBytes*min(elements, most))
}
