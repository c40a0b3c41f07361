// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const maxClasses = 50_000

// class is one node class as a worker describes it in /object_info.
type class struct {
	raw    json.RawMessage
	inputs map[string]input // required and optional ones
}

// input is what is asked of a value. Options is nil for one that is no choice, or
// a choice that is open: of files that clients bring, or filled elsewhere.
type input struct {
	options map[string]bool // by canonical
	brings  bool            // names a file that clients upload
	files   []string        // that the worker offers, if it brings
}

// canonical is a JSON value's text, equal for equal strings however escaped.
func canonical(raw json.RawMessage) string {
	if s, ok := asText(raw); ok {
		return "s" + s
	}
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return ""
	}
	return "j" + b.String()
}

// parseClasses reads the answer of /object_info.
func parseClasses(raw []byte) (map[string]class, error) {
	all, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("object_info: %w", err)
	}
	if len(all) > maxClasses {
		return nil, fmt.Errorf("object_info has %d node classes; at most %d are taken", len(all), maxClasses)
	}
	out := make(map[string]class, len(all))
	for _, m := range all {
		c := class{raw: m.value, inputs: map[string]input{}}
		info, ok := asObject(m.value)
		if !ok {
			continue
		}
		eachInput(info, func(_, name string, spec json.RawMessage) json.RawMessage {
			c.inputs[name] = parseInput(spec)
			return spec
		})
		out[m.name] = c
	}
	return out, nil
}

// eachInput passes the required and optional inputs of a node class by fn, which
// returns what stands in their place.
func eachInput(info object, fn func(group, name string, spec json.RawMessage) json.RawMessage) object {
	raw, _ := info.at("input")
	groups, ok := asObject(raw)
	if !ok {
		return info
	}
	for _, group := range []string{"required", "optional"} {
		raw, found := groups.at(group)
		inputs, ok := asObject(raw)
		if !found || !ok {
			continue
		}
		for i, m := range inputs {
			inputs[i].value = fn(group, m.name, m.value)
		}
		groups = groups.with(group, inputs.raw())
	}
	return info.with("input", groups.raw())
}

// parseInput reads [[choices...], {...}], ["COMBO", {"options": [...]}] or
// [TYPE, {...}].
func parseInput(spec json.RawMessage) input {
	choices, options := choicesOf(spec)
	in := input{}
	for _, m := range options {
		if strings.HasSuffix(m.name, "upload") && string(m.value) == "true" {
			in.brings = true
		}
	}
	for _, c := range choices {
		if s, ok := asText(c); ok && in.brings {
			in.files = append(in.files, s)
		}
	}
	_, remote := options.at("remote")
	if choices == nil || in.brings || remote {
		return in
	}
	in.options = make(map[string]bool, len(choices))
	for _, c := range choices {
		in.options[canonical(c)] = true
	}
	return in
}

// choicesOf is nil for an input that is no choice.
func choicesOf(spec json.RawMessage) (choices []json.RawMessage, options object) {
	l, ok := asList(spec)
	if !ok || len(l) == 0 {
		return nil, nil
	}
	if len(l) > 1 {
		options, _ = asObject(l[1])
	}
	if choices, ok := asList(l[0]); ok {
		return append([]json.RawMessage{}, choices...), options
	}
	if kind, _ := asText(l[0]); kind == "COMBO" {
		raw, _ := options.at("options")
		if choices, ok := asList(raw); ok {
			return choices, options
		}
	}
	return nil, options
}

// withChoices puts choices into a spec, in the form that it has.
func withChoices(spec json.RawMessage, choices []json.RawMessage) json.RawMessage {
	l, ok := asList(spec)
	if !ok || len(l) == 0 {
		return spec
	}
	raw, err := json.Marshal(choices)
	if err != nil {
		return spec
	}
	if _, ok := asList(l[0]); ok {
		l[0] = raw
	} else if len(l) > 1 {
		options, _ := asObject(l[1])
		l[1] = options.with("options", raw).raw()
	}
	out, err := json.Marshal(l)
	if err != nil {
		return spec
	}
	return out
}

// union is what all workers together offer: a class as the first of them has it,
// its choices those of all.
func union(workers []map[string]class) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	for i, w := range workers {
		for _, name := range slices.Sorted(maps.Keys(w)) {
			if _, done := out[name]; done {
				continue
			}
			out[name] = merged(name, w[name].raw, workers[i+1:])
		}
	}
	return out
}

func merged(name string, raw json.RawMessage, others []map[string]class) json.RawMessage {
	extra := map[string][]json.RawMessage{}
	for _, o := range others {
		c, ok := o[name]
		if !ok || bytes.Equal(c.raw, raw) {
			continue
		}
		info, _ := asObject(c.raw)
		eachInput(info, func(group, input string, spec json.RawMessage) json.RawMessage {
			choices, _ := choicesOf(spec)
			extra[group+"/"+input] = append(extra[group+"/"+input], choices...)
			return spec
		})
	}
	if len(extra) == 0 {
		return raw
	}
	return withMore(raw, func(group, input string) []json.RawMessage { return extra[group+"/"+input] })
}

// withMore adds choices to the inputs of a class that have choices.
func withMore(raw json.RawMessage, more func(group, input string) []json.RawMessage) json.RawMessage {
	info, ok := asObject(raw)
	if !ok {
		return raw
	}
	changed := false
	info = eachInput(info, func(group, input string, spec json.RawMessage) json.RawMessage {
		choices, _ := choicesOf(spec)
		if choices == nil {
			return spec
		}
		seen := map[string]bool{}
		for _, c := range choices {
			seen[canonical(c)] = true
		}
		before := len(choices)
		for _, c := range more(group, input) {
			if k := canonical(c); !seen[k] {
				seen[k] = true
				choices = append(choices, c)
			}
		}
		if len(choices) == before {
			return spec
		}
		changed = true
		return withChoices(spec, choices)
	})
	if !changed {
		return raw
	}
	return info.raw()
}
