// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"fmt"
	"math/big"

	"github.com/go-json-experiment/json/jsontext"
)

// literal validates an input whose value stands in the prompt, and converts it.
func (v *validation) literal(n *node, in *input, raw jsontext.Value, out *verdict) *exception {
	value, err := parse(raw)
	if err != nil {
		return raise("ValueError", "%s", err.Error())
	}
	if d, ok := value.(*pyDict); ok {
		if inner, has := d.values["__value__"]; has {
			value, n.wrapped = inner, true
			raw = encodeAny(inner)
		}
	}
	converted, raised := convert(in, value)
	if raised != nil {
		out.add("invalid_input_type", fmt.Sprintf("Failed to convert an input value to a %s value", in.kind),
			fmt.Sprintf("%s, %s, %s", in.name, pyStr(value), raised.message),
			fields("input_name", in.name, "input_config", in.config, "received_value", raw, "exception_message", raised.message))
		return nil
	}
	if converted != nil {
		value = converted
		if encoded := encodeAny(value); string(encoded) != string(raw) {
			raw = encoded
			n.inputs.set(in.name, raw)
			n.changed = true
		}
	}
	if in.file {
		v.file(n, in, value, raw, out)
		return nil
	}
	for _, b := range [2]struct {
		name, kind, words, sign string
		wrong                   int
	}{
		{"min", "value_smaller_than_min", "smaller than min", "<", -1},
		{"max", "value_bigger_than_max", "bigger than max", ">", 1},
	} {
		bound, ok := in.bounds[b.name]
		if !ok {
			continue
		}
		order, raised := pyCompare(value, bound, b.sign)
		if raised != nil {
			return raised
		}
		if order == b.wrong {
			out.add(b.kind, fmt.Sprintf("Value %s %s of %s", pyStr(value), b.words, pyStr(bound)), in.name,
				fields("input_name", in.name, "input_config", in.config, "received_value", raw))
			return nil
		}
	}
	if in.choice {
		choose(n, in, value, raw, out)
	}
	return nil
}

// convert is the value as its input's type, or nil where that converts nothing.
func convert(in *input, value any) (any, *exception) {
	switch in.kind {
	case "INT":
		i, raised := pyInt(value)
		if raised != nil {
			return nil, raised
		}
		return i, nil
	case "FLOAT":
		f, raised := toFloat(value)
		if raised != nil {
			return nil, raised
		}
		return f, nil
	case "STRING":
		return pyStr(value), nil
	case "BOOLEAN":
		return pyBool(value), nil
	}
	return nil, nil
}

// longList is from how many options on an error does not list them.
const longList = 20

func choose(n *node, in *input, value any, raw jsontext.Value, out *verdict) {
	picked := []any{value}
	if l, ok := value.([]any); ok && in.several {
		picked = l
	}
	listed := true
	for _, p := range picked {
		if !contains(in.options, p) {
			listed = false
		} else if s, ok := p.(string); ok {
			n.choices = append(n.choices, Choice{Node: n.id, Class: n.class.name, Input: in.name, Value: s})
		}
	}
	// A node pack may check a value by itself in place of the list; the worker will.
	if !listed && !n.class.custom {
		notListed(in, value, raw, out)
	}
}

func notListed(in *input, value any, raw jsontext.Value, out *verdict) {
	config, options := in.config, pyRepr(in.options)
	if len(in.options) > longList {
		config, options = jsontext.Value("null"), fmt.Sprintf("(list of length %d)", len(in.options))
	}
	out.add("value_not_in_list", "Value not in list", fmt.Sprintf("%s: '%s' not in %s", in.name, pyStr(value), options),
		fields("input_name", in.name, "input_config", config, "received_value", raw))
}

// file validates an input that names a file: of the list, or one that was uploaded
// or made since.
func (v *validation) file(n *node, in *input, value any, raw jsontext.Value, out *verdict) {
	picked := []any{value}
	if l, ok := value.([]any); ok {
		picked = l
	}
	for _, p := range picked {
		name := pyStr(p)
		if s, ok := p.(string); ok {
			n.choices = append(n.choices, Choice{Node: n.id, Class: n.class.name, Input: in.name, Value: s, File: true})
		}
		ref, err := annotated(name, "input")
		if contains(in.options, p) || n.class.custom || err == nil && v.hasFile(ref) {
			continue
		}
		if in.checks == "" {
			notListed(in, value, raw, out)
			return
		}
		out.add("custom_validation_failed", "Custom validation failed for node",
			fmt.Sprintf("%s - Invalid %s file: %s", in.name, in.checks, name), fields("input_name", in.name))
		return
	}
}

func contains(options []any, value any) bool {
	for _, o := range options {
		if pyEqual(o, value) {
			return true
		}
	}
	return false
}

// encodeAny is v as JSON, floats as Python writes them.
func encodeAny(v any) jsontext.Value {
	switch x := v.(type) {
	case *big.Int:
		return jsontext.Value(x.String())
	case float64:
		return jsontext.Value(pyFloat(x))
	case []any:
		parts := make([]jsontext.Value, len(x))
		for i := range x {
			parts[i] = encodeAny(x[i])
		}
		return array(parts...)
	case *pyDict:
		o := &object{}
		for _, k := range x.keys {
			o.set(k, encodeAny(x.values[k]))
		}
		return o.value()
	default:
		return encode(v)
	}
}

// graph writes the prompt with its values converted: as a worker takes it, and as it
// is shown, which differ in that ComfyUI shows a wrapped value without its wrapper.
func (v *validation) graph() (graph, shown jsontext.Value) {
	wrapped := false
	graph = append(graph, '{')
	for i, n := range v.nodes {
		if i > 0 {
			graph = append(graph, ',')
		}
		graph = append(appendText(graph, n.id), ':')
		wrapped = wrapped || n.wrapped
		if n.changed {
			n.fields.set("inputs", n.inputs.value())
			n.text = n.fields.value()
		}
		graph = append(graph, n.text...)
	}
	graph = append(graph, '}')
	if !wrapped {
		return graph, graph
	}
	o := &object{}
	for _, n := range v.nodes {
		if n.wrapped {
			inputs := &object{}
			for _, m := range n.inputs.members {
				inputs.set(m.name, unwrap(m.value))
			}
			n.fields.set("inputs", inputs.value())
			n.text = n.fields.value()
		}
		o.set(n.id, n.text)
	}
	return graph, o.value()
}

func unwrap(v jsontext.Value) jsontext.Value {
	if v.Kind() != '{' {
		return v
	}
	o, err := readObject(v)
	if err != nil {
		return v
	}
	if inner, ok := o.at("__value__"); ok {
		return inner
	}
	return v
}
