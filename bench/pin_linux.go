// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

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

// pin gives each of the named processes a core of its own, where there are
// enough; those of the other processes are as the system chooses.
func (c *cluster) pin(names ...string) (string, error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return "", fmt.Errorf("cores of this process: %w", err)
	}
	if all.Count() < len(names) {
		return fmt.Sprintf("%d cores for all", all.Count()), nil
	}
	core := -1
	for _, name := range names {
		for core++; !all.IsSet(core); core++ {
		}
		var one unix.CPUSet
		one.Set(core)
		for _, p := range c.procs {
			if p.name != name {
				continue
			}
			tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.cmd.Process.Pid))
			if err != nil {
				return "", fmt.Errorf("threads of %s: %w", name, err)
			}
			for _, t := range tasks { // those that it starts later have their starter's
				if id, err := strconv.Atoi(t.Name()); err == nil {
					_ = unix.SchedSetaffinity(id, &one) // a thread that ended meanwhile
				}
			}
		}
	}
	return fmt.Sprintf("each agent on a core of its own, of %d", all.Count()), nil
}
