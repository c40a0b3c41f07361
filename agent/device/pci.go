// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// pciBus is where the kernel shows the devices on PCI.
const pciBus = "sys/bus/pci/devices"

// vendorOf reads a vendor's number on PCI (pci.ids); "" for others.
func vendorOf(id string) string {
	switch id {
	case "0x10de":
		return NVIDIA
	case "0x1002":
		return AMD
	case "0x8086":
		return Intel
	}
	return ""
}

// pci finds the display controllers and accelerators of the three vendors.
func (d *discovery) pci() {
	entries, err := os.ReadDir(d.path(pciBus))
	s := Source{Name: SourceSysfs}
	if err != nil {
		s.Error = "this system does not show its PCI bus"
		if !errors.Is(err, fs.ErrNotExist) {
			s.Error = err.Error()
		}
		d.inv.Sources = append(d.inv.Sources, s)
		return
	}
	names := map[string]string{}
	for _, e := range entries {
		if address(e.Name()) == "" || len(d.inv.GPUs) == maxCards {
			continue
		}
		if g, ok := d.card(e.Name()); ok {
			d.inv.GPUs = append(d.inv.GPUs, g)
			names[g.PCIID] = ""
		}
	}
	s.Cards = len(d.inv.GPUs)
	d.inv.Sources = append(d.inv.Sources, s)
	if len(d.inv.GPUs) == 0 {
		return
	}
	d.names(names)
	for i := range d.inv.GPUs {
		g := &d.inv.GPUs[i]
		g.Model = names[g.PCIID]
		if g.Model == "" {
			g.Model = map[string]string{NVIDIA: "NVIDIA", AMD: "AMD", Intel: "Intel"}[g.Vendor] + " card " + g.PCIID
		}
	}
}

// card reads one device of the bus; false if it is no card that could compute.
func (d *discovery) card(at string) (GPU, bool) {
	file := func(name string) string { return d.text(pciBus, at, name) }
	g := GPU{Vendor: vendorOf(file("vendor")), PCI: address(at), NUMA: -1, Minor: -1, Sources: []string{SourceSysfs}}
	class := strings.TrimPrefix(file("class"), "0x")
	// 03 display controllers, 12 processing accelerators (pci.ids).
	if g.Vendor == "" || len(class) != 6 || class[:2] != "03" && class[:2] != "12" {
		return g, false
	}
	if _, err := os.Lstat(d.path(pciBus, at, "physfn")); err == nil {
		return g, false // a virtual function of a card that is listed itself
	}
	if g.Vendor == Intel && strings.HasPrefix(at, "0000:00:") {
		return g, false // graphics in the processor, which have no memory of their own
	}
	g.PCIID = strings.TrimPrefix(file("vendor"), "0x") + ":" + strings.TrimPrefix(file("device"), "0x")
	if link, err := os.Readlink(d.path(pciBus, at, "driver")); err == nil {
		g.Driver = filepath.Base(link)
	}
	if n, ok := decimal(file("numa_node")); ok { // -1 where there is one node alone
		g.NUMA = int(n)
	}
	g.PCIe = d.link(d.path(pciBus, at))
	if port := d.slotPort(at, g.Vendor); port != "" {
		g.PCIe = d.link(port)
	}
	if nodes, err := os.ReadDir(d.path(pciBus, at, "drm")); err == nil {
		for _, n := range nodes {
			if strings.HasPrefix(n.Name(), "renderD") {
				g.Render = "/dev/dri/" + n.Name()
			}
		}
	}
	return g, true
}

// link reads the state of a PCIe link.
func (d *discovery) link(dir string) PCIe {
	file := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(b) > maxFile {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	width := func(name string) int {
		n, ok := decimal(file(name))
		if !ok || n > 32 { // 63 and 255 stand for a link that is down
			return 0
		}
		return int(n)
	}
	return PCIe{
		Generation: generation(file("current_link_speed")), Width: width("current_link_width"),
		MaxGeneration: generation(file("max_link_speed")), MaxWidth: width("max_link_width"),
	}
}

// generation reads a link's speed: "16.0 GT/s PCIe" is 4.
func generation(speed string) int {
	rate, _, _ := strings.Cut(speed, " ")
	return map[string]int{"2.5": 1, "5": 2, "5.0": 2, "8": 3, "8.0": 3, "16": 4, "16.0": 4, "32": 5, "32.0": 5, "64": 6, "64.0": 6}[rate]
}

// slotPort is the folder of the port whose link is the slot's, for cards that
// carry a PCIe switch of their own: behind it every link is as wide as can be
// (AMD since Vega) or says nothing (Intel Arc). "" where the card's own link
// is the slot's.
func (d *discovery) slotPort(at, vendor string) string {
	id := map[string]string{AMD: "0x1002", Intel: "0x8086"}[vendor]
	dir, err := filepath.EvalSymlinks(d.path(pciBus, at))
	if err != nil || id == "" {
		return ""
	}
	port := ""
	for range 2 { // the switch's downstream and upstream port
		dir = filepath.Dir(dir)
		b, err := os.ReadFile(filepath.Join(dir, "vendor"))
		// The bridge of an Intel host has Intel's id too; above the switch there
		// is always one more port.
		if _, up := os.Stat(filepath.Join(filepath.Dir(dir), "vendor")); err != nil || strings.TrimSpace(string(b)) != id || up != nil {
			return ""
		}
		port = dir
	}
	return port
}

// names fills in the names of ids such as 10de:2204, from where systems keep
// the names of PCI devices.
func (d *discovery) names(ids map[string]string) {
	for _, name := range []string{"usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids", "var/lib/pciutils/pci.ids"} {
		f, err := os.Open(d.path(name))
		if err != nil {
			continue
		}
		parseNames(bufio.NewScanner(f), ids)
		f.Close()
		return
	}
}

// parseNames reads pci.ids: a vendor begins a line, its devices follow after a
// tab, theirs after two.
func parseNames(lines *bufio.Scanner, ids map[string]string) {
	vendor := ""
	for n := 0; lines.Scan() && n < 200_000; n++ {
		line := lines.Text()
		switch {
		case line == "" || line[0] == '#' || strings.HasPrefix(line, "\t\t"):
		case line[0] == '\t':
			id, name, ok := strings.Cut(line[1:], "  ")
			if _, wanted := ids[vendor+":"+id]; ok && wanted {
				ids[vendor+":"+id] = brand(vendor) + strings.TrimSpace(name)
			}
		default:
			vendor, _, _ = strings.Cut(line, "  ")
		}
	}
}

// brand precedes the names of pci.ids, which are the chip's: "GA102 [GeForce
// RTX 3090]".
func brand(vendor string) string {
	return map[string]string{"10de": "NVIDIA ", "1002": "AMD ", "8086": "Intel "}[vendor]
}
