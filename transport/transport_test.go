// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testImmediate() Immediate {
	return Immediate{
		DeploymentID: [16]byte{1, 2}, Epoch: 3, Stage: 4, Slot: 5, Sequence: 6, Run: [16]byte{7}, Step: 8, Branch: 9,
		Attempt: 10, MicroBatch: 11, SenderIncarnation: [16]byte{15: 12},
	}
}

func TestWriteOverMutualTLS(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	a, b, addr := f.pair(nil, nil)
	const n = 64<<20 + 12345
	r, buf := register(t, b, n+100, ForPeer("a"), AtEpoch(3))
	src := pattern(n, 1)
	pieces := [][]byte{src[:10], src[10:11], nil, src[11 : 5<<20], src[5<<20 : 5<<20+700], src[5<<20+700:]}
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 100, pieces, testImmediate()); err != nil {
		t.Fatal(err)
	}
	c := next(t, b.Completions())
	want := Completion{Region: r, Peer: Peer{"a", "agent"}, Imm: testImmediate(), Offset: 100, Length: n}
	if d := cmp.Diff(want, c, cmp.Comparer(func(a, b *Region) bool { return a == b })); d != "" {
		t.Fatal(d)
	}
	requireEqual(t, buf[100:], src)
	requireEqual(t, buf[:100], make([]byte, 100))
	requireNone(t, a, b, addr)
}

func TestRefusals(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	a, b, addr := f.pair(nil, func(c *Config) {
		c.Accept = func(_ Peer, r RegionInfo, imm Immediate, total uint64) error {
			switch imm.Step {
			case 100:
				return fmt.Errorf("incarnation is gone: %w", ErrStaleIncarnation)
			case 101:
				return errors.New("not today")
			case 102:
				return fmt.Errorf("want 7 bytes, not %d: %w", total, ErrLength)
			case 103:
				return fmt.Errorf("sequence %d was seen: %w", imm.Sequence, ErrUnexpectedFrame)
			}
			return nil
		}
	})
	r, buf := register(t, b, 4096, AtEpoch(3))
	other, _ := register(t, b, 4096, ForPeer("c"))
	gone, _ := register(t, b, 4096)
	gone.Deregister()

	wrongKey := r.Key()
	wrongKey.Key[3] ^= 1
	tooLong := r.Key()
	tooLong.Bytes = 1 << 20
	step := func(n uint32) Immediate { m := testImmediate(); m.Step = n; return m }
	stale := testImmediate()
	stale.Epoch = 2

	cases := []struct {
		name string
		key  RemoteKey
		off  uint64
		n    int
		imm  Immediate
		want error
	}{
		{"unknown region", RemoteKey{Region: 999, Bytes: 4096}, 0, 10, testImmediate(), ErrUnknownRegion},
		{"deregistered", gone.Key(), 0, 10, testImmediate(), ErrUnknownRegion},
		{"wrong key", wrongKey, 0, 10, testImmediate(), ErrWrongKey},
		{"key of another peer", other.Key(), 0, 10, testImmediate(), ErrWrongKey},
		{"stale epoch", r.Key(), 0, 10, stale, ErrStaleEpoch},
		{"beyond the end", tooLong, 4000, 97, testImmediate(), ErrOutOfRange},
		{"offset beyond the end", tooLong, 5000, 1, testImmediate(), ErrOutOfRange},
		{"many chunks beyond the end", tooLong, 0, 1 << 20, testImmediate(), ErrOutOfRange},
		{"policy incarnation", r.Key(), 0, 10, step(100), ErrStaleIncarnation},
		{"policy own words", r.Key(), 0, 10, step(101), ErrRefused},
		{"policy length", r.Key(), 0, 10, step(102), ErrLength},
		{"policy sequence", r.Key(), 0, 10, step(103), ErrUnexpectedFrame},
		{"refused before sending", r.Key(), 4000, 97, testImmediate(), ErrOutOfRange},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := a.WriteImm(t.Context(), addr, "b", c.key, c.off, [][]byte{pattern(c.n, 9)}, c.imm)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			var re *RefusedError
			if c.name != "refused before sending" && (!errors.As(err, &re) || re.Node != "b" || re.Addr != addr) {
				t.Fatalf("no RefusedError that names the peer in %v", err)
			}
		})
	}
	requireEqual(t, buf, make([]byte, len(buf)))
	requireNone(t, a, b, addr)
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{pattern(4096, 2)}, testImmediate()); err != nil {
		t.Fatal(err)
	}
	if n := connections(a); n != 1 {
		t.Fatalf("refusals cost connections: %d streams were opened", n)
	}
}

// connections counts the streams that a Host has opened on its only link.
func connections(h *Host) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.links {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.generation
	}
	return 0
}

func TestThreeCutsOneCompletion(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			f := &fixture{t: t}
			if secure {
				f.ca = newTestCA(t)
			}
			k := &cutter{after: []int{9<<20 + 77, 20 << 20, 13<<20 + 5}}
			var asked atomic.Int32
			a, b, addr := f.pair(func(c *Config) { c.DialContext = k.dial }, func(c *Config) {
				c.Accept = func(Peer, RegionInfo, Immediate, uint64) error { asked.Add(1); return nil }
			})
			const n = 64 << 20
			r, buf := register(t, b, n)
			src := pattern(n, 3)
			if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{src}, testImmediate()); err != nil {
				t.Fatal(err)
			}
			requireEqual(t, buf, src)
			if c := next(t, b.Completions()); c.Region != r || c.Length != n {
				t.Fatalf("completion %+v", c)
			}
			if cuts, dials := k.counts(); cuts != 3 || dials != 4 {
				t.Fatalf("%d cuts, %d dials", cuts, dials)
			}
			if asked.Load() != 1 {
				t.Fatalf("the policy was asked %d times for one transfer", asked.Load())
			}
			requireNone(t, a, b, addr)
		})
	}
}

// flipper changes one byte of the payload, found as a run of the filler, in
// each of the first times connections' streams.
type flipper struct {
	mu    sync.Mutex
	times int
	flips int
}

func (k *flipper) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	run := bytes.Repeat([]byte{filler}, 1000)
	return &brokenConn{raw, func(c net.Conn, p []byte) (int, error) {
		k.mu.Lock()
		if i := bytes.Index(p, run); i >= 0 && k.flips < k.times {
			k.flips++
			p = bytes.Clone(p)
			p[i+500] ^= 0x10
		}
		k.mu.Unlock()
		return c.Write(p)
	}}, nil
}

const filler = 0xa7

func TestFlippedByteIsResentOrReported(t *testing.T) {
	cases := []struct {
		name  string
		flips int
		want  error
	}{{"twice", 2, nil}, {"always", 1 << 30, ErrChecksum}}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := &fixture{t: t}
			k := &flipper{times: c.flips}
			a, b, addr := f.pair(func(cfg *Config) { cfg.DialContext = k.dial }, nil)
			const n = 5 << 20
			r, buf := register(t, b, n)
			src := bytes.Repeat([]byte{filler}, n)
			err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{src}, testImmediate())
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			k.mu.Lock()
			flips := k.flips
			k.mu.Unlock()
			if flips < min(c.flips, maxIntegrity+1) {
				t.Fatalf("%d flips", flips)
			}
			if c.want == nil {
				next(t, b.Completions())
				requireEqual(t, buf, src)
			}
			requireNone(t, a, b, addr)
		})
	}
}

func TestFlippedByteUnderTLSBreaksAndResumes(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	var writes, flips atomic.Int32
	a, b, addr := f.pair(func(c *Config) {
		c.DialContext = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			raw, err := d.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			return &brokenConn{raw, func(c net.Conn, p []byte) (int, error) {
				if writes.Add(1) == 12 {
					p = bytes.Clone(p)
					p[len(p)/2] ^= 1
					flips.Add(1)
				}
				return c.Write(p)
			}}, nil
		}
	}, nil)
	const n = 8 << 20
	r, buf := register(t, b, n)
	src := pattern(n, 5)
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{src}, testImmediate()); err != nil {
		t.Fatal(err)
	}
	if flips.Load() != 1 {
		t.Fatalf("%d flips", flips.Load())
	}
	requireEqual(t, buf, src)
	next(t, b.Completions())
	requireNone(t, a, b, addr)
}

func TestUnreachable(t *testing.T) {
	f := &fixture{t: t}
	ln := listen(t)
	addr := ln.Addr().String()
	ln.Close()
	a := f.host("a", nil, func(c *Config) { c.RedialFor = 100 * time.Millisecond })
	err := a.WriteImm(t.Context(), addr, "b", RemoteKey{Region: 1, Bytes: 10}, 0, [][]byte{{1}}, Immediate{})
	var v ErrPeerUnreachable
	var p *ErrPeerUnreachable
	if !errors.As(err, &v) || !errors.As(err, &p) || v.Node != "b" || v.Addr != addr || v.Err == nil || p.Node != "b" {
		t.Fatalf("got %v", err)
	}
	// The same link works once the peer is there.
	ln, err = net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	b := f.host("b", ln, nil)
	r, _ := register(t, b, 10)
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{{1}}, Immediate{}); err != nil {
		t.Fatal(err)
	}
}

func TestOtherIdentityIsNotWrittenTo(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	a, b, addr := f.pair(func(c *Config) { c.RedialFor = 100 * time.Millisecond }, nil)
	r, _ := register(t, b, 10)
	err := a.WriteImm(t.Context(), addr, "c", r.Key(), 0, [][]byte{{1}}, Immediate{})
	if _, ok := errors.AsType[ErrPeerUnreachable](err); !ok {
		t.Fatalf("got %v", err)
	}
}

func TestPeerWithoutIdentityIsRefused(t *testing.T) {
	f := &fixture{t: t}
	a, b, addr := f.pair(nil, func(c *Config) {
		c.PeerFrom = func(context.Context) (string, string, error) { return "", "", errors.New("no certificate") }
	})
	r, _ := register(t, b, 10)
	err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{{1}}, Immediate{})
	if !errors.Is(err, ErrNotPermitted) {
		t.Fatalf("got %v", err)
	}
}

// gate stops a connection's writes after some bytes until it is opened.
type gate struct {
	mu      sync.Mutex
	left    int
	reached chan struct{}
	open    chan struct{}
	once    sync.Once
}

func newGate(after int) *gate {
	return &gate{left: after, reached: make(chan struct{}), open: make(chan struct{})}
}

func (g *gate) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	closed := make(chan struct{})
	return &gatedConn{Conn: raw, g: g, closed: closed}, nil
}

type gatedConn struct {
	net.Conn
	g      *gate
	closed chan struct{}
	once   sync.Once
}

func (c *gatedConn) Write(p []byte) (int, error) {
	c.g.mu.Lock()
	c.g.left -= len(p)
	stop := c.g.left < 0
	c.g.mu.Unlock()
	if stop {
		c.g.once.Do(func() { close(c.g.reached) })
		select {
		case <-c.g.open:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(p)
}

func (c *gatedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func TestDeregisterDuringTransfer(t *testing.T) {
	f := &fixture{t: t}
	g := newGate(20 << 20)
	a, b, addr := f.pair(func(c *Config) { c.DialContext = g.dial }, nil)
	const n = 64 << 20
	buf := make([]byte, n)
	r, err := b.Register(buf)
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		result <- a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{pattern(n, 6)}, testImmediate())
	}()
	<-g.reached
	r.Deregister()
	clear(buf) // ours again: the race detector watches this
	close(g.open)
	if err := <-result; !errors.Is(err, ErrUnknownRegion) {
		t.Fatalf("got %v", err)
	}
	requireNone(t, a, b, addr)
	requireEqual(t, buf, make([]byte, n))
}

func TestCancelThenReuseTheBuffer(t *testing.T) {
	for _, stalled := range []bool{false, true} {
		t.Run(fmt.Sprintf("stalled=%v", stalled), func(t *testing.T) {
			f := &fixture{t: t}
			g := newGate(20 << 20)
			a, b, addr := f.pair(func(c *Config) { c.DialContext = g.dial }, nil)
			const n = 64 << 20
			r, buf := register(t, b, n)
			src := pattern(n, 7)
			ctx, cancel := context.WithCancel(t.Context())
			result := make(chan error, 1)
			go func() {
				result <- a.WriteImm(ctx, addr, "b", r.Key(), 0, [][]byte{src}, testImmediate())
			}()
			<-g.reached
			cancel()
			if !stalled {
				close(g.open)
			}
			if err := <-result; !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
			copy(src, pattern(n, 8)) // the race detector watches this
			if stalled {
				close(g.open)
			}
			imm := testImmediate()
			imm.Sequence = 99
			if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{src}, imm); err != nil {
				t.Fatal(err)
			}
			if c := next(t, b.Completions()); c.Imm != imm {
				t.Fatalf("completed %+v", c)
			}
			requireEqual(t, buf, src)
			if !stalled && connections(a) != 1 {
				t.Fatalf("cancel cost the stream")
			}
		})
	}
}

func TestTwoWritersKeepOrder(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	ln := listen(t)
	b := f.host("b", ln, nil)
	addr := ln.Addr().String()
	const writes, n = 20, 3<<20 + 17
	var wg sync.WaitGroup
	for w, id := range []NodeID{"a", "c"} {
		h := f.host(id, nil, nil)
		q := b.NewQueue()
		r, buf := register(t, b, n, ForPeer(id), OnQueue(q), WithTag(id))
		wg.Go(func() {
			src := pattern(n, uint64(w))
			for i := range uint64(writes) {
				src[0] = byte(i)
				if err := h.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{src}, Immediate{Sequence: i}); err != nil {
					t.Error(err)
					return
				}
				c := <-r.Completions()
				if c.Imm.Sequence != i || c.Peer.Node != id || c.Region.Info().Tag != id || !bytes.Equal(buf, src) {
					t.Errorf("writer %s: completion %+v", id, c)
				}
			}
		})
	}
	wg.Wait()
}

func TestManyConcurrentWritesOfOneHost(t *testing.T) {
	f := &fixture{t: t}
	k := &cutter{after: []int{700 << 10, 3 << 20}}
	a, b, addr := f.pair(func(c *Config) { c.DialContext = k.dial }, nil)
	const writers, n = 200, 50_001
	var wg sync.WaitGroup
	bufs := make([][]byte, writers)
	for w := range writers {
		r, buf := register(t, b, n)
		bufs[w] = buf
		wg.Go(func() {
			if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{pattern(n, uint64(w))}, Immediate{Sequence: uint64(w)}); err != nil {
				t.Error(err)
			}
		})
	}
	seen := map[uint64]int{}
	for range writers {
		seen[next(t, b.Completions()).Imm.Sequence]++
	}
	wg.Wait()
	for w := range writers {
		if seen[uint64(w)] != 1 {
			t.Errorf("write %d completed %d times", w, seen[uint64(w)])
		}
		requireEqual(t, bufs[w], pattern(n, uint64(w)))
	}
	if cuts, _ := k.counts(); cuts != 2 {
		t.Errorf("%d cuts", cuts)
	}
	requireNone(t, a, b, addr)
}

func TestCloseFailsWhatIsInFlight(t *testing.T) {
	f := &fixture{t: t}
	g := newGate(1 << 20)
	a, b, addr := f.pair(func(c *Config) { c.DialContext = g.dial }, nil)
	const n = 32 << 20
	r, _ := register(t, b, n)
	result := make(chan error, 1)
	go func() {
		result <- a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{make([]byte, n)}, Immediate{})
	}()
	<-g.reached
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, nil, Immediate{}); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if _, err := a.Register(nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if _, ok := <-a.Completions(); ok {
		t.Fatal("queue is open")
	}
}
