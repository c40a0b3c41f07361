// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/model/tensor"
)

// growExpand makes room, per worker, for the widest panel of weights that may
// have to be expanded before it is packed.
func (s *session) growExpand(p *program) error {
	widest := 0
	for i := range p.weights {
		if w := &p.weights[i]; w.panels {
			widest = max(widest, matmul.PanelColumns*w.k)
		}
	}
	need := tensor.Bytes(widest * p.dtype.Size())
	for i, b := range s.expand {
		if b != nil && b.Bytes() >= need || need == 0 {
			continue
		}
		if b != nil {
			b.Free()
			s.expand[i] = nil
		}
		grown, err := newBuffer(&s.account, need)
		if err != nil {
			return fmt.Errorf("memory to expand weights: %w", err)
		}
		s.expand[i] = grown
	}
	return nil
}

// Pack lays one block's weights out. Stored dtypes are expanded exactly, or
// rounded once where the compute dtype is narrower.
func (s *session) Pack(ep engine.Program, dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, weights []engine.Weight, after ...engine.Event) engine.Event {
	return s.issue(after, func() error {
		p, ok := ep.(*program)
		if !ok || p.session != s {
			return fmt.Errorf("pack: the program was compiled by another session")
		}
		to, err := window(dst, dstOffset, p.packed, "packed weights")
		if err != nil {
			return err
		}
		if len(weights) != len(p.weights) {
			return fmt.Errorf("segment %s takes %d weights, %d given", p.segment.Name, len(p.weights), len(weights))
		}
		for i := range p.weights {
			if err := s.packOne(p, &p.weights[i], to, src, &weights[i]); err != nil {
				return fmt.Errorf("segment %s: weight %s: %w", p.segment.Name, weights[i].Name, err)
			}
		}
		return nil
	})
}

func (s *session) packOne(p *program, w *packedWeight, to []byte, src engine.Buffer, in *engine.Weight) error {
	if !in.Shape.Equal(w.Shape) {
		return fmt.Errorf("shape %v, the program takes %v", in.Shape, w.Shape)
	}
	size, err := in.Shape.Bytes(in.DType)
	if err != nil {
		return err
	}
	from, err := window(src, in.Offset, size, "stored weight")
	if err != nil {
		return err
	}
	dst := to[w.offset : w.offset+w.bytes]
	if !w.panels {
		return s.expandTo(p.dtype, dst, from, in.DType)
	}
	panels := (w.n + matmul.PanelColumns - 1) / matmul.PanelColumns
	errs := make([]error, s.pool.Workers())
	stored := w.k * in.DType.Size()
	s.pool.Do(panels, func(worker, i int) {
		first := i * matmul.PanelColumns
		last := min(first+matmul.PanelColumns, w.n)
		rows := from[first*stored : last*stored]
		if kind(in.DType) != p.dtype || in.DType != tensor.F32 && in.DType != tensor.BF16 {
			b := s.expand[worker].Host()[:(last-first)*w.k*p.dtype.Size()]
			if err := s.expandTo(p.dtype, b, rows, in.DType); err != nil {
				errs[worker] = err
				return
			}
			rows = b
		}
		if err := matmul.Pack(p.dtype, dst, rows, w.n, w.k, first, last); err != nil {
			errs[worker] = err
		}
	})
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// expandTo writes stored elements in the compute dtype.
func (s *session) expandTo(d matmul.DType, dst, src []byte, stored tensor.DType) error {
	k := s.engine.vector
	if d == matmul.F32 {
		out := elements[float32](dst)
		switch stored {
		case tensor.F32:
			copy(dst, src)
		case tensor.BF16:
			k.BF16ToF32(out, elements[uint16](src))
		case tensor.F16:
			k.F16ToF32(out, elements[uint16](src))
		case tensor.F8E4M3:
			k.F8E4M3ToF32(out, src)
		case tensor.F8E5M2:
			k.F8E5M2ToF32(out, src)
		default:
			return tensor.ToF32(out, src, stored)
		}
		return nil
	}
	out := elements[uint16](dst)
	switch stored {
	case tensor.BF16:
		copy(dst, src)
	case tensor.F32:
		k.F32ToBF16(out, elements[float32](src))
	case tensor.F16:
		k.F16ToBF16(out, elements[uint16](src))
	case tensor.F8E4M3:
		k.F8E4M3ToBF16(out, src)
	case tensor.F8E5M2:
		k.F8E5M2ToBF16(out, src)
	default:
		return tensor.ToBF16(out, src, stored)
	}
	return nil
}
