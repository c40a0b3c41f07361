// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

const events = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestOne"}
{"Action":"output","Package":"m/a","Test":"TestOne","Output":"=== RUN   TestOne\n"}
{"Action":"output","Package":"m/a","Test":"TestOne","Output":"quiet\n"}
{"Action":"attr","Package":"m/a","Test":"TestOne","Key":"mix","Value":"9 of 10"}
{"Action":"pass","Package":"m/a","Test":"TestOne","Elapsed":0.1}
{"Action":"output","Package":"m/a","Test":"TestGPU","Output":"    a_test.go:9: there is no GPU\n"}
{"Action":"output","Package":"m/a","Test":"TestGPU","Output":"--- SKIP: TestGPU (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestGPU","Elapsed":0}
{"Action":"output","Package":"m/a","Output":"PASS\n"}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.5s\n"}
{"Action":"pass","Package":"m/a","Elapsed":0.5}
{"Action":"output","Package":"m/none","Output":"?   \tm/none\t[no test files]\n"}
{"Action":"skip","Package":"m/none","Elapsed":0}
`

const failing = `{"Action":"output","Package":"m/b","Test":"TestBad","Output":"    b_test.go:3: wrong bits\n"}
{"Action":"fail","Package":"m/b","Test":"TestBad","Elapsed":3}
{"Action":"output","Package":"m/b","Test":"TestHung","Output":"panic: test timed out\n"}
{"Action":"output","Package":"m/b","Output":"FAIL\tm/b\t3s\n"}
{"Action":"fail","Package":"m/b","Elapsed":3}
{"ImportPath":"m/c","Action":"build-output","Output":"c.go:1: syntax error\n"}
{"ImportPath":"m/c","Action":"build-fail"}
not json
`

func TestSummary(t *testing.T) {
	var out strings.Builder
	s := newSummary(&out)
	if err := s.read(strings.NewReader(events), false); err != nil {
		t.Fatal(err)
	}
	if !s.passed() {
		t.Error("passing events do not pass")
	}
	if err := s.read(strings.NewReader(failing), true); err != nil {
		t.Fatal(err)
	}
	if s.passed() {
		t.Error("failing events pass")
	}
	s.close()
	got := out.String()
	for _, want := range []string{
		"ok  \tm/a\t0.5s\n", "wrong bits", "panic: test timed out", "c.go:1: syntax error", "not json",
		"slowest packages\n     3.0s  m/b  (race)\n     0.5s  m/a\nTestOne mix: 9 of 10\n",
		"skipped tests: 1\n  m/a TestGPU: a_test.go:9: there is no GPU\n",
		"failed: 3\n  m/b TestBad\n  m/b\n  m/c (does not build)\n",
		"FAIL: 2 packages (1 with the race detector), 3 tests, 1 skipped\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "quiet") || strings.Contains(got, "m/none") {
		t.Errorf("output has lines of no interest:\n%s", got)
	}
}

func TestBelow(t *testing.T) {
	prefixes := []string{"model", "agent/engine"}
	for path, want := range map[string]bool{"model": true, "model/graph": true, "models": false, "agent": false, "agent/engine/native": true} {
		if got := below(path, prefixes); got != want {
			t.Errorf("below(%q) = %v", path, got)
		}
	}
}

func TestRunRefusesAnUnknownMode(t *testing.T) {
	if _, err := run(t.Context(), []string{"-race=maybe"}, new(strings.Builder)); err == nil || !strings.Contains(err.Error(), "maybe") {
		t.Errorf("got %v", err)
	}
}
