// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"
	"sync"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// storageFP8 is Config.Storage for matrices in F8_E4M3 by choice.
const storageFP8 = "fp8"

// quantised says whether the launch rests in other bytes than the file's.
func (l *launch) quantised() bool { return l.fromFile != nil }

// chooseStorage gives a block's matrices the dtype that was chosen: those of
// linears which become smaller by it.
func (st *Stage) chooseStorage(l *launch) error {
	switch {
	case st.cfg.Storage == "" || l.Block < 0:
		return nil
	case st.cfg.Storage != storageFP8:
		return fmt.Errorf("storage %q: want fp8, or nothing for the file's own", st.cfg.Storage)
	}
	matrix := map[graph.WeightID]bool{}
	for i := range l.Segment.Steps {
		if s := &l.Segment.Steps[i]; s.Op == graph.OpLinear {
			matrix[s.Weights[0]] = true
		}
	}
	file, chosen := l.weights, make([]engine.Weight, len(l.weights))
	at, any := tensor.Bytes(0), false
	for i, w := range file {
		if d := tensor.StorageF8(w.Shape, w.DType); matrix[graph.WeightID(i)] && d != w.DType {
			w.DType, w.Scale, any = d, 1, true
		}
		n, err := w.Shape.Bytes(w.DType)
		if err != nil {
			return fmt.Errorf("weight %s: %w", w.Name, err)
		}
		w.Offset = (at + graph.Align - 1) / graph.Align * graph.Align
		at = w.Offset + n
		chosen[i] = w
	}
	if any {
		l.fromFile, l.weights, l.stored = file, chosen, at
	}
	return nil
}

// pieceElements are quantised at a time: whole blocks, through 64 KiB.
const pieceElements = 16 << 10

// quantise writes the launch's bytes as they rest, from those of the file.
func (l *launch) quantise(dst, src []byte) error {
	values := make([]float32, pieceElements)
	for i := range l.weights {
		from, to := &l.fromFile[i], &l.weights[i]
		if to.Kept {
			continue
		}
		size, err := from.Shape.Bytes(from.DType)
		if err != nil {
			return err
		}
		in := src[from.Offset:][:size]
		if from.DType == to.DType {
			copy(dst[to.Offset:], in)
			continue
		}
		out := dst[to.Offset:]
		for len(in) > 0 {
			n := min(len(in)/from.DType.Size(), pieceElements)
			v := values[:n]
			if err := tensor.ToF32(v, in[:n*from.DType.Size()], from.DType); err != nil {
				return fmt.Errorf("weight %s: %w", from.Name, err)
			}
			if from.Scale != 0 && from.Scale != 1 {
				for k := range v {
					v[k] *= from.Scale
				}
			}
			bytes := to.DType.RowBytes(int64(n))
			if err := tensor.FromF32(out[:bytes], v, to.DType); err != nil {
				return fmt.Errorf("weight %s: %w", from.Name, err)
			}
			in, out = in[n*from.DType.Size():], out[bytes:]
		}
	}
	return nil
}

// quantising reads a launch from its file and gives it as it would rest in
// memory; one at a time.
type quantising struct {
	offload.Reader
	launch  *launch
	mu      *sync.Mutex
	through engine.Buffer
}

// Bytes is the length as it rests.
func (q *quantising) Bytes() tensor.Bytes { return q.launch.stored }

// Read fills dst[:Bytes()].
func (q *quantising) Read(ctx context.Context, dst []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	raw := q.through.Host()[:q.launch.file.bytes]
	if err := q.Reader.Read(ctx, raw); err != nil {
		return err
	}
	return q.launch.quantise(dst, raw)
}
