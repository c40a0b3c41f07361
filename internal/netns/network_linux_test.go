// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// newNetwork makes a network that ends with the test.
func newNetwork(t *testing.T, o Options) *Network {
	t.Helper()
	n, err := New(o)
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("kernel facility missing: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// serve accepts one connection on h, hands it to f, and returns its address.
func serve(t *testing.T, h *Host, f func(net.Conn) error) string {
	t.Helper()
	l, err := h.Listen(t.Context(), "tcp", netip.AddrPortFrom(h.Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = errors.Join(f(conn), conn.Close())
		}
		served <- err
	}()
	t.Cleanup(func() {
		l.Close()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func TestHostsReachEachOther(t *testing.T) {
	n := newNetwork(t, Options{Hosts: 2})
	a, b := n.Hosts()[0], n.Hosts()[1]
	addr := serve(t, b, func(c net.Conn) error {
		_, err := io.Copy(c, c)
		return err
	})
	conn, err := a.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, _, _ := net.SplitHostPort(conn.LocalAddr().String()); got != a.Addr().String() {
		t.Errorf("dialled from %s, want %s", got, a.Addr())
	}
	buf := make([]byte, 4)
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "ping" {
		t.Errorf("echo %q, %v", buf, err)
	}
	if c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond); err == nil {
		c.Close()
		t.Error("the network is reachable from outside")
	}
}

func TestPulledLinkLosesPackets(t *testing.T) {
	n := newNetwork(t, Options{Hosts: 2})
	a, b := n.Hosts()[0], n.Hosts()[1]
	addr := serve(t, b, func(net.Conn) error { return nil })
	if err := b.SetLink(false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if c, err := a.Dial(ctx, "tcp", addr); err == nil {
		c.Close()
		t.Fatal("dial over a pulled link succeeded")
	}
	if err := b.SetLink(true); err != nil {
		t.Fatal(err)
	}
	c, err := a.Dial(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatalf("dial after the link came back: %v", err)
	}
	c.Close()
}

func TestRateLimit(t *testing.T) {
	const total = 6 << 20
	n := newNetwork(t, Options{Hosts: 2, BitsPerSecond: 100e6})
	a, b := n.Hosts()[0], n.Hosts()[1]
	transfer := func() (bitsPerSecond float64) {
		addr := serve(t, b, func(c net.Conn) error {
			_, err := c.Write(make([]byte, total))
			return err
		})
		conn, err := a.Dial(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		start := time.Now()
		if _, err := io.CopyN(io.Discard, conn, total); err != nil {
			t.Fatal(err)
		}
		return total * 8 / time.Since(start).Seconds()
	}
	if got := transfer(); got > 110e6 {
		t.Errorf("a link of 100 Mbit/s carried %.0f Mbit/s", got/1e6)
	}
	for _, h := range n.Hosts() {
		if err := h.SetRate(0); err != nil {
			t.Fatal(err)
		}
	}
	if got := transfer(); got < 110e6 {
		t.Errorf("with the limit lifted the link carried %.0f Mbit/s", got/1e6)
	}
}

func TestStartRunsInTheHost(t *testing.T) {
	n := newNetwork(t, Options{Hosts: 1})
	h := n.Hosts()[0]
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), "cat", "/proc/net/fib_trie")
	cmd.Stdout = &out
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), h.Addr().String()) {
		t.Errorf("the command does not see %s:\n%s", h.Addr(), out.String())
	}
}

func TestDoRestoresThreadsAfterPanic(t *testing.T) {
	n := newNetwork(t, Options{Hosts: 1})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = n.Hosts()[0].Do(func() error { panic("inside") })
	}()
	l, err := net.Listen("tcp", "10.203.0.1:0")
	if err == nil {
		l.Close()
		t.Error("the caller is still inside the host's namespace")
	}
}

func TestErrors(t *testing.T) {
	for _, hosts := range []int{-1, 0, MaxHosts + 1} {
		if _, err := New(Options{Hosts: hosts}); err == nil {
			t.Errorf("New with %d hosts succeeded", hosts)
		}
	}
	n := newNetwork(t, Options{Hosts: 1})
	h := n.Hosts()[0]
	if _, err := h.Dial(t.Context(), "tcp", "localhost:1"); err == nil {
		t.Error("dial by name succeeded")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Do(func() error { return nil }); err == nil {
		t.Error("Do on a closed network succeeded")
	}
}
