// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// buffer is memory of a session, aligned to graph.Align.
type buffer struct {
	account  *engine.Account
	data     []byte
	free     func()
	released func() // may be nil
	once     sync.Once
}

func newBuffer(a *engine.Account, n tensor.Bytes) (*buffer, error) {
	if err := a.Take(n); err != nil {
		return nil, err
	}
	data, free, err := allocate(int(n))
	if err != nil {
		a.Give(n)
		return nil, fmt.Errorf("%w: %v asked: %w", engine.ErrNoMemory, n, err)
	}
	return &buffer{account: a, data: data, free: free}, nil
}

// Allocate is host memory of an account, for engines whose devices copy from it.
func Allocate(a *engine.Account, n tensor.Bytes) (engine.Buffer, error) {
	b, err := newBuffer(a, n)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Bytes is the size.
func (b *buffer) Bytes() tensor.Bytes { return tensor.Bytes(len(b.data)) }

// Host is the memory itself.
func (b *buffer) Host() []byte { return b.data }

// Free gives the memory back; it may be called more than once.
func (b *buffer) Free() {
	b.once.Do(func() {
		b.account.Give(b.Bytes())
		b.data = nil
		b.free()
		if b.released != nil {
			b.released()
		}
	})
}

// alignedSlice is n bytes from the Go heap, aligned.
func alignedSlice(n int) []byte {
	const align = int(graph.Align)
	raw := make([]byte, n+align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & uintptr(align-1))
	return raw[skip : skip+n : skip+n]
}

func alignUp(n tensor.Bytes) tensor.Bytes { return (n + graph.Align - 1) &^ (graph.Align - 1) }
