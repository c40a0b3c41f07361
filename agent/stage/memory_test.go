// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/tensor"
)

// near5 says whether two amounts differ by at most 5 %.
func near5(a, b tensor.Bytes) bool { return 20*max(a-b, b-a) <= max(a, b) }

// What is predicted is what is allocated, of every memory.
func TestPredictedPeakIsTheRealOne(t *testing.T) {
	for name, tc := range map[string]struct {
		kinds  []offload.Kind
		change func(*stage.Config)
	}{
		"resident":        {},
		"stored":          {change: func(c *stage.Config) { c.Stored, c.Slots = true, 2 }},
		"RAM":             {kinds: []offload.Kind{offload.RAM}},
		"donor, stored":   {kinds: []offload.Kind{offload.Donor}, change: func(c *stage.Config) { c.Stored = true }},
		"all, three deep": {kinds: []offload.Kind{offload.Donor, offload.RAM, offload.Remote, offload.Disk}, change: func(c *stage.Config) { c.Ring = 3 }},
		"disk alone":      {kinds: []offload.Kind{offload.Disk, offload.Disk, offload.Disk, offload.Disk, offload.Disk}},
		"fp8":             {kinds: []offload.Kind{offload.RAM, offload.Disk}, change: func(c *stage.Config) { c.Storage, c.Stored = "fp8", true }},
		"two in flight":   {kinds: []offload.Kind{offload.RAM}, change: func(c *stage.Config) { c.InFlight = 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, 0, 0, 0)
			var tiers []offload.Tier
			for i, k := range tc.kinds {
				tiers = append(tiers, b.tier(k, i, 1))
			}
			cfg := b.config(tiers...)
			if tc.change != nil {
				tc.change(&cfg)
			}
			st := forwardOnce(t, b.device, cfg)
			_, peak, _ := b.device.Account()
			_, donor, _ := b.peer.Account()
			_, host, _ := b.host.Use()
			need := st.Need()
			if !near5(need.Device, peak) || !near5(need.Host, host) || !near5(need.Donors["sim:1"], donor) {
				t.Errorf("predicted %v; real: device %v, host %v, donor %v", need, peak, host, donor)
			}
		})
		t.Run(name+" on the CPU", func(t *testing.T) {
			b, s := newBox(t, 0, 0, 0), session(t, 0)
			cfg := b.config()
			if tc.change != nil {
				tc.change(&cfg)
			}
			for i, k := range tc.kinds {
				if k == offload.Remote || k == offload.Disk {
					cfg.Tiers = append(cfg.Tiers, b.tier(k, i, 1))
				}
			}
			cfg.Session = s
			st := forwardOnce(t, s, cfg)
			if _, peak, _ := s.Account(); !near5(st.Need().Device, peak) {
				t.Errorf("predicted %v, real %v", st.Need().Device, peak)
			}
		})
	}
}

// forwardOnce loads, runs once and closes.
func forwardOnce(t *testing.T, s engine.Session, cfg stage.Config) *stage.Stage {
	t.Helper()
	st, err := stage.Load(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r, f := begin(t, s, st, workload())
	defer func() { r.Close(); f.Conditioning.Free() }()
	if _, err := r.Do(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	return st
}

func TestCyclesKeepThePeak(t *testing.T) {
	b := newBox(t, 0, 0, 0)
	var first [3]tensor.Bytes
	for i := range 100 {
		cfg := b.config(b.tier(offload.Donor, 0, 1), b.tier(offload.RAM, 1, 1), b.tier(offload.Remote, 2, 1), b.tier(offload.Disk, 3, 1))
		cfg.Stored = i%2 == 1
		forwardOnce(t, b.device, cfg)
		var now [3]tensor.Bytes
		_, now[0], _ = b.device.Account()
		_, now[1], _ = b.peer.Account()
		_, now[2], _ = b.host.Use()
		if i == 1 {
			first = now
		}
		if i > 1 && now != first {
			t.Fatalf("cycle %d: peaks %v after %v", i, now, first)
		}
	}
}

// Where memory is short blocks go down a tier, with the same bits, or the load
// is refused with the numbers.
func TestFit(t *testing.T) {
	want := reference(t)
	free := newBox(t, 0, 0, 0)
	resident := forwardOnce(t, free.device, free.config()).Need()
	streaming := forwardOnce(t, free.device, free.config(free.tier(offload.RAM, 0, 5))).Need()
	donating := forwardOnce(t, free.device, free.config(free.tier(offload.Donor, 0, 4))).Need()
	for name, tc := range map[string]struct {
		memory, donor, host tensor.Bytes
		kinds               map[offload.Kind]bool // where blocks rest in the end
		donate              bool
		reserve             tensor.Bytes
	}{
		"enough":         {memory: resident.Device, kinds: map[offload.Kind]bool{offload.Device: true}},
		"a byte short":   {memory: resident.Device - 1, kinds: map[offload.Kind]bool{offload.Device: true, offload.RAM: true}},
		"reserve":        {memory: resident.Device, reserve: 1, kinds: map[offload.Kind]bool{offload.Device: true, offload.RAM: true}},
		"RAM short too":  {memory: streaming.Device, host: streaming.Host - 1, kinds: map[offload.Kind]bool{offload.Device: true, offload.RAM: true, offload.Disk: true}},
		"donor is short": {donate: true, donor: donating.Donors["sim:1"] - 1, kinds: map[offload.Kind]bool{offload.Device: true, offload.Donor: true, offload.RAM: true}},
	} {
		b := newBox(t, tc.memory, tc.donor, tc.host)
		cfg := b.config()
		if tc.donate {
			cfg.Tiers = []offload.Tier{b.tier(offload.Donor, 0, 4)}
		}
		cfg.Reserve = tc.reserve
		st, err := stage.Load(t.Context(), cfg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		kinds := map[offload.Kind]bool{}
		for k := range st.Resting() {
			kinds[k] = true
		}
		if diff := cmp.Diff(tc.kinds, kinds); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
		r, f := begin(t, b.device, st, workload())
		if _, err := r.Do(t.Context(), f); err != nil || !bytes.Equal(st.Outputs[0].Host(), want) {
			t.Errorf("%s: other bits (%v)", name, err)
		}
		short := len(st.Moved()) > 0
		r.Close()
		f.Conditioning.Free()
		st.Close()
		cfg.Fit = offload.Strict
		st, err = stage.Load(t.Context(), cfg)
		switch {
		case err == nil && short:
			t.Errorf("%s: accepted with fit strict", name)
		case err == nil:
			st.Close()
		case !short || !errors.Is(err, engine.ErrNoMemory) || !strings.Contains(err.Error(), "blocks 0-4 on sim:0"):
			t.Errorf("%s, strict: %v", name, err)
		}
	}
	tiny := newBox(t, 1<<20, 0, 0)
	if _, err := stage.Load(t.Context(), tiny.config()); !errors.Is(err, engine.ErrNoMemory) || !strings.Contains(err.Error(), "1 MiB") && !strings.Contains(err.Error(), tensor.Bytes(1<<20).String()) {
		t.Errorf("a device of 1 MiB: %v", err)
	}
}

// Blocks leave the device and come back while forwards run, and no bit changes.
func TestLendAndRestore(t *testing.T) {
	want := reference(t)
	for _, stored := range []bool{false, true} {
		b := newBox(t, 0, 0, 0)
		cfg := b.config(b.tier(offload.RAM, 0, 1))
		cfg.Stored, cfg.Ring = stored, 1
		st, err := stage.Load(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		r, f := begin(t, b.device, st, workload())
		before := used(b.device)
		do := func() {
			t.Helper()
			clear(st.Outputs[0].Host())
			if _, err := r.Do(t.Context(), f); err != nil || !bytes.Equal(st.Outputs[0].Host(), want) {
				t.Errorf("other bits (%v)", err)
			}
		}
		do()
		// In the middle of a forward: Stop is asked between two launches.
		asked := 0
		f.Stop = func() bool {
			if asked++; asked == 4 {
				freed, err := st.Lend(t.Context(), before/8)
				if err != nil || freed < before/8 || before-used(b.device) != freed {
					t.Errorf("lent %v of %v: %v; %v in use", freed, before/8, err, used(b.device))
				}
			}
			return false
		}
		do()
		f.Stop = nil
		if st.Resting()[offload.RAM].Blocks < 2 {
			t.Errorf("where blocks rest: %v", st.Resting())
		}
		do()
		all, err := st.Lend(t.Context(), 1<<40)
		if err != nil || all <= 0 || st.Resting()[offload.Device].Blocks != 0 {
			t.Errorf("lent all: %v, %v; %v", all, err, st.Resting())
		}
		do()
		if _, err := st.Lend(t.Context(), 1); !errors.Is(err, stage.ErrNothingToLend) {
			t.Errorf("nothing is left: %v", err)
		}
		asked = 0
		f.Stop = func() bool {
			if asked++; asked == 3 {
				if err := st.Restore(t.Context()); err != nil || used(b.device) != before {
					t.Errorf("restored: %v; %v in use, %v before", err, used(b.device), before)
				}
			}
			return false
		}
		do()
		f.Stop = nil
		do()
		r.Close()
		f.Conditioning.Free()
		st.Close()
	}
	s := session(t, 0)
	st, err := stage.Load(t.Context(), part(s, parse(t, newSource(golden(t).raw)), golden(t).program, 0, 5))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Lend(t.Context(), 1); !errors.Is(err, stage.ErrNothingToLend) {
		t.Errorf("a CPU lends: %v", err)
	}
}

// Memory that is used meanwhile is not taken back.
func TestRestoreWithoutRoom(t *testing.T) {
	free := newBox(t, 0, 0, 0)
	need := forwardOnce(t, free.device, free.config()).Need()
	b := newBox(t, need.Device, 0, 0)
	st, err := stage.Load(t.Context(), b.config())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	freed, err := st.Lend(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := b.device.Buffer(need.Device - used(b.device))
	if err != nil {
		t.Fatalf("%v were lent: %v", freed, err)
	}
	resting := st.Resting()
	if err := st.Restore(t.Context()); !errors.Is(err, engine.ErrNoMemory) {
		t.Errorf("restored without room: %v", err)
	}
	if diff := cmp.Diff(resting, st.Resting()); diff != "" {
		t.Error(diff)
	}
	other.Free()
	if err := st.Restore(t.Context()); err != nil {
		t.Error(err)
	}
}

// A checkpoint that changes under its blocks is named, not computed with.
func TestFileChangesUnderBlocks(t *testing.T) {
	b := newBox(t, 0, 0, 0)
	path := filepath.Join(t.TempDir(), "model.safetensors")
	if err := os.WriteFile(path, b.raw, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.config(b.tier(offload.Disk, 0, 5))
	cfg.Checkpoint = stage.Checkpoint{File: file}
	st, err := stage.Load(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := file.Close(); err != nil { // the stage has its own
		t.Fatal(err)
	}
	r, f := begin(t, b.device, st, workload())
	defer func() { r.Close(); f.Conditioning.Free() }()
	if _, err := r.Do(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err = r.Do(t.Context(), f)
	}
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "disk") || !strings.Contains(err.Error(), "changed") {
		t.Errorf("a changed file: %v", err)
	}
}

// A caller that leaves frees nothing under copies that are on the queue.
func TestCallerLeavesWhileBlocksCome(t *testing.T) {
	want := reference(t)
	b := newBox(t, 0, 0, 0)
	st, err := stage.Load(t.Context(), b.config(b.tier(offload.RAM, 0, 5)))
	if err != nil {
		t.Fatal(err)
	}
	r, f := begin(t, b.device, st, workload())
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		asked := 0
		f.Stop = func() bool {
			if asked++; asked == 5 {
				cancel()
			}
			return false
		}
		if _, err := r.Do(ctx, f); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		f.Stop = nil
		cancel()
	}
	if _, err := r.Do(t.Context(), f); err != nil || !bytes.Equal(st.Outputs[0].Host(), want) {
		t.Errorf("after callers that left: other bits (%v)", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.Stop = func() bool { cancel(); return false }
	if _, err := r.Do(ctx, f); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.Close()
	f.Conditioning.Free()
	st.Close()
}

// Traffic is counted by tier: what streamed, and which uses found their block.
func TestTraffic(t *testing.T) {
	b := newBox(t, 0, 0, 0)
	st, err := stage.Load(t.Context(), b.config(b.tier(offload.RAM, 0, 2), b.tier(offload.Donor, 2, 1)))
	if err != nil {
		t.Fatal(err)
	}
	r, f := begin(t, b.device, st, workload())
	const forwards = 5
	for range forwards {
		if _, err := r.Do(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	resting := st.Resting()
	r.Close()
	f.Conditioning.Free()
	st.Close()
	traffic := st.Traffic()
	for k, blocks := range map[offload.Kind]uint64{offload.RAM: 2, offload.Donor: 1} {
		got := traffic[k]
		if got.Uses != forwards*blocks || got.Hits > got.Uses || got.Hits < got.Uses && got.Stall == 0 {
			t.Errorf("%v: %+v", k, got)
		}
		// The ring is ahead by up to two blocks.
		if least := forwards * resting[k].Bytes; got.Streamed < least || got.Streamed > least+2*resting[k].Bytes {
			t.Errorf("%v: %v streamed, %v rest there", k, got.Streamed, resting[k].Bytes)
		}
	}
	if d := traffic[offload.Disk]; d != (offload.Traffic{}) || d.HitRate() != 1 {
		t.Errorf("nothing rests on disk: %+v", d)
	}
}

// Lending beside forwards, from another goroutine, changes no bit.
func TestLendBesideForwards(t *testing.T) {
	want := reference(t)
	b := newBox(t, 0, 0, 0)
	cfg := b.config(b.tier(offload.RAM, 0, 1), b.tier(offload.Remote, 2, 1))
	cfg.Ring = 1
	st, err := stage.Load(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r, f := begin(t, b.device, st, workload())
	stop, ended := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { ended <- n }()
		for ; ; n++ {
			if _, err := st.Lend(t.Context(), 1); err != nil {
				t.Error(err)
				return
			}
			st.Traffic()
			st.Resting()
			if err := st.Restore(t.Context()); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for range 30 {
		clear(st.Outputs[0].Host())
		if _, err := r.Do(t.Context(), f); err != nil || !bytes.Equal(st.Outputs[0].Host(), want) {
			t.Errorf("other bits (%v)", err)
		}
	}
	close(stop)
	if n := <-ended; n == 0 {
		t.Error("nothing was lent meanwhile")
	}
	r.Close()
	f.Conditioning.Free()
	st.Close()
}
