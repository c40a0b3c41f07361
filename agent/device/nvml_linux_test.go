// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package device

import (
	stdcmp "cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/tensor"
)

// mocked are the symbols that go-nvml's machines answer; another call panics,
// as it would end the process with a driver that does not have it.
var mocked = []string{"nvmlSystemGetCudaDriverVersion", "nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMigMode"}

// only lets a machine have these symbols.
func only(s *server.Server, symbols ...string) *server.Server {
	s.LookupSymbolFunc = func(name string) error {
		if slices.Contains(symbols, name) {
			return nil
		}
		return errors.New("undefined symbol: " + name)
	}
	return s
}

// placed gives a machine's cards the PCI addresses that its mock leaves out.
func placed(s *server.Server) *server.Server {
	for i := range s.Devices {
		d := mockDevice(s, i)
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) {
			return pciInfo(fmt.Sprintf("00000000:%02X:00.0", 16*i+7)), nvml.SUCCESS
		}
	}
	return s
}

func mockDevice(s *server.Server, i int) *server.Device {
	d, ok := s.Devices[i].(*server.Device)
	if !ok {
		panic("a device of the mock's that is none")
	}
	return d
}

func pciInfo(at string) nvml.PciInfo {
	var p nvml.PciInfo
	for i, c := range []byte(at) {
		p.BusId[i] = int8(c)
	}
	return p
}

// TestNVMLMachines reads NVIDIA's own machines, with only the calls that an old
// driver has.
func TestNVMLMachines(t *testing.T) {
	for name, tc := range map[string]struct {
		server *server.Server
		arch   string
		memory tensor.Bytes
	}{
		"dgxa100": {dgxa100.New(), "sm_80", 40 * tensor.GiB},
		"dgxh100": {dgxh100.New(), "sm_90", 80 * tensor.GiB},
		"dgxh200": {dgxh200.New(), "sm_90", 141 * tensor.GiB},
		"dgxb200": {dgxb200.New(), "sm_100", 192 * tensor.GiB},
	} {
		t.Run(name, func(t *testing.T) {
			r := readNVML(placed(only(tc.server, mocked...)))
			if !r.Built || len(r.GPUs) != 8 || r.Driver.Fault != FaultNone || r.Driver.CUDA == "" || r.Driver.Version == "" {
				t.Fatalf("%+v", r)
			}
			for i, g := range r.GPUs {
				if g.Architecture != tc.arch || g.UUID != mockDevice(tc.server, i).UUID || g.Minor != i || g.Model == "" ||
					g.PCI != fmt.Sprintf("0000:%02x:00.0", 16*i+7) || len(g.Peers) != 0 {
					t.Errorf("%+v", g)
				}
				if off := float64(g.MemoryTotal) / float64(tc.memory); off < 0.9 || off > 1.1 {
					t.Errorf("memory %v, want about %v", g.MemoryTotal, tc.memory)
				}
			}
		})
	}
}

// TestNVMLMixedMachine reads everything that a newer driver tells.
func TestNVMLMixedMachine(t *testing.T) {
	s := placed(dgxa100.NewWithGPUs(gpus.A100_SXM4_80GB, gpus.A100_SXM4_80GB, gpus.H100_SXM5_80GB))
	s.SystemGetProcessNameFunc = func(pid int) (string, nvml.Return) { return fmt.Sprintf("/usr/bin/python%d", pid), nvml.SUCCESS }
	for i := range s.Devices {
		whole(mockDevice(s, i), i)
	}
	r := readNVML(s)
	if len(r.GPUs) != 3 {
		t.Fatalf("%+v", r)
	}
	a, b, c := r.GPUs[0], r.GPUs[1], r.GPUs[2]
	if want := (PCIe{4, 8, 4, 16}); a.PCIe != want {
		t.Errorf("PCIe %+v, want %+v", a.PCIe, want)
	}
	if a.ComputeMode != ModeDefault || b.ComputeMode != ModeExclusiveProcess || c.ComputeMode != ModeProhibited {
		t.Errorf("modes %s, %s, %s", a.ComputeMode, b.ComputeMode, c.ComputeMode)
	}
	if !a.MIG.Enabled || len(a.MIG.Instances) != 1 || a.MIG.Instances[0].UUID != "MIG-1" || a.MIG.Instances[0].MemoryTotal != 20*tensor.GiB || b.MIG.Enabled {
		t.Errorf("MIG %+v, %+v", a.MIG, b.MIG)
	}
	// One process computes and draws; another's memory is not told.
	if want := []Process{{PID: 10, Name: "python10", Memory: 3 * tensor.GiB}, {PID: 11, Name: "python11"}}; !slices.Equal(a.Processes, want) {
		t.Errorf("processes %+v, want %+v", a.Processes, want)
	}
	if want := []NVLink{{0, 3, b.PCI}, {2, 3, b.PCI}}; !slices.Equal(a.NVLinks, want) {
		t.Errorf("links %+v, want %+v", a.NVLinks, want)
	}
	if want := []Peer{{b.PCI, "single switch", true}, {c.PCI, "system", false}}; !slices.Equal(a.Peers, want) {
		t.Errorf("peers %+v, want %+v", a.Peers, want)
	}
}

// whole fills in what go-nvml's machines do not answer.
func whole(d *server.Device, i int) {
	n := func(v int) func() (int, nvml.Return) { return func() (int, nvml.Return) { return v, nvml.SUCCESS } }
	d.GetCurrPcieLinkGenerationFunc, d.GetMaxPcieLinkGenerationFunc = n(4), n(4)
	d.GetCurrPcieLinkWidthFunc, d.GetMaxPcieLinkWidthFunc = n(8), n(16)
	d.GetComputeModeFunc = func() (nvml.ComputeMode, nvml.Return) {
		return []nvml.ComputeMode{nvml.COMPUTEMODE_DEFAULT, nvml.COMPUTEMODE_EXCLUSIVE_PROCESS, nvml.COMPUTEMODE_PROHIBITED}[i], nvml.SUCCESS
	}
	if i == 0 {
		d.MigMode = nvml.DEVICE_MIG_ENABLE
	}
	d.GetMaxMigDeviceCountFunc = n(7)
	d.GetMigDeviceHandleByIndexFunc = func(at int) (nvml.Device, nvml.Return) {
		if at != 3 {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return &mock.Device{
			GetUUIDFunc:       func() (string, nvml.Return) { return "MIG-1", nvml.SUCCESS },
			GetNameFunc:       func() (string, nvml.Return) { return "A100 MIG 3g.20gb", nvml.SUCCESS },
			GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: 20 << 30}, nvml.SUCCESS },
		}, nvml.SUCCESS
	}
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 10, UsedGpuMemory: 3 << 30}, {Pid: 11, UsedGpuMemory: ^uint64(0)}}, nvml.SUCCESS
	}
	d.GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 10, UsedGpuMemory: 3 << 30}}, nvml.SUCCESS
	}
	d.GetNvLinkStateFunc = func(link int) (nvml.EnableState, nvml.Return) {
		switch {
		case link > 2:
			return 0, nvml.ERROR_INVALID_ARGUMENT
		case link == 1:
			return nvml.FEATURE_DISABLED, nvml.SUCCESS
		}
		return nvml.FEATURE_ENABLED, nvml.SUCCESS
	}
	d.GetNvLinkVersionFunc = func(int) (uint32, nvml.Return) { return 3, nvml.SUCCESS }
	d.GetNvLinkRemotePciInfoFunc = func(int) (nvml.PciInfo, nvml.Return) { return pciInfo("00000000:17:00.0"), nvml.SUCCESS }
	d.GetTopologyCommonAncestorFunc = func(o nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
		if far, ok := o.(*server.Device); ok && far.Index == 2 {
			return nvml.TOPOLOGY_SYSTEM, nvml.SUCCESS
		}
		return nvml.TOPOLOGY_SINGLE, nvml.SUCCESS
	}
	d.GetP2PStatusFunc = func(o nvml.Device, _ nvml.GpuP2PCapsIndex) (nvml.GpuP2PStatus, nvml.Return) {
		if far, ok := o.(*server.Device); ok && far.Index == 2 {
			return nvml.P2P_STATUS_CHIPSET_NOT_SUPPORTED, nvml.SUCCESS
		}
		return nvml.P2P_STATUS_OK, nvml.SUCCESS
	}
}

// TestNVMLFailedInit: nothing is called after an Init that failed, as that would
// end the process.
func TestNVMLFailedInit(t *testing.T) {
	for ret, want := range map[nvml.Return]Fault{
		nvml.ERROR_LIBRARY_NOT_FOUND:       FaultNoLibrary,
		nvml.ERROR_DRIVER_NOT_LOADED:       FaultNoDriver,
		nvml.ERROR_LIB_RM_VERSION_MISMATCH: FaultMismatch,
		nvml.ERROR_NO_PERMISSION:           FaultPermission,
		nvml.ERROR_UNKNOWN:                 FaultOther,
	} {
		// The bare mock panics on every other call.
		r := readNVML(&mock.Interface{InitFunc: func() nvml.Return { return ret }})
		if r.Driver.Fault != want || len(r.GPUs) != 0 || !r.Built {
			t.Errorf("%d: %+v", ret, r)
		}
	}
}

// TestNVMLLostCard: a card that fell off the bus is left out, the others stay.
func TestNVMLLostCard(t *testing.T) {
	s := placed(only(dgxa100.New(), mocked...))
	s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 2 {
			return nil, nvml.ERROR_GPU_IS_LOST
		}
		return s.Devices[i], nvml.SUCCESS
	}
	if r := readNVML(s); len(r.GPUs) != 7 || r.GPUs[2].UUID != mockDevice(s, 3).UUID {
		t.Errorf("%d cards", len(r.GPUs))
	}
}

// TestNVMLOldLibrary opens a real library, which lacks most calls, and whose Init
// fails: the process lives.
func TestNVMLOldLibrary(t *testing.T) {
	lib := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	out, err := exec.CommandContext(t.Context(), stdcmp.Or(os.Getenv("CC"), "gcc"), "-shared", "-fPIC", "-o", lib, "testdata/nvml/old.c").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	read := func() NVMLReport { return readNVML(nvml.New(nvml.WithLibraryPath(lib))) }
	for code, fault := range map[string]Fault{"9": FaultNoDriver, "18": FaultMismatch} {
		t.Setenv("FAKE_NVML_INIT", code)
		if r := read(); r.Driver.Fault != fault || len(r.GPUs) != 0 {
			t.Errorf("%s: %+v", code, r)
		}
	}
	if err := os.Unsetenv("FAKE_NVML_INIT"); err != nil {
		t.Fatal(err)
	}
	want := GPU{
		Vendor: NVIDIA, Model: "Tesla K80", UUID: "GPU-old", PCI: "0000:84:00.0", NUMA: -1, ComputeMode: ModeExclusiveProcess,
		MemoryTotal: 12 * tensor.GiB, MemoryFree: 11 * tensor.GiB, MemoryUsed: tensor.GiB,
	}
	for range 2 { // it is opened anew
		r := read()
		if r.Driver.Version != "331.20" || r.Driver.CUDA != "" || len(r.GPUs) != 1 {
			t.Fatalf("%+v", r)
		}
		if diff := cmp.Diff(want, r.GPUs[0]); diff != "" {
			t.Error(diff)
		}
	}
	if r := readNVML(nvml.New(nvml.WithLibraryPath("testdata/nvml/old.c"))); r.Driver.Fault != FaultNoLibrary {
		t.Errorf("what is no library: %+v", r)
	}
}

// TestNVMLHere asks the library of this machine, which may not be there: it
// answers or says why not, and the process lives.
func TestNVMLHere(t *testing.T) {
	r := askNVML(t.Context())
	if !r.Built || r.Driver.Fault == FaultOther && r.Driver.Detail == "" {
		t.Errorf("%+v", r)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if r := askNVML(ended); !r.Built || r.Driver.Fault == FaultSilent && !strings.Contains(r.Driver.Detail, "NVML") {
		t.Errorf("%+v", r)
	}
}
