// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/model/tensor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const blockBytes = 1 << 20

// bench is a simulated device whose copies to the device take 1 ms for a block,
// and from it, which stand for computing, as long as is asked.
type bench struct {
	t       *testing.T
	s       engine.Session
	out     engine.Buffer // of the host
	buffers []engine.Buffer
}

func newBench(t *testing.T, compute time.Duration) *bench {
	const rate = blockBytes * 1000
	e, err := sim.New(sim.Config{ISA: isa.Generic, Host: engine.NewAccount(0, ""), Devices: []sim.Device{
		{Name: "sim:0", Memory: 1 << 30, H2D: rate, D2H: blockBytes / compute.Seconds(), Peer: rate},
	}})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t}
	if b.s, err = e.Open(t.Context(), "sim:0"); err != nil {
		t.Fatal(err)
	}
	b.out = b.host(0)
	return b
}

func (b *bench) take(x engine.Buffer, err error) engine.Buffer {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	b.buffers = append(b.buffers, x)
	return x
}

// host is host memory that holds a block of one byte's value.
func (b *bench) host(value byte) engine.Buffer {
	x := b.take(b.s.HostBuffer(blockBytes))
	for i := range x.Host() {
		x.Host()[i] = value
	}
	return x
}

func (b *bench) config(slots, bounces int, blocks ...offload.Block) offload.Config {
	cfg := offload.Config{Session: b.s, Blocks: blocks}
	for range slots {
		cfg.Slots = append(cfg.Slots, b.take(b.s.Buffer(blockBytes)))
	}
	for range bounces {
		cfg.Bounces = append(cfg.Bounces, b.host(0))
	}
	return cfg
}

func (b *bench) close() {
	for _, x := range b.buffers {
		x.Free()
	}
	if err := b.s.Close(); err != nil {
		b.t.Error(err)
	}
}

// inRAM are n blocks that hold their own numbers.
func (b *bench) inRAM(n int) (out []offload.Block) {
	for i := range n {
		out = append(out, offload.Block{Name: fmt.Sprint("block ", i), Kind: offload.RAM, Bytes: blockBytes, Buffer: b.host(byte(i))})
	}
	return out
}

// forward uses n blocks and says which.
func (b *bench) forward(ctx context.Context, r *offload.Ring, n int) (got []byte, err error) {
	last := engine.Event(0)
	for range n {
		st, err := r.Next(ctx)
		if err != nil {
			return got, err
		}
		// One byte of the block says which it is; the copy is the computing.
		before := last
		last = b.s.Copy(b.out, 0, st.Buffer, 0, blockBytes, before, st.Ready)
		r.Used(last, before)
		if err := b.s.Wait(ctx, last); err != nil {
			return got, err
		}
		got = append(got, b.out.Host()[blockBytes-1])
	}
	return got, nil
}

// A step costs the larger of computing and bringing, not the sum.
func TestStepIsTheLargerOfTwo(t *testing.T) {
	for _, compute := range []time.Duration{200 * time.Microsecond, 900 * time.Microsecond, time.Millisecond, 1100 * time.Microsecond, 4 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, compute)
			defer b.close()
			const n = 8
			r, err := offload.Open(b.config(2, 0, b.inRAM(n)...))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var took time.Duration
			for range 3 {
				began := time.Now()
				got, err := b.forward(t.Context(), r, n)
				if err != nil {
					t.Fatal(err)
				}
				took = time.Since(began)
				for i, x := range got {
					if int(x) != i {
						t.Fatalf("blocks came as %v", got)
					}
				}
			}
			if want := n * max(compute, time.Millisecond); took > want+want/20 {
				t.Errorf("computing %v: a step of %d blocks took %v, want %v", compute, n, took, want)
			}
			all := r.Traffic()
			got := all.Total()
			if got.Uses != 3*n || compute > time.Millisecond && (got.HitRate() < 0.9 || got.Stall > 2*time.Millisecond) || compute < time.Millisecond/2 && got.HitRate() > 0.5 {
				t.Errorf("computing %v: %+v", compute, got)
			}
		})
	}
}

// reader reads slowly and says how many read at a time.
type reader struct {
	value byte
	takes time.Duration
	err   error
	of    *readers
}

type readers struct {
	mu        sync.Mutex
	now, most int
}

func (r *reader) Bytes() tensor.Bytes { return blockBytes }

func (r *reader) Read(ctx context.Context, dst []byte) error {
	r.of.mu.Lock()
	r.of.now++
	r.of.most = max(r.of.most, r.of.now)
	r.of.mu.Unlock()
	defer func() {
		r.of.mu.Lock()
		r.of.now--
		r.of.mu.Unlock()
	}()
	select {
	case <-time.After(r.takes):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for i := range dst {
		dst[i] = r.value
	}
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	return r.err
}

func (r *reader) fail(err error) {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.err = err
}

func (r *reader) Close() error { return nil }

// Reads run ahead, beside each other and beside computing.
func TestReadsRunAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 10*time.Millisecond)
		defer b.close()
		of := &readers{}
		var blocks []offload.Block
		for i := range 6 {
			blocks = append(blocks, offload.Block{
				Name: fmt.Sprint("block ", i), Kind: offload.Remote, Where: "next-door", Bytes: blockBytes,
				Reader: &reader{value: byte(i), takes: 15 * time.Millisecond, of: of},
			})
		}
		r, err := offload.Open(b.config(2, 2, blocks...))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.forward(t.Context(), r, 6); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		got, err := b.forward(t.Context(), r, 6)
		if err != nil || string(got) != "\x00\x01\x02\x03\x04\x05" {
			t.Fatal(got, err)
		}
		// Two at a time of 15 ms each keep up with 10 ms of computing.
		if took := time.Since(began); took > 63*time.Millisecond {
			t.Errorf("six blocks of 10 ms took %v", took)
		}
		if of.most != 2 {
			t.Errorf("%d reads at a time", of.most)
		}
		r.Close() // in the middle of a read
		if of.now != 0 {
			t.Errorf("%d reads after Close", of.now)
		}
		if _, err := r.Next(t.Context()); err == nil {
			t.Error("a closed ring gave a block")
		}
	})
}

// A forward that ends early leaves nothing behind, and a read that fails is
// tried again by the next forward.
func TestRewind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Millisecond)
		defer b.close()
		broken := &reader{value: 3, takes: time.Millisecond, of: &readers{}}
		blocks := append(b.inRAM(3), offload.Block{Name: "block 3", Kind: offload.Disk, Where: "file", Bytes: blockBytes, Reader: broken})
		for slots := 1; slots <= 5; slots++ {
			r, err := offload.Open(b.config(slots, 1, blocks...))
			if err != nil {
				t.Fatal(err)
			}
			for n := range 5 {
				if _, err := b.forward(t.Context(), r, n); err != nil {
					t.Fatal(err)
				}
				r.Rewind()
				got, err := b.forward(t.Context(), r, 4)
				if err != nil || string(got) != "\x00\x01\x02\x03" {
					t.Fatalf("%d slots, after %d blocks: %v, %v", slots, n, got, err)
				}
			}
			synctest.Wait()
			broken.fail(errors.New("bad sector"))
			r.Rewind()
			for err == nil {
				_, err = b.forward(t.Context(), r, 4)
			}
			for _, name := range []string{"block 3", "disk", "file", "sim:0", "bad sector"} {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("%q does not name %s", err, name)
				}
			}
			broken.fail(nil)
			r.Rewind()
			if got, err := b.forward(t.Context(), r, 4); err != nil || string(got) != "\x00\x01\x02\x03" {
				t.Fatalf("%d slots, after a failed read: %v, %v", slots, got, err)
			}
			r.Close()
		}
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, time.Millisecond)
		defer b.close()
		r, err := offload.Open(b.config(1, 1, offload.Block{Name: "far", Bytes: blockBytes, Kind: offload.Remote, Reader: &reader{takes: time.Hour, of: &readers{}}}))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestRingsThatCannotBe(t *testing.T) {
	b := newBench(t, time.Millisecond)
	defer b.close()
	for name, cfg := range map[string]offload.Config{
		"no blocks":  b.config(1, 0),
		"no slots":   b.config(0, 0, b.inRAM(1)...),
		"no bounces": b.config(1, 0, offload.Block{Name: "far", Reader: &reader{}}),
	} {
		if _, err := offload.Open(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
