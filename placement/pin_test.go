// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePins(t *testing.T) {
	for text, want := range map[string][]Pin{
		"":                nil,
		"  ":              nil,
		"a=0-3,b=4-5":     {{"a", true, 0, 4}, {"b", true, 4, 2}},
		" a = 21 , b=36 ": {{"a", false, 0, 21}, {"b", false, 0, 36}},
		"box-1.lan=7-7":   {{"box-1.lan", true, 7, 1}},
	} {
		got, err := ParsePins(text)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v\n%s", text, err, diff)
		}
	}
	for text, want := range map[string]string{
		"a":                         `pin "a": want AGENT=BLOCKS`,
		"a=1,":                      `pin "": want AGENT=BLOCKS`,
		"=3":                        "the agent must be a name",
		"a b=3":                     "without spaces",
		"a=":                        `"" is not a number of blocks`,
		"a=0":                       "at least one block",
		"a=x":                       `"x" is not a number`,
		"a=-3":                      `"-3" is not a number`,
		"a=+3":                      `"+3" is not a number`,
		"a=3-":                      `"3-" is not a range`,
		"a=5-3":                     "the range runs backwards; write 3-5",
		"a=99999999999999999999":    "is not a number of blocks up to 2000",
		"a=0-99999":                 "is not a range",
		"a=1=2":                     `"1=2" is not a number`,
		strings.Repeat("a=1,", 2e4): "at most 65536",
		strings.Repeat("a=1,", 2e3): "2001 pins: at most 1024",
	} {
		pins, err := ParsePins(text)
		var e *PinError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v %v; want %q", text, pins, err, want)
		}
	}
}

// FuzzParsePins: no panic, bounded results, and what was read is written back to the same pins.
func FuzzParsePins(f *testing.F) {
	for _, s := range []string{"", "a=0-3,b=4-5", "a=21", " a = 1 , b=2-2", "a=", "=1", "a=1-", "a=9-1", "é=3", "a==1", "a=2000-2000", "a=\x00", ",,,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pins, err := ParsePins(text)
		if err != nil {
			if len(pins) != 0 || len(err.Error()) > 5*len(text)+300 {
				t.Fatalf("%d pins beside an error of %d characters", len(pins), len(err.Error()))
			}
			return
		}
		parts := make([]string, len(pins))
		for i, p := range pins {
			if p.Count < 1 || p.First < 0 || p.First+p.Count > 2*maxBlocks+1 || p.Node == "" {
				t.Fatalf("pin %+v", p)
			}
			parts[i] = p.String()
		}
		again, err := ParsePins(strings.Join(parts, ","))
		if diff := cmp.Diff(pins, again); diff != "" || err != nil {
			t.Fatalf("%v\n%s", err, diff)
		}
		p := Problem{Model: fluxModel(), Nodes: fluxCluster(2, 1, 64), Constraints: Constraints{Pins: pins}}
		if plan, err := Place(p, Options{SkipLosses: true}); (plan == nil) == (err == nil) {
			t.Fatalf("plan %v and error %v", plan, err)
		}
	})
}
