// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// The first byte on a connection says what follows.
const (
	streamPackets byte = 'P' // packets: length u32 little-endian, bytes
	streamSync    byte = 'S' // one of memberlist's own exchanges
)

const (
	maxPacket      = 64 << 10
	packetQueue    = 64 // packets that may wait for one peer; then they are dropped
	packetTimeout  = 2 * time.Second
	helloTimeout   = 5 * time.Second
	streamIdle     = time.Minute // an unused packet stream is closed after it
	maxConnections = 1024
)

// streams is memberlist's Transport over authenticated connections. Packets
// travel on one cached stream per peer and direction and may be lost, as
// datagrams are: when a peer's queue is full or its connection breaks.
type streams struct {
	cfg       *Config
	advertise netip.AddrPort
	log       *slog.Logger
	packets   chan *memberlist.Packet
	incoming  chan net.Conn
	ctx       context.Context // ends with Shutdown; parent of dials
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu      sync.Mutex
	out     map[memberlist.Address]*outgoing
	conns   map[net.Conn]struct{}
	unsent  int           // packets queued and not yet written or lost
	drained chan struct{} // made by flush, closed when unsent is zero
}

var _ memberlist.NodeAwareTransport = (*streams)(nil)

func newStreams(cfg *Config, log *slog.Logger) *streams {
	ctx, cancel := context.WithCancel(context.Background())
	s := &streams{
		cfg:       cfg,
		advertise: cfg.Advertise,
		log:       log,
		packets:   make(chan *memberlist.Packet),
		incoming:  make(chan net.Conn),
		ctx:       ctx,
		cancel:    cancel,
		out:       map[memberlist.Address]*outgoing{},
		conns:     map[net.Conn]struct{}{},
	}
	s.wg.Go(s.accept)
	return s
}

// FinalAdvertiseAddr is the address that the configuration says.
func (s *streams) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return s.advertise.Addr().AsSlice(), int(s.advertise.Port()), nil
}

// PacketCh delivers what peers sent as packets.
func (s *streams) PacketCh() <-chan *memberlist.Packet { return s.packets }

// StreamCh delivers connections for memberlist's exchanges.
func (s *streams) StreamCh() <-chan net.Conn { return s.incoming }

// WriteTo queues a packet.
func (s *streams) WriteTo(b []byte, addr string) (time.Time, error) {
	return s.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress queues a packet for the peer's stream, which must belong to
// the node that the address names.
func (s *streams) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if len(b) > maxPacket {
		return time.Time{}, fmt.Errorf("gossip packet of %d bytes, at most %d", len(b), maxPacket)
	}
	frame := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b)))
	frame = append(frame, b...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return time.Time{}, net.ErrClosed
	}
	o := s.out[a]
	if o == nil {
		o = &outgoing{queue: make(chan []byte, packetQueue)}
		s.out[a] = o
		s.wg.Go(func() { s.send(a, o) })
	}
	select {
	case o.queue <- frame:
		s.unsent++
	default: // a slow peer loses packets, memberlist does not wait
	}
	return time.Now(), nil
}

// outgoing is the packet stream to one peer. Its goroutine leaves when unused.
type outgoing struct {
	queue chan []byte
}

func (s *streams) send(a memberlist.Address, o *outgoing) {
	var conn net.Conn
	defer func() { s.drop(conn) }()
	idle := time.NewTimer(streamIdle)
	defer idle.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-idle.C:
			if s.forget(a, o) {
				return
			}
		case frame := <-o.queue:
			conn = s.deliver(a, conn, frame)
			s.sent()
		}
		idle.Reset(streamIdle)
	}
}

func (s *streams) sent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsent--
	if s.unsent == 0 && s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

// flush waits until the queued packets are written: a goodbye, for one.
func (s *streams) flush(timeout time.Duration) {
	s.mu.Lock()
	if s.unsent == 0 {
		s.mu.Unlock()
		return
	}
	s.drained = make(chan struct{})
	drained := s.drained
	s.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	}
}

// forget removes an unused stream unless a packet came in between.
func (s *streams) forget(a memberlist.Address, o *outgoing) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(o.queue) > 0 {
		return false
	}
	delete(s.out, a)
	return true
}

// deliver writes a packet on conn, or on a new connection when there is none
// or the peer has closed it, and returns the connection to keep.
func (s *streams) deliver(a memberlist.Address, conn net.Conn, frame []byte) net.Conn {
	if conn != nil && !s.alive(conn) {
		conn = nil
	}
	if conn == nil {
		c, err := s.dial(a, packetTimeout, streamPackets)
		if err != nil {
			s.log.Debug("gossip packet not sent", "address", a.Addr, "peer", a.Name, "error", err)
			return nil
		}
		conn = c
		s.wg.Go(func() { s.watch(c) })
	}
	err := conn.SetWriteDeadline(time.Now().Add(packetTimeout))
	if err == nil {
		_, err = conn.Write(frame)
	}
	if err != nil {
		s.log.Debug("gossip packet not sent", "address", a.Addr, "peer", a.Name, "error", err)
		s.drop(conn)
		return nil
	}
	return conn
}

// watch notices that the peer closed a packet stream, on which it never sends.
func (s *streams) watch(c net.Conn) {
	var b [1]byte
	_, _ = c.Read(b[:]) // whatever it says, the stream is over
	s.drop(c)
}

// DialTimeout opens a stream for an exchange.
func (s *streams) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return s.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream for an exchange with the named node.
func (s *streams) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return s.dial(a, timeout, streamSync)
}

func (s *streams) dial(a memberlist.Address, timeout time.Duration, kind byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.cfg.Dial(ctx, a.Addr, a.Name)
	if err != nil {
		return nil, fmt.Errorf("dial gossip of node %q at %s: %w", a.Name, a.Addr, err)
	}
	err = c.SetWriteDeadline(time.Now().Add(timeout))
	if err == nil {
		_, err = c.Write([]byte{kind})
	}
	if err == nil {
		err = c.SetWriteDeadline(time.Time{})
	}
	if err == nil && kind == streamPackets && !s.keep(c) {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open gossip stream to %s: %w", a.Addr, err), c.Close())
	}
	return c, nil
}

// keep remembers a connection so that Shutdown closes it.
func (s *streams) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil || len(s.conns) >= maxConnections {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *streams) alive(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.conns[c]
	return ok
}

// drop closes a connection that keep knows; a second time it does nothing.
func (s *streams) drop(c net.Conn) {
	if c == nil {
		return
	}
	s.mu.Lock()
	_, ok := s.conns[c]
	delete(s.conns, c)
	s.mu.Unlock()
	if ok {
		_ = c.Close() // nobody is left to tell
	}
}

// accept takes connections until the listener is closed.
func (s *streams) accept() {
	for {
		c, err := s.cfg.Listener.Accept()
		if err != nil {
			if s.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				s.log.Error("gossip listener failed", "error", err)
			}
			return
		}
		if !s.keep(c) {
			_ = c.Close() // too many, or closing
			continue
		}
		s.wg.Go(func() { s.serve(c) })
	}
}

// serve reads the first byte and hands the connection on or reads packets.
func (s *streams) serve(c net.Conn) {
	var kind [1]byte
	err := c.SetReadDeadline(time.Now().Add(helloTimeout))
	if err == nil {
		_, err = io.ReadFull(c, kind[:])
	}
	if err == nil {
		err = c.SetReadDeadline(time.Time{})
	}
	if err != nil {
		s.drop(c)
		return
	}
	switch kind[0] {
	case streamSync:
		s.mu.Lock()
		delete(s.conns, c) // memberlist's from here on
		s.mu.Unlock()
		select {
		case s.incoming <- c:
		case <-s.ctx.Done():
			_ = c.Close()
		}
	case streamPackets:
		if err := s.readPackets(c); err != nil {
			s.log.Debug("gossip stream ended", "address", c.RemoteAddr().String(), "error", err)
		}
		s.drop(c)
	default:
		s.log.Warn("gossip stream of unknown kind", "address", c.RemoteAddr().String(), "kind", kind[0])
		s.drop(c)
	}
}

func (s *streams) readPackets(c net.Conn) error {
	for {
		if err := c.SetReadDeadline(time.Now().Add(2 * streamIdle)); err != nil {
			return err
		}
		b, err := readPacket(c)
		if err != nil {
			return err
		}
		select {
		case s.packets <- &memberlist.Packet{Buf: b, From: c.RemoteAddr(), Timestamp: time.Now()}:
		case <-s.ctx.Done():
			return nil
		}
	}
}

// readPacket takes one length-prefixed packet; its size is bounded first.
func readPacket(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n == 0 || n > maxPacket {
		return nil, fmt.Errorf("gossip packet of %d bytes, want 1 to %d", n, maxPacket)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("gossip packet of %d bytes: %w", n, err)
	}
	return b, nil
}

// Shutdown closes the listener and every packet stream and waits for their
// goroutines.
func (s *streams) Shutdown() error {
	s.cancel()
	err := s.cfg.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	clear(s.conns)
	s.mu.Unlock()
	s.wg.Wait()
	return err
}
