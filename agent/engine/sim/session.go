// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// session is native's, on memory that is hidden and behind throttled links.
type session struct {
	native         native.Queued
	device         Device
	host           *engine.Account
	in, out, peers link
}

var _ engine.Session = (*session)(nil)

func newSession(e *Engine, d Device) *session {
	return &session{
		native: e.native[d.Name].Session(), device: d, host: e.host,
		in: link{rate: d.H2D}, out: link{rate: d.D2H}, peers: link{rate: d.Peer},
	}
}

// buffer is memory of a simulated device; the host does not see it.
type buffer struct {
	engine.Buffer
	of *session
}

// Host is nil: only the device's own work reaches its memory.
func (b *buffer) Host() []byte { return nil }

// bytes of a buffer for the device's own work.
func bytes(b engine.Buffer) []byte {
	if d, ok := b.(*buffer); ok {
		return d.Buffer.Host()
	}
	return b.Host()
}

// Device is the simulated device.
func (s *session) Device() engine.Device { return describe(s.device, s.native.Device()) }

// Compile is native's.
func (s *session) Compile(ctx context.Context, seg *graph.Segment) (engine.Program, error) {
	return s.native.Compile(ctx, seg)
}

// Buffer takes memory of the device's arena.
func (s *session) Buffer(n tensor.Bytes) (engine.Buffer, error) {
	b, err := s.native.Buffer(n)
	if err != nil {
		return nil, fmt.Errorf("simulated device %s: %w", s.device.Name, err)
	}
	return &buffer{b, s}, nil
}

// HostBuffer takes memory that the device copies from.
func (s *session) HostBuffer(n tensor.Bytes) (engine.Buffer, error) {
	return native.Allocate(s.host, n)
}

// linkFor is what a copy between two buffers goes over; nil within the device.
func (s *session) linkFor(dst, src engine.Buffer) *link {
	to, toDevice := dst.(*buffer)
	from, fromDevice := src.(*buffer)
	switch {
	case toDevice && fromDevice && to.of != from.of:
		l := &to.of.peers
		if other := &from.of.peers; l.rate == 0 || other.rate > 0 && other.rate < l.rate {
			l = other
		}
		return l
	case toDevice && !fromDevice:
		return &to.of.in
	case fromDevice && !toDevice:
		return &from.of.out
	}
	return nil
}

// Copy moves bytes on the compute queue.
func (s *session) Copy(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after ...engine.Event) engine.Event {
	return s.move(native.Computing, dst, dstOffset, src, srcOffset, n, after)
}

// Fetch moves bytes on the copy queue, also from and to another simulated
// device.
func (s *session) Fetch(dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after ...engine.Event) engine.Event {
	return s.move(native.Copying, dst, dstOffset, src, srcOffset, n, after)
}

func (s *session) move(q native.Queue, dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, srcOffset, n tensor.Bytes, after []engine.Event) engine.Event {
	return s.native.Issue(q, after, func() error {
		to, err := s.window(dst, dstOffset, n, "copy to")
		if err != nil {
			return err
		}
		from, err := s.window(src, srcOffset, n, "copy from")
		if err != nil {
			return err
		}
		l := s.linkFor(dst, src)
		if l == nil {
			copy(to, from)
			return nil
		}
		return l.move(len(to), func(at, m int) error {
			copy(to[at:at+m], from[at:at+m])
			return nil
		})
	})
}

// window is n bytes of b from offset on, or an error that names the device and
// what is short.
func (s *session) window(b engine.Buffer, offset, n tensor.Bytes, what string) ([]byte, error) {
	if b == nil {
		return nil, fmt.Errorf("simulated device %s: %s: no buffer given", s.device.Name, what)
	}
	h := bytes(b)
	if offset < 0 || n < 0 || offset > tensor.Bytes(len(h)) || n > tensor.Bytes(len(h))-offset {
		return nil, fmt.Errorf("simulated device %s: %s: %v at %d in a buffer of %d bytes", s.device.Name, what, n, int64(offset), len(h))
	}
	return h[offset : offset+n : offset+n], nil
}

// Pack brings stored bytes over the link, if they are the host's, and lays them
// out.
func (s *session) Pack(p engine.Program, dst engine.Buffer, dstOffset tensor.Bytes, src engine.Buffer, weights []engine.Weight, after ...engine.Event) engine.Event {
	if l := s.linkFor(dst, src); l != nil && l.rate > 0 {
		n := stored(weights)
		after = []engine.Event{s.native.Issue(native.Copying, after, func() error {
			return l.move(int(n), func(int, int) error { return nil })
		})}
	}
	return s.native.Pack(p, own(dst), dstOffset, own(src), weights, after...)
}

// stored is the bytes that the weights have in their source.
func stored(weights []engine.Weight) (n tensor.Bytes) {
	for i := range weights {
		if weights[i].Kept {
			continue
		}
		if b, err := weights[i].Shape.Bytes(weights[i].DType); err == nil { // Pack names the error
			n += b
		}
	}
	return n
}

// own is the memory behind a buffer.
func own(b engine.Buffer) engine.Buffer {
	if d, ok := b.(*buffer); ok {
		return d.Buffer
	}
	return b
}

// Run computes; what it reads and writes must lie on the device.
func (s *session) Run(p engine.Program, weights engine.Buffer, weightsOffset tensor.Bytes, scratch engine.Buffer, bindings []engine.Binding, after ...engine.Event) engine.Event {
	within := make([]engine.Binding, len(bindings))
	for i, b := range bindings {
		if !s.has(b.Buffer) {
			return s.refuse(after, b.Name)
		}
		within[i] = engine.Binding{Name: b.Name, Buffer: own(b.Buffer), Offset: b.Offset}
	}
	switch {
	case weights != nil && !s.has(weights):
		return s.refuse(after, "weights")
	case scratch != nil && !s.has(scratch):
		return s.refuse(after, "scratch")
	}
	return s.native.Run(p, own(weights), weightsOffset, own(scratch), within, after...)
}

// has says whether a buffer is of the device's own memory.
func (s *session) has(b engine.Buffer) bool {
	d, ok := b.(*buffer)
	return ok && d.of == s
}

// refuse fails a run that reads or writes what lies elsewhere.
func (s *session) refuse(after []engine.Event, what string) engine.Event {
	return s.native.Issue(native.Computing, after, func() error {
		return fmt.Errorf("simulated device %s: %s of a run does not lie on the device", s.device.Name, what)
	})
}

// Wait is native's.
func (s *session) Wait(ctx context.Context, e engine.Event) error { return s.native.Wait(ctx, e) }

// Account is of the device's arena.
func (s *session) Account() (used, peak, limit tensor.Bytes) { return s.native.Account() }

// RestartPeak makes what is in use of the device its peak.
func (s *session) RestartPeak() { s.native.RestartPeak() }

// HostAccount is of the machine's memory.
func (s *session) HostAccount() (used, peak, limit tensor.Bytes) { return s.host.Use() }

// Close ends the queues. Buffers stay valid until freed.
func (s *session) Close() error { return s.native.Close() }
