// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package allocation reads the allocation strings of ComfyUI-MultiGPU's DisTorch ("cuda:0,2.5gb;cpu,*#cuda:0") and says
// which blocks of a model they put on which device.
//
// [Parse] reads a string in one of two modes, [Assign] applies it to devices and blocks, [Generate] writes one that fits.
// [Default] does what that project's README promises: the user's order of devices, free memory, contiguous ranges, first
// bytes first. [Distorch2] does what its code does (ComfyUI-MultiGPU 2.6.3), surprises included, and reports them as
// warnings. docs/allocation.md has the grammar of both and their differences.
//
// The command line imports it, and the planner may; it imports nothing of placement and must not import os, net, context,
// sync, a logger or a clock. The same input gives the same bytes.
package allocation

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Mode is by whose rules a string is read and assigned.
type Mode string

// The modes.
const (
	Default   Mode = "default"
	Distorch2 Mode = "distorch2"
)

// Bytes is an amount of memory.
type Bytes int64

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
	// maxBytes bounds every amount, so that sums of them cannot overflow.
	maxBytes = 1 << 56
)

// String shows the amount in binary units with up to three digits behind the point.
func (b Bytes) String() string {
	for _, u := range [...]struct {
		name  string
		bytes Bytes
	}{{"TiB", tib}, {"GiB", gib}, {"MiB", mib}, {"KiB", kib}} {
		if b >= u.bytes || -b >= u.bytes {
			s := strconv.FormatFloat(float64(b)/float64(u.bytes), 'f', 3, 64)
			return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") + " " + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + " B"
}

// DeviceID names a device: "cpu", "cuda:0", "xpu:1" or "mps", with the node before a slash ("attic/cuda:0") where several
// machines are meant.
type DeviceID string

// Node is the part before the slash, empty if there is none.
func (d DeviceID) Node() string {
	if i := strings.LastIndexByte(string(d), '/'); i >= 0 {
		return string(d[:i])
	}
	return ""
}

// Local is the name of the device on its node.
func (d DeviceID) Local() string { return string(d[strings.LastIndexByte(string(d), '/')+1:]) }

// Accelerator is false for "cpu".
func (d DeviceID) Accelerator() bool { return d.Local() != "cpu" }

// on is the device of that name on the same node as d.
func (d DeviceID) on(local string) DeviceID {
	if node := d.Node(); node != "" {
		return DeviceID(node + "/" + local)
	}
	return DeviceID(local)
}

// Device is a device that may hold blocks.
type Device struct {
	ID          DeviceID
	Total, Free Bytes // 0 <= Free <= Total
}

// Run is a number of neighbouring blocks of one size.
type Run struct {
	Count int
	Bytes Bytes // of each
}

// Blocks are a model's blocks from head to tail.
type Blocks struct {
	Runs []Run
	// Fixed is what else the compute device holds: the weights in front of and behind the blocks. The default mode takes it
	// off that device's free memory; distorch2's rules do not know it, and it counts only for what is over.
	Fixed Bytes
}

const (
	maxBlocks  = 1 << 16
	maxDevices = 4096
)

// ErrInput is wrapped by errors about devices and blocks that cannot be.
var ErrInput = errors.New("bad devices or blocks")

func inputError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInput, fmt.Sprintf(format, args...))
}

// table is blocks with their running sums: sums[i] bytes lie before block i.
type table struct{ sums []Bytes }

func (b Blocks) table() (table, error) {
	t := table{sums: []Bytes{0}}
	total := Bytes(0)
	for _, r := range b.Runs {
		switch {
		case r.Count < 1:
			return t, inputError("a run of %d blocks", r.Count)
		case r.Bytes < 1 || r.Bytes > maxBytes:
			return t, inputError("blocks of %d bytes", r.Bytes)
		case r.Count > maxBlocks-t.count():
			return t, inputError("more than %d blocks", maxBlocks)
		}
		for range r.Count {
			if total += r.Bytes; total > maxBytes {
				return t, inputError("the blocks have more than %s", Bytes(maxBytes))
			}
			t.sums = append(t.sums, total)
		}
	}
	if t.count() == 0 {
		return t, inputError("no blocks")
	}
	if b.Fixed < 0 || b.Fixed > maxBytes {
		return t, inputError("%d bytes beside the blocks", b.Fixed)
	}
	return t, nil
}

func (t table) count() int               { return len(t.sums) - 1 }
func (t table) total() Bytes             { return t.sums[t.count()] }
func (t table) bytes(from, to int) Bytes { return t.sums[to] - t.sums[from] }

// upTo is the largest end, at most to, for which the blocks [from, end) have at most limit bytes.
func (t table) upTo(from, to int, limit Bytes) int {
	i, found := slices.BinarySearch(t.sums[from:to+1], t.sums[from]+min(max(limit, 0), maxBytes))
	if !found {
		i--
	}
	return from + i
}

// downTo is the smallest start, at least from, for which the blocks [start, to) have at most limit bytes.
func (t table) downTo(from, to int, limit Bytes) int {
	i, _ := slices.BinarySearch(t.sums[from:to+1], t.sums[to]-min(max(limit, 0), maxBytes))
	return from + i
}

func checkDevices(devices []Device) error {
	if len(devices) == 0 || len(devices) > maxDevices {
		return inputError("%d devices: between 1 and %d are wanted", len(devices), maxDevices)
	}
	seen := map[DeviceID]bool{}
	for _, d := range devices {
		id, problem := readDevice(string(d.ID))
		switch {
		case problem != nil:
			return fmt.Errorf("%w: device %q: %s; want %s", ErrInput, d.ID, problem.found, problem.expected)
		case id != d.ID:
			return inputError("device %q is written %s", d.ID, id)
		case seen[id]:
			return inputError("device %s is there twice", id)
		case d.Total < 0 || d.Total > maxBytes || d.Free < 0 || d.Free > d.Total:
			return inputError("device %s: %d bytes free of %d", id, d.Free, d.Total)
		}
		seen[id] = true
	}
	return nil
}

// ParseDevices reads "cpu=64GB,cuda:0=24GB,attic/cuda:0=20GB/24GB": names with the total memory, or with the free and the
// total memory. Units are binary as in allocation strings: GB is 2^30 bytes.
func ParseDevices(text string) ([]Device, error) {
	if len(text) > MaxLength {
		return nil, inputError("a list of devices of %d bytes; at most %d are read", len(text), MaxLength)
	}
	var devices []Device
	for item := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(item) == "" {
			continue
		}
		name, size, ok := strings.Cut(item, "=")
		if !ok {
			return nil, inputError("%q: want DEVICE=TOTAL or DEVICE=FREE/TOTAL, such as cuda:0=24GB", strings.TrimSpace(item))
		}
		id, problem := readDevice(strings.TrimSpace(name))
		if problem != nil {
			return nil, fmt.Errorf("%w: %s; want %s", ErrInput, problem.found, problem.expected)
		}
		free, total, ok := strings.Cut(size, "/")
		if !ok {
			total = free
		}
		d := Device{ID: id}
		var err error
		if d.Total, err = ParseBytes(total); err == nil {
			d.Free, err = ParseBytes(free)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: device %s: %w", ErrInput, id, err)
		}
		devices = append(devices, d)
	}
	return devices, checkDevices(devices)
}

// ParseBlocks reads "40x0.5GB" or "19x680MB,38x283MB": runs of blocks with the bytes of each, from head to tail.
func ParseBlocks(text string) ([]Run, error) {
	if len(text) > MaxLength {
		return nil, inputError("a list of blocks of %d bytes; at most %d are read", len(text), MaxLength)
	}
	var runs []Run
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		count, size, ok := strings.Cut(item, "x")
		n, err := strconv.Atoi(strings.TrimSpace(count))
		if !ok {
			n, size, err = 1, item, nil
		}
		if err != nil {
			return nil, inputError("blocks %q: want COUNTxSIZE, such as 40x0.5GB", item)
		}
		each, err := ParseBytes(size)
		if err != nil {
			return nil, fmt.Errorf("%w: blocks %q: %w", ErrInput, item, err)
		}
		runs = append(runs, Run{n, each})
	}
	_, err := Blocks{Runs: runs}.table()
	return runs, err
}

// ParseBytes reads an amount with an optional unit. Units are binary as in allocation strings: 1GB = 1GiB = 2^30 bytes.
func ParseBytes(text string) (Bytes, error) {
	v, problem := readValue(strings.TrimSpace(text))
	if problem == nil && v.Kind == Plain && v.Number == float64(int64(v.Number)) && v.Number <= maxBytes {
		return Bytes(v.Number), nil
	}
	if problem != nil || v.Kind != Amount {
		return 0, fmt.Errorf("%q is no amount of memory: want a number with a unit, such as 24GB or 512MB", text)
	}
	return v.Bytes, nil
}
