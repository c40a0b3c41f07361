// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// batchBytes is how much goes to or comes from a socket in one system call
// under TLS, whose records are 16 KiB.
const batchBytes = 256 << 10

// Listen opens a TCP listener as the transport wants it: congestion control
// as SocketControl sets it, and few system calls when a TLS connection above
// it reads its records.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: SocketControl}
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return batchListener{ln}, nil
}

type batchListener struct{ net.Listener }

func (l batchListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newBatchConn(c), nil
}

// batchConn reads ahead, and collects writes between hold and flush.
type batchConn struct {
	net.Conn
	r *bufio.Reader

	mu   sync.Mutex
	held bool
	buf  []byte
}

func newBatchConn(c net.Conn) *batchConn {
	return &batchConn{Conn: c, r: bufio.NewReaderSize(c, batchBytes)}
}

func (c *batchConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// Write passes through unless the connection is held: handshakes and alerts
// must not wait.
func (c *batchConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held {
		return c.Conn.Write(p)
	}
	if len(c.buf)+len(p) > cap(c.buf) {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(p) > cap(c.buf) {
		return c.Conn.Write(p)
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

func (c *batchConn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
	if c.buf == nil {
		c.buf = make([]byte, 0, batchBytes+batchBytes/16)
	}
}

func (c *batchConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	return c.flushLocked()
}

func (c *batchConn) flushLocked() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// batchedTLS is the TLS connection above a batchConn.
type batchedTLS struct {
	net.Conn
	below *batchConn
	mu    sync.Mutex
}

func (c *batchedTLS) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.below.hold()
	n, err := c.Conn.Write(p)
	if ferr := c.below.flush(); err == nil && ferr != nil {
		return 0, ferr
	}
	return n, err
}

// ServerCredentials make a server's TLS connections over a listener of Listen
// write many records in one system call: a READ's bytes come from the server.
func ServerCredentials(c credentials.TransportCredentials) credentials.TransportCredentials {
	return serverCredentials{c}
}

type serverCredentials struct {
	credentials.TransportCredentials
}

func (s serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	under := raw
	if t, ok := raw.(*tls.Conn); ok { // the handshake is done
		under = t.NetConn()
	}
	c, info, err := s.TransportCredentials.ServerHandshake(raw)
	below, ok := under.(*batchConn)
	if err != nil || !ok {
		return c, info, err
	}
	return &batchedTLS{Conn: c, below: below}, info, nil
}

func (s serverCredentials) Clone() credentials.TransportCredentials {
	return serverCredentials{s.TransportCredentials.Clone()}
}

// batchCredentials puts a batchConn under the client's TLS.
type batchCredentials struct {
	credentials.TransportCredentials
}

func (b batchCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	below := newBatchConn(raw)
	c, info, err := b.TransportCredentials.ClientHandshake(ctx, authority, below)
	if err != nil {
		return nil, nil, err
	}
	return &batchedTLS{Conn: c, below: below}, info, nil
}

func (b batchCredentials) Clone() credentials.TransportCredentials {
	return batchCredentials{b.TransportCredentials.Clone()}
}
