// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/tensor"
)

func TestParseCards(t *testing.T) {
	const text = `NVIDIA H200, GPU-1, 00000000:18:00.0, 143771, 4, 143767, 5, 5, 16, 16, Exclusive_Process, Enabled, 570.86.15, 9.0
Tesla P40, GPU-2, 00000000:AF:00.0, 23040, [N/A], [N/A], 1, 3, 8, 16, Default, [N/A], 570.86.15, 6.1
`
	got, driver, err := parseCards([]byte(text))
	if err != nil || driver != "570.86.15" {
		t.Fatalf("driver %q, %v", driver, err)
	}
	want := []GPU{
		{Vendor: NVIDIA, Model: "NVIDIA H200", UUID: "GPU-1", PCI: "0000:18:00.0", Architecture: "sm_90", MemoryTotal: 143771 * tensor.MiB, MemoryUsed: 4 * tensor.MiB,
			MemoryFree: 143767 * tensor.MiB, PCIe: PCIe{5, 16, 5, 16}, NUMA: -1, Minor: -1, MIG: MIG{Enabled: true}, ComputeMode: ModeExclusiveProcess},
		{Vendor: NVIDIA, Model: "Tesla P40", UUID: "GPU-2", PCI: "0000:af:00.0", Architecture: "sm_61", MemoryTotal: 23040 * tensor.MiB,
			PCIe: PCIe{1, 8, 3, 16}, NUMA: -1, Minor: -1, ComputeMode: ModeDefault},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"NVIDIA H200\n", "an error, of some kind\n", strings.Repeat("a,b,c,d,e,f,g,h,i,j,k,l,m\n", maxRows+1)} {
		if cards, _, err := parseCards([]byte(bad)); err == nil {
			t.Errorf("%.40q gave %d cards and no error", bad, len(cards))
		}
	}
}

func TestParseApps(t *testing.T) {
	const text = `GPU-1, 4242, /usr/bin/python3, 10240
GPU-1, 77, C:\ComfyUI\venv\python.exe, [N/A]
GPU-2, 9, a, b, c, 5
GPU-2, none, x, 5
`
	got, err := parseApps([]byte(text))
	want := map[string][]Process{
		"GPU-1": {{PID: 4242, Name: "python3", Memory: 10240 * tensor.MiB}, {PID: 77, Name: "python.exe"}},
		"GPU-2": {{PID: 9, Name: "a, b, c", Memory: 5 * tensor.MiB}},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestParseList(t *testing.T) {
	const text = `GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1g.5gb      Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-6c89852c-d268-c3f3-1b07-005d5ae1dc3f)
`
	want := map[string][]MIGInstance{"GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f": {
		{UUID: "MIG-c7384736-a75d-5afc-978f-d2f1294409fd", Model: "3g.20gb"}, {UUID: "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d", Model: "1g.5gb"},
	}}
	if diff := cmp.Diff(want, parseList([]byte(text))); diff != "" {
		t.Error(diff)
	}
}

func TestVersions(t *testing.T) {
	for in, want := range map[string]string{
		"NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc 12": "535.104.05",
		"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (archlinux-builder@)":        "550.54.14",
		"NVRM version: NVIDIA UNIX x86_64 Kernel Module  390.157":                                                        "390.157",
		"": "", "version 535.104.05": "",
	} {
		if got := kernelVersion(in); got != want {
			t.Errorf("kernelVersion(%q) is %q, want %q", in, got, want)
		}
	}
	if got := cudaVersion([]byte("Timestamp : x\nDriver Version                            : 570.86.15\nCUDA Version                              : 12.8\n")); got != "12.8" {
		t.Errorf("CUDA %q", got)
	}
}

// FuzzSMI: whatever a program called nvidia-smi prints, reading it ends, keeps
// within bounds and yields cards that can be told apart.
func FuzzSMI(f *testing.F) {
	f.Add([]byte("NVIDIA H200, GPU-1, 00000000:18:00.0, 143771, 4, 143767, 5, 5, 16, 16, Default, Disabled, 570.86.15, 9.0\n"))
	f.Add([]byte("GPU-1, 4242, /usr/bin/python3, 10240\n"))
	f.Add([]byte("GPU 0: A (UUID: GPU-5c89852c)\n  MIG 1g.5gb  Device 0: (UUID: MIG-c7384736-a75d)\n"))
	f.Add([]byte("CUDA Version : 12.8\n"))
	f.Add([]byte("\"\n,,,,,,,,,,,,,"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cards, driver, _ := parseCards(b)
		if len(cards) > maxCards || len(driver) > 256 {
			t.Errorf("%d cards, driver %q", len(cards), driver)
		}
		for _, g := range cards {
			if g.UUID == "" && g.PCI == "" || g.MemoryTotal < 0 || g.PCIe.Width < 0 || g.PCIe.Width > 64 {
				t.Errorf("%+v", g)
			}
		}
		apps, _ := parseApps(b)
		for _, a := range apps {
			for _, p := range a {
				if p.PID < 0 || p.Memory < 0 || len(p.Name) > 128 {
					t.Errorf("%+v", p)
				}
			}
		}
		parseList(b)
		cudaVersion(b)
		var g GPU
		parseInformation(string(b), &g)
		kernelVersion(string(b))
		properties(string(b))
	})
}
