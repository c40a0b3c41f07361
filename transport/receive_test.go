// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// rawStream speaks frames without the sender's rules.
type rawStream struct {
	t  *testing.T
	st grpc.ClientStream
}

func openRaw(t *testing.T, h *Host, addr string) *rawStream {
	t.Helper()
	return openMethod(t, h, addr, methodWrite)
}

func openMethod(t *testing.T, h *Host, addr, method string) *rawStream {
	t.Helper()
	c, err := h.Dial(addr, "b")
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.NewStream(t.Context(), frameStream(), method, frameCallOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	return &rawStream{t, st}
}

func (s *rawStream) send(b []byte) {
	s.t.Helper()
	if err := s.st.SendMsg(&rawMessage{mem.BufferSlice{mem.SliceBuffer(b)}}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *rawStream) hello(generation uint64) {
	s.t.Helper()
	s.send(encode(header{kind: kindHello, transfer: generation, key: [16]byte{1}}, nil))
}

func (s *rawStream) reply() reply {
	s.t.Helper()
	var m rawMessage
	if err := s.st.RecvMsg(&m); err != nil {
		s.t.Fatal(err)
	}
	defer m.free()
	r, err := parseReply(m.buffers.Materialize())
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// expect sends a frame and wants this answer.
func (s *rawStream) expect(b []byte, kind frameKind, c code, position uint64) {
	s.t.Helper()
	s.send(b)
	if r := s.reply(); r.kind != kind || r.code != c || r.position != position {
		s.t.Fatalf("answered kind %d code %d position %d (%s), want %d %d %d", r.kind, r.code, r.position, r.message, kind, c, position)
	}
}

// encode completes lengths and sums of a frame.
func encode(h header, payload []byte) []byte {
	h.payload = uint32(len(payload))
	if h.sum == 0 {
		h.sum = xxh3.Hash(payload)
	}
	b := make([]byte, headerBytes, headerBytes+len(payload))
	h.put(b)
	return append(b, payload...)
}

func frameFor(r *Region, transfer, position, total uint64) header {
	h := header{kind: kindChunk, transfer: transfer, region: r.info.ID, key: r.key, position: position, total: total}
	if position == 0 {
		h.flags |= flagFirst
	}
	return h
}

func last(h header) header {
	h.flags |= flagLast
	return h
}

func TestFramesOutOfOrder(t *testing.T) {
	f := &fixture{t: t}
	a, b, addr := f.pair(nil, nil)
	r, buf := register(t, b, 1000)
	s := openRaw(t, a, addr)
	ten := pattern(10, 1)

	s.expect(encode(frameFor(r, 1, 0, 20), ten), kindRefusal, codeUnexpected, 0) // before hello
	s.hello(1)
	s.expect([]byte("short"), kindRefusal, codeMalformed, 0)
	s.expect(encode(header{kind: kindAck}, nil), kindRefusal, codeMalformed, 0)
	s.expect(encode(header{kind: kindProbe}, nil), kindRefusal, codeUnexpected, 0)
	s.expect(encode(frameFor(r, 1, 10, 30), ten), kindRefusal, codeGap, 0) // no beginning

	s.expect(encode(frameFor(r, 1, 0, 30), ten), kindAck, codeOK, 10)
	s.expect(encode(frameFor(r, 1, 0, 30), ten), kindAck, codeOK, 10) // replay of a placed chunk
	bad := frameFor(r, 1, 10, 30)
	bad.sum = 77
	s.expect(encode(bad, ten), kindRefusal, codeChecksum, 10)
	s.expect(encode(last(frameFor(r, 1, 20, 30)), ten), kindRefusal, codeGap, 10)
	s.expect(encode(frameFor(r, 1, 10, 30), ten), kindAck, codeOK, 20) // still open
	s.expect(encode(last(frameFor(r, 1, 20, 30)), ten), kindAck, codeOK, 30)
	if c := next(t, b.Completions()); c.Length != 30 {
		t.Fatalf("%+v", c)
	}
	s.expect(encode(last(frameFor(r, 1, 20, 30)), pattern(10, 2)), kindAck, codeOK, 30) // not placed again
	requireEqual(t, buf[:30], append(append(append([]byte(nil), ten...), ten...), ten...))
	requireNone(t, a, b, addr)
}

func TestFramesThatChangeTheirMind(t *testing.T) {
	f := &fixture{t: t}
	a, b, addr := f.pair(nil, nil)
	r, _ := register(t, b, 1000)
	other, _ := register(t, b, 1000)
	s := openRaw(t, a, addr)
	s.hello(1)
	ten := pattern(10, 1)
	id := uint64(0)
	for name, edit := range map[string]struct {
		change func(*header)
		want   code
	}{
		"total":     {func(h *header) { h.total = 31 }, codeLength},
		"region":    {func(h *header) { h.region, h.key = other.info.ID, other.key }, codeUnexpected},
		"offset":    {func(h *header) { h.offset = 1 }, codeUnexpected},
		"immediate": {func(h *header) { h.imm.Epoch = 1 }, codeUnexpected},
		"overlap":   {func(h *header) { h.position = 5 }, codeUnexpected},
	} {
		id++
		s.expect(encode(frameFor(r, id, 0, 30), ten), kindAck, codeOK, 10)
		h := frameFor(r, id, 10, 30)
		edit.change(&h)
		s.expect(encode(h, ten), kindRefusal, edit.want, 10)
		// What follows is dropped with the same answer.
		s.expect(encode(frameFor(r, id, 10, 30), ten), kindRefusal, edit.want, 10)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	requireNone(t, a, b, addr)
}

func TestAbortAndGivenUpTransfers(t *testing.T) {
	f := &fixture{t: t}
	a, b, addr := f.pair(nil, nil)
	r, _ := register(t, b, 1000)
	s := openRaw(t, a, addr)
	s.hello(1)
	ten := pattern(10, 1)
	s.expect(encode(frameFor(r, 1, 0, 20), ten), kindAck, codeOK, 10)
	s.send(encode(header{kind: kindAbort, transfer: 1}, nil))
	s.expect(encode(last(frameFor(r, 1, 10, 20)), ten), kindRefusal, codeAborted, 0)
	s.send(encode(header{kind: kindAbort, transfer: 2}, nil)) // before it begins
	s.expect(encode(frameFor(r, 2, 0, 20), ten), kindRefusal, codeAborted, 0)
	s.expect(encode(frameFor(r, 3, 0, 20), ten), kindAck, codeOK, 10)
	s.expect(encode(last(frameFor(r, 4, 0, 10)), ten), kindAck, codeOK, 10) // gives 3 up
	s.expect(encode(last(frameFor(r, 3, 10, 20)), ten), kindRefusal, codeAborted, 10)
	s.send(encode(header{kind: kindAbort, transfer: 4}, nil)) // too late
	s.expect(encode(last(frameFor(r, 4, 0, 10)), ten), kindAck, codeOK, 10)
	s.expect(encode(last(frameFor(r, 4+outcomes, 0, 10)), ten), kindAck, codeOK, 10)
	s.expect(encode(last(frameFor(r, 4, 0, 10)), ten), kindRefusal, codeUnexpected, 0) // forgotten, never repeated
	if c := next(t, b.Completions()); c.Length != 10 {
		t.Fatalf("%+v", c)
	}
	next(t, b.Completions())
	requireNone(t, a, b, addr)
}

func TestNewerStreamFencesTheOlder(t *testing.T) {
	f := &fixture{t: t}
	a, b, addr := f.pair(nil, nil)
	r, buf := register(t, b, 1000)
	ten := pattern(10, 1)
	old := openRaw(t, a, addr)
	old.hello(1)
	old.expect(encode(frameFor(r, 1, 0, 20), ten), kindAck, codeOK, 10)
	fresh := openRaw(t, a, addr)
	fresh.hello(2)
	fresh.expect(encode(last(frameFor(r, 1, 10, 20)), ten), kindAck, codeOK, 20)
	old.send(encode(last(frameFor(r, 2, 0, 10)), pattern(10, 5)))
	if err := old.st.RecvMsg(&rawMessage{}); status.Code(err) != codes.Aborted {
		t.Fatalf("got %v", err)
	}
	requireEqual(t, buf[:10], ten)
	again := openRaw(t, a, addr)
	again.hello(2)
	if err := again.st.RecvMsg(&rawMessage{}); status.Code(err) != codes.Aborted {
		t.Fatalf("got %v", err)
	}
	next(t, b.Completions())
	requireNone(t, a, b, addr)
}

func TestLinksOfEndedProcessesAreForgotten(t *testing.T) {
	f := &fixture{t: t}
	_, b, _ := f.pair(nil, nil)
	busy := b.attach(Peer{Node: "a"}, [16]byte{0})
	for i := range 100 {
		b.detach(b.attach(Peer{Node: "a"}, [16]byte{1, byte(i)}))
	}
	if n := len(b.inbound); n > linksPerPeer {
		t.Fatalf("%d links kept", n)
	}
	if b.attach(Peer{Node: "a"}, [16]byte{0}) != busy {
		t.Fatal("a link with a stream was forgotten")
	}
}

func TestUnreachableAfterOneSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{t: t}
		a := f.host("a", nil, func(c *Config) {
			c.DialContext = func(context.Context, string) (net.Conn, error) { return nil, errors.New("no route") }
		})
		begin := time.Now()
		err := a.WriteImm(t.Context(), "b", "b", RemoteKey{Region: 1, Bytes: 10}, 0, [][]byte{{1}}, Immediate{})
		var u ErrPeerUnreachable
		if d := time.Since(begin); !errors.As(err, &u) || d < time.Second || d > 1100*time.Millisecond {
			t.Fatalf("after %v: %v", d, err)
		}
	})
}

func TestIdleStreamStaysUpForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemoryNetwork()
		f := &fixture{t: t}
		b := f.host("b", m, nil)
		a := f.host("a", nil, func(c *Config) {
			c.DialContext = func(ctx context.Context, _ string) (net.Conn, error) { return m.dial(ctx) }
		})
		r, _ := register(t, b, 10)
		if err := a.WriteImm(t.Context(), "b", "b", r.Key(), 0, [][]byte{{1}}, Immediate{}); err != nil {
			t.Fatal(err)
		}
		<-b.Completions()
		// The server must not take keepalive's pings for an attack, nor may
		// anything time out.
		<-time.After(24 * time.Hour)
		if err := a.WriteImm(t.Context(), "b", "b", r.Key(), 0, [][]byte{{2}}, Immediate{}); err != nil {
			t.Fatal(err)
		}
		if n := connections(a); n != 1 {
			t.Fatalf("the idle stream broke: %d", n)
		}
	})
}
