// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package catalogue knows the published figures of common devices and makes
// planning rates of them.
//
// The cluster file's reader and the command line import it. It is pure like
// placement: it must not import os, net, context, sync, a logger or a clock.
//
// A published peak is what the arithmetic units could do; nothing reaches it.
// Planning rates are the peak times a fraction that is stated with its reason
// for each [Tier] of devices. What rests on them carries
// [placement.SourcePublished] and [Spread].
package catalogue

import (
	"fmt"
	"strings"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/placement"
)

// Spread is the relative uncertainty of rates made of published figures.
const Spread = 0.25

// Fractions of published figures that hold for all devices.
const (
	// PCIe: 27.2 GB/s were measured on 4.0 x16 (31.5 GB/s) and 6.8 on 3.0 x8
	// (7.88 GB/s) by the author of ComfyUI-MultiGPU, 0.86 of the line rate.
	PCIe = 0.85
	// PeerPCIe: between two devices of one host without a fabric of their own,
	// through the root complex. The same author measured 4.4 GB/s of 7.88 and 2.1
	// of 3.94, 0.55.
	PeerPCIe = 0.55
	// Fabric: NVLink and the like; the same author measured 50.8 of 56.25 GB/s.
	Fabric = 0.90
	// GPUMemory and CPUMemory: what a kernel that only copies reaches.
	GPUMemory = 0.85
	CPUMemory = 0.80
	// Expanding writes two bytes for each that it reads, or more.
	expansionTraffic = 1.5
)

// Tier is a kind of devices that reach like fractions of their peaks.
type Tier string

// The tiers.
const (
	Desktop    Tier = "desktop"    // GeForce
	Full       Tier = "full"       // workstation and server cards
	Limited    Tier = "limited"    // server cards of 75 W
	OtherGPU   Tier = "other-gpu"  // AMD, Intel
	Processor  Tier = "processor"  // CPUs
	Integrated Tier = "integrated" // a GPU that shares the host's memory
)

// Fraction is what a tier reaches of its peak.
type Fraction struct {
	Tier              Tier
	Linear, Attention float64
	Reason            string
}

// Fractions are those of all tiers.
func Fractions() []Fraction {
	return []Fraction{
		{Desktop, 0.85, 0.60, "tensor cores that add up in float32 run at half rate, so that memory and shared memory keep up with them; with these the published FLUX.1 times come out"},
		{Full, 0.65, 0.40, "at full rate large products are bound by power and shared memory; 0.6 to 0.7 is what libraries reach on the sizes of transformers, attention less"},
		{Limited, 0.40, 0.25, "75 W do not hold the clock that the peak assumes"},
		{OtherGPU, 0.45, 0.25, "libraries reach less of the peak than on NVIDIA's devices"},
		{Processor, 0.70, 0.35, "all cores at the base clock with vector units busy; attention has more to do beside products"},
		{Integrated, 0.70, 0.40, "no separate memory to wait for, and few products are large enough"},
	}
}

// Peak is a published dense rate: without sparsity, with sums in float32.
type Peak struct {
	DType placement.DType `json:"dtype"`
	FLOPs float64         `json:"flops_per_second"`
}

// Entry is a device with its published figures.
type Entry struct {
	Name    string               `json:"name"`
	Aliases []string             `json:"aliases,omitempty"`
	Title   string               `json:"title"` // what the maker calls it
	Kind    placement.DeviceKind `json:"kind"`
	Tier    Tier                 `json:"tier"`
	Memory  placement.Bytes      `json:"memory_bytes"` // 0 for a processor, which has the host's
	Memrate float64              `json:"memory_bytes_per_second"`
	Peaks   []Peak               `json:"peaks"`
	PCIe    Slot                 `json:"pcie"`
	Fabric  float64              `json:"fabric_bytes_per_second,omitempty"` // of one device to another, one direction; 0 without
	Source  string               `json:"source"`
	Note    string               `json:"note,omitempty"`
}

// Slot is a PCI Express connection; zero where there is none.
type Slot struct {
	Generation int `json:"generation,omitempty"`
	Lanes      int `json:"lanes,omitempty"`
}

// BytesPerSecond is the line rate in one direction: 8, 16 and 32 GT/s a lane
// with 128 of 130 bits of payload.
func (s Slot) BytesPerSecond() float64 {
	if s.Generation < 3 {
		return 0
	}
	return float64(int64(1)<<(s.Generation-3)) * 8e9 * 128 / 130 / 8 * float64(s.Lanes)
}

// String is "4.0 x16".
func (s Slot) String() string {
	if s.Generation == 0 {
		return ""
	}
	return fmt.Sprintf("%d.0 x%d", s.Generation, s.Lanes)
}

// UnknownDeviceError is a name that is not in the catalogue.
type UnknownDeviceError struct {
	Name, Nearest string
}

func (e *UnknownDeviceError) Error() string {
	if e.Nearest != "" {
		return fmt.Sprintf("the catalogue has no device %q; did you mean %s?", e.Name, e.Nearest)
	}
	return fmt.Sprintf("the catalogue has no device %q; `distorch devices` lists those it has", e.Name)
}

// fold makes spellings of one name equal: "RTX 4090", "rtx_4090", "rtx4090".
func fold(name string) string {
	return strings.NewReplacer(" ", "", "-", "", "_", "").Replace(strings.ToLower(name))
}

// Lookup finds a device by name or alias, whatever its case, spaces and
// hyphens; the error is an *[UnknownDeviceError].
func Lookup(name string) (Entry, error) {
	want := fold(name)
	var names []string
	for _, e := range Entries() {
		for _, known := range append([]string{e.Name}, e.Aliases...) {
			if fold(known) == want {
				return e, nil
			}
			names = append(names, known)
		}
	}
	return Entry{}, &UnknownDeviceError{Name: name, Nearest: edits.Nearest(strings.ToLower(name), names)}
}

func (e Entry) fraction() Fraction {
	for _, f := range Fractions() {
		if f.Tier == e.Tier {
			return f
		}
	}
	return Fraction{}
}

// Device is the device with planning rates made of its published figures. Its
// memory is all that it has; the reserve is the caller's.
func (e Entry) Device(id string) placement.Device {
	f := e.fraction()
	d := placement.Device{
		ID: id, Kind: e.Kind, Model: e.Title, Allocatable: e.Memory, Memory: e.Memrate * GPUMemory,
		Source: placement.SourcePublished, Spread: Spread,
	}
	if e.Kind == placement.KindCPU {
		d.Memory = e.Memrate * CPUMemory
	} else {
		d.HostToDevice = e.PCIe.BytesPerSecond() * PCIe
		d.Peer = e.PCIe.BytesPerSecond() * PeerPCIe
	}
	if e.Fabric > 0 {
		d.Peer = e.Fabric * Fabric
	}
	d.Expansion = d.Memory / expansionTraffic
	for _, p := range e.Peaks {
		d.Rates = append(d.Rates, placement.Rate{DType: p.DType, Linear: p.FLOPs * f.Linear, Attention: p.FLOPs * f.Attention})
	}
	return d
}
