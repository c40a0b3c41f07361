// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"encoding/binary"
	"fmt"
)

// Meta is what a member says about itself with every alive message.
type Meta struct {
	ID          string   // node id; also the member's name
	Incarnation [16]byte // of the process
	Epoch       uint64   // newest plan epoch that the node has seen
	Port        uint16   // where it serves gRPC
	// Leaving is set by Run before its goodbye: memberlist does not tell its
	// users a goodbye from a failure.
	Leaving bool
}

const (
	metaVersion = 1
	metaFixed   = 1 + 1 + 16 + 8 + 2 + 1
	// MaxMetaBytes is what memberlist carries.
	MaxMetaBytes = 512
	maxID        = 255
)

// encode lays the meta out as version u8, flags u8 (1: leaving), incarnation
// [16]byte, epoch u64, port u16, length of the id u8, id; little-endian.
func (m *Meta) encode() ([]byte, error) {
	if m.ID == "" || len(m.ID) > maxID {
		return nil, fmt.Errorf("node id of %d bytes, want 1 to %d", len(m.ID), maxID)
	}
	b := make([]byte, 0, metaFixed+len(m.ID))
	var flags byte
	if m.Leaving {
		flags = 1
	}
	b = append(b, metaVersion, flags)
	b = append(b, m.Incarnation[:]...)
	b = binary.LittleEndian.AppendUint64(b, m.Epoch)
	b = binary.LittleEndian.AppendUint16(b, m.Port)
	b = append(b, byte(len(m.ID)))
	return append(b, m.ID...), nil
}

func parseMeta(b []byte) (m Meta, err error) {
	if len(b) < metaFixed || len(b) > MaxMetaBytes {
		return m, fmt.Errorf("meta of %d bytes", len(b))
	}
	if b[0] != metaVersion {
		return m, fmt.Errorf("meta version %d, this build speaks %d", b[0], metaVersion)
	}
	if b[1] > 1 {
		return m, fmt.Errorf("meta flags %#x", b[1])
	}
	m.Leaving = b[1] == 1
	m.Incarnation = [16]byte(b[2:18])
	m.Epoch = binary.LittleEndian.Uint64(b[18:])
	m.Port = binary.LittleEndian.Uint16(b[26:])
	n := int(b[28])
	if n == 0 || n != len(b)-metaFixed {
		return m, fmt.Errorf("node id of %d bytes in a meta of %d", n, len(b))
	}
	m.ID = string(b[metaFixed:])
	return m, nil
}
