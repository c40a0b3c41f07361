// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// object is a JSON object whose keys keep their order and whose values keep their
// text, so that numbers stay exact. A key that comes twice has its first place and
// its last value, as in a Python dict.
type object struct {
	members []member
	places  map[string]int // by name; nil while members are few
}

type member struct {
	name  string
	value jsontext.Value
}

// linear is how many members are looked up one by one.
const linear = 16

// compact checks one JSON document and returns it without white space.
func compact(text []byte) (jsontext.Value, error) {
	v := jsontext.Value(bytes.Clone(text))
	// Unlike Compact this refuses text that is no UTF-8, as Python does.
	if err := v.Format(jsontext.AllowDuplicateNames(true), jsontext.PreserveRawStrings(true)); err != nil {
		return nil, err
	}
	return v, nil
}

// readObject reads one level of a compact object; the values are parts of v.
func readObject(v jsontext.Value) (*object, error) {
	if v.Kind() != '{' {
		return nil, fmt.Errorf("%s where an object is expected", kindName(v))
	}
	d := jsontext.NewDecoder(bytes.NewReader(v), jsontext.AllowDuplicateNames(true))
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	o := &object{}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		end := int(d.InputOffset())
		o.set(key, v[end-len(value):end:end])
	}
	return o, nil
}

func (o *object) place(name string) (int, bool) {
	if o.places != nil {
		i, ok := o.places[name]
		return i, ok
	}
	for i := range o.members {
		if o.members[i].name == name {
			return i, true
		}
	}
	return 0, false
}

func (o *object) at(name string) (jsontext.Value, bool) {
	if o == nil {
		return nil, false
	}
	i, ok := o.place(name)
	if !ok {
		return nil, false
	}
	return o.members[i].value, true
}

func (o *object) set(name string, value jsontext.Value) {
	if i, ok := o.place(name); ok {
		o.members[i].value = value
		return
	}
	o.members = append(o.members, member{name, value})
	switch {
	case o.places != nil:
		o.places[name] = len(o.members) - 1
	case len(o.members) > linear:
		o.places = make(map[string]int, 2*len(o.members))
		for i := range o.members {
			o.places[o.members[i].name] = i
		}
	}
}

// without is o less some of its names; o itself when it has none of them.
func (o *object) without(names ...string) *object {
	has := false
	for _, name := range names {
		_, found := o.at(name)
		has = has || found
	}
	if !has {
		return o
	}
	out := &object{}
next:
	for _, m := range o.members {
		for _, name := range names {
			if m.name == name {
				continue next
			}
		}
		out.set(m.name, m.value)
	}
	return out
}

func (o *object) append(b []byte) []byte {
	b = append(b, '{')
	for i, m := range o.members {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(appendText(b, m.name), ':'), m.value...)
	}
	return append(b, '}')
}

func (o *object) value() jsontext.Value { return o.append(nil) }

// fields makes an object of names and values in turn.
func fields(pairs ...any) *object {
	o := &object{}
	for i := 0; i < len(pairs); i += 2 {
		name, _ := pairs[i].(string)
		o.set(name, encode(pairs[i+1]))
	}
	return o
}

// encode writes what the answers of this package are made of.
func encode(v any) jsontext.Value {
	switch x := v.(type) {
	case nil:
		return jsontext.Value("null")
	case jsontext.Value:
		return x
	case *object:
		return x.value()
	case string:
		return text(x)
	case bool:
		return strconv.AppendBool(nil, x)
	case int:
		return strconv.AppendInt(nil, int64(x), 10)
	case int64:
		return strconv.AppendInt(nil, x, 10)
	case []string:
		b := []byte{'['}
		for i, s := range x {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(b, s)
		}
		return append(b, ']')
	case []jsontext.Value:
		return array(x...)
	default:
		panic(fmt.Sprintf("encode %T", v))
	}
}

func array(values ...jsontext.Value) jsontext.Value {
	b := []byte{'['}
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, v...)
	}
	return append(b, ']')
}

func text(s string) jsontext.Value { return appendText(nil, s) }

func appendText(b []byte, s string) []byte {
	out, err := jsontext.AppendQuote(b, s)
	if err != nil { // no UTF-8: out has the replacement character, which is what is wanted
		return out
	}
	return out
}

// elements are the values of a compact array, parts of v.
func elements(v jsontext.Value) ([]jsontext.Value, error) {
	if v.Kind() != '[' {
		return nil, fmt.Errorf("%s where a list is expected", kindName(v))
	}
	d := jsontext.NewDecoder(bytes.NewReader(v), jsontext.AllowDuplicateNames(true))
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	var out []jsontext.Value
	for d.PeekKind() != ']' {
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		end := int(d.InputOffset())
		out = append(out, v[end-len(value):end:end])
	}
	return out, nil
}

// asText is the string that v is.
func asText(v jsontext.Value) (string, bool) {
	if v.Kind() != '"' {
		return "", false
	}
	b, err := jsontext.AppendUnquote(nil, v)
	return string(b), err == nil
}

func kindName(v jsontext.Value) string {
	switch v.Kind() {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a text"
	case '0':
		return "a number"
	case '{':
		return "an object"
	case '[':
		return "a list"
	default:
		return "no value"
	}
}
