// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package forecast

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got, err := Parse("mine", strings.NewReader("\ufeff# a card, 2 forward passes per iteration\r\noffload_gb,\"slow, far\", fast\r\n0,1,2\r\n\r\n1,,2.5\r\n# between\r\n2,3,3\r\n4,5e0,\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Table{"mine", 2, []Column{
		{"slow, far", []Sample{{0, 1}, {2, 3}, {4, 5}}},
		{"fast", []Sample{{0, 2}, {1, 2.5}, {2, 3}}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	const head, rows = "offload_gb,a,b\n", "0,1,1\n1,2,2\n2,3,3\n"
	many := head
	for i := range maxRows + 1 {
		many += fmt.Sprintf("%d,1,1\n", i)
	}
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "", "1:1: the file is empty"},
		{"comments alone", "# a\n", "1:1: the file is empty"},
		{"other file", "PK\x03\x04", `1:1: the first column is "PK\x03\x04"; want "offload_gb"`},
		{"semicolons", "offload_gb;a\n0;1\n", `1:1: the first column is "offload_gb;a"`},
		{"no links", "offload_gb\n0\n", "1:1: 0 links"},
		{"many links", "offload_gb" + strings.Repeat(",a", maxColumns+1), "101 links"},
		{"no name", "offload_gb,a, \n" + rows, "1:14: this column has no name"},
		{"long name", "offload_gb," + strings.Repeat("a", maxNameBytes+1) + "\n", "1:12: the name"},
		{"control", "offload_gb,a\x1b[31m\n", "1:12: the name"},
		{"same name", "# c\noffload_gb,a,a\n" + rows, `2:14: two columns are named "a"`},
		{"offload as a name", "offload_gb,offload_gb\n" + rows, `1:12: two columns are named "offload_gb"`},
		{"no number", head + "0,1,1\n1,2,fast\n2,3,3\n", `3:5: "fast" is not a number`},
		{"decimal comma", head + "0,\"1,5\",1\n1,2,2\n2,3,3\n", `2:3: "1,5" is not a number`},
		{"NaN", head + "0,1,1\n1,NaN,2\n2,3,3\n", `3:3: "NaN" is not a number`},
		{"infinite", head + "0,1,1\n1,Inf,2\n2,3,3\n", "3:3: Inf is out of range"},
		{"1e300", head + "0,1,1\n1,1e300,2\n2,3,3\n", "3:3: 1e300 is out of range"},
		{"1e999", head + "0,1,1\n1,1e999,2\n2,3,3\n", "3:3: 1e999 is out of range"},
		{"negative", head + "0,1,1\n1,2,-2\n2,3,3\n", "3:5: -2 is negative"},
		{"zero time", head + "0,1,1\n1,2,0\n2,3,3\n", "3:5: 0 is out of range"},
		{"negative offload", head + "0,1,1\n-1,2,2\n2,3,3\n", "3:1: -1 is negative"},
		{"no zero", head + "1,1,1\n2,2,2\n3,3,3\n", "2:1: the first row offloads 1 GB; want 0"},
		{"no time at zero", head + "0,1,\n1,2,2\n2,3,3\n3,4,4\n", `2:5: "b" has no time at offload 0`},
		{"descending", head + "0,1,1\n2,2,2\n1,3,3\n", "4:1: offload 1 after 2"},
		{"twice", head + "0,1,1\n1,2,2\n1,3,3\n", "4:1: offload 1 after 1"},
		{"hardly ascending", head + "0,1,1\n1e-320,2,2\n1,3,3\n", "3:1: offload 1e-320 after 0"},
		{"empty offload", head + "0,1,1\n,2,2\n1,3,3\n", `3:1: "" is not a number`},
		{"two rows", head + "0,1,1\n1,2,2\n", "3:1: 2 rows; want 3 at least"},
		{"two values", head + "0,1,1\n1,2,\n2,3,3\n", `1:14: "b" has 2 values`},
		{"cell missing", head + "0,1,1\n1,2\n2,3,3\n", "3:3: 2 cells; the header has 3"},
		{"cell more", head + "0,1,1\n1,2,2,\n2,3,3\n", "3:7: 4 cells; the header has 3"},
		{"bare quote", head + "0,1,1\n1,2\",2\n2,3,3\n", `3:4: bare "`},
		{"open quote", head + "0,1,1\n1,\"2,2\n", `extraneous or missing " in quoted-field`},
		{"many rows", many, "more than 1000 rows"},
		{"large", strings.Repeat("#", maxFileBytes+1), "more than 1048576 bytes"},
		{"no forwards", "# 0 forward passes per iteration\n" + head + rows, "1:3: 0 forward passes"},
		{"many forwards", "#\n# 999999999 forward passes per iteration\n" + head + rows, "2:3: 999999999 forward passes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("t", strings.NewReader(tc.text))
			if _, ok := errors.AsType[*SyntaxError](err); !ok || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want %q, got %v", tc.want, err)
			}
		})
	}
	if _, err := Parse("t", iotest.ErrReader(errors.New("disk"))); err == nil || err.Error() != "disk" {
		t.Errorf("a failing read: %v", err)
	}
}

// FuzzParse: what parses can be validated, and its report is of finite numbers.
func FuzzParse(f *testing.F) {
	f.Add("offload_gb,a\n0,1\n1,2\n2,3\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := Parse("t", strings.NewReader(text))
		if err != nil {
			if _, ok := errors.AsType[*SyntaxError](err); !ok {
				t.Errorf("%T: %v", err, err)
			}
			return
		}
		r, err := Validate(table, table)
		if err != nil {
			t.Fatalf("%q parses and cannot be validated: %v", text, err)
		}
		for _, v := range []float64{r.Mean, r.Worst, r.Baselines.NoSlowdown.Worst, r.Baselines.OtherTable.Worst, r.Overlap.MeanSaving} {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				t.Errorf("%q gives %v", text, v)
			}
		}
	})
}
