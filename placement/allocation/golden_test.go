// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func home(t *testing.T) ([]Device, Blocks) {
	t.Helper()
	return devicesOf(t, "cpu=64GB,cuda:0=24GB,cuda:1=24GB"), blocksOf(t, "40x0.5GB")
}

func devicesOf(t *testing.T, text string) []Device {
	t.Helper()
	d, err := ParseDevices(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func blocksOf(t *testing.T, text string) Blocks {
	t.Helper()
	r, err := ParseBlocks(text)
	if err != nil {
		t.Fatal(err)
	}
	return Blocks{Runs: r}
}

// TestDistorch2Golden: what ComfyUI-MultiGPU 2.6.3 was seen to do with 40 equal blocks of 0.5 GB, 64 GB of RAM and two cards
// of 24 GB.
func TestDistorch2Golden(t *testing.T) {
	for _, tc := range []struct{ text, want, warning string }{
		{"cuda:0,2.5gb;cpu,*#cuda:0", "0 cuda:0, 1-34 cpu, 35-39 cuda:0", "no quota has room for 1 block"},
		{"cuda:0,500mb;cuda:1,3.0g;cpu,5gb*#cuda:0", "0 cuda:0, 1-33 cpu, 34-39 cuda:1", `cpu: "5gb*" is read as *`},
		{"cuda:0,4gb;cuda:1,4gb#cuda:0", "0-23 cpu, 24-31 cuda:1, 32-39 cuda:0", "cpu takes the rest"},
		{"cuda:0,4gb;cuda:0,2gb;cpu,*#cuda:0", "0-8 cuda:0, 9-36 cpu, 37-39 cuda:0", "cuda:0 is named twice"},
		{"cuda:0,25%;cpu,75%#cuda:0", "0 cuda:0, 1-30 cpu, 31-39 cuda:0", "2 separate ranges"},
		{"cuda:0,1;cpu,3%#cuda:0", "0 cuda:0, 1-30 cpu, 31-39 cuda:0", "one % makes every number a ratio"},
		{"cuda:0,0.95;cuda:1,0.95;cpu,0.50#cuda:0", "0-39 cuda:0", "cuda:1 is asked for 22.8 GiB and gets no block"},
		{"cuda:0,0.0;cpu,0.1#cuda:0", "0-27 cuda:0, 28-39 cpu", "no quota has room for 28 blocks"},
		{"cuda:0,99gb;cpu,*#cuda:0", "0-39 cuda:0", ""},
		{"#cuda:0;4.0;cpu", "0-7 cpu, 8-39 cuda:0", ""},
		{"#cuda:0;99;cpu", "0-39 cpu", ""},
		// What is said of strings besides.
		{"cuda:0,2.5gb;cpu,*", "0 cuda:0, 1-34 cpu, 35-39 cuda:0", ""},
		{"cuda:0,2.5gb;cpu,*;#cuda:0", "0 cuda:0, 1-34 cpu, 35-39 cuda:0", ""},
		{"cuda:0,2.5gb;cpu,*#cuda:0;4.0;cpu", "0 cuda:0, 1-34 cpu, 35-39 cuda:0", "the virtual VRAM behind it is without effect"},
		{"cuda:0,1tb;cpu,*#cuda:0", "0-39 cpu", `"1tb" is read as 1 B`},
		{"cuda:0,1e1gb;cpu,*#cuda:0", "0-39 cpu", `"1e1gb" is read as 1 B`},
		{"cuda:0,7b;cpu,*#cuda:0", "0-39 cpu", ""},
		{"cuda:1,*;cpu,*;cuda:0,2gb#cuda:0", "0-1 cuda:0, 2-36 cpu, 37-39 cuda:0", "of several *, the last counts"},
		{"nonsense;cuda:0,2gb;cpu,*#cuda:0", "0-1 cuda:0, 2-36 cpu, 37-39 cuda:0", `"nonsense" has no comma and is skipped`},
	} {
		t.Run(tc.text, func(t *testing.T) {
			devices, blocks := home(t)
			e, err := Parse(tc.text, Distorch2)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Assign(e, devices, blocks)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, Show(r.Assignment)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if r.Compute != "cuda:0" {
				t.Errorf("computes on %s", r.Compute)
			}
			if !strings.Contains(strings.Join(r.Warnings, "\n"), tc.warning) {
				t.Errorf("warnings %q, want %q", r.Warnings, tc.warning)
			}
		})
	}
}

func TestDistorch2MPS(t *testing.T) {
	e, err := Parse("mps,0.5;cpu,0.5#mps", Distorch2)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Assign(e, devicesOf(t, "cpu=64GB,mps=32GB"), blocksOf(t, "40x0.5GB"))
	if err != nil || Show(r.Assignment) != "0-39 cpu" {
		t.Errorf("%v %v", r, err)
	}
}

// TestDistorch2Order: accelerators by name, cuda:10 before cuda:2, the cpu last.
func TestDistorch2Order(t *testing.T) {
	e, err := Parse("cuda:2,0.1;cuda:10,0.1;cpu,1#cuda:0", Distorch2)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Assign(e, devicesOf(t, "cpu=64GB,cuda:0=10GB,cuda:2=10GB,cuda:10=10GB"), blocksOf(t, "10x0.5GB"))
	if err != nil || Show(r.Assignment) != "0-5 cpu, 6-7 cuda:2, 8-9 cuda:10" {
		t.Errorf("%v %v", r, err)
	}
}

func TestDistorch2Tiny(t *testing.T) {
	e, err := Parse("cpu,1#cuda:0", Distorch2)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Assign(e, devicesOf(t, "cpu=64GB,cuda:0=10GB"), blocksOf(t, "10x0.5GB,2x1kb,10x0.5GB"))
	if err != nil || Show(r.Assignment) != "0-9 cpu, 10-11 cuda:0, 12-21 cpu" {
		t.Errorf("%v %v", r, err)
	}
}

// TestDistorch2Errors: the inputs at which it was seen to fail, with its exceptions.
func TestDistorch2Errors(t *testing.T) {
	for _, tc := range []struct {
		text, want string
		column     int
	}{
		{"cuda:0,50%;cpu,*", "ValueError: could not convert string to float: '*'", 16},
		{"cpu,*", "ValueError: could not convert string to float: '*'", 5},
		{"cpu,*#cuda:0", "ValueError: could not convert string to float: '*'", 5},
		{"cuda:0,.5g;cpu,*#cuda:0", "ValueError: Invalid memory string format", 8},
		{"cuda:0,-2g;cpu,*#cuda:0", "ValueError: Invalid memory string format", 8},
		{"cuda:0,abc;cpu,*#cuda:0", "ValueError: Invalid memory string format", 8},
		{" cuda:0,2gb;cpu,*#cuda:0", "RuntimeError: Invalid device string: ' cuda:0'", 1},
		{"cuda:0 ,2gb;cpu,*#cuda:0", "RuntimeError: Invalid device string: 'cuda:0 '", 1},
		{"cuda:0,2gb; cpu,*#cuda:0", "RuntimeError: Invalid device string: ' cpu'", 12},
		{"cuda:0,0%;cpu,0%#cuda:0", "ZeroDivisionError", 15},
		{"#cuda:0", "ValueError: not enough values to unpack (expected 3, got 1)", 2},
		{"", "ValueError: not enough values to unpack", 1},
		{"#", "ValueError: not enough values to unpack", 2},
		{"#cuda:0;4", "ValueError: not enough values to unpack (expected 3, got 2)", 2},
		{"#cuda:0;4;cpu;cpu", "ValueError: too many values to unpack", 2},
		{"#cuda:0;4gb;cpu", "ValueError: could not convert string to float: '4gb'", 9},
		{"cuda:7,2gb;cpu,*#cuda:0", "there is no device cuda:7", 1},
		{"cuda:0,2gb;cpu,*#cuda:7", "there is no device cuda:7", 18},
		{"foo,2gb;cpu,*#cuda:0", "RuntimeError: Invalid device string: 'foo'", 1},
		{"CUDA:0,2gb;cpu,*#cuda:0", "RuntimeError: Invalid device string: 'CUDA:0'", 1},
		{"attic/cuda:0,2gb;cpu,*#cuda:0", "RuntimeError: Invalid device string: 'attic/cuda:0'", 1},
		{"npu:0,2gb;cpu,*#cuda:0", "npu devices are not supported", 1},
	} {
		t.Run(tc.text, func(t *testing.T) {
			devices, blocks := home(t)
			e, err := Parse(tc.text, Distorch2)
			if err == nil {
				_, err = Assign(e, devices, blocks)
			}
			var wrong *SyntaxError
			if !errors.As(err, &wrong) || !strings.Contains(wrong.Found, tc.want) || wrong.Column != tc.column {
				t.Fatalf("error %v, want %q in column %d", err, tc.want, tc.column)
			}
			if _, err := Parse(wrong.Nearest, Distorch2); err != nil {
				t.Errorf("the nearest string %q: %v", wrong.Nearest, err)
			}
		})
	}
}
