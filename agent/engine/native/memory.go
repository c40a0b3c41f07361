// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package native

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// ErrNoMemory is in the chain of an error about the account's limit.
var ErrNoMemory = errors.New("device memory")

// account is what a session has handed out.
type account struct {
	mu                sync.Mutex
	used, peak, limit tensor.Bytes
}

func (a *account) take(n tensor.Bytes) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.limit > 0 && n > a.limit-a.used {
		return fmt.Errorf("%w: %v asked, %v of %v in use; raise agent.memory or place fewer blocks here", ErrNoMemory, n, a.used, a.limit)
	}
	a.used += n
	a.peak = max(a.peak, a.used)
	return nil
}

func (a *account) give(n tensor.Bytes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used -= n
}

// buffer is memory of a session, aligned to graph.Align.
type buffer struct {
	account  *account
	data     []byte
	free     func()
	released func() // may be nil
	once     sync.Once
}

func newBuffer(a *account, n tensor.Bytes) (*buffer, error) {
	if n < 0 {
		return nil, fmt.Errorf("buffer of %d bytes", int64(n))
	}
	if err := a.take(n); err != nil {
		return nil, err
	}
	data, free, err := allocate(int(n))
	if err != nil {
		a.give(n)
		return nil, fmt.Errorf("%w: %v asked: %w", ErrNoMemory, n, err)
	}
	return &buffer{account: a, data: data, free: free}, nil
}

// Bytes is the size.
func (b *buffer) Bytes() tensor.Bytes { return tensor.Bytes(len(b.data)) }

// Host is the memory itself.
func (b *buffer) Host() []byte { return b.data }

// Free gives the memory back; it may be called more than once.
func (b *buffer) Free() {
	b.once.Do(func() {
		b.account.give(b.Bytes())
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
