// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// buffer is memory of a session's device, or of the host.
type buffer struct {
	session *session
	id      uint64
	account *engine.Account
	size    atomic.Int64
	host    *shared // nil for memory that the host does not see
	empty   bool
	once    sync.Once
}

// Bytes is the size; 0 once freed.
func (b *buffer) Bytes() tensor.Bytes { return tensor.Bytes(b.size.Load()) }

// Host is the memory where the host sees it.
func (b *buffer) Host() []byte {
	if b.Bytes() == 0 && b.empty {
		return []byte{}
	}
	if b.host == nil {
		return nil
	}
	return b.host.data
}

// Free gives the memory back; it may be called more than once.
func (b *buffer) Free() {
	b.once.Do(func() {
		n := b.Bytes()
		b.size.Store(0)
		b.empty = false
		if b.id != 0 {
			_ = b.session.worker.send(map[string]any{"op": "free", "b": b.id}, nil) // a lost worker has freed it
		}
		if h := b.host; h != nil {
			b.host = nil
			_ = h.close()
		}
		b.account.Give(n)
		b.session.release()
	})
}

// Buffer takes memory of the device.
func (s *session) Buffer(n tensor.Bytes) (engine.Buffer, error) {
	return s.allocate(n, s.account, s.device.Unified)
}

// HostBuffer takes memory that the device copies from and to.
func (s *session) HostBuffer(n tensor.Bytes) (engine.Buffer, error) {
	return s.allocate(n, s.host, true)
}

func (s *session) allocate(n tensor.Bytes, account *engine.Account, host bool) (_ engine.Buffer, err error) {
	if err := account.Take(n); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			account.Give(n)
		}
	}()
	b := &buffer{session: s, account: account, empty: n == 0 && host}
	b.size.Store(int64(n))
	if n > 0 {
		if err := s.place(b, host); err != nil {
			return nil, err
		}
	}
	s.hold()
	return b, nil
}

// place makes the worker take a buffer's memory.
func (s *session) place(b *buffer, host bool) (err error) {
	if err := s.usable(); err != nil {
		return err
	}
	b.id = s.worker.buffers.Add(1)
	msg := map[string]any{"op": "alloc", "s": s.id, "b": b.id, "n": int64(b.Bytes()), "kind": "device"}
	var file *shared
	if host {
		if b.host, err = newShared(b.Bytes()); err != nil {
			return fmt.Errorf("%w: %w", engine.ErrNoMemory, err)
		}
		file = b.host
		msg["kind"], msg["pin"] = "host", !s.device.Unified
		file.describe(msg)
	}
	a, err := s.worker.ask(context.Background(), msg, file)
	if err == nil && host && !a.Pinned && (s.device.Kind == "cuda" || s.device.Kind == "rocm") {
		s.unpinned.Do(func() {
			s.engine.cfg.Log.Warn("host memory could not be pinned, copies to the device will be slow; raise the limit of locked memory (ulimit -l)",
				"device", string(s.device.ID), "bytes", int64(b.Bytes()))
		})
	}
	if file != nil {
		err = errors.Join(err, file.handed())
		if err != nil {
			_ = file.close()
			b.host = nil
		}
	}
	if err != nil {
		return fmt.Errorf("%v on %s: %w", b.Bytes(), s.device.ID, err)
	}
	return nil
}

// window is buffer b checked to hold n bytes at offset, as the worker names it.
func (s *session) window(eb engine.Buffer, offset, n tensor.Bytes, what string) ([2]int64, error) {
	for {
		w, wrapped := eb.(interface{ Unwrap() engine.Buffer })
		if !wrapped {
			break
		}
		eb = w.Unwrap()
	}
	b, ok := eb.(*buffer)
	if !ok || b == nil {
		if n == 0 {
			return [2]int64{}, nil
		}
		return [2]int64{}, fmt.Errorf("%s: no buffer of this engine given", what)
	}
	size := b.Bytes()
	if offset < 0 || n < 0 || offset > size || n > size-offset {
		return [2]int64{}, fmt.Errorf("%s: %v at %d in a buffer of %d bytes", what, n, int64(offset), int64(size))
	}
	if b.session.worker != s.worker {
		return [2]int64{}, fmt.Errorf("%s: the buffer is of another worker: %w", what, ErrWorkerLost)
	}
	return [2]int64{int64(b.id), int64(offset)}, nil
}

// expansion is what the device needs beside buffers to expand stored weights:
// counted when first needed, kept as long as any buffer of the session is in
// use, so that a run never fails for want of it.
type expansion struct {
	mu      sync.Mutex
	taken   tensor.Bytes
	holders int
}

func (s *session) hold() {
	s.expand.mu.Lock()
	defer s.expand.mu.Unlock()
	s.expand.holders++
}

func (s *session) release() {
	s.expand.mu.Lock()
	defer s.expand.mu.Unlock()
	if s.expand.holders--; s.expand.holders == 0 {
		s.account.Give(s.expand.taken)
		s.expand.taken = 0
	}
}

// need counts n bytes for expanding.
func (s *session) need(n tensor.Bytes) error {
	s.expand.mu.Lock()
	defer s.expand.mu.Unlock()
	if n <= s.expand.taken {
		return nil
	}
	if err := s.account.Take(n - s.expand.taken); err != nil {
		return fmt.Errorf("memory to expand weights: %w", err)
	}
	s.expand.taken = n
	return nil
}
