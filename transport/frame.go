// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"
)

// NodeID is the stable id in a node's certificate.
type NodeID string

// ChunkBytes is the largest payload of one frame.
const ChunkBytes = 1 << 20

// MaxTransferBytes bounds one transfer; a region of this size never exists, so
// that sums of offsets and lengths cannot overflow.
const MaxTransferBytes = 1 << 46

const (
	frameMagic   = 0x4b4c4244 // "DBLK", little-endian
	frameVersion = 1

	immediateBytes = 88
	headerBytes    = 176 // hello, chunk, abort, probe, read
	replyBytes     = 48  // ack, refusal; a message follows
	maxMessage     = 512 // bytes of a refusal's message
)

type frameKind uint8

const (
	kindHello frameKind = 1 + iota
	kindChunk
	kindAbort
	kindProbe
	kindAck
	kindRefusal
	kindRead
)

const (
	flagFirst uint32 = 1 << iota
	flagLast
)

// Immediate travels with a WRITE and appears in its Completion. Of a READ's the
// epoch and the incarnation are compared with the region's.
type Immediate struct {
	DeploymentID      [16]byte
	Epoch             uint64
	Stage             uint32
	Slot              uint32
	Sequence          uint64
	Run               [16]byte
	Step              uint32
	Branch            uint32
	Attempt           uint32
	MicroBatch        uint32
	SenderIncarnation [16]byte
}

func (m *Immediate) put(b []byte) {
	le := binary.LittleEndian
	copy(b[0:16], m.DeploymentID[:])
	le.PutUint64(b[16:], m.Epoch)
	le.PutUint32(b[24:], m.Stage)
	le.PutUint32(b[28:], m.Slot)
	le.PutUint64(b[32:], m.Sequence)
	copy(b[40:56], m.Run[:])
	le.PutUint32(b[56:], m.Step)
	le.PutUint32(b[60:], m.Branch)
	le.PutUint32(b[64:], m.Attempt)
	le.PutUint32(b[68:], m.MicroBatch)
	copy(b[72:88], m.SenderIncarnation[:])
}

func parseImmediate(b []byte) (m Immediate) {
	le := binary.LittleEndian
	m.DeploymentID = [16]byte(b[0:16])
	m.Epoch = le.Uint64(b[16:])
	m.Stage = le.Uint32(b[24:])
	m.Slot = le.Uint32(b[28:])
	m.Sequence = le.Uint64(b[32:])
	m.Run = [16]byte(b[40:56])
	m.Step = le.Uint32(b[56:])
	m.Branch = le.Uint32(b[60:])
	m.Attempt = le.Uint32(b[64:])
	m.MicroBatch = le.Uint32(b[68:])
	m.SenderIncarnation = [16]byte(b[72:88])
	return m
}

// header opens every frame that may carry a payload. All integers little-endian:
//
//	  0 magic u32      4 version u8     5 kind u8    6 header length u16
//	  8 flags u32     12 payload length u32
//	 16 transfer u64: ascending per link; of a hello the stream's generation
//	 24 region u64    32 key [16]byte; of a hello the link's id
//	 48 offset u64: where the transfer begins in the region
//	 56 position u64: where this chunk begins in the transfer; of a read where the
//	    first one is to begin
//	 64 total u64: the transfer's length
//	 72 xxh3-64 of the payload
//	 80 immediate [88]byte
//	168 xxh3-64 of bytes 0 to 168
type header struct {
	kind     frameKind
	flags    uint32
	payload  uint32
	transfer uint64
	region   uint64
	key      [16]byte
	offset   uint64
	position uint64
	total    uint64
	sum      uint64
	imm      Immediate
}

func (h *header) put(b []byte) {
	le := binary.LittleEndian
	_ = b[headerBytes-1]
	le.PutUint32(b[0:], frameMagic)
	b[4], b[5] = frameVersion, byte(h.kind)
	le.PutUint16(b[6:], headerBytes)
	le.PutUint32(b[8:], h.flags)
	le.PutUint32(b[12:], h.payload)
	le.PutUint64(b[16:], h.transfer)
	le.PutUint64(b[24:], h.region)
	copy(b[32:48], h.key[:])
	le.PutUint64(b[48:], h.offset)
	le.PutUint64(b[56:], h.position)
	le.PutUint64(b[64:], h.total)
	le.PutUint64(b[72:], h.sum)
	h.imm.put(b[80:168])
	le.PutUint64(b[168:], xxh3.Hash(b[:168]))
}

// parseHeader checks everything that can be checked without knowing the
// region. b holds the frame's first headerBytes bytes, frame is the length of
// the whole message.
func parseHeader(b []byte, frame int) (h header, err error) {
	le := binary.LittleEndian
	if len(b) < headerBytes || frame < headerBytes {
		return h, fmt.Errorf("%d bytes hold no header: %w", frame, ErrMalformed)
	}
	if m := le.Uint32(b[0:]); m != frameMagic {
		return h, fmt.Errorf("magic %#x: %w", m, ErrMalformed)
	}
	if b[4] != frameVersion {
		return h, fmt.Errorf("version %d, this build speaks %d: %w", b[4], frameVersion, ErrVersion)
	}
	if n := le.Uint16(b[6:]); n != headerBytes {
		return h, fmt.Errorf("header length %d, version %d has %d: %w", n, frameVersion, headerBytes, ErrMalformed)
	}
	if le.Uint64(b[168:]) != xxh3.Hash(b[:168]) {
		return h, fmt.Errorf("header checksum differs: %w", ErrMalformed)
	}
	h = header{
		kind:     frameKind(b[5]),
		flags:    le.Uint32(b[8:]),
		payload:  le.Uint32(b[12:]),
		transfer: le.Uint64(b[16:]),
		region:   le.Uint64(b[24:]),
		key:      [16]byte(b[32:48]),
		offset:   le.Uint64(b[48:]),
		position: le.Uint64(b[56:]),
		total:    le.Uint64(b[64:]),
		sum:      le.Uint64(b[72:]),
		imm:      parseImmediate(b[80:168]),
	}
	return h, h.check(frame)
}

func (h *header) check(frame int) error {
	if h.payload > ChunkBytes || int(h.payload) != frame-headerBytes {
		return fmt.Errorf("payload of %d bytes in a frame of %d: %w", h.payload, frame, ErrMalformed)
	}
	switch h.kind {
	case kindRead:
		return h.checkRead()
	case kindHello, kindAbort:
		if h.payload != 0 {
			return fmt.Errorf("payload of %d bytes on a frame of kind %d: %w", h.payload, h.kind, ErrMalformed)
		}
		return nil
	case kindProbe:
		return nil
	case kindChunk:
	default:
		return fmt.Errorf("kind %d: %w", h.kind, ErrMalformed)
	}
	if h.flags&^(flagFirst|flagLast) != 0 {
		return fmt.Errorf("flags %#x: %w", h.flags, ErrMalformed)
	}
	n := uint64(h.payload)
	if h.total > MaxTransferBytes || h.offset > MaxTransferBytes {
		return fmt.Errorf("transfer of %d bytes at offset %d: %w", h.total, h.offset, ErrOutOfRange)
	}
	if h.position > h.total || n > h.total-h.position {
		return fmt.Errorf("chunk of %d bytes at %d of a transfer of %d: %w", n, h.position, h.total, ErrLength)
	}
	if (h.flags&flagFirst != 0) != (h.position == 0) || (h.flags&flagLast != 0) != (h.position+n == h.total) {
		return fmt.Errorf("flags %#x on bytes %d to %d of %d: %w", h.flags, h.position, h.position+n, h.total, ErrLength)
	}
	if n == 0 && h.total != 0 {
		return fmt.Errorf("empty chunk of a transfer of %d bytes: %w", h.total, ErrMalformed)
	}
	return nil
}

// checkRead checks the request of a READ.
func (h *header) checkRead() error {
	switch {
	case h.payload != 0 || h.flags != 0 || h.sum != 0:
		return fmt.Errorf("a read with flags %#x and a payload of %d bytes: %w", h.flags, h.payload, ErrMalformed)
	case h.total > MaxTransferBytes || h.offset > MaxTransferBytes:
		return fmt.Errorf("read of %d bytes at offset %d: %w", h.total, h.offset, ErrOutOfRange)
	case h.position >= h.total:
		return fmt.Errorf("read from byte %d of %d on: %w", h.position, h.total, ErrLength)
	}
	return nil
}

// reply is what a receiver says about a transfer:
//
//	 0 magic u32   4 version u8   5 kind u8   6 header length u16
//	 8 code u32   12 message length u32
//	16 transfer u64
//	24 position u64: bytes placed so far
//	32 reserved u64
//	40 xxh3-64 of bytes 0 to 40 and the message
//	48 message
type reply struct {
	kind     frameKind
	code     code
	transfer uint64
	position uint64
	message  string
}

func (r *reply) encode() []byte {
	m := r.message
	if len(m) > maxMessage {
		m = m[:maxMessage]
	}
	le := binary.LittleEndian
	b := make([]byte, replyBytes+len(m))
	le.PutUint32(b[0:], frameMagic)
	b[4], b[5] = frameVersion, byte(r.kind)
	le.PutUint16(b[6:], replyBytes)
	le.PutUint32(b[8:], uint32(r.code))
	le.PutUint32(b[12:], uint32(len(m)))
	le.PutUint64(b[16:], r.transfer)
	le.PutUint64(b[24:], r.position)
	copy(b[replyBytes:], m)
	le.PutUint64(b[40:], replySum(b))
	return b
}

func replySum(b []byte) uint64 {
	return xxh3.Hash(b[:40]) ^ xxh3.Hash(b[replyBytes:])
}

func parseReply(b []byte) (r reply, err error) {
	le := binary.LittleEndian
	if len(b) < replyBytes || len(b) > replyBytes+maxMessage {
		return r, fmt.Errorf("reply of %d bytes: %w", len(b), ErrMalformed)
	}
	if m := le.Uint32(b[0:]); m != frameMagic {
		return r, fmt.Errorf("reply magic %#x: %w", m, ErrMalformed)
	}
	if b[4] != frameVersion {
		return r, fmt.Errorf("reply version %d, this build speaks %d: %w", b[4], frameVersion, ErrVersion)
	}
	if n := le.Uint16(b[6:]); n != replyBytes {
		return r, fmt.Errorf("reply header length %d: %w", n, ErrMalformed)
	}
	if n := le.Uint32(b[12:]); int(n) != len(b)-replyBytes {
		return r, fmt.Errorf("message of %d bytes in a reply of %d: %w", n, len(b), ErrMalformed)
	}
	if le.Uint64(b[40:]) != replySum(b) {
		return r, fmt.Errorf("reply checksum differs: %w", ErrMalformed)
	}
	r = reply{
		kind:     frameKind(b[5]),
		code:     code(le.Uint32(b[8:])),
		transfer: le.Uint64(b[16:]),
		position: le.Uint64(b[24:]),
		message:  string(b[replyBytes:]),
	}
	if r.kind != kindAck && r.kind != kindRefusal {
		return r, fmt.Errorf("reply kind %d: %w", r.kind, ErrMalformed)
	}
	return r, nil
}
