// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/distorch/distorch/model/tensor"
)

func ram() (Memory, error) {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return Memory{}, fmt.Errorf("read this machine's memory: %w", err)
	}
	return Memory{Total: tensor.Bytes(n), Available: tensor.Bytes(n)}, nil
}

func peakResident() tensor.Bytes { return 0 }

func cpuModel() string {
	s, err := unix.Sysctl("machdep.cpu.brand_string")
	if err != nil {
		return ""
	}
	return s
}

func cpuStepping() string {
	n, err := unix.SysctlUint32("hw.cpufamily")
	if err != nil {
		return ""
	}
	return fmt.Sprintf("family %x", n)
}
