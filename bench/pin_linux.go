// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/distorch/distorch/agent/engine/native"
)

// pinned gives each of a device's queues a core of its own: what it returns is
// native.Config.Begin.
func pinned() (func(native.Queue), string, error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, "", fmt.Errorf("cores of this process: %w", err)
	}
	var cores []int
	for c := 0; len(cores) < 2 && c < 1024; c++ {
		if all.IsSet(c) {
			cores = append(cores, c)
		}
	}
	if len(cores) < 2 {
		return nil, "", errors.New("computing and copying need a core each, and this process has one")
	}
	return func(q native.Queue) {
		runtime.LockOSThread()
		var one unix.CPUSet
		one.Set(cores[q])
		_ = unix.SchedSetaffinity(0, &one) // a core of our own set
	}, fmt.Sprintf("computing on core %d, copying on core %d", cores[native.Computing], cores[native.Copying]), nil
}
