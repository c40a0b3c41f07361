// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// arrows says, for each folder, which others it may import. A folder not listed
// takes the rule of the nearest folder above it; every folder may import what
// lies below itself.
var arrows = map[string][]string{
	"cmd":                   {"agent", "coordinator", "internal", "model", "placement", "proto", "store", "transport", "verify"},
	"bench":                 {"agent", "coordinator", "internal", "model", "placement", "proto", "store", "transport"},
	"verify":                {"agent", "model"},
	"coordinator":           {"model", "placement", "proto", "store", "transport"},
	"coordinator/reconcile": {"model", "placement"},
	"agent":                 {"model", "proto", "store", "transport"},
	"agent/engine":          {"agent/device", "model"},
	"transport":             {"proto"},
	"store":                 {"proto", "transport/identity"}, // who wrote a key is told by its certificate
	"placement":             {"model"},
	"model":                 {},
	"model/graph/wire":      {"model", "proto"},
	"proto":                 {},
	"internal":              {},
}

// everywhere may be imported by any package.
var everywhere = []string{"internal/digestdir", "internal/edits", "internal/svg"}

// inTests may be imported by tests besides.
var inTests = []string{"bench/clusters", "internal/comfyworker", "internal/netns"}

// adapters are the libraries that one folder alone may import.
var adapters = map[string]string{
	"go.etcd.io/etcd":                 "store",
	"github.com/hashicorp/memberlist": "transport/gossip",
	"github.com/spf13/viper":          "cmd/internal/config",
	"github.com/NVIDIA/go-nvml":       "agent/device",
	"github.com/klauspost/compress":   "model/planes",
}

func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}

// ruleOf is the longest folder of arrows that pkg lies in.
func ruleOf(pkg string) (rule string) {
	for folder := range arrows {
		if within(pkg, folder) && len(folder) > len(rule) {
			rule = folder
		}
	}
	return rule
}

func allowed(pkg, imported string, test bool) bool {
	rule := ruleOf(pkg)
	own, _, _ := strings.Cut(pkg, "/")
	if slices.Contains(everywhere, imported) || rule == own && within(imported, own) || within(imported, rule) {
		return true
	}
	for _, folder := range arrows[rule] {
		if within(imported, folder) {
			return true
		}
	}
	return test && slices.ContainsFunc(inTests, func(folder string) bool { return within(imported, folder) })
}

// violations lists what pkg imports and must not.
func violations(pkg string, imports []string, test bool) (wrong []string) {
	for _, imported := range imports {
		for library, folder := range adapters {
			if within(imported, library) && !within(pkg, folder) {
				wrong = append(wrong, pkg+" imports "+imported+", which only "+folder+" may")
			}
		}
		ours := relative(imported)
		if ours != imported && !allowed(pkg, ours, test) {
			wrong = append(wrong, pkg+" imports "+ours+", which "+ruleOf(pkg)+" must not")
		}
	}
	return wrong
}

func TestImportArrows(t *testing.T) {
	for _, p := range packages(t) {
		if ruleOf(p.ImportPath) == "" {
			t.Errorf("%s: no rule says what this folder may import; add it to arrows", p.ImportPath)
			continue
		}
		for _, wrong := range append(violations(p.ImportPath, p.imports, false), violations(p.ImportPath, p.tests, true)...) {
			t.Error(wrong)
		}
	}
}

// TestArrowsRefuse holds the rules against the imports that they are there for.
func TestArrowsRefuse(t *testing.T) {
	const m = module + "/"
	for _, tc := range []struct {
		pkg, imported string
		test, refused bool
	}{
		{"coordinator/endpoint", m + "agent/stage", false, true},
		{"agent/stage", m + "coordinator", false, true},
		{"agent/stage", m + "placement", true, true},
		{"transport", m + "coordinator", false, true},
		{"transport/gossip", m + "agent", false, true},
		{"transport", m + "placement", false, true},
		{"placement", m + "cmd/distorch", false, true},
		{"placement", m + "proto/distorch/v1", false, true},
		{"model/graph", m + "proto/distorch/v1", false, true},
		{"coordinator/reconcile", m + "coordinator", false, true},
		{"coordinator/reconcile", m + "store", false, true},
		{"agent/engine/native", m + "proto/distorch/v1", false, true},
		{"agent/engine/native", m + "agent/stage", false, true},
		{"coordinator", "go.etcd.io/etcd/client/v3", false, true},
		{"agent", "go.etcd.io/etcd/client/v3/concurrency", true, true},
		{"transport", "github.com/hashicorp/memberlist", false, true},
		{"cmd/distorch", "github.com/spf13/viper", false, true},
		{"agent", "github.com/NVIDIA/go-nvml/pkg/nvml", false, true},
		{"agent", m + "internal/netns", false, true},
		{"verify", m + "coordinator", false, true},
		{"agent/stage", m + "verify", true, true},

		{"agent", m + "internal/netns", true, false},
		{"model/graph/wire", m + "proto/distorch/v1", false, false},
		{"model/graph/wire", m + "model/graph", false, false},
		{"model/arch", m + "model/graph", false, false},
		{"agent/engine/native", m + "agent/engine", false, false},
		{"agent/engine/native", m + "model/graph", false, false},
		{"coordinator", m + "coordinator/reconcile", false, false},
		{"coordinator", m + "transport/identity", false, false},
		{"cmd/distorch", m + "cmd/internal/config", false, false},
		{"cmd/distorch", m + "verify", false, false},
		{"verify", m + "agent/stage", false, false},
		{"store", "go.etcd.io/etcd/server/v3/embed", false, false},
		{"transport/gossip", "github.com/hashicorp/memberlist", false, false},
	} {
		if refused := len(violations(tc.pkg, []string{tc.imported}, tc.test)) > 0; refused != tc.refused {
			t.Errorf("%s imports %s (test %v): refused %v, want %v", tc.pkg, tc.imported, tc.test, refused, tc.refused)
		}
	}
}

// TestArrowsHaveNoCycle: folders that import each other would be one folder.
func TestArrowsHaveNoCycle(t *testing.T) {
	for _, from := range slices.Sorted(maps.Keys(arrows)) {
		for _, to := range arrows[from] {
			for _, back := range arrows[to] {
				if back == from {
					t.Errorf("%s and %s may import each other", from, to)
				}
			}
		}
	}
}
