// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drawn is a string for distorch2 in parts, so that the oracle need not read it.
type drawn struct {
	form    string // bytes, ratio, fraction or virtual
	devices []string
	values  []float64 // bytes, ratios, fractions; NaN is *
	virtual float64   // GB
	donors  []string
}

func drawCompat(t *rapid.T, devices []string) (d drawn, text string) {
	d.form = rapid.SampledFrom([]string{"bytes", "ratio", "fraction", "virtual"}).Draw(t, "form")
	if d.form == "virtual" {
		d.virtual = float64(rapid.IntRange(0, 400).Draw(t, "virtual")) / 10
		d.donors = rapid.SliceOfN(rapid.SampledFrom(devices), 1, 3).Draw(t, "donors")
		return d, fmt.Sprintf("#cuda:0;%g;%s", d.virtual, strings.Join(d.donors, ","))
	}
	var entries []string
	for i := range rapid.IntRange(1, 4).Draw(t, "entries") {
		device := rapid.SampledFrom(devices).Draw(t, "device")
		n := rapid.IntRange(0, 99).Draw(t, "value")
		value, word := 0.0, ""
		switch {
		case d.form == "bytes" && i > 0 && n < 20:
			value, word = math.NaN(), "*"
		case d.form == "bytes":
			value, word = float64(n)*100*mib, fmt.Sprintf("%dmb", 100*n)
		case d.form == "ratio":
			value, word = float64(n+1), fmt.Sprintf("%d%%", n+1)
		default:
			value, word = float64(n)/80, strconv.FormatFloat(float64(n)/80, 'g', -1, 64)
		}
		d.devices, d.values, entries = append(d.devices, device), append(d.values, value), append(entries, device+","+word)
	}
	return d, strings.Join(entries, ";") + "#cuda:0"
}

// oracle places blocks as the description of distorch2's algorithm says, in its order of steps and with maps.
func oracle(d drawn, total map[string]float64, sizes []float64) []string {
	model := 0.0
	for _, s := range sizes {
		model += s
	}
	bytes := map[string]float64{}
	switch d.form {
	case "bytes":
		rest, left := "cpu", model
		for i, dev := range d.devices {
			if math.IsNaN(d.values[i]) {
				rest = dev
				continue
			}
			bytes[dev] = math.Min(d.values[i], left)
			left -= bytes[dev]
		}
		if left > 0 {
			bytes[rest] += left
		}
	case "ratio":
		sum := 0.0
		for i, dev := range d.devices {
			bytes[dev] = d.values[i]
		}
		for _, dev := range sorted(bytes) {
			sum += bytes[dev]
		}
		for dev := range bytes {
			bytes[dev] = bytes[dev] / sum * model
		}
	case "virtual":
		kept := math.Max(0, model-d.virtual*gib)
		bytes["cuda:0"] = kept
		left := model - kept
		for _, dev := range d.donors {
			bytes[dev] = math.Min(left, total[dev])
			left -= bytes[dev]
		}
	}
	quota := map[string]float64{}
	for dev := range total {
		fraction, err := strconv.ParseFloat(fmt.Sprintf("%.4f", bytes[dev]/total[dev]), 64)
		if err != nil {
			panic(err)
		}
		quota[dev] = total[dev] * fraction
	}
	if d.form == "fraction" {
		for i, dev := range d.devices {
			quota[dev] = total[dev] * d.values[i]
		}
	}
	place := make([]string, len(sizes))
	for b := len(sizes) - 1; b >= 0; b-- {
		place[b] = "cuda:0"
		for _, dev := range sorted(quota) {
			if sizes[b] >= model*0.0001 && quota[dev] >= sizes[b] {
				place[b] = dev
				quota[dev] -= sizes[b]
				break
			}
		}
	}
	return place
}

func sorted(m map[string]float64) (names []string) {
	for name := range m {
		if name != "cpu" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return append(names, "cpu")
}

// TestDistorch2Oracle holds the assignment against one that was written apart from it.
func TestDistorch2Oracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"cpu", "cuda:0", "cuda:2", "cuda:10"}
		var devices []Device
		total := map[string]float64{}
		for _, n := range names {
			bytes := Bytes(rapid.IntRange(1, 64).Draw(t, "total")) * gib
			devices = append(devices, Device{DeviceID(n), bytes, bytes})
			total[n] = float64(bytes)
		}
		var blocks Blocks
		var sizes []float64
		for range rapid.IntRange(1, 4).Draw(t, "runs") {
			r := Run{rapid.IntRange(1, 20).Draw(t, "count"), Bytes(rapid.IntRange(1, 1500).Draw(t, "mib")) * mib}
			blocks.Runs = append(blocks.Runs, r)
			for range r.Count {
				sizes = append(sizes, float64(r.Bytes))
			}
		}
		d, text := drawCompat(t, names)
		e, err := Parse(text, Distorch2)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Assign(e, devices, blocks)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range r.Assignment {
			for range s.Blocks {
				got = append(got, string(s.Device))
			}
		}
		if diff := cmp.Diff(oracle(d, total, sizes), got); diff != "" {
			t.Errorf("%s: -want +got\n%s", text, diff)
		}
	})
}
