// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"
	"sync"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/matmul"
	"github.com/distorch/distorch/model/tensor"
)

// expansion is memory in which workers expand a panel of stored weights before
// it is packed. It is taken when first needed and stays as long as any buffer
// of the session is in use, so that a run never fails for want of it.
type expansion struct {
	mu      sync.Mutex
	perWork []*buffer
	holders int // buffers handed out
}

// expandBytes is what Pack of p needs per worker: its widest panel, and in front
// of it float32 values on their way to a narrower dtype.
func (p *program) expandBytes() tensor.Bytes {
	widest := 0
	for i := range p.weights {
		if w := &p.weights[i]; w.panels {
			widest = max(widest, matmul.PanelColumns*w.k)
		}
	}
	return pieceBytes + tensor.Bytes(widest*p.dtype.Size())
}

// Expansion is what Pack takes of the device's account for these weights, for as
// long as any buffer of the session is in use.
func (p *program) Expansion(weights []engine.Weight) tensor.Bytes {
	for i := range weights {
		if !p.direct(&weights[i]) {
			return tensor.Bytes(p.session.copiers.Workers()) * p.expandBytes()
		}
	}
	return 0
}

// direct says whether a weight is packed without being expanded.
func (p *program) direct(w *engine.Weight) bool {
	return plain(w) && (w.DType == tensor.F32 && p.dtype == matmul.F32 || w.DType == tensor.BF16 && p.dtype == matmul.BF16)
}

// grow makes room for n bytes per worker; mu is held.
func (x *expansion) grow(a *engine.Account, workers int, n tensor.Bytes) error {
	if len(x.perWork) == 0 {
		x.perWork = make([]*buffer, workers)
	}
	for i, b := range x.perWork {
		if b != nil && b.Bytes() >= n {
			continue
		}
		if b != nil {
			b.Free()
			x.perWork[i] = nil
		}
		grown, err := newBuffer(a, n)
		if err != nil {
			return fmt.Errorf("memory to expand weights: %w", err)
		}
		x.perWork[i] = grown
	}
	return nil
}

func (x *expansion) hold() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.holders++
}

// release frees the memory with the last buffer.
func (x *expansion) release() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.holders--; x.holders > 0 {
		return
	}
	for i, b := range x.perWork {
		if b != nil {
			b.Free()
			x.perWork[i] = nil
		}
	}
}

// Pack lays one block's weights out. Stored dtypes are expanded exactly, or
// rounded once where the compute dtype is narrower.
func (s *session) Pack(ep engine.Program, dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, weights []engine.Weight, after ...engine.Event) engine.Event {
	return s.Issue(Copying, after, func() error {
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
		s.expand.mu.Lock()
		defer s.expand.mu.Unlock()
		for i := range p.weights {
			if weights[i].Kept {
				continue
			}
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
	direct := p.direct(in)
	if !direct {
		if err := s.expand.grow(s.account, s.copiers.Workers(), p.expandBytes()); err != nil {
			return err
		}
	}
	if !w.panels {
		var piece []float32
		if !direct {
			piece = s.piece(0)
		}
		return s.expandTo(p.dtype, dst, from, in, piece)
	}
	panels := (w.n + matmul.PanelColumns - 1) / matmul.PanelColumns
	errs := make([]error, s.copiers.Workers())
	stored := int(in.DType.RowBytes(int64(w.k)))
	s.copiers.Do(panels, func(worker, i int) {
		first := i * matmul.PanelColumns
		last := min(first+matmul.PanelColumns, w.n)
		rows := from[first*stored : last*stored]
		if !direct {
			b := s.expand.perWork[worker].Host()[pieceBytes:][:(last-first)*w.k*p.dtype.Size()]
			if err := s.expandTo(p.dtype, b, rows, in, s.piece(worker)); err != nil {
				errs[worker] = err
				return
			}
			rows = b
		}
		if err := s.engine.matmul.Pack(p.dtype, dst, rows, w.n, w.k, first, last); err != nil {
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
