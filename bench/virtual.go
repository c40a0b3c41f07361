// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"sort"
	"sync"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// baseElements is the length of the numbers that a virtual checkpoint's weights
// are stretches of.
const baseElements = 1 << 25

// base is small random bf16 numbers, the same on every machine.
func base() []byte {
	out := make([]byte, 2*baseElements)
	const part = baseElements / 64
	work := make(chan int)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for p := range work {
				for i := p * part; i < (p+1)*part; i++ {
					v := uniform(mix(blockSeed, uint64(i))) / 32
					binary.LittleEndian.PutUint16(out[2*i:], tensor.BF16FromF32(v))
				}
			}
		})
	}
	for p := range baseElements / part {
		work <- p
	}
	close(work)
	wg.Wait()
	return out
}

// virtual is a checkpoint of any size whose weights are stretches of a base,
// taken round and round: bench/python/forward.py makes the same ones. It reads
// as fast as memory is copied.
type virtual struct {
	base    []byte
	tensors []checkpoint.Tensor
	begins  []int64 // of a tensor in the base, in bytes
	byName  map[string]int
	size    int64
}

var _ checkpoint.File = (*virtual)(nil)

// newVirtual holds a model's weights in bf16.
func newVirtual(m *graph.Model, base []byte) (*virtual, error) {
	v := &virtual{base: base, byName: map[string]int{}}
	for _, e := range entriesOf(m, func(string) tensor.DType { return tensor.BF16 }) {
		n, err := e.Shape.Bytes(e.DType)
		if err != nil {
			return nil, err
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(e.Name)) // never fails
		v.byName[e.Name] = len(v.tensors)
		v.begins = append(v.begins, int64(h.Sum64()%baseElements)*2)
		v.tensors = append(v.tensors, checkpoint.Tensor{Name: e.Name, DType: e.DType, Shape: e.Shape, Offset: v.size, Size: n})
		v.size += int64(n)
	}
	return v, nil
}

func (v *virtual) Path() string                 { return "random weights" }
func (v *virtual) Size() tensor.Bytes           { return tensor.Bytes(v.size) }
func (v *virtual) Tensors() []checkpoint.Tensor { return v.tensors }
func (v *virtual) Metadata() map[string]string  { return nil }
func (v *virtual) QuickID() (string, error)     { return "", errors.New("random weights have no identity") }
func (v *virtual) Close() error                 { return nil }

func (v *virtual) Lookup(name string) (checkpoint.Tensor, bool) {
	i, ok := v.byName[name]
	if !ok {
		return checkpoint.Tensor{}, false
	}
	return v.tensors[i], true
}

func (v *virtual) ReadAt(dst []byte, t checkpoint.Tensor, offset int64) error {
	return v.ReadPart(dst, 0, t.Offset+offset)
}

func (v *virtual) ReadPart(dst []byte, _ int, offset int64) error {
	for len(dst) > 0 {
		i := sort.Search(len(v.tensors), func(i int) bool { return v.tensors[i].Offset > offset }) - 1
		if i < 0 || offset >= v.size {
			return fmt.Errorf("position %d of %d", offset, v.size)
		}
		in := offset - v.tensors[i].Offset
		n := min(int64(len(dst)), int64(v.tensors[i].Size)-in)
		at := (v.begins[i] + in) % int64(len(v.base))
		n = int64(copy(dst[:n], v.base[at:]))
		dst, offset = dst[n:], offset+n
	}
	return nil
}

// writeBase writes the base for the Python sides.
func writeBase(path string, b []byte) error { return os.WriteFile(path, b, 0o600) }
