// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// object is a JSON object whose members keep their order and their exact text:
// ComfyUI's inputs are shown in that order, and its seeds have 64 bits.
type object []member

type member struct {
	name  string
	value json.RawMessage
}

var errNoObject = errors.New("not a JSON object")

// parseObject reads one object. Of members of one name the last counts, as in
// Python.
func parseObject(raw []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	t, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoObject, err)
	}
	if t != json.Delim('{') {
		return nil, errNoObject
	}
	out := object{}
	at := map[string]int{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		if i, twice := at[name]; twice {
			out[i].value = value
			continue
		}
		at[name] = len(out)
		out = append(out, member{name, value})
	}
	_, err = dec.Token()
	return out, err
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		if len(m.value) == 0 {
			b.WriteString("null")
		}
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// raw is the object as text; its members were JSON, so it cannot fail.
func (o object) raw() json.RawMessage {
	b, err := o.MarshalJSON()
	if err != nil {
		return json.RawMessage("{}")
	}
	return b
}

func (o object) at(name string) (json.RawMessage, bool) {
	for _, m := range o {
		if m.name == name {
			return m.value, true
		}
	}
	return nil, false
}

// text is a member that is a string, else "".
func (o object) text(name string) string {
	v, _ := o.at(name)
	s, _ := asText(v)
	return s
}

// with is a copy in which a member has another value.
func (o object) with(name string, value json.RawMessage) object {
	out := make(object, 0, len(o)+1)
	found := false
	for _, m := range o {
		if m.name == name {
			m.value, found = value, true
		}
		out = append(out, m)
	}
	if !found {
		out = append(out, member{name, value})
	}
	return out
}

func asText(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || bytes.TrimSpace(raw)[0] != '"' {
		return "", false
	}
	var s string
	return s, json.Unmarshal(raw, &s) == nil
}

// asList is the elements of a JSON array, or nil and false.
func asList(raw json.RawMessage) ([]json.RawMessage, bool) {
	if len(raw) == 0 || bytes.TrimSpace(raw)[0] != '[' {
		return nil, false
	}
	var l []json.RawMessage
	return l, json.Unmarshal(raw, &l) == nil
}

func asObject(raw json.RawMessage) (object, bool) {
	o, err := parseObject(raw)
	return o, err == nil
}

// quote is a string as JSON.
func quote(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		return json.RawMessage(`""`)
	}
	return b
}
