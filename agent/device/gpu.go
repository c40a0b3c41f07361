// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"github.com/distorch/distorch/model/tensor"
)

// Vendors of cards.
const (
	NVIDIA = "nvidia"
	AMD    = "amd"
	Intel  = "intel"
)

// The sources of what is known of a card.
const (
	SourceSysfs = "sysfs"
	SourceProc  = "proc" // /proc/driver/nvidia
	SourceNVML  = "nvml"
	SourceSMI   = "nvidia-smi"
)

// Compute modes of a card of NVIDIA (nvmlComputeMode_t).
const (
	ModeDefault          = "default"
	ModeExclusiveProcess = "exclusive_process"
	ModeExclusiveThread  = "exclusive_thread"
	ModeProhibited       = "prohibited"
)

// GPU is a card of this machine. What no source tells is zero; NUMA and Minor
// are -1 then.
type GPU struct {
	Vendor       string       `json:"vendor"`
	Model        string       `json:"model"`
	PCI          string       `json:"pci,omitempty"`    // 0000:65:00.0
	PCIID        string       `json:"pci_id,omitempty"` // 10de:2204
	UUID         string       `json:"uuid,omitempty"`   // as the vendor's tools print it
	Driver       string       `json:"driver,omitempty"` // the kernel's, that holds the card
	Sources      []string     `json:"sources"`
	Architecture string       `json:"architecture,omitempty"` // sm_86, gfx1100
	MemoryTotal  tensor.Bytes `json:"memory_total_bytes,omitempty"`
	MemoryUsed   tensor.Bytes `json:"memory_used_bytes,omitempty"`
	MemoryFree   tensor.Bytes `json:"memory_free_bytes,omitempty"`
	PCIe         PCIe         `json:"pcie,omitzero"`
	NUMA         int          `json:"numa"`
	Minor        int          `json:"minor"`            // of /dev/nvidiaN
	Render       string       `json:"render,omitempty"` // /dev/dri/renderD128
	Integrated   bool         `json:"integrated,omitempty"`
	Excluded     bool         `json:"excluded,omitempty"` // the driver was told to leave it alone
	MIG          MIG          `json:"mig,omitzero"`
	ComputeMode  string       `json:"compute_mode,omitempty"`
	Processes    []Process    `json:"processes,omitempty"`
	NVLinks      []NVLink     `json:"nvlinks,omitempty"`
	Peers        []Peer       `json:"peers,omitempty"`
	Listed       bool         `json:"listed"` // NVML or nvidia-smi lists it
}

// PCIe is a card's link now and at most. A card that idles lowers its
// generation, never its width.
type PCIe struct {
	Generation    int `json:"generation,omitempty"`
	Width         int `json:"width,omitempty"`
	MaxGeneration int `json:"max_generation,omitempty"`
	MaxWidth      int `json:"max_width,omitempty"`
}

// MIG says how a card is cut into instances.
type MIG struct {
	Enabled   bool          `json:"enabled,omitempty"`
	Instances []MIGInstance `json:"instances,omitempty"`
}

// MIGInstance is a part of a card that CUDA sees as a device.
type MIGInstance struct {
	UUID        string       `json:"uuid"`
	Model       string       `json:"model,omitempty"`
	MemoryTotal tensor.Bytes `json:"memory_total_bytes,omitempty"`
}

// Process is one that holds memory of a card.
type Process struct {
	PID    int          `json:"pid"` // of the host, not of a container
	Name   string       `json:"name,omitempty"`
	Memory tensor.Bytes `json:"memory_bytes,omitempty"` // 0: the driver does not tell
	Own    bool         `json:"own,omitempty"`          // an agent of distorch, or what it started
}

// NVLink is one active link of a card.
type NVLink struct {
	Link    int    `json:"link"`
	Version int    `json:"version,omitempty"`
	Remote  string `json:"remote,omitempty"` // PCI address of the other end
}

// Peer is how one card reaches another.
type Peer struct {
	PCI string `json:"pci"`
	// Path is what is between the two: internal, single switch, multiple
	// switches, host bridge, node, system (nvmlGpuTopologyLevel_t).
	Path string `json:"path"`
	// Copy says that each can read the other's memory.
	Copy bool `json:"copy"`
}

// Fault says why NVIDIA's driver does not answer.
type Fault string

// The faults.
const (
	FaultNone       Fault = ""
	FaultNoLibrary  Fault = "no library"        // libnvidia-ml.so.1 is not found
	FaultNoDriver   Fault = "driver not loaded" // the kernel module
	FaultMismatch   Fault = "driver and library differ"
	FaultPermission Fault = "no permission"
	FaultSilent     Fault = "no answer in time"
	FaultOther      Fault = "other"
)

// Driver is what is known of NVIDIA's driver.
type Driver struct {
	Kernel  string `json:"kernel,omitempty"`  // version of the loaded kernel module
	Version string `json:"version,omitempty"` // as NVML or nvidia-smi has it
	CUDA    string `json:"cuda,omitempty"`    // the newest CUDA that it runs: 12.8
	Library string `json:"library,omitempty"` // where libcuda.so.1 is, in the usual folders
	SMI     string `json:"nvidia_smi,omitempty"`
	Fault   Fault  `json:"fault,omitempty"`
	Detail  string `json:"detail,omitempty"` // of the fault, in the driver's words
}

// Node is a file in /dev that a program needs to reach a card.
type Node struct {
	Path  string `json:"path"`
	State string `json:"state"`
}

// States of a Node.
const (
	NodeReady   = "ready"
	NodeMissing = "missing"
	NodeDenied  = "denied" // this user may not read and write it
)

// Source is one place that was asked.
type Source struct {
	Name  string `json:"name"`
	Cards int    `json:"cards"`
	Error string `json:"error,omitempty"` // why it told nothing
}

// Inventory is what was found. A machine without cards has none, which is no
// error: it computes on its CPU.
type Inventory struct {
	GPUs    []GPU    `json:"gpus"` // by PCI address
	NVIDIA  Driver   `json:"nvidia,omitzero"`
	Nodes   []Node   `json:"nodes,omitempty"`
	Sources []Source `json:"sources,omitempty"`
}

// Node is the state of a device file, "" where it was not looked for.
func (inv Inventory) Node(path string) string {
	for _, n := range inv.Nodes {
		if n.Path == path {
			return n.State
		}
	}
	return ""
}

// Of are the cards of one vendor.
func (inv Inventory) Of(vendor string) []GPU {
	var out []GPU
	for _, g := range inv.GPUs {
		if g.Vendor == vendor {
			out = append(out, g)
		}
	}
	return out
}
