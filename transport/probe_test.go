// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestProbeOverMutualTLS(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	a, _, addr := f.pair(nil, nil)
	res, err := a.Probe(t.Context(), addr, "b")
	if err != nil {
		t.Fatal(err)
	}
	if res.RoundTrip <= 0 || res.BytesPerSecond <= 0 || res.Bytes == 0 || res.Elapsed <= 0 {
		t.Fatalf("%+v", res)
	}
}

func TestProbeOfNobody(t *testing.T) {
	f := &fixture{t: t}
	ln := listen(t)
	addr := ln.Addr().String()
	ln.Close()
	a := f.host("a", nil, func(c *Config) { c.RedialFor = 50 * time.Millisecond })
	_, err := a.Probe(t.Context(), addr, "b")
	if _, ok := errors.AsType[ErrPeerUnreachable](err); !ok {
		t.Fatalf("got %v", err)
	}
}

// bucket is a token bucket on what a connection writes, in fake time.
type bucket struct {
	net.Conn
	mu    sync.Mutex
	rate  float64
	burst float64
	level float64
	at    time.Time
}

func (b *bucket) Write(p []byte) (int, error) {
	for i := 0; i < len(p); i += 4096 {
		piece := p[i:min(i+4096, len(p))]
		b.take(float64(len(piece)))
		if _, err := b.Conn.Write(piece); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func (b *bucket) take(n float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.level = min(b.burst, b.level+b.rate*now.Sub(b.at).Seconds()) - n
	b.at = now
	if b.level < 0 {
		<-time.After(time.Duration(-b.level / b.rate * 1e9))
	}
}

func TestProbeSeesThroughTokenBuckets(t *testing.T) {
	for _, rate := range []float64{125e6, 12.5e6, 1.25e6} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemoryNetwork()
			f := &fixture{t: t}
			f.host("b", m, nil)
			a := f.host("a", nil, func(c *Config) {
				c.DialContext = func(ctx context.Context, _ string) (net.Conn, error) {
					raw, err := m.dial(ctx)
					if err != nil {
						return nil, err
					}
					return &bucket{Conn: raw, rate: rate, burst: 1e6, level: 1e6, at: time.Now()}, nil
				}
			})
			begin := time.Now()
			res, err := a.Probe(t.Context(), "b", "b")
			if err != nil {
				t.Fatal(err)
			}
			if r := res.BytesPerSecond / rate; r < 0.95 || r > 1.05 {
				t.Errorf("%.0f B/s measured as %.0f: %+v", rate, res.BytesPerSecond, res)
			}
			if d := time.Since(begin); d > 1300*time.Millisecond {
				t.Errorf("took %v", d)
			}
			synctest.Wait()
		})
	}
}

// memoryNetwork is a listener whose connections are pipes with a buffer.
type memoryNetwork struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemoryNetwork() *memoryNetwork {
	return &memoryNetwork{accept: make(chan net.Conn), closed: make(chan struct{})}
}

func (m *memoryNetwork) Accept() (net.Conn, error) {
	select {
	case c := <-m.accept:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memoryNetwork) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

func (m *memoryNetwork) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

func (m *memoryNetwork) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case m.accept <- server:
		return client, nil
	case <-m.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
