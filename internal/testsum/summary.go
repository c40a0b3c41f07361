// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is a line of `go test -json` (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
	Key, Value string // of an attr, which a test sets to be told in the closing lines
}

type timing struct {
	pkg     string
	seconds float64
	race    bool
}

type skip struct{ pkg, test, reason string }

type attr struct{ test, key, value string }

// summary collects events and writes what matters of them.
type summary struct {
	out      io.Writer
	buffered map[string][]string // output by package, or package and test
	timings  []timing
	skips    []skip
	attrs    []attr
	failures []string
	tests    int
	failed   bool
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, buffered: map[string][]string{}}
}

func (s *summary) passed() bool { return !s.failed && len(s.failures) == 0 }

// read consumes the events of one `go test -json`.
func (s *summary) read(r io.Reader, race bool) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(s.out, lines.Text()) // go's own words, outside the protocol
			continue
		}
		s.add(e, race)
	}
	return lines.Err()
}

func (s *summary) add(e event, race bool) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "build-fail":
		s.failures = append(s.failures, e.ImportPath+" (does not build)")
	case "output":
		s.buffered[key] = append(s.buffered[key], e.Output)
	case "attr":
		s.attrs = append(s.attrs, attr{e.Test, e.Key, e.Value})
	case "pass", "fail", "skip":
		s.finish(e, key, race)
	}
}

func (s *summary) finish(e event, key string, race bool) {
	text := s.buffered[key]
	delete(s.buffered, key)
	if e.Test == "" {
		s.finishPackage(e, text, race)
		return
	}
	s.tests++
	switch e.Action {
	case "fail":
		s.failures = append(s.failures, e.Package+" "+e.Test)
		fmt.Fprint(s.out, strings.Join(text, ""))
	case "skip":
		s.skips = append(s.skips, skip{e.Package, e.Test, reason(text)})
	}
}

func (s *summary) finishPackage(e event, text []string, race bool) {
	if e.Action == "fail" {
		s.failures = append(s.failures, e.Package)
		s.flush(e.Package) // a test that hung or exited has no end of its own
		fmt.Fprint(s.out, strings.Join(text, ""))
	}
	if e.Action == "skip" { // no test files
		return
	}
	s.timings = append(s.timings, timing{e.Package, e.Elapsed, race})
	if e.Action == "pass" {
		for _, line := range text {
			if strings.HasPrefix(line, "ok ") {
				fmt.Fprint(s.out, line)
			}
		}
	}
}

func (s *summary) flush(pkg string) {
	var keys []string
	for key := range s.buffered {
		if strings.HasPrefix(key, pkg+" ") {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Fprint(s.out, strings.Join(s.buffered[key], ""))
		delete(s.buffered, key)
	}
}

// reason is what the test itself said, without go test's own lines.
func reason(text []string) string {
	var own []string
	for _, line := range text {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			own = append(own, line)
		}
	}
	return strings.Join(own, " ")
}

// close writes the closing lines.
func (s *summary) close() {
	slices.SortStableFunc(s.timings, func(a, b timing) int { return cmp.Compare(b.seconds, a.seconds) })
	fmt.Fprintf(s.out, "\nslowest packages\n")
	for _, t := range s.timings[:min(10, len(s.timings))] {
		mark := ""
		if t.race {
			mark = "  (race)"
		}
		fmt.Fprintf(s.out, "%8.1fs  %s%s\n", t.seconds, t.pkg, mark)
	}
	for _, a := range s.attrs {
		fmt.Fprintf(s.out, "%s %s: %s\n", a.test, a.key, a.value)
	}
	if len(s.skips) == 0 {
		fmt.Fprintln(s.out, "skipped tests: none")
	} else {
		fmt.Fprintf(s.out, "skipped tests: %d\n", len(s.skips))
		for _, k := range s.skips {
			fmt.Fprintf(s.out, "  %s %s: %s\n", k.pkg, k.test, k.reason)
		}
	}
	if len(s.failures) > 0 {
		fmt.Fprintf(s.out, "failed: %d\n", len(s.failures))
		for _, f := range s.failures {
			fmt.Fprintf(s.out, "  %s\n", f)
		}
	}
	raced := 0
	for _, t := range s.timings {
		if t.race {
			raced++
		}
	}
	verdict := "PASS"
	if !s.passed() {
		verdict = "FAIL"
	}
	fmt.Fprintf(s.out, "%s: %d packages (%d with the race detector), %d tests, %d skipped\n", verdict, len(s.timings), raced, s.tests, len(s.skips))
}
