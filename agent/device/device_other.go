// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin && !windows

package device

import (
	"errors"

	"github.com/distorch/distorch/model/tensor"
)

func ram() (Memory, error) {
	return Memory{}, errors.New("this system does not tell its memory: set agent.memory")
}

func peakResident() tensor.Bytes { return 0 }

func cpuModel() string { return "" }

func cpuStepping() string { return "" }
