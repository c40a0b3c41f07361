// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage_test

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
)

// counted is a checkpoint that counts what is read of it.
type counted struct {
	checkpoint.File
	read *atomic.Int64
}

func (c counted) ReadPart(dst []byte, part int, offset int64) error {
	c.read.Add(int64(len(dst)))
	return c.File.ReadPart(dst, part, offset)
}

func (c counted) ReadAt(dst []byte, t checkpoint.Tensor, offset int64) error {
	c.read.Add(int64(len(dst)))
	return c.File.ReadAt(dst, t, offset)
}

// output is a stage's, with every LoRA at a strength.
func output(t *testing.T, s engine.Session, st *stage.Stage, strength float32) []byte {
	t.Helper()
	r, f := begin(t, s, st, workload())
	defer func() { r.Close(); f.Conditioning.Free() }()
	l, _ := graph.StepLayout(r.Program())
	for _, v := range l.Values {
		if v.Name == lora.StrengthInput {
			tensor.PutF32(st.Inputs[0].Host()[v.Place.Offset:], []float32{strength})
		}
	}
	if _, err := r.Do(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(st.Outputs[0].Host())
}

func load(t *testing.T, cfg stage.Config, previous *stage.Stage) *stage.Stage {
	t.Helper()
	cfg.Previous = previous
	st, err := stage.Load(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// takesOver goes from no LoRA to one, another, and none again on one session,
// and holds every stage against one that was loaded from its files.
func takesOver(t *testing.T, b *box, s engine.Session, change func(*stage.Config), reads bool) {
	t.Helper()
	read := &atomic.Int64{}
	base := counted{goldenFile(t, "dev", "model.safetensors"), read}
	plain := b.config()
	plain.Checkpoint = stage.Checkpoint{File: base, Open: func() (checkpoint.File, error) { return checkpoint.Open(base.Path()) }}
	var st *stage.Stage
	for i, cfg := range []stage.Config{
		plain, loraOn(t, b, base, "lora-kohya", lora.Add), loraOn(t, b, base, "lora-peft", lora.Add), plain, plain,
	} {
		cfg.Session = s
		change(&cfg)
		fresh := load(t, cfg, nil)
		want := output(t, s, fresh, 0.7)
		fresh.Close()
		read.Store(0)
		st = load(t, cfg, st)
		if n := read.Load(); i > 0 && n > 0 && !reads {
			t.Errorf("step %d read %d bytes of the checkpoint", i, n)
		}
		if !bytes.Equal(output(t, s, st, 0.7), want) {
			t.Errorf("step %d: other bits than loaded from the files", i)
		}
	}
	st.Close()
	for name, account := range map[string]func() (used, peak, limit tensor.Bytes){"device": s.Account, "host": s.HostAccount} {
		if n, _, _ := account(); n != 0 {
			t.Errorf("%v of the %s in use in the end", n, name)
		}
	}
}

// A stage takes the weights over that an earlier one has, wherever they rest,
// with the bits of the files and without reading them.
func TestTakeOver(t *testing.T) {
	for _, k := range []offload.Kind{offload.Device, offload.RAM, offload.Donor, offload.Remote, offload.Disk} {
		for _, stored := range []bool{false, true} {
			for _, storage := range []string{"", "fp8"} {
				t.Run(fmt.Sprintf("%v stored %v %s", k, stored, storage), func(t *testing.T) {
					b := newBox(t, 0, 0, 0)
					takesOver(t, b, b.device, func(cfg *stage.Config) {
						cfg.Stored, cfg.Storage = stored || storage != "", storage
						if k != offload.Device {
							cfg.Tiers = []offload.Tier{b.tier(k, 1, 3)}
						}
					}, k == offload.Remote || k == offload.Disk)
				})
			}
		}
	}
	t.Run("the CPU", func(t *testing.T) {
		b := newBox(t, 0, 0, 0)
		takesOver(t, b, opened(t, plainNative(t, 0), native.CPU), func(*stage.Config) {}, false)
	})
}

func TestTakeOverOnPyTorch(t *testing.T) {
	e := torchtest.Streams(t, torch.Config{Threads: 2})
	b := newBox(t, 0, 0, 0)
	for _, stored := range []bool{false, true} {
		takesOver(t, b, opened(t, e.Limited(0), torchtest.StreamsDevice), func(cfg *stage.Config) { cfg.Stored = stored }, false)
		takesOver(t, b, opened(t, e.Limited(0), torchtest.StreamsDevice), func(cfg *stage.Config) {
			cfg.Stored, cfg.Tiers = stored, []offload.Tier{b.tier(offload.RAM, 1, 3)}
		}, false)
	}
}

// Blocks that move to another tier come from where they were; where there is no
// room for a block twice, it is read again.
func TestTakeOverElsewhere(t *testing.T) {
	b := newBox(t, 0, 0, 0)
	base := goldenFile(t, "dev", "model.safetensors")
	with := loraOn(t, b, base, "lora-kohya", lora.Add)
	fresh := load(t, with, nil)
	want := output(t, b.device, fresh, 0.7)
	need := fresh.Need().Device
	fresh.Close()
	plain := b.config()
	var st *stage.Stage
	for i, k := range []offload.Kind{offload.RAM, offload.Donor, offload.Disk, offload.RAM} {
		st = load(t, plain, st)
		cfg := with
		cfg.Tiers = []offload.Tier{b.tier(k, 0, 4)}
		if st = load(t, cfg, st); !bytes.Equal(output(t, b.device, st, 0.7), want) {
			t.Errorf("step %d: other bits", i)
		}
	}
	st.Close()

	tight := newBox(t, need+need/50, 0, 0)
	with.Session, plain.Session = tight.device, tight.device
	st = load(t, plain, nil)
	if st = load(t, with, st); !bytes.Equal(output(t, tight.device, st, 0.7), want) {
		t.Error("without room for a block twice: other bits")
	}
	st.Close()
}

// Blocks that are lent out of the device when they are taken over come back to it.
func TestTakeOverOfWhatIsLent(t *testing.T) {
	b := newBox(t, 0, 0, 0)
	with := loraOn(t, b, goldenFile(t, "dev", "model.safetensors"), "lora-kohya", lora.Add)
	fresh := load(t, with, nil)
	want := output(t, b.device, fresh, 0.7)
	fresh.Close()
	st := load(t, b.config(), nil)
	if _, err := st.Lend(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if st = load(t, with, st); !bytes.Equal(output(t, b.device, st, 0.7), want) {
		t.Error("other bits")
	}
	if r := st.Resting(); r[offload.RAM].Blocks != 0 {
		t.Errorf("%d blocks are still in RAM", r[offload.RAM].Blocks)
	}
	st.Close()
}

// What cannot be loaded leaves nothing of either stage.
func TestTakeOverThatFails(t *testing.T) {
	b := newBox(t, 0, 0, 0)
	st := load(t, b.config(), nil)
	bad := loraOn(t, b, goldenFile(t, "dev", "model.safetensors"), "lora-kohya", lora.Add)
	bad.Checkpoint.File = goldenFile(t, "lora-kohya", "lora.safetensors")
	bad.Previous = st
	if _, err := stage.Load(t.Context(), bad); err == nil {
		t.Error("a file of other weights was loaded")
	}
	if n := used(b.device); n != 0 {
		t.Errorf("%v in use", n)
	}
	other := newBox(t, 0, 0, 0) // of a device that was lost and is there again
	st = load(t, other.config(), nil)
	again := load(t, b.config(), st)
	if n := used(other.device); n != 0 {
		t.Errorf("%v of the other session in use", n)
	}
	again.Close()
}
