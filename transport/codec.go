// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that all other methods use
	"google.golang.org/grpc/mem"
)

// frameSubtype is the gRPC content-subtype of raw frames.
const frameSubtype = "distorch-frame"

// rawMessage is a message that is its own wire format. Sending hands the
// references in buffers to gRPC; receiving takes references that free returns.
type rawMessage struct {
	buffers mem.BufferSlice
}

func (m *rawMessage) free() {
	m.buffers.Free()
	m.buffers = nil
}

// codec moves rawMessages without copying and every other message as
// protobuf. The message type belongs to the method, so the choice is made per
// method and needs no global registration.
type codec struct {
	name string
}

func (c codec) Name() string { return c.name }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*rawMessage); ok {
		return m.buffers, nil
	}
	p, err := protoCodec()
	if err != nil {
		return nil, err
	}
	return p.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*rawMessage); ok {
		data.Ref()
		m.buffers = data
		return nil
	}
	p, err := protoCodec()
	if err != nil {
		return err
	}
	return p.Unmarshal(data, v)
}

func protoCodec() (encoding.CodecV2, error) {
	p := encoding.GetCodecV2("proto")
	if p == nil {
		return nil, fmt.Errorf("protobuf codec is not registered")
	}
	return p, nil
}

// fetch copies the first len(dst) bytes of s into dst and returns how many
// there were.
func fetch(dst []byte, s mem.BufferSlice) int {
	n := 0
	for _, b := range s {
		if n == len(dst) {
			break
		}
		n += copy(dst[n:], b.ReadOnlyData())
	}
	return n
}

// scatter copies the bytes of s after the first skip into dst and returns how
// many there were.
func scatter(dst []byte, s mem.BufferSlice, skip int) int {
	n := 0
	for _, b := range s {
		d := b.ReadOnlyData()
		if skip >= len(d) {
			skip -= len(d)
			continue
		}
		n += copy(dst[n:], d[skip:])
		skip = 0
	}
	return n
}
