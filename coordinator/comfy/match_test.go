// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strings"
)

// marks are the volatile values of the recordings and what stands for them here.
type marks struct {
	values map[string]string // mark to JSON
}

var markText = regexp.MustCompile(`<[a-z0-9]+(?:[ :][a-z0-9]+)*>`)

// shapes are the marks whose values are not compared, by what they look like.
var shapes = map[string]string{
	"<uuid>": `[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`, "<hex32>": `[0-9a-f]{32}`, "<n>": `[0-9]+`, "<5 letters>": `[a-z]{5}`,
	"<text>": `(?s).*`, "<line>": `(?s).+`, "<repr>": `.*`, "<version>": `[0-9.]+`, "<argument>": `.*`, "<file>": `.+`, "<path>": `.+`,
}

// numbers are marks of JSON numbers.
var numbers = []string{"<ms>", "<bytes>", "<number>"}

// fill puts values for the marks of a request.
func (m *marks) fill(raw []byte) []byte {
	for mark, value := range m.values {
		raw = bytes.ReplaceAll(raw, []byte(`"`+mark+`"`), []byte(value))
	}
	return raw
}

// inText puts values for the marks within a text.
func (m *marks) inText(s string) string {
	for mark, value := range m.values {
		s = strings.ReplaceAll(s, mark, strings.Trim(value, `"`))
	}
	return s
}

func decodeAny(raw []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return v, d.Decode(&v)
}

// differ says where got is not what was recorded; "" is nowhere.
func (m *marks) differ(recorded, got any, at string) string {
	switch want := recorded.(type) {
	case map[string]any:
		have, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s: %v, want an object", at, got)
		}
		for k, v := range want {
			k = m.inText(k)
			w, has := have[k]
			if !has {
				return fmt.Sprintf("%s: no key %s", at, k)
			}
			if d := m.differ(v, w, at+"."+k); d != "" {
				return d
			}
		}
		for k := range have {
			if !slices.ContainsFunc(mapKeys(want), func(w string) bool { return m.inText(w) == k }) {
				return fmt.Sprintf("%s: key %s was not recorded", at, k)
			}
		}
		return ""
	case []any:
		have, ok := got.([]any)
		if !ok {
			return fmt.Sprintf("%s: %v, want a list", at, got)
		}
		if len(want) > 0 && onlyMarks(want) { // of any length
			for i := range have {
				if d := m.differ(want[0], have[i], fmt.Sprintf("%s[%d]", at, i)); d != "" {
					return d
				}
			}
			return ""
		}
		if len(want) != len(have) {
			return fmt.Sprintf("%s: %d elements, want %d: %v", at, len(have), len(want), got)
		}
		if free(at) {
			want, have = sorted(want), sorted(have)
		}
		for i := range want {
			if d := m.differ(want[i], have[i], fmt.Sprintf("%s[%d]", at, i)); d != "" {
				return d
			}
		}
		return ""
	case json.Number:
		have, ok := got.(json.Number)
		if !ok || !equalNumbers(want.String(), have.String()) {
			return fmt.Sprintf("%s: %v, want %v", at, got, want)
		}
		return ""
	case string:
		return m.differText(want, got, at)
	default:
		if recorded != got {
			return fmt.Sprintf("%s: %v, want %v", at, got, recorded)
		}
		return ""
	}
}

func (m *marks) differText(want string, got any, at string) string {
	if value, ok := m.values[want]; ok {
		wanted, err := decodeAny([]byte(value))
		if err != nil {
			return err.Error()
		}
		if wanted != got && m.differ(wanted, got, at) != "" {
			return fmt.Sprintf("%s: %v, want %s, which is %s", at, got, want, value)
		}
		return ""
	}
	switch _, isNumber := got.(json.Number); {
	case slices.Contains(numbers, want) && isNumber:
		return ""
	case want == "<bool>" && (got == true || got == false):
		return ""
	}
	if _, isList := got.([]any); isList && (want == "<paths>" || want == "<list of files>") {
		return ""
	}
	have, ok := got.(string)
	if !ok {
		return fmt.Sprintf("%s: %v, want %q", at, got, want)
	}
	pattern, last := "^", 0
	want = m.inText(want)
	for _, place := range markText.FindAllStringIndex(want, -1) {
		pattern += regexp.QuoteMeta(want[last:place[0]])
		mark := want[place[0]:place[1]]
		if shape, ok := shapes[mark]; ok {
			pattern += shape
		} else {
			pattern += regexp.QuoteMeta(mark)
		}
		last = place[1]
	}
	if !regexp.MustCompile(pattern + regexp.QuoteMeta(want[last:]) + "$").MatchString(have) {
		return fmt.Sprintf("%s: %q, want %q", at, have, want)
	}
	return ""
}

// free tells the lists whose order the recordings do not fix.
func free(at string) bool {
	for _, end := range []string{".nodes", ".executed", ".current_outputs", ".dependent_outputs", ".errors", ".prompt[4]"} {
		if strings.HasSuffix(at, end) {
			return true
		}
	}
	return strings.HasPrefix(at, "item") && strings.HasSuffix(at, "[4]")
}

func sorted(l []any) []any {
	l = slices.Clone(l)
	slices.SortFunc(l, func(a, b any) int {
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		return bytes.Compare(x, y)
	})
	return l
}

func onlyMarks(l []any) bool {
	for _, e := range l {
		s, ok := e.(string)
		if _, known := shapes[s]; !ok || !known {
			return false
		}
	}
	return true
}

func equalNumbers(a, b string) bool {
	x, okA := new(big.Rat).SetString(a)
	y, okB := new(big.Rat).SetString(b)
	return okA && okB && x.Cmp(y) == 0
}

func mapKeys(m map[string]any) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}
