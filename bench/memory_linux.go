// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// peakMemory is VmHWM of a process.
func peakMemory(pid int) (tensor.Bytes, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return tensor.Bytes(n << 10), err
		}
	}
	return 0, fmt.Errorf("process %d: its status has no VmHWM", pid)
}
