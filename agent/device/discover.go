// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distorch/distorch/model/tensor"
)

// Options of Discover. The zero value looks at this machine.
type Options struct {
	// Root is where /sys, /proc and /dev are looked for; "" is "/". Programs are
	// run and NVML asked only for "", unless Run and NVML say how.
	Root string
	// Run gives a program's output (both streams, at most maxOutput bytes) and
	// its error; fs.ErrNotExist is in the chain where it is not installed.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// NVML asks the driver's library.
	NVML func(ctx context.Context) NVMLReport
	// Processes says whether to ask for what takes the cards' memory.
	Processes bool
}

const (
	// maxOutput bounds what a program may say: 64 cards with hundreds of
	// processes are a tenth of it.
	maxOutput = 1 << 20
	// maxFile bounds a file of sysfs or procfs.
	maxFile = 64 << 10
	// maxCards bounds the cards of one machine.
	maxCards = 256
	// driverTime bounds a driver's answer: waking a card that nothing holds open
	// takes seconds, each.
	driverTime = 20 * time.Second
)

// NVMLReport is what NVIDIA's library tells.
type NVMLReport struct {
	Built  bool // NVML is in this build
	GPUs   []GPU
	Driver Driver
}

// NVMLBuilt says whether this build can ask NVML.
func NVMLBuilt() bool { return nvmlBuilt }

// discovery collects what the sources tell.
type discovery struct {
	Options
	inv Inventory
}

// Discover finds the cards of this machine: the PCI bus, the kernel's drivers
// and NVIDIA's own tools are asked, and their answers joined by PCI address.
// What does not answer is named in the inventory's sources.
func Discover(ctx context.Context, o Options) Inventory {
	if o.Root == "" || o.Root == "/" {
		o.Root = ""
		if o.Run == nil {
			o.Run = run
		}
		if o.NVML == nil {
			o.NVML = askNVML
		}
	}
	d := &discovery{Options: o}
	d.inv.GPUs = []GPU{}
	d.pci()
	d.proc()
	d.amd()
	d.intel()
	d.nvidia(ctx)
	d.nodes()
	slices.SortStableFunc(d.inv.GPUs, func(a, b GPU) int { return cmp.Or(cmp.Compare(a.PCI, b.PCI), cmp.Compare(a.UUID, b.UUID)) })
	return d.inv
}

// nvidia asks NVML, and nvidia-smi where NVML is not in the build or does not
// answer. A machine without any trace of NVIDIA is not asked for programs.
func (d *discovery) nvidia(ctx context.Context) {
	report := NVMLReport{}
	if d.NVML != nil {
		report = d.NVML(ctx)
	}
	switch {
	case !report.Built:
		d.inv.Sources = append(d.inv.Sources, Source{Name: SourceNVML, Error: "not in this build"})
	case report.Driver.Fault != FaultNone:
		d.inv.Sources = append(d.inv.Sources, Source{Name: SourceNVML, Error: strings.TrimSpace(string(report.Driver.Fault) + " " + report.Driver.Detail)})
	default:
		d.take(SourceNVML, report)
		return
	}
	smi, found := d.smi(ctx)
	if found {
		d.take(SourceSMI, smi)
	}
	if found && smi.Driver.Fault == FaultNone {
		return
	}
	// Neither answers: NVML's words are more exact where it was asked.
	if fault := report.Driver; report.Built && fault.Fault != FaultNone && fault.Fault != FaultNoLibrary {
		d.inv.NVIDIA.Fault, d.inv.NVIDIA.Detail = fault.Fault, fault.Detail
	}
}

// take joins a report of the driver with what the bus has shown.
func (d *discovery) take(source string, r NVMLReport) {
	s := Source{Name: source, Cards: len(r.GPUs)}
	if r.Driver.Fault != FaultNone {
		s.Error = strings.TrimSpace(string(r.Driver.Fault) + " " + r.Driver.Detail)
	}
	d.inv.Sources = append(d.inv.Sources, s)
	own := &d.inv.NVIDIA
	own.Version, own.CUDA, own.Fault, own.Detail = r.Driver.Version, r.Driver.CUDA, r.Driver.Fault, r.Driver.Detail
	own.SMI = cmp.Or(own.SMI, r.Driver.SMI)
	for _, g := range r.GPUs {
		g.Vendor, g.Listed = NVIDIA, true
		i := slices.IndexFunc(d.inv.GPUs, func(o GPU) bool {
			return o.Vendor == NVIDIA && (g.PCI != "" && o.PCI == g.PCI || g.UUID != "" && o.UUID == g.UUID)
		})
		if i < 0 {
			g.Sources = []string{source}
			d.inv.GPUs = append(d.inv.GPUs, g)
			continue
		}
		d.inv.GPUs[i].join(source, g)
	}
}

// join takes what the driver tells of a card, which knows more than the bus.
func (g *GPU) join(source string, o GPU) {
	g.Sources = append(g.Sources, source)
	g.Listed = true
	g.Model, g.UUID, g.PCI = cmp.Or(o.Model, g.Model), cmp.Or(o.UUID, g.UUID), cmp.Or(g.PCI, o.PCI)
	g.Architecture = cmp.Or(o.Architecture, g.Architecture)
	g.MemoryTotal, g.MemoryUsed, g.MemoryFree = o.MemoryTotal, o.MemoryUsed, o.MemoryFree
	g.PCIe = PCIe{
		cmp.Or(o.PCIe.Generation, g.PCIe.Generation), cmp.Or(o.PCIe.Width, g.PCIe.Width),
		cmp.Or(o.PCIe.MaxGeneration, g.PCIe.MaxGeneration), cmp.Or(o.PCIe.MaxWidth, g.PCIe.MaxWidth),
	}
	if o.Minor >= 0 {
		g.Minor = o.Minor
	}
	g.MIG, g.ComputeMode, g.Processes, g.NVLinks, g.Peers = o.MIG, o.ComputeMode, o.Processes, o.NVLinks, o.Peers
}

// path is a file below the root.
func (d *discovery) path(parts ...string) string {
	return filepath.Join(append([]string{d.Root + "/"}, parts...)...)
}

// text reads a small file of the kernel's, without the white space around it;
// "" if it cannot.
func (d *discovery) text(parts ...string) string {
	f, err := os.Open(d.path(parts...))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// amount reads a file that holds one number of bytes.
func (d *discovery) amount(parts ...string) tensor.Bytes {
	n, ok := decimal(d.text(parts...))
	if !ok {
		return 0
	}
	return tensor.Bytes(n)
}

// decimal reads a number of at most 15 digits, so that no sum overflows.
func decimal(s string) (int64, bool) {
	if s == "" || len(s) > 15 {
		return 0, false
	}
	n := int64(0)
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// address writes a PCI address as sysfs does: 0000:65:00.0. NVML has a domain
// of eight digits and capitals. "" for anything else.
func address(s string) string {
	var domain, bus, slot, function uint32
	if len(s) > 16 {
		return ""
	}
	if n, err := fmt.Sscanf(strings.ToLower(s), "%x:%x:%x.%x", &domain, &bus, &slot, &function); err != nil || n != 4 {
		return ""
	}
	if bus > 0xff || slot > 0x1f || function > 7 {
		return ""
	}
	return fmt.Sprintf("%04x:%02x:%02x.%x", domain, bus, slot, function)
}
