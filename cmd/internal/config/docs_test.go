// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// keyRow is a line of the table of keys: key, variable, flag, default, meaning.
var keyRow = regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| `(DISTORCH_[A-Z0-9_]+)` \\| ([^|]*) \\| ([^|]*) \\| ([^|]+) \\|$")

// TestKeysAreDocumented compares the table in docs/cli.md with the keys, their
// variables and their defaults.
func TestKeysAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range keyRow.FindAllStringSubmatch(string(text), -1) {
		if got[m[1]] != "" {
			t.Errorf("%s is in the table twice", m[1])
		}
		if len(strings.Fields(m[5])) < 2 {
			t.Errorf("%s: say what it means", m[1])
		}
		got[m[1]] = m[2] + " " + m[4]
	}
	want := map[string]string{}
	walk(reflect.ValueOf(Default()), "", func(key string, v reflect.Value) {
		want[key] = Env(key) + " " + shownDefault(key, v)
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/cli.md, table of keys (-config +docs):\n%s", diff)
	}
}

// shownDefault is a default as the table has it.
func shownDefault(key string, v reflect.Value) string {
	text := fmt.Sprint(v.Interface())
	switch {
	case key == "data_dir":
		return "see above"
	case v.Kind() == reflect.Slice && v.Len() == 0, text == "":
		return "-"
	}
	return "`" + text + "`"
}
