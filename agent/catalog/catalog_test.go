// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const demoDir = "../../demo"

func TestScanFindsModelsAndSaysWhatIsNone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "broken.safetensors"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	entries, skipped, err := Scan([]string{demoDir, dir, demoDir})
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || filepath.Base(entries[0].Path) != "demo.safetensors" {
		t.Fatalf("found %v", entries)
	}
	r := entries[0].Record
	if len(r.Id) != 64 || r.Architecture != "flux" || r.Parameters < 9_000_000 || r.FileBytes != uint64(entries[0].Stamp.Bytes) {
		t.Errorf("record is %s, %s, %d parameters, %d bytes", r.Id, r.Architecture, r.Parameters, r.FileBytes)
	}
	if h := r.HyperParameters; h["channels"] != "16" || h["context"] != "64" || h["guidance_embed"] != "true" || h["axes_dim"] != "[16,56,56]" {
		t.Errorf("hyper-parameters are %v", h)
	}
	said := map[string]string{}
	for _, s := range skipped {
		said[filepath.Base(s.Path)] = s.Err.Error()
	}
	for name, want := range map[string]string{"words.safetensors": "not supported", "broken.safetensors": "not a valid safetensors file"} {
		if !strings.Contains(said[name], want) {
			t.Errorf("%s was skipped because %q, want %q", name, said[name], want)
		}
	}
}

func TestScanNeedsItsFolders(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "nowhere")
	if _, _, err := Scan([]string{missing}); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a missing folder gave %v", err)
	}
	if entries, skipped, err := Scan(nil); err != nil || len(entries)+len(skipped) > 0 {
		t.Errorf("no folders gave %v, %v, %v", entries, skipped, err)
	}
}

func TestScanFindsGGUFAndFirstPartsOnly(t *testing.T) {
	const golden = "../../model/arch/testdata/golden/gguf/flux-k/model.gguf"
	dir := t.TempDir()
	raw, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"m.GGUF", "lone-00001-of-00002.gguf", "lone-00003-of-00004.gguf", "readme.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	entries, skipped, err := Scan([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || len(skipped) != 1 || filepath.Base(entries[0].Path) != "m.GGUF" || !strings.Contains(skipped[0].Err.Error(), "part 1 of 1, its name part 1 of 2") {
		t.Fatalf("found %v, skipped %v", entries, skipped)
	}
	dtypes := map[string]int{}
	for _, w := range entries[0].Record.Weights {
		dtypes[w.Dtype]++
	}
	if dtypes["Q4_K"] == 0 || dtypes["IQ4_XS"] == 0 || entries[0].Record.FileBytes != uint64(len(raw)) {
		t.Errorf("weights %v, %d bytes", dtypes, entries[0].Record.FileBytes)
	}
}
