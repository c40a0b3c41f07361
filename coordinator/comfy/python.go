// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

// What ComfyUI's validation does to values is what Python's int, float, str, bool
// and comparisons do. A value here is nil, bool, string, *big.Int (a number without
// point and exponent), float64, []any, or *pyDict.

type pyDict struct {
	keys   []string
	values map[string]any
}

// exception is what Python would raise.
type exception struct{ class, message string }

func (e *exception) Error() string { return e.message }

func raise(class, format string, args ...any) *exception {
	return &exception{class, fmt.Sprintf(format, args...)}
}

// maxDigits is Python's bound on the digits of an integer that is read from text.
const maxDigits = 4300

func parse(v jsontext.Value) (any, error) {
	switch v.Kind() {
	case 'n':
		return nil, nil
	case 't':
		return true, nil
	case 'f':
		return false, nil
	case '"':
		s, ok := asText(v)
		if !ok {
			return nil, raise("ValueError", "a text that is no UTF-8")
		}
		return s, nil
	case '0':
		return parseNumber(string(v))
	case '[':
		parts, err := elements(v)
		if err != nil {
			return nil, err
		}
		out := make([]any, len(parts))
		for i, p := range parts {
			if out[i], err = parse(p); err != nil {
				return nil, err
			}
		}
		return out, nil
	default:
		o, err := readObject(v)
		if err != nil {
			return nil, err
		}
		d := &pyDict{values: make(map[string]any, len(o.members))}
		for _, m := range o.members {
			d.keys = append(d.keys, m.name)
			if d.values[m.name], err = parse(m.value); err != nil {
				return nil, err
			}
		}
		return d, nil
	}
}

func parseNumber(s string) (any, error) {
	if strings.ContainsAny(s, ".eE") {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil && !math.IsInf(f, 0) {
			return nil, err
		}
		return f, nil
	}
	if len(s) > maxDigits {
		return nil, raise("ValueError", "an integer of %d digits; the limit is %d", len(s), maxDigits)
	}
	i, ok := new(big.Int).SetString(s, 10)
	if !ok {
		return nil, raise("ValueError", "%q is no number", s)
	}
	return i, nil
}

func pyType(v any) string {
	switch v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case string:
		return "str"
	case *big.Int:
		return "int"
	case float64:
		return "float"
	case []any:
		return "list"
	default:
		return "dict"
	}
}

// pyRepr is repr(v).
func pyRepr(v any) string {
	switch x := v.(type) {
	case nil:
		return "None"
	case bool:
		if x {
			return "True"
		}
		return "False"
	case string:
		return quote(x)
	case *big.Int:
		return x.String()
	case float64:
		return pyFloat(x)
	case []any:
		parts := make([]string, len(x))
		for i := range x {
			parts[i] = pyRepr(x[i])
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case *pyDict:
		parts := make([]string, len(x.keys))
		for i, k := range x.keys {
			parts[i] = quote(k) + ": " + pyRepr(x.values[k])
		}
		return "{" + strings.Join(parts, ", ") + "}"
	default:
		return fmt.Sprint(v)
	}
}

// pyStr is str(v).
func pyStr(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return pyRepr(v)
}

func quote(s string) string {
	mark := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		mark = '"'
	}
	b := []byte{mark}
	for _, r := range s {
		switch {
		case r == rune(mark) || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case unicode.IsPrint(r):
			b = append(b, string(r)...)
		case r < 0x100:
			b = fmt.Appendf(b, `\x%02x`, r)
		case r < 0x10000:
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = fmt.Appendf(b, `\U%08x`, r)
		}
	}
	return string(append(b, mark))
}

// pyFloat is repr of a float: the shortest text that reads back, with an exponent
// below 1e-4 and from 1e16.
func pyFloat(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

var (
	integerText = regexp.MustCompile(`^[+-]?[0-9]+(_[0-9]+)*$`)
	floatText   = regexp.MustCompile(`^[+-]?([0-9]+(_[0-9]+)*\.?([0-9]+(_[0-9]+)*)?|\.[0-9]+(_[0-9]+)*)([eE][+-]?[0-9]+(_[0-9]+)*)?$`)
)

// pyInt is int(v).
func pyInt(v any) (*big.Int, *exception) {
	switch x := v.(type) {
	case *big.Int:
		return x, nil
	case bool:
		if x {
			return big.NewInt(1), nil
		}
		return new(big.Int), nil
	case float64:
		if math.IsInf(x, 0) {
			return nil, raise("OverflowError", "cannot convert float infinity to integer")
		}
		i, _ := new(big.Float).SetFloat64(x).Int(nil)
		return i, nil
	case string:
		s := strings.TrimSpace(x)
		if !integerText.MatchString(s) {
			return nil, raise("ValueError", "invalid literal for int() with base 10: %s", quote(x))
		}
		if len(s) > maxDigits {
			return nil, raise("ValueError", "Exceeds the limit (%d digits) for integer string conversion: value has %d digits", maxDigits, len(s))
		}
		i, _ := new(big.Int).SetString(strings.ReplaceAll(strings.TrimPrefix(s, "+"), "_", ""), 10)
		return i, nil
	default:
		return nil, raise("TypeError", "int() argument must be a string, a bytes-like object or a real number, not '%s'", pyType(v))
	}
}

// toFloat is float(v), but for values that JSON has no number for, which it refuses.
func toFloat(v any) (float64, *exception) {
	var f float64
	switch x := v.(type) {
	case float64:
		f = x
	case bool:
		if x {
			f = 1
		}
	case *big.Int:
		f, _ = new(big.Float).SetInt(x).Float64()
		if math.IsInf(f, 0) {
			return 0, raise("OverflowError", "int too large to convert to float")
		}
	case string:
		s := strings.TrimSpace(x)
		word := strings.ToLower(strings.TrimLeft(s, "+-"))
		if word == "inf" || word == "infinity" || word == "nan" {
			return 0, raise("ValueError", "%s is not a finite number", quote(x))
		}
		if !floatText.MatchString(s) {
			return 0, raise("ValueError", "could not convert string to float: %s", quote(x))
		}
		f, _ = strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	default:
		return 0, raise("TypeError", "float() argument must be a string or a real number, not '%s'", pyType(v))
	}
	if math.IsInf(f, 0) {
		return 0, raise("ValueError", "%s is not a finite number", pyRepr(v))
	}
	return f, nil
}

// pyBool is bool(v).
func pyBool(v any) bool {
	switch x := v.(type) {
	case nil:
		return false
	case bool:
		return x
	case string:
		return x != ""
	case *big.Int:
		return x.Sign() != 0
	case float64:
		return x != 0
	case []any:
		return len(x) > 0
	case *pyDict:
		return len(x.keys) > 0
	default:
		return true
	}
}

// exact is v as a number without loss, with bool as 0 and 1.
func exact(v any) (*big.Float, bool) {
	switch x := v.(type) {
	case bool:
		if x {
			return big.NewFloat(1), true
		}
		return new(big.Float), true
	case *big.Int:
		return new(big.Float).SetInt(x), true
	case float64:
		return big.NewFloat(x), true
	default:
		return nil, false
	}
}

// pyCompare is the order of a and b; sign is how Python writes the comparison.
func pyCompare(a, b any, sign string) (int, *exception) {
	x, numberA := exact(a)
	y, numberB := exact(b)
	if numberA && numberB {
		return x.Cmp(y), nil
	}
	s, textA := a.(string)
	t, textB := b.(string)
	if textA && textB {
		return strings.Compare(s, t), nil
	}
	return 0, raise("TypeError", "'%s' not supported between instances of '%s' and '%s'", sign, pyType(a), pyType(b))
}

// pyEqual is a == b.
func pyEqual(a, b any) bool {
	if c, err := pyCompare(a, b, "=="); err == nil {
		return c == 0
	}
	switch x := a.(type) {
	case nil:
		return b == nil
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return false
		}
		for i := range x {
			if !pyEqual(x[i], y[i]) {
				return false
			}
		}
		return true
	case *pyDict:
		y, ok := b.(*pyDict)
		if !ok || len(x.keys) != len(y.keys) {
			return false
		}
		for k, v := range x.values {
			w, has := y.values[k]
			if !has || !pyEqual(v, w) {
				return false
			}
		}
		return true
	default:
		return false
	}
}
