// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// verifyRun runs `distorch verify` and returns its output and exit code.
func verifyRun(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
	code = a.run(t.Context(), append([]string{"verify"}, args...))
	return out.String(), errs.String(), code
}

func TestVerify(t *testing.T) {
	flux := filepath.Join("..", "..", "model", "arch", "testdata", "golden", "flux")
	out, _, code := verifyRun(t, filepath.Join(flux, "dev-bf16"), filepath.Join(flux, "schedules"), "--stages", "3", "--threads", "2", "--isa", "generic", "-o", "json")
	var records []map[string]any
	if err := json.Unmarshal([]byte(out), &records); err != nil || code != exitOK || len(records) != 87 {
		t.Fatalf("%d records, %v, exit %d", len(records), err, code)
	}
	for _, key := range []string{"case", "output", "dtype", "error", "tolerance", "first_tap_off", "digest"} {
		if _, ok := records[0][key]; !ok {
			t.Errorf("a record lacks %q: %v", key, records[0])
		}
	}
	out, _, code = verifyRun(t, filepath.Join(flux, "dev-bf16"), filepath.Join(flux, "schedules"), "--stages", "3", "--threads", "2", "-o", "yaml")
	var inYAML []map[string]any
	if err := yaml.Load([]byte(out), &inYAML); err != nil || code != exitOK || len(inYAML) != len(records) || inYAML[0]["digest"] != records[0]["digest"] {
		t.Errorf("%d records, %v, exit %d", len(inYAML), err, code)
	}
	table, _, code := verifyRun(t, filepath.Join(flux, "dev-bf16"))
	digest, _ := records[0]["digest"].(string)
	if code != exitOK || !strings.Contains(table, "17 inner values") || len(digest) != 64 || !strings.Contains(table, digest[:16]) {
		t.Errorf("exit %d, digest %s of another instruction set and cut is not in\n%s", code, digest, table)
	}
	many, _, code := verifyRun(t, filepath.Join(flux, "dev-bf16"), "--stages", "99")
	if code != exitOK || !strings.Contains(many, "stages, as there are no more blocks)") {
		t.Errorf("exit %d, more stages than blocks are not told of in\n%s", code, many)
	}
	for want, args := range map[string][]string{
		"no golden case":               {t.TempDir()},
		`--isa "avx": want auto, `:     {flux, "--isa", "avx"},
		`--engine "cuda": want native`: {flux, "--engine", "cuda"},
		"--stages 0":                   {flux, "--stages", "0"},
		"--output":                     {flux, "-o", "yml"},
		"folder of a cas":              {},
	} {
		if out, errs, code := verifyRun(t, args...); code != exitUsage || !strings.Contains(errs, want) || out != "" {
			t.Errorf("%v: exit %d, %q, want an error about %q", args, code, errs, want)
		}
	}
}
