// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

const (
	serviceName = "distorch.v1.Bulk"
	methodWrite = "/" + serviceName + "/Write"
	methodRead  = "/" + serviceName + "/Read"
	methodProbe = "/" + serviceName + "/Probe"

	// outcomes is how many finished transfers a link remembers, so that a
	// replay is answered and not placed again. A sender has at most
	// maxOutstanding unanswered ones.
	outcomes       = 256
	maxOutstanding = 128
	// linksPerPeer bounds the state that one peer can make this side keep.
	linksPerPeer = 16
)

// RegisterService adds the Bulk service to a server made with ServerOptions.
func (h *Host) RegisterService(s grpc.ServiceRegistrar) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			{StreamName: "Write", Handler: func(_ any, s grpc.ServerStream) error { return h.serveWrite(s) }, ServerStreams: true, ClientStreams: true},
			{StreamName: "Read", Handler: func(_ any, s grpc.ServerStream) error { return h.serveRead(s) }, ServerStreams: true, ClientStreams: true},
			{StreamName: "Probe", Handler: func(_ any, s grpc.ServerStream) error { return h.serveProbe(s) }, ServerStreams: true, ClientStreams: true},
		},
		Metadata: "distorch/v1/data.proto",
	}, h)
}

// inbound is a transfer that has begun to arrive.
type inbound struct {
	header header // of its first frame
	region *Region
	got    uint64
}

// inboundLink is what this side knows about one sender's link. It outlives the
// streams: a resumed stream continues the open transfer.
type inboundLink struct {
	peer Peer
	id   [16]byte

	mu         sync.Mutex
	generation uint64 // of the newest stream; older ones may place nothing
	last       uint64 // newest transfer begun
	open       *inbound
	done       [outcomes]reply // answers to finished transfers, by id
	streams    int             // guarded by the Host's mutex
	used       uint64          // guarded by the Host's mutex
}

type linkKey struct {
	node NodeID
	link [16]byte
}

// attach finds or makes the state of a link and counts the stream in.
func (h *Host) attach(p Peer, id [16]byte) *inboundLink {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := linkKey{p.Node, id}
	l := h.inbound[key]
	if l == nil {
		h.evict(p.Node)
		l = &inboundLink{peer: p, id: id}
		h.inbound[key] = l
	}
	h.linkClock++
	l.used = h.linkClock
	l.streams++
	return l
}

func (h *Host) detach(l *inboundLink) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.streams--
}

// evict drops the peer's least recently used links without a stream while it
// has too many: links of processes that have ended.
func (h *Host) evict(node NodeID) {
	for {
		n := 0
		var oldest *inboundLink
		for k, l := range h.inbound {
			if k.node != node {
				continue
			}
			n++
			if l.streams == 0 && (oldest == nil || l.used < oldest.used) {
				oldest = l
			}
		}
		if n < linksPerPeer || oldest == nil {
			return
		}
		delete(h.inbound, linkKey{node, oldest.id})
	}
}

// peerOf is the authenticated peer of a stream.
func (h *Host) peerOf(s grpc.ServerStream) (Peer, error) {
	node, role, err := h.cfg.PeerFrom(s.Context())
	if err != nil {
		return Peer{}, status.Errorf(codes.Unauthenticated, "bulk: %v", err)
	}
	return Peer{Node: NodeID(node), Role: role}, nil
}

// serveWrite receives the frames of one stream. A frame that is refused is
// answered and the stream goes on.
func (h *Host) serveWrite(s grpc.ServerStream) error {
	p, err := h.peerOf(s)
	if err != nil {
		return err
	}
	var link *inboundLink
	var generation uint64
	defer func() {
		if link != nil {
			h.detach(link)
		}
	}()
	for {
		var m rawMessage
		if err := s.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		hd, err := parseFrame(m.buffers)
		if err == nil && hd.kind == kindHello && link == nil {
			link, generation = h.attach(p, hd.key), hd.transfer
			if !link.begin(generation) {
				m.free()
				return status.Error(codes.Aborted, "bulk: a newer stream of this link exists")
			}
			m.free()
			continue
		}
		var r reply
		switch {
		case err != nil:
			r = refusal(hd.transfer, 0, err)
		case link == nil || hd.kind != kindChunk && hd.kind != kindAbort:
			r = refusal(hd.transfer, 0, fmt.Errorf("frame of kind %d: %w", hd.kind, ErrUnexpectedFrame))
		default:
			var ok bool
			r, ok = h.receive(link, generation, &hd, m.buffers)
			if !ok {
				m.free()
				return status.Error(codes.Aborted, "bulk: a newer stream of this link exists")
			}
		}
		m.free()
		if r.kind == 0 {
			continue
		}
		if err := s.SendMsg(&rawMessage{mem.BufferSlice{mem.SliceBuffer(r.encode())}}); err != nil {
			return err
		}
	}
}

func parseFrame(b mem.BufferSlice) (header, error) {
	var raw [headerBytes]byte
	n := fetch(raw[:], b)
	return parseHeader(raw[:n], b.Len())
}

func refusal(transfer, position uint64, err error) reply {
	return reply{kind: kindRefusal, code: codeOf(err), transfer: transfer, position: position, message: err.Error()}
}

// begin makes a stream the link's newest. From then on older streams place
// nothing, so bytes that still sit in a cut connection's buffers cannot
// overwrite what the newer stream placed.
func (l *inboundLink) begin(generation uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if generation <= l.generation {
		return false
	}
	l.generation = generation
	return true
}

// receive handles a chunk or an abort; ok is false when the stream has been
// superseded. A reply of kind 0 is no answer.
func (h *Host) receive(l *inboundLink, generation uint64, hd *header, frame mem.BufferSlice) (r reply, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.generation != generation {
		return reply{}, false
	}
	if hd.kind == kindAbort {
		l.abort(hd.transfer)
		return reply{}, true
	}
	if hd.transfer <= l.last && (l.open == nil || l.open.header.transfer != hd.transfer) {
		return l.replayed(hd), true
	}
	if hd.transfer > l.last {
		if hd.position != 0 {
			return reply{kind: kindRefusal, code: codeGap, transfer: hd.transfer, message: "transfer has no beginning here"}, true
		}
		if r, ok := h.start(l, hd); !ok {
			return r, true
		}
	}
	return l.chunk(hd, frame), true
}

// abort ends the transfer, or makes sure that it never begins.
func (l *inboundLink) abort(transfer uint64) {
	if transfer < l.last || transfer == l.last && l.open == nil {
		return
	}
	if l.open != nil && l.open.header.transfer < transfer {
		l.finish(refusal(l.open.header.transfer, l.open.got, ErrAborted))
	}
	l.last = transfer
	l.finish(refusal(transfer, 0, ErrAborted))
}

// finish remembers the answer to a transfer and closes it.
func (l *inboundLink) finish(r reply) reply {
	l.done[r.transfer%outcomes] = r
	l.open = nil
	return r
}

// replayed answers a chunk of a finished transfer without placing it.
func (l *inboundLink) replayed(hd *header) reply {
	if r := l.done[hd.transfer%outcomes]; r.kind != 0 && r.transfer == hd.transfer {
		return r
	}
	return refusal(hd.transfer, 0, fmt.Errorf("transfer %d ended long ago: %w", hd.transfer, ErrUnexpectedFrame))
}

// start opens a transfer. Senders begin one only after the one before was
// sent completely, so an open one was given up.
func (h *Host) start(l *inboundLink, hd *header) (reply, bool) {
	if l.open != nil {
		l.finish(refusal(l.open.header.transfer, l.open.got, ErrAborted))
	}
	l.last = hd.transfer
	h.mu.Lock()
	region := h.regions[hd.region]
	h.mu.Unlock()
	if region == nil {
		return l.finish(refusal(hd.transfer, 0, fmt.Errorf("region %d: %w", hd.region, ErrUnknownRegion))), false
	}
	if err := region.admit(l.peer, hd); err != nil {
		return l.finish(refusal(hd.transfer, 0, err)), false
	}
	l.open = &inbound{header: *hd, region: region}
	return reply{}, true
}

// chunk places the next bytes of the open transfer.
func (l *inboundLink) chunk(hd *header, frame mem.BufferSlice) reply {
	o := l.open
	if f := &o.header; hd.total != f.total {
		return l.finish(refusal(hd.transfer, o.got, fmt.Errorf("total of %d bytes after %d: %w", hd.total, f.total, ErrLength)))
	} else if hd.region != f.region || hd.key != f.key || hd.offset != f.offset || hd.imm != f.imm {
		return l.finish(refusal(hd.transfer, o.got, fmt.Errorf("transfer %d changed its destination: %w", hd.transfer, ErrUnexpectedFrame)))
	}
	end := hd.position + uint64(hd.payload)
	switch {
	case hd.position > o.got:
		return reply{kind: kindRefusal, code: codeGap, transfer: hd.transfer, position: o.got, message: fmt.Sprintf("byte %d before byte %d", hd.position, o.got)}
	case end <= o.got && hd.total != 0:
		return reply{kind: kindAck, transfer: hd.transfer, position: o.got}
	case hd.position < o.got:
		return l.finish(refusal(hd.transfer, o.got, fmt.Errorf("bytes %d to %d after %d: %w", hd.position, end, o.got, ErrUnexpectedFrame)))
	}
	if err := o.region.place(hd, frame); errors.Is(err, ErrChecksum) {
		return refusal(hd.transfer, o.got, err) // stays open, the sender resumes
	} else if err != nil {
		return l.finish(refusal(hd.transfer, o.got, err))
	}
	o.got = end
	if o.got < hd.total {
		return reply{kind: kindAck, transfer: hd.transfer, position: o.got}
	}
	if err := o.region.complete(l.peer, hd); err != nil {
		return l.finish(refusal(hd.transfer, o.got, err))
	}
	return l.finish(reply{kind: kindAck, transfer: hd.transfer, position: o.got})
}
