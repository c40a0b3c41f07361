// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/model/tensor"
)

// readChunk is the length of one pread of a long run of tensors: long enough
// that the system call and the seek do not show, short enough to share.
const readChunk = 8 << 20

// Placement is where a tensor's bytes go in an arena.
type Placement struct {
	Tensor Tensor
	At     int64
}

// Pack places tensors one after the other in the order of the file, each at a
// multiple of align (a power of two; 1 for none), and says how long the arena
// must be. Tensors that touch in the file and in the arena are read together.
func Pack(tensors []Tensor, align int64) ([]Placement, tensor.Bytes) {
	sorted := slices.Clone(tensors)
	slices.SortStableFunc(sorted, func(a, b Tensor) int { return cmp.Compare(a.Offset, b.Offset) })
	placed := make([]Placement, len(sorted))
	end := int64(0)
	for i, t := range sorted {
		at := (end + align - 1) &^ (align - 1)
		placed[i] = Placement{t, at}
		end = at + int64(t.Size)
	}
	return placed, tensor.Bytes(end)
}

// span is bytes contiguous in the file and in the arena.
type span struct{ file, arena, size int64 }

// ReadArena fills arena by the placements: neighbours coalesced, long runs in
// preads of 8 MiB, workers of them at a time. It returns when all reads have
// ended, with the first error.
func (f *File) ReadArena(ctx context.Context, arena []byte, placements []Placement, workers int) error {
	for _, p := range placements {
		if p.At < 0 || p.At > int64(len(arena)) || int64(p.Tensor.Size) > int64(len(arena))-p.At {
			return fmt.Errorf("read tensor %q: bytes %d to %d lie outside the arena of %d", p.Tensor.Name, p.At, p.At+int64(p.Tensor.Size), len(arena))
		}
	}
	spans := chunks(coalesce(placements))
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range max(workers, 1) {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(spans) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				s := spans[i]
				if err := readFull(f.src, arena[s.arena:s.arena+s.size], s.file); err != nil {
					return fmt.Errorf("read %s: %w", f.path, err)
				}
			}
		})
	}
	return group.Wait()
}

func coalesce(placements []Placement) []span {
	sorted := slices.Clone(placements)
	slices.SortStableFunc(sorted, func(a, b Placement) int {
		return cmp.Or(cmp.Compare(a.Tensor.Offset, b.Tensor.Offset), cmp.Compare(a.Tensor.Size, b.Tensor.Size))
	})
	var spans []span
	for _, p := range sorted {
		s := span{p.Tensor.Offset, p.At, int64(p.Tensor.Size)}
		if s.size == 0 {
			continue
		}
		if n := len(spans); n > 0 {
			if last := &spans[n-1]; last.file+last.size == s.file && last.arena+last.size == s.arena {
				last.size += s.size
				continue
			}
		}
		spans = append(spans, s)
	}
	return spans
}

// chunks cuts spans at readChunk; a rest shorter than half stays with its last.
func chunks(spans []span) []span {
	var out []span
	for _, s := range spans {
		for s.size > readChunk+readChunk/2 {
			out = append(out, span{s.file, s.arena, readChunk})
			s = span{s.file + readChunk, s.arena + readChunk, s.size - readChunk}
		}
		out = append(out, s)
	}
	return out
}
