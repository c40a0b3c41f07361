// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// stored compares every tensor of a model file with its values in
// io.safetensors: as the host reads it, and as the engine expands it in float32
// and in bfloat16. All must be equal but for the sign of a zero.
func (v *verifier) stored(c *goldenCase) error {
	f, err := checkpoint.Open(filepath.Join(c.dir, filepath.FromSlash(c.Model)))
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := v.session()
	if err != nil {
		return err
	}
	defer s.Close()
	for _, t := range f.Tensors() {
		if _, ok := c.io.Lookup(t.Name); !ok {
			v.emit(Record{Case: c.Name, Output: t.Name, DType: t.DType.String(), Failure: "io.safetensors has no values of it"})
		}
	}
	for _, name := range c.names("") {
		r := Record{Case: c.Name, Output: name}
		if err := v.storedTensor(c, f, s, &r); err != nil {
			r.Failure = err.Error()
		}
		v.emit(r)
	}
	return nil
}

func (v *verifier) storedTensor(c *goldenCase, f checkpoint.File, s engine.Session, r *Record) error {
	want, shape, err := c.io.Float32s(r.Output)
	if err != nil {
		return err
	}
	t, ok := f.Lookup(r.Output)
	if !ok {
		return errors.New("the model has no such tensor")
	}
	r.DType = t.DType.String()
	if !t.Shape.Equal(shape) {
		return fmt.Errorf("shape %v, want %v", t.Shape, shape)
	}
	raw := make([]byte, t.Size)
	if err := f.ReadAt(raw, t, 0); err != nil {
		return err
	}
	got := make([]float32, len(want))
	if err := tensor.ToF32(got, raw, t.DType); err != nil {
		return err
	}
	r.Error, r.Digest = unequal(got, want), digest(bytesOf(got))
	for _, compute := range []tensor.DType{tensor.F32, tensor.BF16} {
		own, err := v.expand(s, t, raw, compute)
		if err != nil {
			return fmt.Errorf("on the engine in %s: %w", dtypeName(compute), err)
		}
		rounded := slices.Clone(want)
		if compute == tensor.BF16 {
			for i, x := range rounded {
				rounded[i] = tensor.F32FromBF16(tensor.BF16FromF32(x))
			}
		}
		if unequal(own, rounded) != 0 {
			r.Error = math.Inf(1)
			return fmt.Errorf("the engine expands it to other values in %s", dtypeName(compute))
		}
	}
	return nil
}

// expand has the engine multiply a tensor, as rows of weights, by the identity:
// every sum has one term that is not zero.
func (v *verifier) expand(s engine.Session, t checkpoint.Tensor, raw []byte, compute tensor.DType) (_ []float32, err error) {
	total, err := t.Shape.Elements()
	if err != nil || total == 0 {
		return nil, err
	}
	k := rowLength(t.DType, total)
	n := total / k
	size := tensor.Bytes(compute.Size())
	value := func(name string, space graph.Space, columns int64) graph.Tensor {
		return graph.Tensor{
			Name: name, Shape: tensor.Shape{k, columns}, DType: compute, Bytes: tensor.Bytes(k*columns) * size,
			Place: graph.Place{Space: space, Strides: []int64{columns, 1}},
		}
	}
	x, out := value("x", graph.SpaceInput, k), value("out", graph.SpaceOutput, n)
	p, err := s.Compile(v.ctx, &graph.Segment{
		Name: "expansion", Compute: compute, Values: []graph.Tensor{x, out},
		Inputs: []graph.ValueID{0}, Outputs: []graph.ValueID{1},
		Weights: []graph.Weight{{Name: "w", Shape: tensor.Shape{n, k}}},
		Steps:   []graph.Step{{Node: graph.Node{Op: graph.OpLinear, In: []graph.ValueID{0}, Out: []graph.ValueID{1}, Weights: []graph.WeightID{0}}}},
	})
	if err != nil {
		return nil, err
	}
	var taken []engine.Buffer
	take := func(of func(tensor.Bytes) (engine.Buffer, error), n tensor.Bytes) engine.Buffer {
		b, e := of(n)
		if e != nil {
			err = errors.Join(err, e)
			return nil
		}
		taken = append(taken, b)
		return b
	}
	defer func() {
		for _, b := range taken {
			b.Free()
		}
	}()
	stored, packed := take(s.HostBuffer, t.Size), take(s.Buffer, p.PackedBytes())
	host, near := take(s.HostBuffer, max(x.Bytes, out.Bytes)), take(s.Buffer, x.Bytes)
	result, scratch := take(s.Buffer, out.Bytes), take(s.Buffer, p.Scratch())
	if err != nil {
		return nil, err
	}
	copy(stored.Host(), raw)
	identity := host.Host()[:x.Bytes]
	clear(identity)
	for i := range k {
		if at := identity[tensor.Bytes(i*(k+1))*size:]; compute == tensor.F32 {
			tensor.PutF32(at, []float32{1})
		} else {
			tensor.PutBF16(at, []uint16{tensor.BF16FromF32(1)})
		}
	}
	w := []engine.Weight{{Name: "w", DType: t.DType, Shape: tensor.Shape{n, k}}}
	ready, given := s.Pack(p, packed, 0, stored, w), s.Copy(near, 0, host, 0, x.Bytes)
	ran := s.Run(p, packed, 0, scratch, []engine.Binding{{Name: "x", Buffer: near}, {Name: "out", Buffer: result}}, ready, given)
	if err := s.Wait(v.ctx, s.Copy(host, 0, result, 0, out.Bytes, ran)); err != nil {
		return nil, err
	}
	columns := make([]float32, total)
	if err := tensor.ToF32(columns, host.Host()[:out.Bytes], compute); err != nil {
		return nil, err
	}
	rows := make([]float32, total)
	for i := range k {
		for j := range n {
			rows[j*k+i] = columns[i*n+j]
		}
	}
	return rows, nil
}

// rowLength is how many of total elements make a row: whole blocks, few enough
// for an identity of that size.
func rowLength(d tensor.DType, total int64) int64 {
	block, _ := d.Block()
	for _, k := range []int64{256, 64, 32} {
		if total%k == 0 && k%int64(block) == 0 {
			return k
		}
	}
	return total
}
