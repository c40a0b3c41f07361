// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

func ram() (Memory, error) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Memory{}, fmt.Errorf("read this machine's memory: %w", err)
	}
	m, err := parseMeminfo(info)
	if err != nil {
		return Memory{}, err
	}
	limit, used := cgroup(os.ReadFile)
	if limit > 0 && limit < m.Total {
		m.Total = limit
		m.Available = min(m.Available, max(limit-used, 0))
	}
	return m, nil
}

// parseMeminfo reads MemTotal and MemAvailable (kernel documentation,
// filesystems/proc.rst).
func parseMeminfo(b []byte) (Memory, error) {
	var m Memory
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || kib < 0 || kib > 1<<50 {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			m.Total = tensor.Bytes(kib << 10)
		case "MemAvailable:":
			m.Available = tensor.Bytes(kib << 10)
		}
	}
	if m.Total == 0 {
		return m, errors.New("/proc/meminfo has no MemTotal")
	}
	return m, s.Err()
}

// cgroup finds the lowest memory limit from this process's group up to the
// root, in version 2 or 1, and what is in use there. 0 means no limit.
func cgroup(read func(string) ([]byte, error)) (limit, used tensor.Bytes) {
	own, err := read("/proc/self/cgroup")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		root, limitFile, usedFile := "/sys/fs/cgroup", "memory.max", "memory.current"
		if parts[0] != "0" {
			if parts[1] != "memory" {
				continue
			}
			root, limitFile, usedFile = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
		}
		for dir := path.Clean("/" + parts[2]); ; dir = path.Dir(dir) {
			l, ok := number(read, path.Join(root, dir, limitFile))
			if ok && (limit == 0 || l < limit) {
				limit = l
				used, _ = number(read, path.Join(root, dir, usedFile))
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit, used
}

func number(read func(string) ([]byte, error), file string) (tensor.Bytes, bool) {
	b, err := read(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is no number
	return tensor.Bytes(n), err == nil && n > 0
}

func peakResident() tensor.Bytes {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "VmHWM:" {
			if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				return tensor.Bytes(kib << 10)
			}
		}
	}
	return 0
}

func cpuModel() string { return cpuinfo(os.ReadFile)["model name"] }

func cpuStepping() string {
	info := cpuinfo(os.ReadFile)
	var parts []string
	// On ARM, where there is no name, the part's number stands for it.
	for _, k := range []string{"CPU implementer", "CPU part", "cpu family", "model", "stepping", "CPU revision", "microcode"} {
		if v := info[k]; v != "" {
			parts = append(parts, k+" "+v)
		}
	}
	return strings.Join(parts, ", ")
}

// cpuinfo is the first processor's part of /proc/cpuinfo.
func cpuinfo(read func(string) ([]byte, error)) map[string]string {
	out := map[string]string{}
	b, err := read("/proc/cpuinfo")
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(line, ":")
		k = strings.TrimSpace(k)
		if !ok || k == "" {
			if len(out) > 0 {
				break
			}
			continue
		}
		out[k] = strings.TrimSpace(v)
	}
	return out
}
