// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// drawDevices draws a cpu and up to four accelerators, some of whose memory is in use.
func drawDevices(t *rapid.T) []Device {
	ids := []DeviceID{"cpu"}
	if rapid.IntRange(0, 9).Draw(t, "mps") == 0 {
		ids = append(ids, "mps")
	} else {
		for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 11), 0, 4, rapid.ID[int]).Draw(t, "cards") {
			ids = append(ids, DeviceID(fmt.Sprintf("cuda:%d", i)))
		}
	}
	var devices []Device
	for _, id := range ids {
		total := rapid.Int64Range(0, 48*gib).Draw(t, "total")
		free := total
		if rapid.Bool().Draw(t, "used") {
			free = rapid.Int64Range(0, total).Draw(t, "free")
		}
		devices = append(devices, Device{id, Bytes(total), Bytes(free)})
	}
	return devices
}

func drawBlocks(t *rapid.T, most int) Blocks {
	var b Blocks
	for range rapid.IntRange(1, most).Draw(t, "runs") {
		b.Runs = append(b.Runs, Run{rapid.IntRange(1, 30).Draw(t, "count"), Bytes(rapid.Int64Range(1<<20, 2*gib).Draw(t, "size"))})
	}
	if rapid.Bool().Draw(t, "ends") {
		b.Fixed = Bytes(rapid.Int64Range(0, gib).Draw(t, "fixed"))
	}
	return b
}

// words are what drawn strings are made of: right ones, and some that are not.
var words = strings.Fields("cuda:0 cuda:1 cuda:2 cpu mps npu:0 cud:0 a/cuda:0 2.5gb 500mb 1tb 25% 75% 0.5 0 1 3 * 5gb* -1g abc 1e1gb ; ; ; ; , , , , # # virtual_vram=4gb 4.0 99 ü")

func drawText(t *rapid.T) string {
	if rapid.Bool().Draw(t, "loose") {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom(words), 0, 16).Draw(t, "words"), rapid.SampledFrom([]string{"", " "}).Draw(t, "between"))
	}
	var entries []string
	for range rapid.IntRange(0, 4).Draw(t, "entries") {
		device := rapid.SampledFrom([]string{"cuda:0", "cuda:1", "cuda:2", "cpu"}).Draw(t, "device")
		value := rapid.SampledFrom([]string{"2.5gb", "500mb", "12gb", "25%", "60%", "0.5", "0", "1", "*", "40gb"}).Draw(t, "value")
		entries = append(entries, device+","+value)
	}
	return strings.Join(entries, ";") + rapid.SampledFrom([]string{"", "#cuda:0", "#cuda:1", "#cuda:0;4.0;cpu", "#cpu", "#cuda:0;6;cuda:1,cpu"}).Draw(t, "right")
}

// TestNearestIsValid: what an error proposes can be read, and what does not fit gets a string that does.
func TestNearestIsValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, mode := drawText(t), rapid.SampledFrom([]Mode{Default, Distorch2}).Draw(t, "mode")
		devices, blocks := drawDevices(t), drawBlocks(t, 3)
		e, err := Parse(text, mode)
		var r *Result
		if err == nil {
			r, err = Assign(e, devices, blocks)
		}
		var wrong *SyntaxError
		var short *FitError
		switch {
		case errors.As(err, &wrong):
			checkFault(t, wrong, mode)
		case errors.As(err, &short):
			if short.Nearest != "" {
				checkFits(t, short.Nearest, Default, devices, blocks)
			}
			if short.Short <= 0 || short.Needed <= 0 {
				t.Errorf("%q: %+v", text, short)
			}
		case err != nil && !errors.Is(err, ErrInput):
			t.Errorf("%q: %T %v", text, err, err)
		case err == nil && mode == Default:
			checkFits(t, text, mode, devices, blocks)
			checkLimits(t, e, r)
		}
	})
}

func checkFault(t interface{ Errorf(string, ...any) }, wrong *SyntaxError, mode Mode) {
	if _, err := Parse(wrong.Nearest, mode); err != nil {
		t.Errorf("%q: the nearest string %q: %v", wrong.Text, wrong.Nearest, err)
	}
	if wrong.Column < 1 || wrong.Column > utf8.RuneCountInString(wrong.Text)+1 || wrong.Found == "" || wrong.Expected == "" {
		t.Errorf("%q: %+v", wrong.Text, wrong)
	}
	if lines := strings.Split(wrong.Picture(), "\n"); len(lines) != 2 || !strings.HasSuffix(lines[1], "^") {
		t.Errorf("%q: %q", wrong.Text, wrong.Picture())
	}
}

// checkLimits: no device gets more than an amount asks for, and devices follow each other as the string names them.
func checkLimits(t *rapid.T, e *Expr, r *Result) {
	for _, u := range r.Devices {
		if shares := len(e.Entries) > 0 && e.Normalised(); !shares && u.Given > u.Limit {
			t.Errorf("%q: %s is given %s of %s", e.Text, u.ID, u.Given, u.Limit)
		}
	}
	var named []DeviceID
	for _, x := range e.Entries {
		named = append(named, x.Device.ID)
	}
	at := -1
	for _, s := range r.Assignment {
		i := slices.Index(named, s.Device)
		if i >= 0 && i < at {
			t.Errorf("%q: %s", e.Text, Show(r.Assignment))
		}
		at = max(at, i)
	}
}

// TestGenerate: what is generated fits, in one range per device, and with equal blocks a string is found whenever there is
// room.
func TestGenerate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		devices, blocks := drawDevices(t), drawBlocks(t, 3)
		o := Options{Reserve: Bytes(rapid.Int64Range(0, gib).Draw(t, "reserve"))}
		if rapid.Bool().Draw(t, "named") {
			o.Compute = rapid.SampledFrom(devices).Draw(t, "compute").ID
		}
		if rapid.IntRange(0, 3).Draw(t, "virtual") == 0 {
			o.Virtual = Bytes(rapid.Int64Range(1, 16*gib).Draw(t, "bytes"))
		}
		text, err := Generate(devices, blocks, o)
		if err == nil {
			checkFits(t, text, Default, devices, blocks)
			return
		}
		if _, ok := errors.AsType[*FitError](err); !ok {
			t.Fatalf("%v", err)
		}
		compute := devices[min(1, len(devices)-1)].ID
		if o.Compute != "" {
			compute = o.Compute
		}
		room, fixedFits := 0, true
		for _, d := range devices {
			free := d.Free - o.Reserve
			if d.ID == compute {
				free -= blocks.Fixed
				fixedFits = free >= 0
			}
			room += int(max(0, free) / blocks.Runs[0].Bytes)
		}
		if len(blocks.Runs) == 1 && fixedFits && o.Virtual == 0 && room >= blocks.Runs[0].Count {
			t.Errorf("no string found for %v on %v: %v", blocks, devices, err)
		}
	})
}

// TestGenerateDistorch2: the same by distorch2's rules, which need room to spare.
func TestGenerateDistorch2(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		devices, blocks := drawDevices(t), drawBlocks(t, 3)
		o := Options{Mode: Distorch2, Compute: rapid.SampledFrom(devices).Draw(t, "compute").ID}
		if rapid.IntRange(0, 3).Draw(t, "virtual") == 0 {
			o.Virtual = Bytes(rapid.Int64Range(1, 16*gib).Draw(t, "bytes"))
		}
		text, err := Generate(devices, blocks, o)
		if err == nil {
			checkFits(t, text, Distorch2, devices, blocks)
			return
		}
		if _, ok := errors.AsType[*FitError](err); !ok {
			t.Fatalf("%v", err)
		}
		room, fixedFits, mps := 0, true, false
		for _, d := range devices {
			free := d.Free
			if d.ID == o.Compute {
				free -= blocks.Fixed
				fixedFits = free >= 0
			}
			room += max(0, int(max(0, free)/blocks.Runs[0].Bytes)-2)
			mps = mps || d.ID == "mps"
		}
		size := blocks.Runs[0].Bytes
		quantum := size > 48*gib/5000 // fractions of 0.01 % of a device are finer than a block
		if len(blocks.Runs) == 1 && quantum && fixedFits && !mps && o.Virtual == 0 && room >= blocks.Runs[0].Count {
			t.Errorf("no string found for %v on %v: %v", blocks, devices, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"cuda:0,2.5gb;cpu,*#cuda:0", "#cuda:0;4.0;cpu", "cuda:0,25%;cpu,75%", "virtual_vram=4gb;cpu#cuda:0", "a/cuda:0,.5 GB ; b/cpu , *", "cuda:0,1e1gb*;;#",
		"mps,0.5;cpu,0.5#mps", "cuda:0,\xff\x00;\u00a0cpu,*",
	} {
		f.Add(seed)
	}
	devices, err := ParseDevices("cpu=64GB,cuda:0=24GB,cuda:1=24GB,a/cuda:0=4GB,b/cpu=3GB,mps=8GB")
	if err != nil {
		f.Fatal(err)
	}
	blocks := Blocks{Runs: []Run{{3, gib}, {4, gib / 2}}}
	f.Fuzz(func(t *testing.T, text string) {
		for _, mode := range []Mode{Default, Distorch2} {
			e, err := Parse(text, mode)
			if err == nil {
				_, err = Assign(e, devices, blocks)
			}
			var wrong *SyntaxError
			var short *FitError
			switch {
			case errors.As(err, &wrong):
				checkFault(t, wrong, mode)
			case errors.As(err, &short) && short.Nearest != "":
				checkFits(t, short.Nearest, Default, devices, blocks)
			case err != nil && short == nil && !errors.Is(err, ErrInput):
				t.Errorf("%q: %T %v", text, err, err)
			}
		}
	})
}

func FuzzParseDevicesAndBlocks(f *testing.F) {
	f.Add("cpu=64GB,a/cuda:0=20GB/24GB", "19x680MB,38x283MB")
	f.Add("=,/=1", "x,0x1,99999999x1TB")
	f.Fuzz(func(t *testing.T, devices, blocks string) {
		d, err := ParseDevices(devices)
		runs, err2 := ParseBlocks(blocks)
		if err != nil || err2 != nil {
			return
		}
		text, err := Generate(d, Blocks{Runs: runs}, Options{})
		if err == nil {
			checkFits(t, text, Default, d, Blocks{Runs: runs})
		}
	})
}

func TestBounds(t *testing.T) {
	for _, mode := range []Mode{Default, Distorch2} {
		for _, text := range []string{
			strings.Repeat("cuda:0,1b;", 7000), strings.Repeat("cuda:0,1b;", 300), strings.Repeat(";", MaxLength+1), "#cuda:0;4;" + strings.Repeat("cpu,", 300),
			strings.Repeat("x;", 30000), "cuda:0," + strings.Repeat("9", 60000) + "gb",
		} {
			_, err := Parse(text, mode)
			var wrong *SyntaxError
			switch {
			case errors.As(err, &wrong):
				checkFault(t, wrong, mode)
				if len(wrong.Error()) > 2000 || len(wrong.Picture()) > 1000 {
					t.Errorf("%s: an error of %d bytes", mode, len(wrong.Error()))
				}
			case mode == Default:
				t.Errorf("%.40q is read: %v", text, err)
			}
		}
	}
}
