// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/distorch/distorch/model/tensor"
)

// readChunk is the length of one pread of a long run of bytes: long enough
// that the system call and the seek do not show, short enough to share.
const readChunk = 8 << 20

// Span is bytes of a file and where they go in an arena.
type Span struct {
	Part   int
	Offset int64 // within the part
	Size   int64
	At     int64 // in the arena
}

// Pack places tensors one after the other in the order of the file, each at a
// multiple of align (a power of two; 1 for none), and says how long the arena
// must be. Span i is of tensor i.
func Pack(tensors []Tensor, align int64) ([]Span, tensor.Bytes) {
	order := make([]int, len(tensors))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(tensors[a].Part, tensors[b].Part), cmp.Compare(tensors[a].Offset, tensors[b].Offset))
	})
	spans := make([]Span, len(tensors))
	end := int64(0)
	for _, i := range order {
		t := &tensors[i]
		at := (end + align - 1) &^ (align - 1)
		spans[i] = Span{t.Part, t.Offset, int64(t.Size), at}
		end = at + int64(t.Size)
	}
	return spans, tensor.Bytes(end)
}

// ReadArena fills arena by the spans: neighbours in both file and arena are
// read together, long runs in preads of 8 MiB, workers of them at a time. It
// returns when all reads have ended, with the first error.
func ReadArena(ctx context.Context, f File, arena []byte, spans []Span, workers int) error {
	for _, s := range spans {
		if s.At < 0 || s.Size < 0 || s.At > int64(len(arena)) || s.Size > int64(len(arena))-s.At {
			return fmt.Errorf("read %s: bytes %d to %d lie outside the arena of %d", f.Path(), s.At, s.At+s.Size, len(arena))
		}
	}
	reads := chunks(coalesce(spans))
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range max(workers, 1) {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(reads) {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				s := reads[i]
				if err := f.ReadPart(arena[s.At:s.At+s.Size], s.Part, s.Offset); err != nil {
					return fmt.Errorf("read %s: %w", f.Path(), err)
				}
			}
		})
	}
	return group.Wait()
}

func coalesce(spans []Span) []Span {
	sorted := slices.Clone(spans)
	slices.SortStableFunc(sorted, func(a, b Span) int {
		return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size))
	})
	var out []Span
	for _, s := range sorted {
		if s.Size == 0 {
			continue
		}
		if n := len(out); n > 0 {
			if last := &out[n-1]; last.Part == s.Part && last.Offset+last.Size == s.Offset && last.At+last.Size == s.At {
				last.Size += s.Size
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// chunks cuts spans at readChunk; a rest shorter than half stays with its last.
func chunks(spans []Span) []Span {
	var out []Span
	for _, s := range spans {
		for s.Size > readChunk+readChunk/2 {
			out = append(out, Span{s.Part, s.Offset, readChunk, s.At})
			s = Span{s.Part, s.Offset + readChunk, s.Size - readChunk, s.At + readChunk}
		}
		out = append(out, s)
	}
	return out
}
