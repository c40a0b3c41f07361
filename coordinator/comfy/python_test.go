// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"math"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func value(t testing.TB, text string) any {
	t.Helper()
	v, err := parse(jsontext.Value(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestPythonConversions: what Python 3.11 gives for each JSON value.
func TestPythonConversions(t *testing.T) {
	type result struct{ Int, Float, Str, Bool string }
	for text, want := range map[string]result{
		`8`:                      {"8", "8.0", "8", "True"},
		`-0`:                     {"0", "0.0", "0", "False"},
		`8.0`:                    {"8", "8.0", "8.0", "True"},
		`-8.9`:                   {"-8", "-8.9", "-8.9", "True"},
		`1e16`:                   {"10000000000000000", "1e+16", "1e+16", "True"},
		`1e30`:                   {"1000000000000000019884624838656", "1e+30", "1e+30", "True"},
		`0.0001`:                 {"0", "0.0001", "0.0001", "True"},
		`0.00001`:                {"0", "1e-05", "1e-05", "True"},
		`123456789012345678.0`:   {"123456789012345680", "1.2345678901234568e+17", "1.2345678901234568e+17", "True"},
		`18446744073709551615`:   {"18446744073709551615", "1.8446744073709552e+19", "18446744073709551615", "True"},
		`true`:                   {"1", "1.0", "True", "True"},
		`false`:                  {"0", "0.0", "False", "False"},
		`null`:                   {"TypeError: int() argument must be a string, a bytes-like object or a real number, not 'NoneType'", "TypeError: float() argument must be a string or a real number, not 'NoneType'", "None", "False"},
		`"20"`:                   {"20", "20.0", "20", "True"},
		`" +1_000 "`:             {"1000", "1000.0", " +1_000 ", "True"},
		`"1__0"`:                 {"ValueError: invalid literal for int() with base 10: '1__0'", "ValueError: could not convert string to float: '1__0'", "1__0", "True"},
		`"0x10"`:                 {"ValueError: invalid literal for int() with base 10: '0x10'", "ValueError: could not convert string to float: '0x10'", "0x10", "True"},
		`"2.5e1"`:                {"ValueError: invalid literal for int() with base 10: '2.5e1'", "25.0", "2.5e1", "True"},
		`".5"`:                   {"ValueError: invalid literal for int() with base 10: '.5'", "0.5", ".5", "True"},
		`"5."`:                   {"ValueError: invalid literal for int() with base 10: '5.'", "5.0", "5.", "True"},
		`""`:                     {"ValueError: invalid literal for int() with base 10: ''", "ValueError: could not convert string to float: ''", "", "False"},
		`"nan"`:                  {"ValueError: invalid literal for int() with base 10: 'nan'", "ValueError: 'nan' is not a finite number", "nan", "True"},
		`"it's"`:                 {`ValueError: invalid literal for int() with base 10: "it's"`, `ValueError: could not convert string to float: "it's"`, "it's", "True"},
		`{"a":[1,"b",null,2.0]}`: {"TypeError: int() argument must be a string, a bytes-like object or a real number, not 'dict'", "TypeError: float() argument must be a string or a real number, not 'dict'", "{'a': [1, 'b', None, 2.0]}", "True"},
		`{}`:                     {"TypeError: int() argument must be a string, a bytes-like object or a real number, not 'dict'", "TypeError: float() argument must be a string or a real number, not 'dict'", "{}", "False"},
	} {
		v := value(t, text)
		got := result{Str: pyStr(v), Bool: pyStr(pyBool(v))}
		if i, raised := pyInt(v); raised != nil {
			got.Int = raised.class + ": " + raised.message
		} else {
			got.Int = i.String()
		}
		if f, raised := toFloat(v); raised != nil {
			got.Float = raised.class + ": " + raised.message
		} else {
			got.Float = pyFloat(f)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
}

func TestPythonRepr(t *testing.T) {
	for text, want := range map[string]string{
		`"plain"`: `'plain'`, `"it's"`: `"it's"`, `"both ' and \""`: `'both \' and "'`, `"a\nb\tc\rd\\"`: `'a\nb\tc\rd\\'`,
		`"\u0001\u007f\u00a0é\ud83d\ude00"`: `'\x01\x7f\xa0é😀'`, `"\u200b"`: `'\u200b'`,
	} {
		if got := pyRepr(value(t, text)); got != want {
			t.Errorf("repr of %s is %s, want %s", text, got, want)
		}
	}
}

func TestPythonComparison(t *testing.T) {
	for _, tc := range []struct {
		a, b  string
		equal bool
		order string
	}{
		{`1`, `1.0`, true, "0"}, {`true`, `1`, true, "0"}, {`18446744073709551615`, `18446744073709551616.0`, false, "-1"},
		{`"b"`, `"a"`, false, "1"}, {`"1"`, `1`, false, "TypeError: '<' not supported between instances of 'str' and 'int'"},
		{`[1,"a"]`, `[1.0,"a"]`, true, "TypeError: '<' not supported between instances of 'list' and 'list'"},
		{`{"a":1,"b":2}`, `{"b":2,"a":1.0}`, true, "TypeError: '<' not supported between instances of 'dict' and 'dict'"},
		{`{"a":1}`, `{"b":1}`, false, "TypeError: '<' not supported between instances of 'dict' and 'dict'"},
		{`null`, `null`, true, "TypeError: '<' not supported between instances of 'NoneType' and 'NoneType'"},
	} {
		a, b := value(t, tc.a), value(t, tc.b)
		if pyEqual(a, b) != tc.equal || pyEqual(b, a) != tc.equal {
			t.Errorf("%s == %s: want %v", tc.a, tc.b, tc.equal)
		}
		order, raised := pyCompare(a, b, "<")
		got := string(encode(order))
		if raised != nil {
			got = raised.class + ": " + raised.message
		}
		if got != tc.order {
			t.Errorf("%s compared with %s: %s, want %s", tc.a, tc.b, got, tc.order)
		}
	}
}

// TestIntegersAreBounded: as many digits as Python takes.
func TestIntegersAreBounded(t *testing.T) {
	if _, err := parse(jsontext.Value(strings.Repeat("9", maxDigits))); err != nil {
		t.Error(err)
	}
	if _, err := parse(jsontext.Value(strings.Repeat("9", maxDigits+1))); err == nil {
		t.Error("no error")
	}
	if _, raised := pyInt(strings.Repeat("9", maxDigits+1)); raised == nil {
		t.Error("no exception")
	}
}

// TestFloatsReadBack: what is written for a float is that float.
func TestFloatsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.Float64().Draw(t, "f")
		if math.IsInf(f, 0) || math.IsNaN(f) {
			return
		}
		v, err := parse(jsontext.Value(pyFloat(f)))
		if got, ok := v.(float64); err != nil || !ok || got != f {
			t.Fatalf("%v is written %s, which is %v (%v)", f, pyFloat(f), v, err)
		}
	})
}

// TestObjectsKeepOrderAndText: keys in order, the last value of a key that comes
// twice, numbers to the digit.
func TestObjectsKeepOrderAndText(t *testing.T) {
	v, err := compact([]byte(" {\"b\" : 1.50, \"a\": 18446744073709551615, \"b\": [1, 2e0], \"\\u0063\": \"\\u00e9\\/\"} "))
	if err != nil {
		t.Fatal(err)
	}
	o, err := readObject(v)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(o.value()), `{"b":[1,2e0],"a":18446744073709551615,"c":"\u00e9\/"}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	rapid.Check(t, func(t *rapid.T) { // more than are looked up one by one
		names := rapid.SliceOfN(rapid.StringMatching(`[a-e]{1,3}`), 0, 60).Draw(t, "names")
		o, places, order := &object{}, map[string]int{}, []string{}
		for i, n := range names {
			if _, ok := places[n]; !ok {
				order = append(order, n)
			}
			places[n] = i
			o.set(n, encode(i))
		}
		back, err := readObject(o.value())
		if err != nil || len(back.members) != len(order) {
			t.Fatalf("%v: %d members, want %d", err, len(back.members), len(order))
		}
		for i, n := range order {
			if back.members[i].name != n || string(back.members[i].value) != string(encode(places[n])) {
				t.Fatalf("member %d is %s: %s", i, back.members[i].name, back.members[i].value)
			}
		}
	})
}
