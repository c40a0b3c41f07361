// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package numeric

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The arm64 compiler fuses a*b+c where it may, even through an inlined call's
// parameter. Every fused instruction here and in the sampler must come from a
// line that asks for it by math.FMA.
func TestCompilerFusesNothing(t *testing.T) {
	fused := regexp.MustCompile(`\(([^()]*\.go):(\d+)\)\s+FN?M(?:ADD|SUB)[SD]\b`)
	wanted := 0
	for _, dir := range []string{".", "../sampling"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-gcflags=-S", ".")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0", "GOFLAGS=")
		listing, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go build: %v\n%s", err, listing)
		}
		if !strings.Contains(string(listing), "FMULD") {
			t.Fatalf("%s: the listing holds no arithmetic", dir)
		}
		sources := map[string][]string{}
		for _, m := range fused.FindAllStringSubmatch(string(listing), -1) {
			name := filepath.Base(m[1])
			if sources[name] == nil {
				text, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					continue // inlined from another package, which has its own turn
				}
				sources[name] = strings.Split(string(text), "\n")
			}
			line, _ := strconv.Atoi(m[2])
			if !strings.Contains(sources[name][line-1], "math.FMA(") {
				t.Errorf("%s:%d is fused on arm64: %s", name, line, strings.TrimSpace(sources[name][line-1]))
			} else {
				wanted++
			}
		}
	}
	if wanted == 0 {
		t.Error("no math.FMA seen: the test proves nothing")
	}
}
