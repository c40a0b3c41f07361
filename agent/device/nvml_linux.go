// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package device

import (
	"context"
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/distorch/distorch/model/tensor"
)

const nvmlBuilt = true

// maxLinks bounds the links asked of one card (NVML_NVLINK_MAX_LINKS).
const maxLinks = nvml.NVLINK_MAX_LINKS

// askNVML asks the library in a goroutine of its own: a driver that hangs in
// the kernel keeps its caller for ever, and must not keep an agent.
func askNVML(ctx context.Context) NVMLReport {
	ctx, cancel := context.WithTimeout(ctx, driverTime)
	defer cancel()
	answer := make(chan NVMLReport, 1)
	go func() { answer <- readNVML(nvml.New()) }()
	select {
	case r := <-answer:
		return r
	case <-ctx.Done():
		return NVMLReport{Built: true, Driver: Driver{Fault: FaultSilent, Detail: fmt.Sprintf("NVML said nothing in %s", driverTime)}}
	}
}

// library is NVML with the guard that it needs: after an Init that failed any
// call ends the process, as does one that the installed driver does not have.
type library struct {
	nvml.Interface
}

func (l library) has(symbol string) bool { return l.Extensions().LookupSymbol(symbol) == nil }

func readNVML(lib nvml.Interface) NVMLReport {
	r := NVMLReport{Built: true}
	if ret := lib.Init(); ret != nvml.SUCCESS {
		r.Driver.Fault, r.Driver.Detail = nvmlFault(ret)
		return r
	}
	defer func() { _ = lib.Shutdown() }() // the answers are there whatever it says
	l := library{lib}
	if v, ret := lib.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		r.Driver.Version = v
	}
	if l.has("nvmlSystemGetCudaDriverVersion") {
		if v, ret := lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
			r.Driver.CUDA = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
		}
	}
	n, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		r.Driver.Fault, r.Driver.Detail = nvmlFault(ret)
		return r
	}
	var devices []nvml.Device
	for i := range min(n, maxCards) {
		d, ret := lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // a card that fell off the bus; sysfs still lists it
		}
		devices = append(devices, d)
		r.GPUs = append(r.GPUs, l.card(d))
	}
	for i, d := range devices {
		r.GPUs[i].Peers = l.peers(d, devices, r.GPUs)
	}
	return r
}

// nvmlFault reads the code of a failed Init. NVML's own text for it is not
// asked: the library may not be there.
func nvmlFault(ret nvml.Return) (Fault, string) {
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return FaultNoLibrary, ""
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return FaultNoDriver, ""
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return FaultMismatch, ""
	case nvml.ERROR_NO_PERMISSION:
		return FaultPermission, ""
	}
	return FaultOther, fmt.Sprintf("NVML's error %d", int(ret))
}

// card asks what is known of one card. Each answer may be missing.
func (l library) card(d nvml.Device) GPU {
	g := GPU{Vendor: NVIDIA, NUMA: -1, Minor: -1}
	if s, ret := d.GetUUID(); ret == nvml.SUCCESS {
		g.UUID = s
	}
	if s, ret := d.GetName(); ret == nvml.SUCCESS {
		g.Model = s
	}
	if p, ret := d.GetPciInfo(); ret == nvml.SUCCESS {
		g.PCI = pciAddress(p)
	}
	if m, ret := d.GetMemoryInfo(); ret == nvml.SUCCESS {
		g.MemoryTotal, g.MemoryUsed, g.MemoryFree = amount(m.Total), amount(m.Used), amount(m.Free)
	}
	if n, ret := d.GetMinorNumber(); ret == nvml.SUCCESS {
		g.Minor = n
	}
	if l.has("nvmlDeviceGetCudaComputeCapability") {
		if major, minor, ret := d.GetCudaComputeCapability(); ret == nvml.SUCCESS {
			g.Architecture = fmt.Sprintf("sm_%d%d", major, minor)
		}
	}
	l.link(d, &g)
	if l.has("nvmlDeviceGetComputeMode") {
		if m, ret := d.GetComputeMode(); ret == nvml.SUCCESS {
			g.ComputeMode = computeMode(m)
		}
	}
	l.instances(d, &g)
	l.processes(d, &g)
	l.nvlinks(d, &g)
	return g
}

// amount is a number of bytes; 0 for NVML_VALUE_NOT_AVAILABLE.
func amount(n uint64) tensor.Bytes {
	if n > 1<<50 {
		return 0
	}
	return tensor.Bytes(n)
}

// pciAddress is "" where the library has not filled the address in.
func pciAddress(p nvml.PciInfo) string {
	var b strings.Builder
	for _, c := range p.BusId {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return address(b.String())
}

func computeMode(m nvml.ComputeMode) string {
	switch m {
	case nvml.COMPUTEMODE_DEFAULT:
		return ModeDefault
	case nvml.COMPUTEMODE_EXCLUSIVE_THREAD:
		return ModeExclusiveThread
	case nvml.COMPUTEMODE_EXCLUSIVE_PROCESS:
		return ModeExclusiveProcess
	case nvml.COMPUTEMODE_PROHIBITED:
		return ModeProhibited
	}
	return ""
}

func (l library) link(d nvml.Device, g *GPU) {
	for _, q := range []struct {
		symbol string
		ask    func() (int, nvml.Return)
		to     *int
	}{
		{"nvmlDeviceGetCurrPcieLinkGeneration", d.GetCurrPcieLinkGeneration, &g.PCIe.Generation},
		{"nvmlDeviceGetMaxPcieLinkGeneration", d.GetMaxPcieLinkGeneration, &g.PCIe.MaxGeneration},
		{"nvmlDeviceGetCurrPcieLinkWidth", d.GetCurrPcieLinkWidth, &g.PCIe.Width},
		{"nvmlDeviceGetMaxPcieLinkWidth", d.GetMaxPcieLinkWidth, &g.PCIe.MaxWidth},
	} {
		if !l.has(q.symbol) {
			continue
		}
		if n, ret := q.ask(); ret == nvml.SUCCESS && n > 0 && n <= 64 {
			*q.to = n
		}
	}
}

func (l library) instances(d nvml.Device, g *GPU) {
	if !l.has("nvmlDeviceGetMigMode") {
		return
	}
	mode, _, ret := d.GetMigMode()
	if ret != nvml.SUCCESS || mode != nvml.DEVICE_MIG_ENABLE {
		return
	}
	g.MIG.Enabled = true
	if !l.has("nvmlDeviceGetMaxMigDeviceCount") || !l.has("nvmlDeviceGetMigDeviceHandleByIndex") {
		return
	}
	n, ret := d.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return
	}
	for i := range min(n, maxCards) {
		part, ret := d.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // this place is free
		}
		var m MIGInstance
		if s, ret := part.GetUUID(); ret == nvml.SUCCESS {
			m.UUID = s
		}
		if s, ret := part.GetName(); ret == nvml.SUCCESS {
			m.Model = s
		}
		if mem, ret := part.GetMemoryInfo(); ret == nvml.SUCCESS {
			m.MemoryTotal = amount(mem.Total)
		}
		g.MIG.Instances = append(g.MIG.Instances, m)
	}
}

// processes lists what holds the card's memory, computing and drawing alike.
func (l library) processes(d nvml.Device, g *GPU) {
	seen := map[uint32]bool{}
	for _, q := range []struct {
		symbol string
		ask    func() ([]nvml.ProcessInfo, nvml.Return)
	}{
		{"nvmlDeviceGetComputeRunningProcesses", d.GetComputeRunningProcesses},
		{"nvmlDeviceGetGraphicsRunningProcesses", d.GetGraphicsRunningProcesses},
	} {
		if !l.has(q.symbol) {
			continue
		}
		all, ret := q.ask()
		if ret != nvml.SUCCESS {
			continue
		}
		for _, p := range all[:min(len(all), maxRows)] {
			if seen[p.Pid] {
				continue
			}
			seen[p.Pid] = true
			out := Process{PID: int(p.Pid), Memory: amount(p.UsedGpuMemory)}
			if l.has("nvmlSystemGetProcessName") {
				if name, ret := l.SystemGetProcessName(int(p.Pid)); ret == nvml.SUCCESS {
					out.Name = program(name)
				}
			}
			g.Processes = append(g.Processes, out)
		}
	}
}

func (l library) nvlinks(d nvml.Device, g *GPU) {
	if !l.has("nvmlDeviceGetNvLinkState") {
		return
	}
	for i := range maxLinks {
		state, ret := d.GetNvLinkState(i)
		if ret != nvml.SUCCESS {
			return // no more links, or none at all
		}
		if state != nvml.FEATURE_ENABLED {
			continue
		}
		link := NVLink{Link: i}
		if l.has("nvmlDeviceGetNvLinkVersion") {
			if v, ret := d.GetNvLinkVersion(i); ret == nvml.SUCCESS {
				link.Version = int(v)
			}
		}
		if l.has("nvmlDeviceGetNvLinkRemotePciInfo") || l.has("nvmlDeviceGetNvLinkRemotePciInfo_v2") {
			if p, ret := d.GetNvLinkRemotePciInfo(i); ret == nvml.SUCCESS {
				link.Remote = pciAddress(p)
			}
		}
		g.NVLinks = append(g.NVLinks, link)
	}
}

// peers says how a card reaches each other one.
func (l library) peers(d nvml.Device, devices []nvml.Device, cards []GPU) []Peer {
	topology, copies := l.has("nvmlDeviceGetTopologyCommonAncestor"), l.has("nvmlDeviceGetP2PStatus")
	var out []Peer
	for i, o := range devices {
		if o == d || !topology && !copies {
			continue
		}
		p := Peer{PCI: cards[i].PCI}
		if topology {
			if level, ret := d.GetTopologyCommonAncestor(o); ret == nvml.SUCCESS {
				p.Path = between(level)
			}
		}
		if copies {
			status, ret := d.GetP2PStatus(o, nvml.P2P_CAPS_INDEX_READ)
			p.Copy = ret == nvml.SUCCESS && status == nvml.P2P_STATUS_OK
		}
		out = append(out, p)
	}
	return out
}

func between(level nvml.GpuTopologyLevel) string {
	switch level {
	case nvml.TOPOLOGY_INTERNAL:
		return "internal"
	case nvml.TOPOLOGY_SINGLE:
		return "single switch"
	case nvml.TOPOLOGY_MULTIPLE:
		return "multiple switches"
	case nvml.TOPOLOGY_HOSTBRIDGE:
		return "host bridge"
	case nvml.TOPOLOGY_NODE:
		return "node"
	case nvml.TOPOLOGY_SYSTEM:
		return "system"
	}
	return ""
}
