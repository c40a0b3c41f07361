// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// proc adds what NVIDIA's kernel module shows below /proc/driver/nvidia. It
// shows a card inside a container too that was not given its device files.
func (d *discovery) proc() {
	d.inv.NVIDIA.Kernel = kernelVersion(d.text("proc/driver/nvidia/version"))
	d.inv.NVIDIA.Library = d.library()
	entries, err := os.ReadDir(d.path("proc/driver/nvidia/gpus"))
	if err != nil {
		return
	}
	s := Source{Name: SourceProc}
	for _, e := range entries[:min(len(entries), maxCards)] {
		at := address(e.Name())
		if at == "" {
			continue
		}
		s.Cards++
		i := slices.IndexFunc(d.inv.GPUs, func(g GPU) bool { return g.PCI == at })
		if i < 0 {
			d.inv.GPUs = append(d.inv.GPUs, GPU{Vendor: NVIDIA, Model: "NVIDIA card", PCI: at, NUMA: -1, Minor: -1, Driver: "nvidia"})
			i = len(d.inv.GPUs) - 1
		}
		g := &d.inv.GPUs[i]
		g.Sources = append(g.Sources, SourceProc)
		parseInformation(d.text("proc/driver/nvidia/gpus", e.Name(), "information"), g)
	}
	d.inv.Sources = append(d.inv.Sources, s)
}

// parseInformation reads lines of a name and a value (NVIDIA's README, appendix
// on /proc).
func parseInformation(text string, g *GPU) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if value == "" || len(value) > 128 {
			continue
		}
		switch strings.TrimSpace(name) {
		case "Model":
			if value != "Unknown" {
				g.Model = value
			}
		case "GPU UUID":
			if !strings.Contains(value, "?") { // as long as nobody has woken the card
				g.UUID = value
			}
		case "Device Minor":
			if n, ok := decimal(value); ok && n < maxCards {
				g.Minor = int(n)
			}
		case "GPU Excluded":
			g.Excluded = value == "Yes"
		}
	}
}

// kernelVersion finds the version in the first line of
// /proc/driver/nvidia/version: "NVRM version: NVIDIA UNIX x86_64 Kernel Module
// 535.104.05  Sat Aug ...".
func kernelVersion(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	if !strings.HasPrefix(line, "NVRM version:") {
		return ""
	}
	for word := range strings.FieldsSeq(line) {
		if regexp.MustCompile(`^\d{2,4}\.\d{1,4}(\.\d{1,4})?$`).MatchString(word) {
			return word
		}
	}
	return ""
}

// library is where libcuda.so.1, which a CUDA program loads, is; the usual
// folders of distributions, containers and WSL.
func (d *discovery) library() string {
	for _, dir := range []string{
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib",
		"/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu/nvidia/current", "/run/opengl-driver/lib",
	} {
		f := path.Join(dir, "libcuda.so.1")
		if _, err := os.Stat(d.path(f)); err == nil {
			return f
		}
	}
	return ""
}

// nodes looks at the device files that the found cards need.
func (d *discovery) nodes() {
	var want []string
	for _, g := range d.inv.GPUs {
		switch {
		case g.Vendor == NVIDIA && g.PCI != "" && slices.Contains(g.Sources, SourceSysfs):
			want = append(want, "/dev/nvidiactl", "/dev/nvidia-uvm")
			if g.Minor >= 0 {
				want = append(want, "/dev/nvidia"+strconv.Itoa(g.Minor))
			}
		case g.Vendor == AMD && g.Driver == "amdgpu":
			want = append(want, "/dev/kfd", g.Render)
		case g.Vendor == Intel && g.Driver != "":
			want = append(want, g.Render)
		}
	}
	slices.Sort(want)
	for _, file := range slices.Compact(want) {
		if file == "" {
			continue
		}
		n := Node{Path: file, State: NodeReady}
		switch _, err := os.Stat(d.path(file)); {
		case err != nil:
			n.State = NodeMissing
		case !accessible(d.path(file)):
			n.State = NodeDenied
		}
		d.inv.Nodes = append(d.inv.Nodes, n)
	}
}
