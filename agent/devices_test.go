// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

func TestShareOfADevice(t *testing.T) {
	a := &Agent{cfg: Config{Memory: 8 * tensor.GB, Reserve: tensor.GB}}
	card := func(free tensor.Bytes, processes ...string) []device.GPU {
		g := device.GPU{UUID: "GPU-1", MemoryFree: free}
		for _, p := range processes {
			g.Processes = append(g.Processes, device.Process{PID: 1, Name: p})
		}
		return []device.GPU{g}
	}
	gpu := engine.Device{ID: "cuda:0", UUID: "GPU-1", Kind: "cuda", Memory: 24 * tensor.GB}
	for _, c := range []struct {
		name           string
		device         engine.Device
		limit          Limit
		cards          []device.GPU
		total, reserve tensor.Bytes
		says           string
	}{
		{name: "the CPU has the node's RAM", device: engine.Device{ID: "cpu", Unified: true, Memory: 64 * tensor.GB}, total: 9 * tensor.GB, reserve: tensor.GB},
		{name: "a whole card", device: gpu, limit: Limit{Reserve: -1}, total: 24 * tensor.GB},
		{name: "what is free of it", device: gpu, limit: Limit{Reserve: -1}, cards: card(20 * tensor.GB), total: 20 * tensor.GB},
		{name: "with a desktop", device: gpu, limit: Limit{Reserve: -1}, cards: card(20*tensor.GB, "/usr/lib/xorg/Xorg"), total: 20 * tensor.GB, reserve: 2 * tensor.GiB},
		{name: "with a ComfyUI", device: gpu, limit: Limit{Reserve: -1}, cards: card(20*tensor.GB, "/home/u/ComfyUI/venv/bin/python3"), total: 20 * tensor.GB, reserve: 2 * tensor.GiB},
		{name: "another's reserve", device: gpu, limit: Limit{}, cards: card(20*tensor.GB, "Xorg"), total: 20 * tensor.GB},
		{name: "a part", device: gpu, limit: Limit{Memory: 6 * tensor.GB, Reserve: tensor.GB}, total: 6 * tensor.GB, reserve: tensor.GB},
		{name: "nothing left", device: gpu, limit: Limit{Memory: tensor.GB, Reserve: 2 * tensor.GB}, says: "device cuda:0: 2.0 GB is kept free of 1.0 GB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			total, reserve, err := a.share(c.device, c.limit, c.cards)
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v, want %q", err, c.says)
				}
				return
			}
			if err != nil || total != c.total || reserve != c.reserve {
				t.Errorf("%v with %v kept free, %v; want %v with %v", total, reserve, err, c.total, c.reserve)
			}
		})
	}
}

// A Python of someone else on the card is taken for a ComfyUI, the agent's own
// worker is not.
func TestWhoSharesACard(t *testing.T) {
	g := device.GPU{Processes: []device.Process{{PID: 7, Name: "python3.12"}}}
	if shared(g, func(int) bool { return true }) || !shared(g, func(int) bool { return false }) {
		t.Error("a Python on the card: its parent decides")
	}
}
