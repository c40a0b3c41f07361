// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"errors"
	"os"
	"testing"

	"github.com/distorch/distorch/model/tensor"
)

func TestCgroupLimitsMemory(t *testing.T) {
	for _, c := range []struct {
		name        string
		files       map[string]string
		limit, used tensor.Bytes
	}{
		{"none", map[string]string{"/proc/self/cgroup": "0::/\n"}, 0, 0},
		{"unlimited v2", map[string]string{"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "max\n"}, 0, 0},
		{"v2", map[string]string{"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "max\n",
			"/sys/fs/cgroup/a/memory.max": "6000000000\n", "/sys/fs/cgroup/a/memory.current": "1000000000\n"}, 6e9, 1e9},
		{"lowest wins", map[string]string{"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "2000\n",
			"/sys/fs/cgroup/a/b/memory.current": "500\n", "/sys/fs/cgroup/a/memory.max": "6000\n"}, 2000, 500},
		{"v1", map[string]string{"/proc/self/cgroup": "3:cpu:/x\n5:memory:/x\n", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4096\n",
			"/sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1024\n"}, 4096, 1024},
		{"garbage", map[string]string{"/proc/self/cgroup": "::\nnothing\n0::\n"}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit, used := cgroup(func(f string) ([]byte, error) {
				if s, ok := c.files[f]; ok {
					return []byte(s), nil
				}
				return nil, os.ErrNotExist
			})
			if limit != c.limit || used != c.used {
				t.Errorf("limit %d used %d, want %d and %d", limit, used, c.limit, c.used)
			}
		})
	}
}

func TestMeminfo(t *testing.T) {
	m, err := parseMeminfo([]byte("MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\n"))
	if err != nil || m.Total != 16000<<10 || m.Available != 8000<<10 {
		t.Errorf("got %+v, %v", m, err)
	}
	if _, err := parseMeminfo([]byte("nothing")); err == nil {
		t.Error("text without MemTotal was taken")
	}
}

func TestThisMachine(t *testing.T) {
	m, err := RAM()
	if err != nil || m.Total <= 0 || m.Available <= 0 || m.Available > m.Total {
		t.Errorf("RAM is %+v, %v", m, err)
	}
	if p := PeakResident(); p <= 0 || p > m.Total {
		t.Errorf("peak resident memory is %v", p)
	}
}

func TestCPUInfo(t *testing.T) {
	const file = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nstepping\t: 7\n\nprocessor\t: 1\nstepping\t: 8\n"
	got := cpuinfo(func(string) ([]byte, error) { return []byte(file), nil })
	if got["model name"] != "Some CPU @ 2.00GHz" || got["stepping"] != "7" {
		t.Errorf("%v", got)
	}
	if got := cpuinfo(func(string) ([]byte, error) { return nil, errors.New("no") }); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
