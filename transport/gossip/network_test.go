// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// network connects members in memory. A cut pair behaves as cables do:
// connections die silently, dials hang until they are given up.
type network struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener
	cut       map[[2]string]bool
	conns     map[*memoryConn]struct{}
}

func newNetwork() *network {
	return &network{listeners: map[string]*memoryListener{}, cut: map[[2]string]bool{}, conns: map[*memoryConn]struct{}{}}
}

func (n *network) listen(node string, addr netip.AddrPort) *memoryListener {
	l := &memoryListener{net: n, node: node, addr: addr, queue: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr.String()] = l
	return l
}

// separate cuts or heals the pair.
func (n *network) separate(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{a, b}], n.cut[[2]string{b, a}] = cut, cut
	for c := range n.conns {
		if cut && n.cut[[2]string{c.from, c.to}] {
			c.Conn.Close()
			delete(n.conns, c)
		}
	}
}

func (n *network) dialer(from string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, addr, node string) (net.Conn, error) {
		n.mu.Lock()
		l := n.listeners[addr]
		cut := l != nil && n.cut[[2]string{from, l.node}]
		n.mu.Unlock()
		if l == nil {
			return nil, fmt.Errorf("dial %s: connection refused", addr)
		}
		if cut {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if node != "" && node != l.node {
			return nil, errors.New("certificate of " + l.node + ", want " + node)
		}
		client, server := net.Pipe()
		a, b := &memoryConn{client, from, l.node, l.addr}, &memoryConn{server, l.node, from, l.addr}
		n.mu.Lock()
		n.conns[a], n.conns[b] = struct{}{}, struct{}{}
		n.mu.Unlock()
		select {
		case l.queue <- b:
			return a, nil
		case <-l.closed:
			return nil, fmt.Errorf("dial %s: connection refused", addr)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type memoryConn struct {
	net.Conn
	from, to string
	remote   netip.AddrPort
}

func (c *memoryConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

type memoryListener struct {
	net    *network
	node   string
	addr   netip.AddrPort
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
