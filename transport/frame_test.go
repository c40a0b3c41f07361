// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/xxh3"
)

func sampleHeader() header {
	return header{
		kind: kindChunk, flags: flagFirst, payload: 3, transfer: 9, region: 8, key: [16]byte{1, 2, 3},
		offset: 64, position: 0, total: 10, sum: 0x1122334455667788, imm: testImmediate(),
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	want := sampleHeader()
	b := make([]byte, headerBytes)
	want.put(b)
	got, err := parseHeader(b, headerBytes+3)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(header{})); d != "" {
		t.Fatal(d)
	}
}

func TestHeaderRefusals(t *testing.T) {
	raw := func(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }
	le := binary.LittleEndian
	u64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	u32 := func(at int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[at:], v) } }
	cases := []struct {
		name string
		edit func([]byte)
		want error
	}{
		{"magic", raw(0, 0), ErrMalformed},
		{"version", raw(4, 2), ErrVersion},
		{"kind", raw(5, 77), ErrMalformed},
		{"header length", raw(6, 1), ErrMalformed},
		{"unknown flag", raw(8, 0x81), ErrMalformed},
		{"first flag missing", raw(8, 0), ErrLength},
		{"last flag too early", raw(8, 3), ErrLength},
		{"payload longer than the frame", u32(12, 4), ErrMalformed},
		{"payload of 4 GB", u32(12, 1<<32-1), ErrMalformed},
		{"position after the end", u64(56, 11), ErrLength},
		{"position overflows", u64(56, 1<<64-2), ErrLength},
		{"chunk longer than the transfer", u64(64, 2), ErrLength},
		{"total of 2^63", u64(64, 1<<63), ErrOutOfRange},
		{"offset of 2^64", u64(48, 1<<64-1), ErrOutOfRange},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := sampleHeader()
			b := make([]byte, headerBytes)
			h.put(b)
			c.edit(b)
			le.PutUint64(b[168:], xxh3.Hash(b[:168]))
			if _, err := parseHeader(b, headerBytes+3); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
	h := sampleHeader()
	b := make([]byte, headerBytes)
	h.put(b)
	for i := range b {
		b[i] ^= 4
		if _, err := parseHeader(b, headerBytes+3); err == nil {
			t.Fatalf("a flipped bit in byte %d was not seen", i)
		}
		b[i] ^= 4
	}
}

func TestReplyRoundTripAndRefusals(t *testing.T) {
	want := reply{kind: kindRefusal, code: codeLength, transfer: 5, position: 6, message: "why"}
	b := want.encode()
	got, err := parseReply(b)
	if err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		b[i] ^= 4
		if _, err := parseReply(b); err == nil {
			t.Fatalf("a flipped bit in byte %d was not seen", i)
		}
		b[i] ^= 4
	}
	for n := range len(b) {
		if _, err := parseReply(b[:n]); err == nil {
			t.Fatalf("%d of %d bytes were taken", n, len(b))
		}
	}
	long := reply{kind: kindRefusal, message: strings.Repeat("x", 10_000)}
	if r, err := parseReply(long.encode()); err != nil || len(r.message) != maxMessage {
		t.Fatalf("%d bytes, %v", len(r.message), err)
	}
}

func TestEveryCodeHasItsSentinel(t *testing.T) {
	for c := codeMalformed; c <= lastCode; c++ {
		if c == codeGap {
			continue // to its sender an unexpected frame
		}
		if got := codeOf(c.sentinel()); got != c {
			t.Errorf("code %d comes back as %d", c, got)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	h := sampleHeader()
	f.Add(encode(h, []byte("abc")))
	f.Add(encode(header{kind: kindHello, transfer: 1}, nil))
	f.Add(encode(header{kind: kindAbort, transfer: 1}, nil))
	f.Add(encode(header{kind: kindRead, transfer: 1, region: 2, position: 1, total: 9}, nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseHeader(b[:min(len(b), headerBytes)], len(b))
		if err != nil {
			return
		}
		again := make([]byte, headerBytes)
		got.put(again)
		if diff := cmp.Diff(b[:headerBytes], again); diff != "" {
			t.Fatalf("a header that was taken is not the one that it says: %s", diff)
		}
		if uint64(got.payload) > ChunkBytes || got.kind == kindChunk && got.position+uint64(got.payload) > got.total {
			t.Fatalf("taken: %+v", got)
		}
	})
}

// FuzzParseHeaderFields lets the fuzzer past the header's checksum.
func FuzzParseHeaderFields(f *testing.F) {
	h := sampleHeader()
	f.Add(encode(h, []byte("abc")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerBytes {
			return
		}
		binary.LittleEndian.PutUint64(b[168:], xxh3.Hash(b[:168]))
		got, err := parseHeader(b[:headerBytes], len(b))
		if err != nil || got.kind != kindChunk {
			return
		}
		if int(got.payload) != len(b)-headerBytes || got.position+uint64(got.payload) > got.total || got.total > MaxTransferBytes {
			t.Fatalf("taken: %+v", got)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add((&reply{kind: kindAck, transfer: 1, position: 2}).encode())
	f.Add((&reply{kind: kindRefusal, code: codeChecksum, message: "m"}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseReply(b)
		if err != nil {
			return
		}
		if again, err := parseReply(r.encode()); err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

// TestCorpusIsCommitted keeps the fuzz targets from losing their seeds.
func TestCorpusIsCommitted(t *testing.T) {
	for _, target := range []string{"FuzzParseHeader", "FuzzParseHeaderFields", "FuzzParseReply"} {
		seeds, err := filepath.Glob(filepath.Join("testdata", "fuzz", target, "*"))
		if err != nil || len(seeds) == 0 {
			t.Errorf("%s has no corpus: %v", target, err)
		}
		for _, s := range seeds {
			if st, err := os.Stat(s); err != nil || st.Size() > 64<<10 {
				t.Errorf("%s: %v", s, err)
			}
		}
	}
}
