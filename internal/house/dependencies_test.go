// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// required reads the requirements and tools of a go.mod.
func required(t *testing.T, file string) (direct, indirect, tools []string) {
	t.Helper()
	block := ""
	for line := range strings.Lines(contents(t, file)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		kind := block
		switch {
		case fields[0] == ")":
			block = ""
			continue
		case len(fields) == 2 && fields[1] == "(":
			block = fields[0]
			continue
		case block == "":
			kind, fields = fields[0], fields[1:]
		}
		switch {
		case kind == "tool":
			tools = append(tools, fields[0])
		case kind == "require" && fields[len(fields)-1] == "indirect":
			indirect = append(indirect, fields[0])
		case kind == "require":
			direct = append(direct, fields[0])
		}
	}
	return direct, indirect, tools
}

// owner is the module that provides an import path or tool.
func owner(importPath string, modules []string) (module string) {
	for _, m := range modules {
		if within(importPath, m) && len(m) > len(module) {
			module = m
		}
	}
	return module
}

var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.+) \\|$")

// TestDependencies compares what the source imports with go.mod's direct
// requirements and with the reasons in docs/dependencies.md.
func TestDependencies(t *testing.T) {
	direct, indirect, _ := required(t, "go.mod")
	var want []string
	for _, p := range packages(t) {
		for _, imported := range append(slices.Clone(p.imports), p.tests...) {
			if host, _, _ := strings.Cut(imported, "/"); relative(imported) != imported || !strings.Contains(host, ".") {
				continue
			}
			m := owner(imported, append(slices.Clone(direct), indirect...))
			if m == "" {
				t.Errorf("%s imports %s, which go.mod does not require", p.ImportPath, imported)
				continue
			}
			want = append(want, m)
		}
	}
	slices.Sort(want)
	want = slices.Compact(want)
	slices.Sort(direct)
	for _, m := range want {
		if !slices.Contains(direct, m) {
			t.Errorf("go.mod marks %s as indirect and the source imports it; run go mod tidy", m)
		}
	}
	for _, m := range direct {
		if !slices.Contains(want, m) {
			t.Errorf("go.mod requires %s and nothing imports it; run go mod tidy", m)
		}
	}
	for _, file := range []string{"tools/go.mod", "tools/lint/go.mod"} {
		direct, indirect, tools := required(t, file)
		want = append(want, direct...)
		for _, tool := range tools {
			want = append(want, owner(tool, append(direct, indirect...)))
		}
	}
	slices.Sort(want)
	want = slices.Compact(want)

	var documented []string
	for _, r := range row.FindAllStringSubmatch(contents(t, "docs/dependencies.md"), -1) {
		if len(strings.Fields(r[2])) < 3 {
			t.Errorf("docs/dependencies.md: %s needs a reason", r[1])
		}
		if slices.Contains(documented, r[1]) {
			t.Errorf("docs/dependencies.md lists %s twice", r[1])
		}
		documented = append(documented, r[1])
	}
	for _, m := range want {
		if !slices.Contains(documented, m) {
			t.Errorf("docs/dependencies.md does not say why %s is used", m)
		}
	}
	for _, m := range documented {
		if !slices.Contains(want, m) {
			t.Errorf("docs/dependencies.md explains %s, which nothing uses", m)
		}
	}
}
