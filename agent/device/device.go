// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package device finds what this machine has to compute and keep weights with:
// the CPU and its RAM, within the limits of the control group, and the cards of
// NVIDIA, AMD and Intel.
//
// A card is found on the PCI bus whether or not a driver holds it. What the bus
// does not tell of NVIDIA's cards comes from NVML, or from nvidia-smi where this
// build has no NVML (it takes cgo, on Linux) or the library does not answer.
// Answers are joined by PCI address, cards known elsewhere by UUID, never by an
// index: CUDA, NVML and the bus count differently.
//
// Imported by the agent. It is the place, and the only one, for GPU libraries;
// it imports nothing of distorch but model/tensor.
package device

import (
	"github.com/distorch/distorch/model/tensor"
)

// Memory is a machine's RAM as this process may use it.
type Memory struct {
	Total     tensor.Bytes // of the machine, or the control group's limit where that is lower
	Available tensor.Bytes // without making the system swap, at this moment
}

// RAM reads the machine's memory and the control group's limit.
func RAM() (Memory, error) { return ram() }

// PeakResident is the most memory that this process has had resident; 0 where
// the system does not tell.
func PeakResident() tensor.Bytes { return peakResident() }

// CPUModel is what the vendor calls the processor; "" where the system does
// not tell.
func CPUModel() string { return cpuModel() }

// CPUStepping tells processors of one name apart: the stepping and the
// microcode that runs, which changes speed too; "" where the system does not
// tell.
func CPUStepping() string { return cpuStepping() }
