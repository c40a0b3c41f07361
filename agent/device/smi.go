// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/distorch/distorch/model/tensor"
)

// What nvidia-smi is asked of each card, in the order of its answer; and
// without what drivers before 510 do not know.
const (
	smiFields  = "name,uuid,pci.bus_id,memory.total,memory.used,memory.free,pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current,pcie.link.width.max,compute_mode,mig.mode.current,driver_version"
	smiNewer   = ",compute_cap"
	appFields  = "gpu_uuid,pid,process_name,used_memory"
	smiFormat  = "--format=csv,noheader,nounits"
	maxRows    = 1024
	maxColumns = 32
)

// smi asks nvidia-smi, which comes with every driver; false if there is none.
func (d *discovery) smi(ctx context.Context) (NVMLReport, bool) {
	var r NVMLReport
	if d.Run == nil {
		return r, false
	}
	ctx, cancel := context.WithTimeout(ctx, driverTime)
	defer cancel()
	name, out, err := d.smiRun(ctx, "--query-gpu="+smiFields+smiNewer, smiFormat)
	if errors.Is(err, fs.ErrNotExist) {
		if d.inv.NVIDIA.Kernel != "" || len(d.inv.Of(NVIDIA)) > 0 {
			d.inv.Sources = append(d.inv.Sources, Source{Name: SourceSMI, Error: "not found"})
		}
		return r, false
	}
	r.Driver.SMI = name
	if err != nil && bytes.Contains(out, []byte("not a valid field")) {
		_, out, err = d.smiRun(ctx, "--query-gpu="+smiFields, smiFormat)
	}
	if ctx.Err() != nil {
		r.Driver.Fault, r.Driver.Detail = FaultSilent, fmt.Sprintf("nvidia-smi said nothing in %s", driverTime)
		return r, true
	}
	if err != nil {
		r.Driver.Fault, r.Driver.Detail = smiFault(string(out), err)
		return r, true
	}
	if r.GPUs, r.Driver.Version, err = parseCards(out); err != nil {
		r.Driver.Fault, r.Driver.Detail = FaultOther, err.Error()
		return r, true
	}
	// The head of every -q report has the newest CUDA that the driver runs.
	if _, out, err := d.smiRun(ctx, "-q", "-d", "COMPUTE"); err == nil {
		r.Driver.CUDA = cudaVersion(out)
	}
	d.smiInstances(ctx, r.GPUs)
	if d.Processes {
		if _, out, err := d.smiRun(ctx, "--query-compute-apps="+appFields, smiFormat); err == nil {
			apps, err := parseApps(out)
			for i := range r.GPUs {
				r.GPUs[i].Processes = apps[r.GPUs[i].UUID]
			}
			if err != nil {
				d.inv.Sources = append(d.inv.Sources, Source{Name: SourceSMI, Error: err.Error()})
			}
		}
	}
	return r, true
}

// smiRun runs nvidia-smi from where it is: WSL keeps it out of PATH.
func (d *discovery) smiRun(ctx context.Context, args ...string) (name string, out []byte, err error) {
	for _, name = range []string{"nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi"} {
		if out, err = d.Run(ctx, name, args...); !errors.Is(err, fs.ErrNotExist) {
			return name, out, err
		}
	}
	return "", nil, err
}

// smiInstances lists the instances of cards whose MIG mode is on.
func (d *discovery) smiInstances(ctx context.Context, cards []GPU) {
	if !slices.ContainsFunc(cards, func(g GPU) bool { return g.MIG.Enabled }) {
		return
	}
	_, out, err := d.smiRun(ctx, "-L")
	if err != nil {
		return
	}
	instances := parseList(out)
	for i := range cards {
		if cards[i].MIG.Enabled {
			cards[i].MIG.Instances = instances[cards[i].UUID]
		}
	}
}

// smiFault finds out why nvidia-smi ended with an error.
func smiFault(out string, err error) (Fault, string) {
	detail, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if detail == "" {
		detail = err.Error()
	}
	detail = detail[:min(len(detail), 300)]
	switch low := strings.ToLower(out); {
	case strings.Contains(low, "version mismatch"):
		return FaultMismatch, detail
	case strings.Contains(low, "couldn't communicate with the nvidia driver"), strings.Contains(low, "driver not loaded"):
		return FaultNoDriver, detail
	case strings.Contains(low, "couldn't find libnvidia-ml"), strings.Contains(low, "libnvidia-ml.so"):
		return FaultNoLibrary, detail
	case strings.Contains(low, "insufficient permission"):
		return FaultPermission, detail
	case strings.Contains(low, "no devices were found"):
		return FaultNone, "" // it answers, and there are none
	}
	return FaultOther, detail
}

// rows reads nvidia-smi's CSV, of which only the separator and the number of
// columns are sure.
func rows(b []byte, columns int) ([][]string, error) {
	r := csv.NewReader(io.LimitReader(bytes.NewReader(b), maxOutput))
	r.TrimLeadingSpace, r.LazyQuotes, r.FieldsPerRecord = true, true, -1
	var out [][]string
	for {
		row, err := r.Read()
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return out, fmt.Errorf("nvidia-smi's answer: %w", err)
		case len(out) == maxRows || len(row) > maxColumns:
			return out, errors.New("nvidia-smi's answer has no end")
		case len(row) < columns:
			return out, fmt.Errorf("nvidia-smi's answer: %.80q is not what was asked", strings.Join(row, ", "))
		}
		for i := range row {
			row[i] = value(row[i])
		}
		out = append(out, row)
	}
}

// value is a cell; "" for what nvidia-smi does not know.
func value(s string) string {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "[") || s == "N/A" || len(s) > 256 {
		return "" // [N/A], [Not Supported], [Insufficient Permissions]
	}
	return s
}

// parseCards reads the answer to smiFields, with or without compute_cap.
func parseCards(b []byte) (cards []GPU, driver string, err error) {
	all, err := rows(b, strings.Count(smiFields, ",")+1)
	for _, row := range all {
		if len(cards) == maxCards {
			break
		}
		number := func(i int) int {
			n, ok := decimal(row[i])
			if !ok || n > 64 {
				return 0
			}
			return int(n)
		}
		g := GPU{
			Vendor: NVIDIA, Model: row[0], UUID: row[1], PCI: address(row[2]), NUMA: -1, Minor: -1,
			MemoryTotal: mebibytes(row[3]), MemoryUsed: mebibytes(row[4]), MemoryFree: mebibytes(row[5]),
			PCIe: PCIe{Generation: number(6), MaxGeneration: number(7), Width: number(8), MaxWidth: number(9)},
			MIG:  MIG{Enabled: strings.EqualFold(row[11], "Enabled")},
		}
		g.ComputeMode = strings.ToLower(strings.ReplaceAll(row[10], " ", "_"))
		if !slices.Contains([]string{ModeDefault, ModeExclusiveProcess, ModeExclusiveThread, ModeProhibited}, g.ComputeMode) {
			g.ComputeMode = ""
		}
		driver = row[12]
		if len(row) > 13 {
			g.Architecture = capability(row[13])
		}
		if g.UUID == "" && g.PCI == "" {
			continue // nothing to know it by
		}
		cards = append(cards, g)
	}
	return cards, driver, err
}

// capability writes a compute capability as compilers do: 8.6 is sm_86.
func capability(s string) string {
	if !regexp.MustCompile(`^\d{1,2}\.\d$`).MatchString(s) {
		return ""
	}
	return "sm_" + strings.Replace(s, ".", "", 1)
}

func mebibytes(s string) tensor.Bytes {
	n, ok := decimal(s)
	if !ok || n > 1<<30 {
		return 0
	}
	return tensor.Bytes(n) * tensor.MiB
}

// parseApps reads the answer to appFields, by the card's UUID.
func parseApps(b []byte) (map[string][]Process, error) {
	all, err := rows(b, strings.Count(appFields, ",")+1)
	out := map[string][]Process{}
	for _, row := range all {
		pid, ok := decimal(row[1])
		if !ok || pid > 1<<31 {
			continue
		}
		// A name may hold the separator; the amount is last.
		name := strings.Join(row[2:len(row)-1], ", ")
		out[row[0]] = append(out[row[0]], Process{PID: int(pid), Name: program(name), Memory: mebibytes(row[len(row)-1])})
	}
	return out, err
}

// program is a program's name without its folder, of Unix or Windows.
func program(name string) string {
	if i := strings.LastIndexAny(name, `/\`); i >= 0 {
		name = name[i+1:]
	}
	return name[:min(len(name), 128)]
}

// parseList reads `nvidia-smi -L`: cards, and below each its instances.
func parseList(b []byte) map[string][]MIGInstance {
	out := map[string][]MIGInstance{}
	card := regexp.MustCompile(`^GPU \d+: .*\(UUID: (GPU-[0-9a-fA-F-]{8,64})\)`)
	instance := regexp.MustCompile(`^\s+MIG (\S{1,32})\s.*\(UUID: (MIG-[0-9a-zA-Z/-]{8,128})\)`)
	current, n := "", 0
	for line := range strings.Lines(string(b[:min(len(b), maxOutput)])) {
		if m := card.FindStringSubmatch(line); m != nil {
			current = m[1]
		} else if m := instance.FindStringSubmatch(line); m != nil && n < maxRows {
			out[current] = append(out[current], MIGInstance{UUID: m[2], Model: m[1]})
			n++
		}
	}
	return out
}

// cudaVersion finds the newest CUDA that the driver runs in a report of
// nvidia-smi.
func cudaVersion(b []byte) string {
	m := regexp.MustCompile(`CUDA Version\s*:\s*(\d{1,2}\.\d{1,2})\b`).FindSubmatch(b[:min(len(b), maxOutput)])
	if m == nil {
		return ""
	}
	return string(m[1])
}

// run gives what a program prints, at most maxOutput of it.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	if !path.IsAbs(name) {
		found, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		name = found
	}
	cmd := exec.CommandContext(ctx, name, args...)
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = driverTime / 10
	err := cmd.Run()
	if out.over {
		err = errors.Join(err, fmt.Errorf("%s prints without end", name))
	}
	return out.b, err
}

// limited keeps the first maxOutput bytes of what is written to it.
type limited struct {
	b    []byte
	over bool
}

func (l *limited) Write(p []byte) (int, error) {
	room := maxOutput - len(l.b)
	l.over = l.over || len(p) > room
	l.b = append(l.b, p[:min(len(p), room)]...)
	return len(p), nil
}
