// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package catalogue_test

import (
	"errors"
	"flag"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/blocktable"
	"github.com/distorch/distorch/placement/catalogue"
)

var update = flag.Bool("update", false, "rewrite docs/devices.md")

// TestEntries: every device can be placed on, and its names are its own.
func TestEntries(t *testing.T) {
	seen := map[string]string{}
	for _, e := range catalogue.Entries() {
		for _, n := range append([]string{e.Name}, e.Aliases...) {
			if seen[n] != "" {
				t.Errorf("%s is a name of %s and of %s", n, seen[n], e.Name)
			}
			seen[n] = e.Name
			if found, err := catalogue.Lookup(strings.ToUpper(n)); err != nil || found.Name != e.Name {
				t.Errorf("%s finds %q, %v", n, found.Name, err)
			}
		}
		if e.Source == "" || e.Title == "" {
			t.Errorf("%s: no source or title", e.Name)
		}
		d := e.Device("x")
		n := placement.Node{ID: "n", Devices: []placement.Device{d}, Link: placement.Link{BytesPerSecond: 1e8}}
		if err := n.Validate(); err != nil {
			t.Errorf("%s: %v", e.Name, err)
		}
		if d.Source != placement.SourcePublished || d.Spread != catalogue.Spread || d.Expansion <= 0 || len(d.Rates) != 3 {
			t.Errorf("%s: %+v", e.Name, d)
		}
		gpu := e.Kind == placement.KindGPU
		if gpu != (d.HostToDevice > 0) || gpu != (d.Peer > 0) || gpu != (d.Allocatable > 0) {
			t.Errorf("%s is a %s with %g B/s from the host, %g between devices and %v", e.Name, e.Kind, d.HostToDevice, d.Peer, d.Allocatable)
		}
	}
}

func TestUnknown(t *testing.T) {
	for name, near := range map[string]string{"rtx4091": "rtx4090", "H100-SMX": "h100-sxm", "ryzen-7950": "ryzen-7950x", "quantum": ""} {
		_, err := catalogue.Lookup(name)
		var unknown *catalogue.UnknownDeviceError
		if !errors.As(err, &unknown) || unknown.Nearest != near {
			t.Errorf("%s: %v, want %q", name, err, near)
		}
	}
	for _, name := range []string{"RTX 4090", "rtx_4090", "Arc A770"} {
		if _, err := catalogue.Lookup(name); err != nil {
			t.Error(err)
		}
	}
}

// forward is what the cost model says of one forward on one device, everything
// resident.
func forward(t *testing.T, device, model string, w blocktable.Workload) float64 {
	t.Helper()
	e, err := catalogue.Lookup(device)
	if err != nil {
		t.Fatal(err)
	}
	k, err := blocktable.Lookup(model)
	if err != nil {
		t.Fatal(err)
	}
	m, err := k.Model(w)
	if err != nil {
		t.Fatal(err)
	}
	d := e.Device("x")
	part := func(c placement.Cost) float64 {
		read := c.Staging
		if read == 0 {
			read = c.Weights
		}
		r := d.Rates[0]
		return max(c.Linear/r.Linear, float64(read)/d.Memory) + c.Attention/r.Attention + float64(c.Elementwise)/d.Memory + float64(c.Expansion)/d.Expansion
	}
	s := part(m.Head) + part(m.Tail)
	for _, r := range m.Runs {
		s += float64(r.Count) * part(r.Block)
	}
	return s
}

// TestPublishedTimes holds the planning rates against measurements that others
// published; docs/devices.md has the same table.
func TestPublishedTimes(t *testing.T) {
	for _, tc := range []struct {
		device, model string
		w             blocktable.Workload
		branches      float64
		published     float64 // seconds for a step
		off           float64 // at most
	}{
		{"rtx3090", "flux1-dev", blocktable.Workload{Text: 256, Stored: "q8_0"}, 1, 1.30, 0.05},
		{"rtx3090", "qwen-image", blocktable.Workload{Width: 1024, Height: 1024, Stored: "f8_e4m3"}, 2, 4.28, 0.35},
		{"rtx4090", "flux1-dev", blocktable.Workload{Text: 256, Stored: "q8_0"}, 1, 0.60, 0.10},
		{"h100-sxm", "flux1-dev", blocktable.Workload{}, 1, 0.174, 0.25},
	} {
		got := tc.branches * forward(t, tc.device, tc.model, tc.w)
		t.Logf("%s %s: %.3f s, published %.3f s, %+.0f %%", tc.device, tc.model, got, tc.published, 100*(got/tc.published-1))
		if math.Abs(got/tc.published-1) > tc.off {
			t.Errorf("%s on %s: %.3f s, published %.3f s", tc.model, tc.device, got, tc.published)
		}
	}
}

const begin, end = "<!-- generated: go test ./placement/catalogue -update -->\n", "<!-- end of generated -->\n"

// TestDocument: docs/devices.md has the tables of this catalogue.
func TestDocument(t *testing.T) {
	const name = "../../docs/devices.md"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks the lines %q and %q", name, begin, end)
	}
	want := before + begin + catalogue.Markdown() + end + after
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Errorf("%s is stale; go test ./placement/catalogue -update rewrites it", name)
	}
}
