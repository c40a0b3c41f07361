// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donorlink

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/internal/netns"
	"github.com/distorch/distorch/model/tensor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Blocks come over a link of 1 Gbit/s at its rate, and over one of 100 Mbit/s
// sooner when they are compressed, with the same bits.
func TestRates(t *testing.T) {
	e, err := native.New(native.Config{ISA: isa.Supported()[0], Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	room, err := e.Open(t.Context(), native.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer room.Close()
	l, err := New(t.Context(), Config{BitsPerSecond: 1e9, Room: room, Offer: 1 << 30, Threads: 1})
	if errors.Is(err, netns.ErrUnsupported) {
		t.Skipf("kernel facility missing: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	block := make([]byte, 4<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(block); i += 2 {
		v := tensor.BF16FromF32(float32(r.NormFloat64()) / 50)
		block[i], block[i+1] = byte(v), byte(v>>8)
	}
	read := func(compressed bool) time.Duration {
		c, err := l.Claim(t.Context(), []tensor.Bytes{tensor.Bytes(len(block))}, compressed)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Store(t.Context(), 0, block); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(block))
		best := time.Hour
		for range 3 {
			clear(got)
			begin := time.Now()
			if err := c.Reader(0).Read(t.Context(), got); err != nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(begin))
			if !bytes.Equal(got, block) {
				t.Fatal("bytes differ")
			}
		}
		return best
	}
	plain := read(false)
	t.Logf("1 Gbit/s: %v for %d bytes, %.0f %% of the link", plain, len(block), 100*float64(len(block))*8/1e9/plain.Seconds())
	if plain < 20*time.Millisecond {
		t.Error("the link is not shaped")
	}
	if err := l.SetRate(100e6); err != nil {
		t.Fatal(err)
	}
	plain, compressed := read(false), read(true)
	t.Logf("100 Mbit/s: plain %v, compressed %v", plain, compressed)
	if compressed >= plain {
		t.Error("compression does not pay")
	}
}
