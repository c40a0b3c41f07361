// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var rewrite = flag.Bool("rewrite", false, "write what was found into testdata/machines")

// machine makes the tree of a file of testdata/machines: what begins with "->"
// is a link. Files below smi are answers of nvidia-smi, the last is what is
// found.
func machine(t *testing.T, file string) (o Options, want string, archive *txtar.Archive) {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	o.Root = t.TempDir()
	answers := map[string][]byte{}
	for _, f := range archive.Files {
		if f.Name == "found.json" {
			want = string(f.Data)
			continue
		}
		if name, ok := strings.CutPrefix(f.Name, "smi/"); ok {
			answers[name] = f.Data
			continue
		}
		name := filepath.Join(o.Root, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := bytes.CutPrefix(f.Data, []byte("-> ")); ok {
			err = os.Symlink(strings.TrimSpace(string(target)), name)
		} else {
			err = os.WriteFile(name, f.Data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(answers) > 0 {
		o.Run = func(_ context.Context, name string, args ...string) ([]byte, error) {
			if name != "nvidia-smi" {
				return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
			}
			question, _, _ := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
			if strings.Contains(args[0], smiNewer) {
				if _, ok := answers[question+"-newer"]; ok {
					question += "-newer"
				}
			}
			b, ok := answers[question]
			switch {
			case !ok:
				return nil, fmt.Errorf("nvidia-smi was asked for %s", question)
			case bytes.HasPrefix(b, []byte("fails: ")):
				return b[len("fails: "):], fmt.Errorf("exit status 2")
			}
			return b, nil
		}
	}
	o.Processes = true
	return o, want, archive
}

// TestMachines finds the cards of machines whose files are in testdata.
func TestMachines(t *testing.T) {
	files, err := filepath.Glob("testdata/machines/*.txtar")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d machines, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			o, want, archive := machine(t, file)
			b, err := json.MarshalIndent(Discover(t.Context(), o), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got := string(b) + "\n"
			if got == want {
				return
			}
			if !*rewrite {
				t.Errorf("found (-want +got):\n%s", cmp.Diff(want, got))
				return
			}
			last := len(archive.Files) - 1
			if archive.Files[last].Name != "found.json" {
				archive.Files = append(archive.Files, txtar.File{Name: "found.json"})
				last++
			}
			archive.Files[last].Data = []byte(got)
			if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestThisMachinesCards: whatever this machine has, looking is no error, ends,
// and every card can be told from the others.
func TestThisMachinesCards(t *testing.T) {
	inv := Discover(t.Context(), Options{Processes: true})
	if inv.GPUs == nil || len(inv.Sources) < 2 {
		t.Errorf("%+v", inv)
	}
	seen := map[string]bool{}
	for _, g := range inv.GPUs {
		key := g.PCI + " " + g.UUID
		if seen[key] || key == " " || g.Model == "" || len(g.Sources) == 0 {
			t.Errorf("%+v", g)
		}
		seen[key] = true
	}
}

// TestNVMLIsJoined: what NVML tells goes before the bus, and cards that it does
// not list stay.
func TestNVMLIsJoined(t *testing.T) {
	o, _, _ := machine(t, "testdata/machines/two-cards.txtar")
	o.NVML = func(context.Context) NVMLReport {
		return NVMLReport{Built: true, Driver: Driver{Version: "550.54.15", CUDA: "12.4"}, GPUs: []GPU{
			{UUID: "GPU-new", PCI: "0000:65:00.0", Model: "by NVML", Minor: 3, MemoryTotal: 5, Architecture: "sm_80"},
			{UUID: "GPU-wsl", Minor: -1, NUMA: -1},
		}}
	}
	inv := Discover(t.Context(), o)
	if len(inv.GPUs) != 3 || inv.NVIDIA.CUDA != "12.4" {
		t.Fatalf("%+v", inv)
	}
	wsl, joined, alone := inv.GPUs[0], inv.GPUs[2], inv.GPUs[1]
	if joined.PCI != "0000:65:00.0" || joined.UUID != "GPU-new" || joined.Model != "by NVML" || joined.Minor != 3 || joined.PCIe.MaxWidth != 16 || !joined.Listed {
		t.Errorf("joined: %+v", joined)
	}
	if wsl.UUID != "GPU-wsl" || !cmp.Equal(wsl.Sources, []string{SourceNVML}) {
		t.Errorf("without an address: %+v", wsl)
	}
	if alone.Listed || alone.UUID == "" {
		t.Errorf("not listed: %+v", alone)
	}
}

// TestFaultsOfTheDriver: NVML's reason stands where nvidia-smi has none either.
func TestFaultsOfTheDriver(t *testing.T) {
	o, _, _ := machine(t, "testdata/machines/two-cards.txtar")
	o.NVML = func(context.Context) NVMLReport { return NVMLReport{Built: true, Driver: Driver{Fault: FaultMismatch}} }
	o.Run = func(context.Context, string, ...string) ([]byte, error) { return nil, fs.ErrNotExist }
	if inv := Discover(t.Context(), o); inv.NVIDIA.Fault != FaultMismatch {
		t.Errorf("%+v", inv.NVIDIA)
	}
	o.NVML = nil
	for _, tc := range []struct {
		out  string
		want Fault
	}{
		{"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.171\n", FaultMismatch},
		{"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.\n", FaultNoDriver},
		{"NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.\n", FaultNoLibrary},
		{"Failed to initialize NVML: Insufficient Permissions\n", FaultPermission},
		{"No devices were found\n", FaultNone},
		{"Segmentation fault\n", FaultOther},
		{"", FaultOther},
	} {
		o.Run = func(context.Context, string, ...string) ([]byte, error) {
			return []byte(tc.out), fmt.Errorf("exit status 9")
		}
		if inv := Discover(t.Context(), o); inv.NVIDIA.Fault != tc.want {
			t.Errorf("%q: %+v", tc.out, inv.NVIDIA)
		}
	}
}

func TestProgramsAreBounded(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("there is no /bin/sh: a kernel facility of other systems")
	}
	b, err := run(t.Context(), "/bin/sh", "-c", "head -c 2000000 /dev/zero; echo no end >&2")
	if err == nil || !strings.Contains(err.Error(), "without end") || len(b) != maxOutput {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := run(t.Context(), "no-such-program-as-this"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("%v", err)
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"00000000:65:00.0": "0000:65:00.0", "0000:0A:1f.7": "0000:0a:1f.7", "00010000:01:00.0": "10000:01:00.0",
		"": "", "65:00.0": "", "0000:65:00.9": "", "0000:165:00.0": "", "x": "", "0000:65:00.0; rm": "0000:65:00.0",
	} {
		if got := address(in); got != want {
			t.Errorf("address(%q) is %q, want %q", in, got, want)
		}
	}
}

func TestGFX(t *testing.T) {
	for in, want := range map[int64]string{110000: "gfx1100", 90010: "gfx90a", 90402: "gfx942", 100300: "gfx1030", 0: ""} {
		if got := gfx(in); got != want {
			t.Errorf("gfx(%d) is %q, want %q", in, got, want)
		}
	}
}
