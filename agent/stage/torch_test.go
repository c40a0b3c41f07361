// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package stage_test

import (
	"bytes"
	"testing"

	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
	"github.com/distorch/distorch/agent/offload"
	"github.com/distorch/distorch/agent/stage"
	"github.com/distorch/distorch/model/tensor"
)

// On a device of PyTorch with streams and memory of its own, blocks that come
// from the host's memory, as stored or packed, give the bits of resident ones,
// and the memory is what was predicted.
func TestTiersOnPyTorch(t *testing.T) {
	e := torchtest.Streams(t, torch.Config{Threads: 2})
	b := newBox(t, 0, 0, 0)
	var want []byte
	for _, tc := range []struct {
		name   string
		tiers  []offload.Tier
		stored bool
	}{
		{name: "resident"},
		{name: "host", tiers: []offload.Tier{b.tier(offload.RAM, 0, 4)}},
		{name: "host and disk", tiers: []offload.Tier{b.tier(offload.RAM, 0, 2), b.tier(offload.Disk, 2, 2)}},
		{name: "stored", stored: true},
	} {
		s := opened(t, e.Limited(0), torchtest.StreamsDevice)
		cfg := b.config(tc.tiers...)
		cfg.Session, cfg.Stored = s, tc.stored
		st, err := stage.Load(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		r, f := begin(t, s, st, workload())
		for range 3 {
			clear(st.Outputs[0].Host())
			if _, err := r.Do(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = bytes.Clone(st.Outputs[0].Host())
			}
			if !bytes.Equal(st.Outputs[0].Host(), want) {
				t.Errorf("%s: other bits than resident", tc.name)
			}
		}
		if _, peak, _ := s.Account(); !near5(st.Need().Device, peak) {
			t.Errorf("%s: predicted %v, counted %v", tc.name, st.Need().Device, peak)
		}
		r.Close()
		f.Conditioning.Free()
		st.Close()
		for _, account := range []func() (used, peak, limit tensor.Bytes){s.Account, s.HostAccount} {
			if n, _, _ := account(); n != 0 {
				t.Errorf("%s: %v in use in the end", tc.name, n)
			}
		}
	}
}
