// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/engine/sim"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// box is a machine with two simulated devices.
type box struct {
	model
	file         checkpoint.File
	host         *engine.Account
	device, peer engine.Session
	near         *neighbour
}

// newBox has devices and a host of these sizes; 0 is 1 GiB, and no limit.
func newBox(t *testing.T, memory, donor, host tensor.Bytes) *box {
	t.Helper()
	all := isa.Supported()
	b := &box{model: golden(t), host: engine.NewAccount(host, "use less of it"), near: &neighbour{}}
	one := func(name engine.DeviceID, n tensor.Bytes) sim.Device {
		if n == 0 {
			n = 1 << 30
		}
		return sim.Device{Name: name, Memory: n, Threads: 2}
	}
	e, err := sim.New(sim.Config{ISA: all[len(all)-1], Host: b.host, Devices: []sim.Device{one("sim:0", memory), one("sim:1", donor)}})
	if err != nil {
		t.Fatal(err)
	}
	for id, to := range map[engine.DeviceID]*engine.Session{"sim:0": &b.device, "sim:1": &b.peer} {
		if *to, err = e.Open(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if n := used(*to); n != 0 {
				t.Errorf("%v of %s in use in the end", n, id)
			}
			if err := (*to).Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		if n, _, _ := b.host.Use(); n != 0 {
			t.Errorf("%v of the host in use in the end", n)
		}
	})
	b.file = checkpoint.Safetensors(parse(t, newSource(b.raw)))
	return b
}

// config is the whole model on the first device.
func (b *box) config(tiers ...offload.Tier) stage.Config {
	cfg := stage.Config{
		Session: b.device, Checkpoint: stage.Checkpoint{File: b.file}, Program: b.program, Blocks: 5, Head: true, Tail: true, Tiers: tiers,
	}
	cfg.Checkpoint.Open = func() (checkpoint.File, error) { return b.file, nil }
	return cfg
}

// tier is one of a kind for some blocks.
func (b *box) tier(k offload.Kind, first, blocks int) offload.Tier {
	t := offload.Tier{FirstBlock: first, Blocks: blocks, Kind: k}
	switch k {
	case offload.Donor:
		t.Donor = b.peer
	case offload.Remote:
		t.Place = b.near
	}
	return t
}

// neighbour is another node's RAM, without a network.
type neighbour struct {
	mu     sync.Mutex // an earlier stage may still read ahead while the next one claims
	blocks [][]byte
	open   int
	broken error // of reads; nil for none
}

func (n *neighbour) Name() string { return "next-door" }

func (n *neighbour) Claim(_ context.Context, sizes []tensor.Bytes) (offload.Claim, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open++
	n.blocks = make([][]byte, len(sizes))
	return n, nil
}

func (n *neighbour) Store(_ context.Context, i int, src []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.blocks[i] = bytes.Clone(src)
	return nil
}

func (n *neighbour) Reader(i int) offload.Reader { return &far{n, i} }

func (n *neighbour) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open--
}

func (n *neighbour) set(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = err
}

type far struct {
	of *neighbour
	i  int
}

func (f *far) Bytes() tensor.Bytes {
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	return tensor.Bytes(len(f.of.blocks[f.i]))
}

func (f *far) Read(ctx context.Context, dst []byte) error {
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	if f.of.broken != nil {
		return fmt.Errorf("node next-door: %w", f.of.broken)
	}
	copy(dst, f.of.blocks[f.i])
	return ctx.Err()
}

func (f *far) Close() error { return nil }

// begin makes a run with inputs of its own.
func begin(t testing.TB, s engine.Session, st *stage.Stage, dims graph.Dims) (*stage.Run, stage.Forward) {
	t.Helper()
	r, err := st.NewRun(t.Context(), dims)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.HostBuffer(graph.ConditioningLayout(r.Program()).Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range [][]byte{st.Inputs[0].Host(), c.Host()} {
		v := make([]float32, len(b)/4)
		for k := range v {
			v[k] = float32((k*7+i)%13)/13 - 0.4
		}
		tensor.PutF32(b, v)
	}
	return r, stage.Forward{Conditioning: c}
}

// reference is the output of the plain native engine.
func reference(t *testing.T) []byte {
	t.Helper()
	st, r, f, _ := loadedOn(t, opened(t, plainNative(t, 0), native.CPU))
	defer func() { r.Close(); f.Conditioning.Free(); st.Close() }()
	if _, err := r.Do(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(st.Outputs[0].Host())
}

// However blocks rest, whatever the ring's depth, after whatever was cancelled
// before: the bits are those of the plain engine.
func TestBitsDoNotDependOnTiers(t *testing.T) {
	want := reference(t)
	b := newBox(t, 0, 0, 0)
	rapid.Check(t, func(rt *rapid.T) {
		cfg := b.config()
		for block := range 5 {
			k := rapid.SampledFrom(offload.Kinds()).Draw(rt, fmt.Sprintf("tier of block %d", block))
			if last := len(cfg.Tiers) - 1; last >= 0 && cfg.Tiers[last].Kind == k && k == offload.Remote {
				cfg.Tiers[last].Blocks++ // one claim of the neighbour at a time
				continue
			}
			if k == offload.Remote && slices.ContainsFunc(cfg.Tiers, func(t offload.Tier) bool { return t.Kind == k }) {
				k = offload.RAM
			}
			cfg.Tiers = append(cfg.Tiers, b.tier(k, block, 1))
		}
		cfg.Stored = rapid.Bool().Draw(rt, "stored")
		cfg.Slots = rapid.IntRange(1, 3).Draw(rt, "slots")
		cfg.Ring = rapid.IntRange(1, 6).Draw(rt, "ring")
		st, err := stage.Load(t.Context(), cfg)
		if err != nil {
			rt.Fatal(err)
		}
		defer st.Close()
		r, f := begin(t, b.device, st, workload())
		defer func() { r.Close(); f.Conditioning.Free() }()
		for n := range rapid.IntRange(1, 4).Draw(rt, "forwards") {
			if stop := rapid.IntRange(0, 8).Draw(rt, "stopped after"); stop < 8 {
				f.Stop = func() bool { stop--; return stop < 0 }
				if _, err := r.Do(t.Context(), f); !errors.Is(err, stage.ErrStopped) {
					rt.Fatalf("forward %d was not stopped: %v", n, err)
				}
				f.Stop = nil
			}
			clear(st.Outputs[0].Host())
			if _, err := r.Do(t.Context(), f); err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(st.Outputs[0].Host(), want) {
				rt.Fatalf("forward %d: other bits", n)
			}
		}
	})
	if b.near.open != 0 {
		t.Errorf("%d claims are still open", b.near.open)
	}
}

// settle waits for the copies that the ring has issued ahead.
func (b *box) settle(t *testing.T) {
	t.Helper()
	host, err := b.device.HostBuffer(128)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Free()
	if err := b.device.Wait(t.Context(), b.device.Fetch(host, 64, host, 0, 64)); err != nil {
		t.Fatal(err)
	}
}

// What a donor's arena holds is what is computed with.
func TestDonorsArenaIsReal(t *testing.T) {
	want := reference(t)
	b := newBox(t, 0, 0, 0)
	flip := &flipping{Session: b.peer}
	tier := b.tier(offload.Donor, 1, 2)
	tier.Donor = flip
	st, err := stage.Load(t.Context(), b.config(tier))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r, f := begin(t, b.device, st, workload())
	defer func() { r.Close(); f.Conditioning.Free() }()
	do := func() []byte {
		if _, err := r.Do(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		return st.Outputs[0].Host()
	}
	if !bytes.Equal(do(), want) {
		t.Error("other bits before anything was changed")
	}
	b.settle(t)
	flip.flip(t)
	do() // its first blocks were in the ring already
	if bytes.Equal(do(), want) {
		t.Error("a byte of the donor's arena was flipped, and the bits are the same")
	}
	b.settle(t)
	flip.flip(t)
	do()
	if !bytes.Equal(do(), want) {
		t.Error("other bits when it was flipped back")
	}
}

// flipping is a donor that remembers its buffers.
type flipping struct {
	engine.Session
	all []engine.Buffer
}

func (s *flipping) Buffer(n tensor.Bytes) (engine.Buffer, error) {
	b, err := s.Session.Buffer(n)
	s.all = append(s.all, b)
	return b, err
}

// flip changes the sign of a weight in the middle of the first buffer.
func (s *flipping) flip(t *testing.T) {
	t.Helper()
	host, err := s.HostBuffer(s.all[0].Bytes())
	if err != nil {
		t.Fatal(err)
	}
	defer host.Free()
	n := host.Bytes()
	if err := s.Wait(t.Context(), s.Fetch(host, 0, s.all[0], 0, n)); err != nil {
		t.Fatal(err)
	}
	host.Host()[n/8*4+3] ^= 0x80
	if err := s.Wait(t.Context(), s.Fetch(s.all[0], 0, host, 0, n)); err != nil {
		t.Fatal(err)
	}
}

// An error of a tier names block, tier and device on the forward that needs the
// block; the next forward tries again.
func TestErrorsOfTiers(t *testing.T) {
	want := reference(t)
	b := newBox(t, 0, 0, 0)
	st, err := stage.Load(t.Context(), b.config(b.tier(offload.RAM, 1, 2), b.tier(offload.Remote, 3, 2)))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r, f := begin(t, b.device, st, workload())
	defer func() { r.Close(); f.Conditioning.Free() }()
	gone := errors.New("it was unplugged")
	b.near.set(gone)
	var res stage.Result
	for range 3 { // what was read before is in the ring
		res, err = r.Do(t.Context(), f)
	}
	if !errors.Is(err, gone) {
		t.Fatalf("a node that is gone: %v", err)
	}
	for _, name := range []string{"single_blocks 1", "remote", "next-door", "sim:0"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not name %s", err, name)
		}
	}
	if res.Blocks != 3 {
		t.Errorf("%d blocks before the one that is gone", res.Blocks)
	}
	b.near.set(nil)
	if _, err := r.Do(t.Context(), f); err != nil || !bytes.Equal(st.Outputs[0].Host(), want) {
		t.Errorf("when the node is back: %v", err)
	}
}

// Eight bits by choice change the values, once: however blocks then rest, the
// bits are the same.
func TestFP8ByChoice(t *testing.T) {
	plain := reference(t)
	b := newBox(t, 0, 0, 0)
	cpu := opened(t, plainNative(t, 0), native.CPU)
	var want []byte
	for _, tc := range []struct {
		name   string
		kind   offload.Kind
		stored bool
		s      engine.Session
	}{
		{"on the CPU", offload.Device, false, cpu},
		{"stored on the CPU", offload.Device, true, cpu},
		{"on disk, for the CPU", offload.Disk, true, cpu},
		{"resident", offload.Device, false, b.device},
		{"stored in RAM", offload.RAM, true, b.device},
		{"packed in RAM", offload.RAM, false, b.device},
		{"stored on a donor", offload.Donor, true, b.device},
		{"on disk", offload.Disk, false, b.device},
		{"stored on another node", offload.Remote, true, b.device},
	} {
		cfg := b.config(b.tier(tc.kind, 0, 5))
		cfg.Session, cfg.Stored, cfg.Storage = tc.s, tc.stored, "fp8"
		st, err := stage.Load(t.Context(), cfg)
		if err != nil {
			t.Fatal(tc.name, err)
		}
		r, f := begin(t, tc.s, st, workload())
		if _, err := r.Do(t.Context(), f); err != nil {
			t.Fatal(tc.name, err)
		}
		got := bytes.Clone(st.Outputs[0].Host())
		r.Close()
		f.Conditioning.Free()
		st.Close()
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: other bits", tc.name)
		}
	}
	if bytes.Equal(want, plain) {
		t.Error("eight bits changed nothing: no matrix was quantised")
	}
	cfg := b.config()
	cfg.Storage = "fp4"
	if _, err := stage.Load(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "fp4") {
		t.Errorf("storage fp4: %v", err)
	}
}
