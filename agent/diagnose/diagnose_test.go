// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/agent/device"
)

// base is a machine in order; a case of testdata says what is otherwise.
func base() Facts {
	return Facts{
		Node: "den", Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Platform: "linux/amd64", OS: "ubuntu", Version: "v1", Engine: "torch",
		RAM:     RAM{Total: 32e9, Available: 28e9},
		Folders: []Folder{{Path: "/models", Checkpoints: 2}},
		Data:    Disk{Path: "/data", Free: 50e9, Total: 100e9},
	}
}

func show(findings []Finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "%s %s", f.Severity, f.Check)
		if f.Unused {
			b.WriteString(" unused")
		}
		if f.Subject != "" {
			fmt.Fprintf(&b, " [%s]", f.Subject)
		}
		fmt.Fprintf(&b, " %s\n", f.Text)
		if f.Mend != "" {
			fmt.Fprintf(&b, "  mend: %s\n", f.Mend)
		}
	}
	return b.String()
}

// TestFindings: facts in, findings out. The input of "check" is JSON over a
// machine in order; "cards only" leaves out the findings of other checks.
func TestFindings(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, file string) {
		if strings.Contains(file, "fuzz") {
			return
		}
		datadriven.RunTest(t, file, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "check":
				f := base()
				if err := json.Unmarshal([]byte(d.Input), &f); err != nil {
					d.Fatalf(t, "%v", err)
				}
				all := Check(f)
				if diff := cmp.Diff(all, Check(f)); diff != "" {
					d.Fatalf(t, "the same facts gave other findings:\n%s", diff)
				}
				var out []Finding
				for _, found := range all {
					if !d.HasArg("only") || strings.Contains(fmt.Sprint(d.CmdArgs), found.Check) {
						out = append(out, found)
					}
				}
				return show(out)
			case "cluster":
				var in struct {
					Members []Member
					About   []string
				}
				if err := json.Unmarshal([]byte(d.Input), &in); err != nil {
					d.Fatalf(t, "%v", err)
				}
				return show(Cluster(in.Members, in.About))
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}

func TestWorst(t *testing.T) {
	for _, tc := range []struct {
		in   []Severity
		want Severity
	}{{nil, OK}, {[]Severity{OK, Note}, Note}, {[]Severity{Warning, OK}, Warning}, {[]Severity{Note, Broken, Warning}, Broken}} {
		var findings []Finding
		for _, s := range tc.in {
			findings = append(findings, Finding{Severity: s})
		}
		if got := Worst(findings); got != tc.want {
			t.Errorf("worst of %v is %s, want %s", tc.in, got, tc.want)
		}
	}
	if !Broken.Known() || Severity("bad").Known() {
		t.Error("severities that are known")
	}
}

// TestCovers holds the rule against what NVIDIA's guide says of binary and PTX
// compatibility.
func TestCovers(t *testing.T) {
	for _, tc := range []struct {
		archs, card string
		want        bool
	}{
		{"sm_80 sm_86 sm_90", "sm_86", true},
		{"sm_80 sm_90", "sm_86", true},  // minor versions run older code
		{"sm_86 sm_90", "sm_80", false}, // and not newer
		{"sm_80 sm_90", "sm_100", false},
		{"sm_80 sm_90 compute_90", "sm_120", true}, // compiled by the driver
		{"compute_120", "sm_90", false},
		{"sm_90a", "sm_90", false},
		{"gfx1100 gfx90a:sramecc+:xnack-", "gfx90a", true},
		{"gfx1100", "gfx1101", false},
		{"", "sm_86", false},
	} {
		if got := Covers(strings.Fields(tc.archs), tc.card); got != tc.want {
			t.Errorf("Covers(%q, %s) is %v", tc.archs, tc.card, got)
		}
	}
}

func TestVisible(t *testing.T) {
	cards := []device.GPU{{UUID: "GPU-aa11"}, {UUID: "GPU-bb22", MIG: device.MIG{Instances: []device.MIGInstance{{UUID: "MIG-1"}}}}, {UUID: "GPU-cc33"}}
	for value, want := range map[string]string{
		"0": "100", "1,0": "110", "": "000", "-1": "000", "NoDevFiles": "000", "0,7,1": "100", "GPU-bb": "010", "GPU-cc33,GPU-aa11": "101", "MIG-1": "010", " 2 , 0": "101", "0.1": "100",
	} {
		got := ""
		for _, s := range visible(value, cards) {
			got += map[bool]string{true: "1", false: "0"}[s]
		}
		if got != want {
			t.Errorf("%q leaves %s, want %s", value, got, want)
		}
	}
}

// TestDocumented: docs/doctor.md has every check.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Checks() {
		if !strings.Contains(string(doc), "| `"+c+"` |") {
			t.Errorf("docs/doctor.md does not have the check %s", c)
		}
	}
}

// FuzzFacts: facts of another machine, or of nobody, are judged and never break
// the judge; what is shown of each finding is complete.
func FuzzFacts(f *testing.F) {
	f.Add([]byte(`{"cards":{"gpus":[{"vendor":"nvidia","mig":{"enabled":true},"sources":["sysfs"],"driver":"nvidia","listed":true}]},"engine":"torch"}`))
	f.Add([]byte(`{"cards":{"gpus":[{"vendor":"else"},{"vendor":"amd","driver":"amdgpu"},{"vendor":"intel"}]},"torch":{"problem":"absent"},"environment":{"CUDA_VISIBLE_DEVICES":"0,,"}}`))
	f.Add([]byte(`{"peers":[{"address":"::","failure":"refused"}],"folders":[{"path":"a b","missing":true}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var facts Facts
		if json.Unmarshal(b, &facts) != nil {
			return
		}
		for _, found := range Check(facts) {
			if !found.Severity.Known() || found.Check == "" || found.Text == "" {
				t.Errorf("%+v", found)
			}
		}
		for _, g := range facts.Cards.GPUs {
			Unused(facts, g)
		}
	})
}
