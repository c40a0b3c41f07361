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
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The owner of a key reads what it wrote, in any ranges.
func TestReadOverMutualTLS(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	a, b, addr := f.pair(nil, nil)
	const n = 24<<20 + 12345
	imm := testImmediate()
	r, _ := register(t, b, n+100, ForPeer("a"), AtEpoch(3), ForIncarnation(imm.SenderIncarnation), Readable(), NoCompletions())
	src := pattern(n, 1)
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 100, [][]byte{src}, imm); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, part := range [][2]int{{0, n}, {1, 1}, {5 << 20, 700}, {n - 1<<20, 1 << 20}, {17, 0}} {
		wg.Go(func() {
			dst := make([]byte, part[1])
			if err := a.Read(t.Context(), addr, "b", r.Key(), uint64(100+part[0]), dst, imm); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(dst, src[part[0]:part[0]+part[1]]) {
				t.Errorf("%d bytes at %d differ", part[1], part[0])
			}
		})
	}
	wg.Wait()
	if r.Completions() != nil {
		t.Error("a region without completions has a queue")
	}
	requireNone(t, a, b, addr)
}

func TestReadRefusals(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	a, b, addr := f.pair(nil, nil)
	imm := testImmediate()
	r, buf := register(t, b, 4096, AtEpoch(3), ForIncarnation(imm.SenderIncarnation), Readable())
	other, _ := register(t, b, 4096, ForPeer("c"), Readable())
	private, _ := register(t, b, 4096, AtEpoch(3))
	gone, _ := register(t, b, 4096, Readable())
	gone.Deregister()
	copy(buf, pattern(4096, 4))

	wrongKey := r.Key()
	wrongKey.Key[3] ^= 1
	tooLong := r.Key()
	tooLong.Bytes = 1 << 20
	stale, restarted := imm, imm
	stale.Epoch = 2
	restarted.SenderIncarnation[0] = 9
	cases := []struct {
		name string
		key  RemoteKey
		off  uint64
		n    int
		imm  Immediate
		want error
	}{
		{"unknown region", RemoteKey{Region: 999, Bytes: 4096}, 0, 10, imm, ErrUnknownRegion},
		{"deregistered", gone.Key(), 0, 10, imm, ErrUnknownRegion},
		{"wrong key", wrongKey, 0, 10, imm, ErrWrongKey},
		{"key of another peer", other.Key(), 0, 10, imm, ErrWrongKey},
		{"writable only", private.Key(), 0, 10, imm, ErrNotReadable},
		{"stale epoch", r.Key(), 0, 10, stale, ErrStaleEpoch},
		{"another incarnation", r.Key(), 0, 10, restarted, ErrStaleIncarnation},
		{"beyond the end", tooLong, 4000, 97, imm, ErrOutOfRange},
		{"offset beyond the end", tooLong, 5000, 1, imm, ErrOutOfRange},
		{"many chunks beyond the end", tooLong, 0, 1 << 20, imm, ErrOutOfRange},
		{"refused before asking", r.Key(), 4000, 97, imm, ErrOutOfRange},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dst := make([]byte, c.n)
			err := a.Read(t.Context(), addr, "b", c.key, c.off, dst, c.imm)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if !bytes.Equal(dst, make([]byte, c.n)) {
				t.Error("bytes came with the refusal")
			}
			var re *RefusedError
			if c.name != "refused before asking" && (!errors.As(err, &re) || re.Node != "b" || re.Addr != addr || re.Region != c.key.Region || re.Op != "read from") {
				t.Fatalf("no RefusedError that names the peer in %v", err)
			}
		})
	}
	// A write of another incarnation is refused too.
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, [][]byte{{1}}, restarted); !errors.Is(err, ErrStaleIncarnation) {
		t.Error(err)
	}
	dst := make([]byte, 4096)
	if err := a.Read(t.Context(), addr, "b", r.Key(), 0, dst, imm); err != nil {
		t.Fatal(err)
	}
	requireEqual(t, dst, buf)
	if _, err := a.Dial(addr, "b"); err != nil {
		t.Error(err)
	}
}

// receiving wraps what a connection receives.
type receiving struct {
	net.Conn
	onRead func(c net.Conn, p []byte) (int, error)
	closed chan struct{} // may be nil
	once   sync.Once
}

func (c *receiving) Close() error {
	c.once.Do(func() {
		if c.closed != nil {
			close(c.closed)
		}
	})
	return c.Conn.Close()
}

func (c *receiving) Read(p []byte) (int, error) { return c.onRead(c.Conn, p) }

// dialer makes connections whose n-th receives through edit(n).
func dialer(dials *atomic.Int64, edit func(n int) func(c net.Conn, p []byte) (int, error)) func(context.Context, string) (net.Conn, error) {
	var mu sync.Mutex
	return func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		raw, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		return &receiving{Conn: raw, onRead: edit(int(dials.Add(1)))}, nil
	}
}

func TestReadResumesAfterThreeCuts(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			f := &fixture{t: t}
			if secure {
				f.ca = newTestCA(t)
			}
			after := []int{9<<20 + 77, 12 << 20, 7<<20 + 5, 1 << 30}
			var dials atomic.Int64
			received := 0
			a, b, addr := f.pair(func(c *Config) {
				c.DialContext = dialer(&dials, func(n int) func(net.Conn, []byte) (int, error) {
					left := after[min(n, len(after))-1]
					return func(c net.Conn, p []byte) (int, error) {
						k, err := c.Read(p)
						received += k
						if left -= k; left < 0 {
							c.Close()
						}
						return k, err
					}
				})
			}, nil)
			const n = 40 << 20
			r, buf := register(t, b, n, Readable())
			copy(buf, pattern(n, 3))
			dst := make([]byte, n)
			if err := a.Read(t.Context(), addr, "b", r.Key(), 0, dst, testImmediate()); err != nil {
				t.Fatal(err)
			}
			requireEqual(t, dst, buf)
			if n := dials.Load(); n != 4 {
				t.Errorf("%d dials", n)
			}
			if received > n+16<<20 { // a cut loses what gRPC had not handed over yet
				t.Errorf("%d bytes were received for %d: the read began again", received, n)
			}
		})
	}
}

func TestReadFromDamagedLink(t *testing.T) {
	for _, c := range []struct {
		name  string
		flips int64
		want  error
	}{{"twice", 2, nil}, {"always", 1 << 30, ErrChecksum}} {
		t.Run(c.name, func(t *testing.T) {
			f := &fixture{t: t}
			run := bytes.Repeat([]byte{filler}, 1000)
			var flips, dials atomic.Int64
			a, b, addr := f.pair(func(cfg *Config) {
				cfg.DialContext = dialer(&dials, func(int) func(net.Conn, []byte) (int, error) {
					return func(conn net.Conn, p []byte) (int, error) {
						n, err := conn.Read(p)
						if i := bytes.Index(p[:n], run); i >= 0 && flips.Load() < c.flips {
							flips.Add(1)
							p[i+500] ^= 0x10
						}
						return n, err
					}
				})
			}, nil)
			const n = 3 << 20
			r, buf := register(t, b, n, Readable())
			copy(buf, bytes.Repeat([]byte{filler}, n))
			dst := make([]byte, n)
			err := a.Read(t.Context(), addr, "b", r.Key(), 0, dst, Immediate{})
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if c.want == nil {
				requireEqual(t, dst, buf)
			}
			if n := flips.Load(); n < min(c.flips, maxIntegrity+1) {
				t.Errorf("%d flips", n)
			}
		})
	}
}

func TestReadFromNobody(t *testing.T) {
	f := &fixture{t: t}
	ln := listen(t)
	addr := ln.Addr().String()
	ln.Close()
	a := f.host("a", nil, func(c *Config) { c.RedialFor = 100 * time.Millisecond })
	err := a.Read(t.Context(), addr, "b", RemoteKey{Region: 1, Bytes: 10}, 0, make([]byte, 1), Immediate{})
	if u, ok := errors.AsType[ErrPeerUnreachable](err); !ok || u.Node != "b" || u.Addr != addr {
		t.Fatalf("got %v", err)
	}
	// The same link works once the peer is there.
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	b := f.host("b", ln, nil)
	r, buf := register(t, b, 10, Readable())
	buf[0] = 7
	dst := make([]byte, 1)
	if err := a.Read(t.Context(), addr, "b", r.Key(), 0, dst, Immediate{}); err != nil || dst[0] != 7 {
		t.Fatal(dst, err)
	}
}

// A peer that is frozen, or whose cable is pulled, keeps its connections.
func TestReadFromSilentPeerEndsAfterTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemoryNetwork()
		f := &fixture{t: t}
		b := f.host("b", m, nil)
		var frozen atomic.Bool
		a := f.host("a", nil, func(c *Config) {
			c.DialContext = func(ctx context.Context, _ string) (net.Conn, error) {
				raw, err := m.dial(ctx)
				closed := make(chan struct{})
				return &receiving{Conn: raw, closed: closed, onRead: func(c net.Conn, p []byte) (int, error) {
					n, err := c.Read(p)
					if frozen.Load() {
						<-closed
						return 0, net.ErrClosed
					}
					return n, err
				}}, err
			}
		})
		r, _ := register(t, b, 5<<20, Readable())
		dst := make([]byte, 5<<20)
		if err := a.Read(t.Context(), "b", "b", r.Key(), 0, dst, Immediate{}); err != nil {
			t.Fatal(err)
		}
		frozen.Store(true)
		begin := time.Now()
		err := a.Read(t.Context(), "b", "b", r.Key(), 0, dst, Immediate{})
		if _, ok := errors.AsType[ErrPeerUnreachable](err); !ok {
			t.Error(err)
		}
		if took := time.Since(begin); took < 2*time.Second || took > 2100*time.Millisecond {
			t.Errorf("ended after %v: %v", took, err)
		}
	})
}

func TestCancelledReadLeavesTheBufferAlone(t *testing.T) {
	f := &fixture{t: t}
	reached, open := make(chan struct{}), make(chan struct{})
	var dials, left atomic.Int64
	left.Store(5 << 20)
	var once sync.Once
	a, b, addr := f.pair(func(c *Config) {
		c.DialContext = dialer(&dials, func(int) func(net.Conn, []byte) (int, error) {
			return func(c net.Conn, p []byte) (int, error) {
				n, err := c.Read(p)
				if left.Add(int64(-n)) < 0 {
					once.Do(func() { close(reached) })
					<-open
				}
				return n, err
			}
		})
	}, nil)
	const n = 16 << 20
	r, buf := register(t, b, n, Readable())
	copy(buf, pattern(n, 7))
	dst, second := make([]byte, n), make([]byte, n)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Read(ctx, addr, "b", r.Key(), 0, dst, Immediate{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		clear(dst) // the race detector watches this
	})
	<-reached
	wg.Go(func() {
		if err := a.Read(t.Context(), addr, "b", r.Key(), 0, second, Immediate{}); err != nil {
			t.Error(err)
		}
	})
	cancel()
	close(open)
	wg.Wait()
	requireEqual(t, dst, make([]byte, n))
	requireEqual(t, second, buf)
	if n := dials.Load(); n != 1 {
		t.Errorf("cancelling cost the connection: %d dials", n)
	}
}

func TestDeregisterDuringRead(t *testing.T) {
	f := &fixture{t: t}
	reached, open := make(chan struct{}), make(chan struct{})
	var dials, left atomic.Int64
	left.Store(5 << 20)
	var once sync.Once
	a, b, addr := f.pair(func(c *Config) {
		c.DialContext = dialer(&dials, func(int) func(net.Conn, []byte) (int, error) {
			return func(c net.Conn, p []byte) (int, error) {
				n, err := c.Read(p)
				if left.Add(int64(-n)) < 0 {
					once.Do(func() { close(reached) })
					<-open
				}
				return n, err
			}
		})
	}, nil)
	const n = 64 << 20
	buf := pattern(n, 7)
	r, err := b.Register(buf, Readable())
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- a.Read(t.Context(), addr, "b", r.Key(), 0, make([]byte, n), Immediate{}) }()
	<-reached
	r.Deregister() // must not wait for the peer
	clear(buf)     // ours again: the race detector watches this
	close(open)
	if err := <-result; !errors.Is(err, ErrUnknownRegion) {
		t.Fatalf("got %v", err)
	}
}

func TestCloseFailsReads(t *testing.T) {
	f := &fixture{t: t}
	reached, open := make(chan struct{}), make(chan struct{})
	var dials, left atomic.Int64
	left.Store(5 << 20)
	var once sync.Once
	a, b, addr := f.pair(func(c *Config) {
		c.DialContext = dialer(&dials, func(int) func(net.Conn, []byte) (int, error) {
			return func(c net.Conn, p []byte) (int, error) {
				n, err := c.Read(p)
				if left.Add(int64(-n)) < 0 {
					once.Do(func() { close(reached) })
					<-open
				}
				return n, err
			}
		})
	}, nil)
	const n = 32 << 20
	r, _ := register(t, b, n, Readable())
	result := make(chan error, 1)
	go func() { result <- a.Read(t.Context(), addr, "b", r.Key(), 0, make([]byte, n), Immediate{}) }()
	<-reached
	go close(open)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if err := a.Read(t.Context(), addr, "b", r.Key(), 0, make([]byte, 1), Immediate{}); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestReadFromAnotherIdentityOrAnOldBuild(t *testing.T) {
	f := &fixture{t, newTestCA(t)}
	a, b, addr := f.pair(func(c *Config) { c.RedialFor = 100 * time.Millisecond }, nil)
	r, _ := register(t, b, 10, Readable())
	err := a.Read(t.Context(), addr, "c", r.Key(), 0, make([]byte, 1), Immediate{})
	if _, ok := errors.AsType[ErrPeerUnreachable](err); !ok {
		t.Fatalf("got %v", err)
	}

	plain := &fixture{t: t}
	ln := listen(t)
	s := grpc.NewServer(ServerOptions()...) // without READ
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() { s.Stop(); <-done })
	old := plain.host("a", nil, nil)
	err = old.Read(t.Context(), ln.Addr().String(), "b", RemoteKey{Region: 1, Bytes: 10}, 0, make([]byte, 1), Immediate{})
	if !errors.Is(err, ErrNotPermitted) {
		t.Fatalf("got %v", err)
	}
}

// Requests that no reader of ours sends are refused, and the stream goes on.
func TestReadRequestsOutOfOrder(t *testing.T) {
	f := &fixture{t: t}
	a, b, addr := f.pair(nil, nil)
	r, buf := register(t, b, 1000, Readable())
	copy(buf, pattern(1000, 2))
	s := openMethod(t, a, addr, methodRead)
	ask := func(position, total uint64) header {
		return header{kind: kindRead, transfer: 5, region: r.info.ID, key: r.key, position: position, total: total}
	}
	bare := func(h header) []byte {
		out := make([]byte, headerBytes)
		h.put(out)
		return out
	}
	s.expect([]byte("short"), kindRefusal, codeMalformed, 0)
	s.expect(bare(header{kind: kindHello, transfer: 1}), kindRefusal, codeUnexpected, 0)
	s.expect(encode(frameFor(r, 1, 0, 20), pattern(10, 1)), kindRefusal, codeUnexpected, 0)
	s.expect(bare(ask(7, 7)), kindRefusal, codeLength, 7)
	s.expect(bare(ask(0, 1<<47)), kindRefusal, codeOutOfRange, 0)
	s.expect(encode(ask(0, 10), []byte("x")), kindRefusal, codeMalformed, 0)
	s.send(bare(ask(3, 10)))
	var m rawMessage
	if err := s.st.RecvMsg(&m); err != nil {
		t.Fatal(err)
	}
	got := m.buffers.Materialize()
	h, err := parseHeader(got, len(got))
	if err != nil || h.position != 3 || h.payload != 7 || h.flags != flagLast || !bytes.Equal(got[headerBytes:], buf[3:10]) {
		t.Fatalf("%+v, %v", h, err)
	}

	w := openRaw(t, a, addr)
	w.hello(1)
	w.expect(bare(ask(0, 10)), kindRefusal, codeUnexpected, 0)
	b.cfg.PeerFrom = func(context.Context) (string, string, error) { return "", "", errors.New("no certificate") }
	if err := openMethod(t, a, addr, methodRead).st.RecvMsg(&m); status.Code(err) != codes.Unauthenticated {
		t.Fatal(err)
	}
}

// What a peer sends instead of the bytes that were asked for is not placed.
func TestReadOfWhatWasNotAsked(t *testing.T) {
	chunk := func(edit func(*header)) []byte {
		h := header{kind: kindChunk, flags: flagFirst | flagLast, transfer: 1, region: 9, total: 4}
		edit(&h)
		return encode(h, []byte("evil"))
	}
	for name, frame := range map[string][]byte{
		"transfer": chunk(func(h *header) { h.transfer = 2 }),
		"region":   chunk(func(h *header) { h.region = 8 }),
		"offset":   chunk(func(h *header) { h.offset = 1 }),
		"position": chunk(func(h *header) { h.flags, h.position, h.total = flagLast, 4, 8 }),
		"total":    chunk(func(h *header) { h.flags, h.total = flagFirst, 8 }),
		"sum":      chunk(func(h *header) { h.sum = 1 }),
		"kind":     encode(header{kind: kindProbe}, nil),
		"nothing":  {},
	} {
		l := &readLink{host: &Host{cfg: Config{}}, slots: make(chan struct{}, 1), born: time.Now()}
		l.host.log = discard()
		r := &reading{id: 1, src: RemoteKey{Region: 9, Bytes: 100}, dst: make([]byte, 4), done: make(chan struct{})}
		l.pending, l.slots = []*reading{r}, make(chan struct{}, 1)
		l.slots <- struct{}{}
		for i := range maxIntegrity + 1 {
			if l.arrived(buffers(frame)) {
				t.Errorf("%s: try %d was taken", name, i)
			}
		}
		if r.err == nil || name != "sum" && !bytes.Equal(r.dst, make([]byte, 4)) {
			t.Errorf("%s: %q, %v", name, r.dst, r.err)
		}
	}
}
