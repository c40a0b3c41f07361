// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

const (
	probeEchoes = 11
	// probePause lets both ends fall asleep between echoes, as they do between
	// the hops of a forward.
	probePause   = 2 * time.Millisecond
	probeDiscard = 2 << 20 // lets token buckets of 1 MB run dry
	probeLimit   = 1200 * time.Millisecond
	probeBurst   = 150 * time.Millisecond
	// probeDry ends the discarding on links so slow that a bucket matters less
	// than the time.
	probeDry      = 400 * time.Millisecond
	probeSmall    = 64 << 10
	probeInFlight = 16 << 20
	probeMeasured = 4 // acknowledgements at least
)

// ProbeResult is what a link did.
type ProbeResult struct {
	RoundTrip      time.Duration // median of small frames
	BytesPerSecond float64       // in steady state, through codec, checksum and copy
	Bytes          uint64        // that the rate is made of
	Elapsed        time.Duration // that the rate is made of
}

// Probe measures the round trip and the bandwidth to a peer, on a connection
// of its own. It takes at most 1.2 s after the connection stands. The rate is
// that of acknowledgements after the first 2 MB, over at least 150 ms where
// time allows; on a link that moves less than a frame in the time, what was
// acknowledged at all.
func (h *Host) Probe(ctx context.Context, addr string, peer NodeID) (ProbeResult, error) {
	conn, err := h.newConn(target{addr, peer}, h.dialContext)
	if err != nil {
		return ProbeResult{}, fmt.Errorf("probe node %s: %w", peer, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(h.ctx, cancel)
	defer stop()
	opening := time.AfterFunc(h.cfg.RedialFor, cancel)
	st, err := conn.NewStream(ctx, frameStream(), methodProbe, frameCallOptions()...)
	if !opening.Stop() || err != nil {
		return ProbeResult{}, fmt.Errorf("probe: %w", ErrPeerUnreachable{Node: peer, Addr: addr, Err: err})
	}
	p := prober{st: st, cancel: cancel, payload: make([]byte, ChunkBytes)}
	res, err := p.measure()
	cancel()
	if err != nil {
		return res, fmt.Errorf("probe node %s at %s: %w", peer, addr, err)
	}
	return res, nil
}

// prober is the asking side. Its payload is not constant, in case something on
// the way compresses.
type prober struct {
	st      grpc.ClientStream
	cancel  context.CancelFunc
	payload []byte
	nextID  uint64 // the sending goroutine's
	taken   uint64 // bytes that the peer has acknowledged in all
}

// ack is the arrival of an acknowledgement.
type ack struct {
	bytes uint64 // acknowledged in all
	at    time.Time
}

func (p *prober) measure() (ProbeResult, error) {
	var x uint64 = 88172645463325252
	for i := range p.payload {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p.payload[i] = byte(x)
	}
	var trips []time.Duration
	pause := time.NewTicker(probePause)
	defer pause.Stop()
	for range probeEchoes {
		<-pause.C
		begin := time.Now()
		if err := p.send(64); err != nil {
			return ProbeResult{}, err
		}
		if err := p.receive(); err != nil {
			return ProbeResult{}, err
		}
		trips = append(trips, time.Since(begin))
	}
	slices.Sort(trips)
	res := ProbeResult{RoundTrip: trips[len(trips)/2]}
	from, to, err := p.stream()
	if err != nil {
		return res, err
	}
	res.Bytes, res.Elapsed = to.bytes-from.bytes, to.at.Sub(from.at)
	if res.Elapsed > 0 {
		res.BytesPerSecond = float64(res.Bytes) / res.Elapsed.Seconds()
	}
	return res, nil
}

func (p *prober) send(n int) error {
	p.nextID++
	hd := header{kind: kindProbe, payload: uint32(n), transfer: p.nextID, sum: xxh3.Hash(p.payload[:n])}
	head := make([]byte, headerBytes)
	hd.put(head)
	return p.st.SendMsg(&rawMessage{mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(p.payload[:n])}})
}

// receive takes an acknowledgement.
func (p *prober) receive() error {
	var m rawMessage
	if err := p.st.RecvMsg(&m); err != nil {
		return err
	}
	defer m.free()
	var raw [replyBytes + maxMessage]byte
	if m.buffers.Len() > len(raw) {
		return fmt.Errorf("reply of %d bytes: %w", m.buffers.Len(), ErrMalformed)
	}
	r, err := parseReply(raw[:fetch(raw[:], m.buffers)])
	if err != nil {
		return err
	}
	if r.kind != kindAck || r.position <= p.taken {
		return fmt.Errorf("reply %d after %d bytes: %w", r.position, p.taken, ErrUnexpectedFrame)
	}
	p.taken = r.position
	return nil
}

// stream keeps the link full until the limit and returns the acknowledgements
// between which the rate is taken. A second goroutine sends within a window
// that grows with the rate seen.
func (p *prober) stream() (from, to ack, err error) {
	base := p.taken
	w := newProbeWindow()
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := w.reserve(); n > 0; n = w.reserve() {
			if p.send(n) != nil {
				return // the reader learns why
			}
		}
	})
	begin := ack{at: time.Now()}
	limit := time.AfterFunc(probeLimit, p.cancel)
	defer func() {
		limit.Stop()
		w.close()
		p.cancel()
		wg.Wait()
	}()
	for measured := 0; ; {
		if err := p.receive(); err != nil {
			if to.bytes > 0 && !limit.Stop() {
				break
			}
			return from, to, err
		}
		to = ack{bytes: p.taken - base, at: time.Now()}
		w.acknowledge(to.bytes, to.at.Sub(begin.at))
		if from.at.IsZero() {
			if to.bytes >= probeDiscard || to.at.Sub(begin.at) >= probeDry {
				from = to
			}
			continue
		}
		measured++
		if measured >= probeMeasured && to.at.Sub(from.at) >= probeBurst {
			break
		}
	}
	if from.at.IsZero() || to.bytes == from.bytes {
		from = begin
	}
	return from, to, nil
}

// probeWindow says how much may be under way: about a tenth of a second of
// what the link moves, in frames of about ten milliseconds, so that slow links
// are measured finely and fast ones as transfers use them.
type probeWindow struct {
	mu     sync.Mutex
	room   sync.Cond
	sent   uint64
	acked  uint64
	limit  uint64
	frame  int
	closed bool
}

func newProbeWindow() *probeWindow {
	w := &probeWindow{limit: probeDiscard, frame: probeSmall}
	w.room.L = &w.mu
	return w
}

// reserve waits for room and gives the length of the next frame, 0 at the end.
func (w *probeWindow) reserve() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.closed && w.sent-w.acked+uint64(w.frame) > w.limit {
		w.room.Wait()
	}
	if w.closed {
		return 0
	}
	w.sent += uint64(w.frame)
	return w.frame
}

func (w *probeWindow) acknowledge(total uint64, since time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = total
	if total >= probeDiscard || since >= probeDry {
		rate := float64(total) / max(since.Seconds(), 1e-6)
		w.limit = uint64(min(max(rate/10, 4*probeSmall), probeInFlight))
		for w.frame = probeSmall; w.frame < ChunkBytes && float64(w.frame) < rate/100; w.frame *= 2 {
		}
		w.limit = max(w.limit, 4*uint64(w.frame))
	}
	w.room.Broadcast()
}

func (w *probeWindow) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.room.Broadcast()
}

// serveProbe takes frames as a write does, into a scratch region, and
// acknowledges the bytes so far.
func (h *Host) serveProbe(s grpc.ServerStream) error {
	if _, err := h.peerOf(s); err != nil {
		return err
	}
	scratch := &Region{buf: make([]byte, ChunkBytes)}
	var taken uint64
	for {
		var m rawMessage
		if err := s.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		hd, err := parseFrame(m.buffers)
		if err == nil && hd.kind != kindProbe {
			err = fmt.Errorf("frame of kind %d: %w", hd.kind, ErrUnexpectedFrame)
		}
		if err == nil {
			hd.offset, hd.position = 0, 0
			err = scratch.place(&hd, m.buffers)
		}
		m.free()
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "probe: %v", err)
		}
		taken += uint64(hd.payload)
		r := reply{kind: kindAck, transfer: hd.transfer, position: taken}
		if err := s.SendMsg(&rawMessage{mem.BufferSlice{mem.SliceBuffer(r.encode())}}); err != nil {
			return err
		}
	}
}
