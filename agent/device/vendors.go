// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// kfd is where the kernel shows what AMD's compute driver knows of cards.
const kfd = "sys/class/kfd/kfd/topology/nodes"

// amd adds what the amdgpu driver tells (kernel documentation, gpu/amdgpu).
func (d *discovery) amd() {
	nodes := d.kfdNodes()
	for i := range d.inv.GPUs {
		g := &d.inv.GPUs[i]
		if g.Vendor != AMD {
			continue
		}
		at := []string{pciBus, g.PCI}
		g.MemoryTotal = d.amount(append(at, "mem_info_vram_total")...)
		g.MemoryUsed = d.amount(append(at, "mem_info_vram_used")...)
		g.MemoryFree = max(g.MemoryTotal-g.MemoryUsed, 0)
		if id := d.text(append(at, "unique_id")...); id != "" && len(id) <= 32 {
			g.UUID = "GPU-" + id // as rocminfo prints it
		}
		if name := d.text(append(at, "product_name")...); name != "" && len(name) <= 128 {
			g.Model = name
		}
		if n, ok := nodes[g.PCI]; ok {
			g.Architecture, g.Integrated = n.architecture, n.cores > 0
			g.Listed = true
		}
	}
}

// kfdNode is a node of AMD's topology: a card, or a processor, or both in one.
type kfdNode struct {
	architecture string
	cores        int64
}

// kfdNodes are the nodes that compute, by PCI address.
func (d *discovery) kfdNodes() map[string]kfdNode {
	out := map[string]kfdNode{}
	entries, err := os.ReadDir(d.path(kfd))
	if err != nil {
		return out
	}
	for _, e := range entries[:min(len(entries), maxCards)] {
		p := properties(d.text(kfd, e.Name(), "properties"))
		if p["simd_count"] == 0 {
			continue
		}
		// location_id is bus, device and function; the domain is beside it.
		at := fmt.Sprintf("%04x:%02x:%02x.%x", p["domain"], p["location_id"]>>8&0xff, p["location_id"]>>3&0x1f, p["location_id"]&7)
		out[at] = kfdNode{gfx(p["gfx_target_version"]), p["cpu_cores_count"]}
	}
	return out
}

// properties reads lines of a name and a number.
func properties(text string) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && n >= 0 && n < 1<<40 {
			out[name] = n
		}
	}
	return out
}

// gfx names an architecture as AMD's compiler does: 110000 is gfx1100, 90010
// gfx90a.
func gfx(version int64) string {
	if version <= 0 {
		return ""
	}
	return fmt.Sprintf("gfx%d%x%x", version/10000, version/100%100, version%100)
}

// intel adds the memory of discrete cards, which the xe driver tells for each
// tile.
func (d *discovery) intel() {
	for i := range d.inv.GPUs {
		g := &d.inv.GPUs[i]
		if g.Vendor != Intel {
			continue
		}
		tiles, err := filepath.Glob(d.path(pciBus, g.PCI, "tile*", "physical_vram_size_bytes"))
		if err != nil {
			continue
		}
		slices.Sort(tiles)
		for _, f := range tiles[:min(len(tiles), 16)] {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 0, 64); err == nil && n > 0 && n < 1<<45 {
				g.MemoryTotal += tensor.Bytes(n)
			}
		}
	}
}
