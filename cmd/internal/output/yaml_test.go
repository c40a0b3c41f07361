// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
	"pgregory.net/rapid"
)

func TestYAML(t *testing.T) {
	type inner struct {
		Zeta  string  `json:"zeta"`
		Alpha float64 `json:"alpha"`
	}
	var b bytes.Buffer
	err := Write(&b, YAML, struct {
		Name  string         `json:"name"`
		Words []string       `json:"words"`
		None  *int           `json:"none"`
		Big   uint64         `json:"big"`
		Empty []string       `json:"empty"`
		Map   map[string]int `json:"map"`
		Rows  []inner        `json:"rows"`
		Raw   json.RawMessage
	}{
		"b", []string{"yes", "1e3", "null", "~", "a: b", "", "10:30", "- x", "#c", "two\nlines", "\x1b[31m", "ü"}, nil, 1<<64 - 1, []string{}, map[string]int{},
		[]inner{{"z", 1e21}, {"y", 0.5}}, json.RawMessage(`{"y":1,"a":true}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `name: b
words:
- 'yes'
- '1e3'
- 'null'
- '~'
- 'a: b'
- ''
- '10:30'
- '- x'
- '#c'
- |-
  two
  lines
- "\e[31m"
- ü
none: null
big: 18446744073709551615
empty: []
map: {}
rows:
- zeta: z
  alpha: 1e+21
- zeta: 'y'
  alpha: 0.5
Raw:
  'y': 1
  a: true
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestYAMLIsJSON: what is read from one form is what is read from the other.
func TestYAMLIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := anyValue(3).Draw(t, "value")
		var asJSON, asYAML bytes.Buffer
		if err := WriteJSON(&asJSON, v); err != nil {
			t.Fatal(err)
		}
		if err := WriteYAML(&asYAML, v); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(asYAML.String(), "\x1b") {
			t.Fatalf("a control character is left in %q", asYAML.String())
		}
		var fromJSON, fromYAML any
		if err := json.Unmarshal(asJSON.Bytes(), &fromJSON); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Load(asYAML.Bytes(), &fromYAML); err != nil {
			t.Fatalf("%v in\n%s", err, asYAML.String())
		}
		back, err := json.Marshal(fromYAML)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(back, &fromYAML); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fromJSON, fromYAML); diff != "" {
			t.Fatalf("(-json +yaml):\n%s\n%s", diff, asYAML.String())
		}
	})
}

func anyValue(depth int) *rapid.Generator[any] {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"yes", "0x10", "1_000", ".inf", "2001-01-01", "<<", "=", " a", "a ", "a\r\nb", "\u0085", "0o7"}))
	plain := rapid.OneOf(
		rapid.Map(text, func(s string) any { return s }),
		rapid.Map(rapid.Bool(), func(b bool) any { return b }),
		rapid.Map(rapid.Int64Range(-1<<50, 1<<50), func(n int64) any { return n }),
		rapid.Map(rapid.Float64(), func(f float64) any { return f }),
		rapid.Just[any](nil),
	)
	if depth == 0 {
		return plain
	}
	below := anyValue(depth - 1)
	return rapid.OneOf(
		plain,
		rapid.Map(rapid.SliceOfN(below, 0, 4), func(s []any) any { return append([]any{}, s...) }),
		rapid.Map(rapid.MapOfN(text, below, 0, 4), func(m map[string]any) any { return m }),
	)
}

func TestFormat(t *testing.T) {
	f := Table
	for _, name := range Formats() {
		if err := f.Set(name); err != nil || f.String() != name {
			t.Errorf("Set(%q) = %v, the format is %s", name, err, f)
		}
	}
	err := f.Set("yml")
	if err == nil || err.Error() != `"yml": want table, json or yaml, did you mean "yaml"?` {
		t.Errorf("Set of an unknown format: %v", err)
	}
	if err := Write(&bytes.Buffer{}, Table, 1); err == nil {
		t.Error("a value was written as a table")
	}
}
