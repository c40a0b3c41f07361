// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package device finds what this machine has to compute and keep weights with:
// the CPU and its RAM, within the limits of the control group.
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
