// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	defaultHandshakeTimeout = 5 * time.Second
	defaultMaxHandshakes    = 512
	defaultMaxPerHost       = 128
	acceptBacklog           = 128
	maxAcceptDelay          = time.Second
)

// MuxConfig configures a Mux. The zero value of each limit means its default.
type MuxConfig struct {
	Listener net.Listener // TCP; the Mux owns it
	TLS      *tls.Config  // of ServerTLS, ServerTLSWithJoin or ServerTLSWithWeb
	Logger   *slog.Logger

	HandshakeTimeout time.Duration // 5 s
	MaxHandshakes    int           // handshakes under way at one time: 512
	MaxPerHost       int           // of these from one address: 128
}

// Mux splits one port's TLS connections by negotiated protocol. A slow or
// silent client costs one slot for HandshakeTimeout and delays nobody.
type Mux struct {
	cfg MuxConfig

	mu      sync.Mutex
	subs    map[string]*subListener
	pending map[string]int
	total   int
	closed  bool
}

// NewMux returns a Mux over a listener. Call Listen for each protocol, then Run.
func NewMux(cfg MuxConfig) (*Mux, error) {
	if cfg.Listener == nil || cfg.TLS == nil {
		return nil, errors.New("mux needs a listener and a TLS configuration")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = defaultHandshakeTimeout
	}
	if cfg.MaxHandshakes <= 0 {
		cfg.MaxHandshakes = defaultMaxHandshakes
	}
	if cfg.MaxPerHost <= 0 {
		cfg.MaxPerHost = defaultMaxPerHost
	}
	return &Mux{cfg: cfg, subs: map[string]*subListener{}, pending: map[string]int{}}, nil
}

// Addr is the port's address.
func (m *Mux) Addr() net.Addr { return m.cfg.Listener.Addr() }

// Listen returns the connections of one protocol, restricted to the roles if
// any are given. Its Accept yields *tls.Conn with the handshake done. It ends
// with net.ErrClosed when the Mux ends or it is closed.
func (m *Mux) Listen(protocol string, roles ...Role) (net.Listener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("listen for %s: %w", protocol, net.ErrClosed)
	}
	if old := m.subs[protocol]; old != nil && !old.isClosed() {
		return nil, fmt.Errorf("listen for %s: already taken", protocol)
	}
	sub := &subListener{
		addr:  m.cfg.Listener.Addr(),
		want:  Expect{Roles: roles},
		conns: make(chan *tls.Conn, acceptBacklog),
		done:  make(chan struct{}),
	}
	m.subs[protocol] = sub
	return sub, nil
}

// Run accepts until ctx ends, then closes the port and every sub-listener.
// Connections already handed out stay with their owners.
func (m *Mux) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer m.close()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = m.cfg.Listener.Close() })
	defer stop()

	var delay time.Duration
	for {
		conn, err := m.cfg.Listener.Accept()
		if ctx.Err() != nil {
			if conn != nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %s: %w", m.Addr(), err)
			}
			// Out of file descriptors, or a client that left: wait and go on.
			delay = min(max(2*delay, 5*time.Millisecond), maxAcceptDelay)
			m.cfg.Logger.Warn("accept failed", "address", m.Addr().String(), "error", err)
			if !wait(ctx, delay) {
				return nil
			}
			continue
		}
		delay = 0
		host := hostOf(conn)
		if !m.enter(host) {
			_ = conn.Close()
			continue
		}
		wg.Go(func() { m.serve(ctx, conn, host) })
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func hostOf(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return host
}

func (m *Mux) enter(host string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.total >= m.cfg.MaxHandshakes || m.pending[host] >= m.cfg.MaxPerHost {
		return false
	}
	m.total++
	m.pending[host]++
	return true
}

func (m *Mux) leave(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total--
	if m.pending[host]--; m.pending[host] <= 0 {
		delete(m.pending, host)
	}
}

func (m *Mux) serve(ctx context.Context, raw net.Conn, host string) {
	defer m.leave(host)
	conn := tls.Server(raw, m.cfg.TLS)
	if err := m.admit(ctx, conn); err != nil {
		m.cfg.Logger.Info("connection refused", "remote", raw.RemoteAddr().String(), "error", err)
		_ = raw.Close()
	}
}

func (m *Mux) admit(ctx context.Context, conn *tls.Conn) error {
	hctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(hctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	state := conn.ConnectionState()
	protocol := state.NegotiatedProtocol
	if protocol == "" {
		protocol = ALPNWeb
	}
	m.mu.Lock()
	sub := m.subs[protocol]
	m.mu.Unlock()
	if sub == nil {
		return fmt.Errorf("protocol %q is not served here", state.NegotiatedProtocol)
	}
	if protocol != ALPNJoin && protocol != ALPNWeb {
		p, err := PeerFrom(state)
		if err != nil {
			return err
		}
		if err := sub.want.check(p, p.Cluster); err != nil {
			return fmt.Errorf("protocol %s: %w", state.NegotiatedProtocol, err)
		}
	}
	return sub.offer(conn)
}

func (m *Mux) close() {
	_ = m.cfg.Listener.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, sub := range m.subs {
		_ = sub.Close()
	}
}

// subListener is one protocol's share of the port.
type subListener struct {
	addr  net.Addr
	want  Expect
	conns chan *tls.Conn

	mu     sync.Mutex
	closed bool
	done   chan struct{}
}

// offer hands over a connection or says why not; it never blocks.
func (l *subListener) offer(conn *tls.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	select {
	case l.conns <- conn:
		return nil
	default:
		return fmt.Errorf("%d connections wait to be accepted", acceptBacklog)
	}
}

func (l *subListener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *subListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *subListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.done)
	for {
		select {
		case conn := <-l.conns:
			// Close's own alert may wait for a peer that does not read.
			_ = conn.NetConn().Close()
		default:
			return nil
		}
	}
}

func (l *subListener) Addr() net.Addr { return l.addr }
