// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// deepest is how long a chain of links may be. ComfyUI gives up at Python's
// recursion limit, some hundreds of nodes earlier.
const deepest = 10_000

// refusal is an answer with status 400.
type refusal struct {
	kind, message, details string
	nodes                  *object // node_errors
}

func (r *refusal) body() []byte {
	nodes := r.nodes
	if nodes == nil {
		nodes = &object{}
	}
	return fields("error", fields("type", r.kind, "message", r.message, "details", r.details, "extra_info", &object{}),
		"node_errors", nodes).value()
}

// node is one node of a prompt.
type node struct {
	id      string
	fields  *object
	class   *class
	inputs  *object // nil where the node has none that can be read
	text    jsontext.Value
	changed bool
	wrapped bool // a value was taken out of its __value__
	choices []Choice
	links   []*node // nil until asked for
}

// verdict is what validation says of one node. A node whose own inputs are right is
// invalid without errors where one that it is linked to is invalid.
type verdict struct {
	valid  bool
	errors []jsontext.Value
	text   []string // message: details, of each
}

func (v *verdict) add(kind, message, details string, info *object) {
	v.valid = false
	v.errors = append(v.errors, fields("type", kind, "message", message, "details", details, "extra_info", info).value())
	v.text = append(v.text, message+": "+details)
}

// validation checks one prompt against the classes, converting values in place. It
// gives the errors that ComfyUI v0.3.64 gives.
type validation struct {
	class   func(name string) (*class, error)
	hasFile func(f FileRef) bool

	nodes []*node
	byID  map[string]*node
	done  map[string]*verdict
	open  map[string]bool // nodes whose validation has begun
}

// checked is a valid prompt.
type checked struct {
	graph, shown jsontext.Value // as a worker gets it; as queue and history show it
	classes      []string
	choices      []Choice
	outputs      []string
	nodeErrors   *object // of outputs that will not run
}

// check errs where ComfyUI answers 500.
func (v *validation) check(prompt jsontext.Value, want func(id string) bool) (*checked, *refusal, error) {
	if k := prompt.Kind(); k == '[' || k == '"' {
		if string(prompt) == "[]" || string(prompt) == `""` {
			return nil, noOutputs(), nil
		}
	}
	graph, err := readObject(prompt)
	if err != nil {
		return nil, nil, fmt.Errorf("prompt is %s, not an object", kindName(prompt))
	}
	v.byID = make(map[string]*node, len(graph.members))
	v.done, v.open = map[string]*verdict{}, map[string]bool{}
	var outputs []*node
	for _, m := range graph.members {
		n, r, err := v.read(m)
		if r != nil || err != nil {
			return nil, r, err
		}
		v.nodes = append(v.nodes, n)
		v.byID[n.id] = n
		if n.class.output && want(n.id) {
			outputs = append(outputs, n)
		}
	}
	if len(outputs) == 0 {
		return nil, noOutputs(), nil
	}
	return v.judge(outputs)
}

func noOutputs() *refusal {
	return &refusal{kind: "prompt_no_outputs", message: "Prompt has no outputs"}
}

func (v *validation) read(m member) (*node, *refusal, error) {
	invalid := func(message, way string) (*node, *refusal, error) {
		return nil, &refusal{kind: "invalid_prompt", message: message, details: "Node ID '#" + m.name + "'" + way}, nil
	}
	const missing = "Cannot execute because a node is missing the class_type property."
	n := &node{id: m.name, text: m.value}
	switch m.value.Kind() {
	case '{':
	case '[', '"':
		return invalid(missing, "")
	default:
		return nil, nil, fmt.Errorf("node %s is %s, not an object", m.name, kindName(m.value))
	}
	var err error
	if n.fields, err = readObject(m.value); err != nil {
		return nil, nil, err
	}
	kind, ok := n.fields.at("class_type")
	if !ok {
		return invalid(missing, "")
	}
	value, err := parse(kind)
	if err != nil {
		return nil, nil, err
	}
	switch value.(type) {
	case []any, *pyDict:
		return nil, nil, fmt.Errorf("class_type of node %s is %s, not a text", m.name, kindName(kind))
	}
	name, _ := value.(string)
	c, err := v.class(name)
	if err != nil {
		return invalid(fmt.Sprintf("Cannot execute because node %s does not exist.", pyStr(value)), fmt.Sprintf(": its worker describes it in a way that cannot be read: %v", err))
	}
	if c == nil {
		return invalid(fmt.Sprintf("Cannot execute because node %s does not exist.", pyStr(value)),
			": "+(&NoWorkerError{Classes: []string{pyStr(value)}}).Error())
	}
	n.class = c
	if inputs, ok := n.fields.at("inputs"); ok && inputs.Kind() == '{' {
		if n.inputs, err = readObject(inputs); err != nil {
			return nil, nil, err
		}
	}
	return n, nil, nil
}

// judge validates from each output on.
func (v *validation) judge(outputs []*node) (*checked, *refusal, error) {
	var good []string
	var bad []*node
	var details []string
	for _, o := range outputs {
		verdict, raised := v.node(o, 0)
		if raised != nil {
			verdict = verdictOf(raised, "exception_during_validation", "Exception when validating node", &object{})
			v.done[o.id] = verdict
		}
		if verdict.valid {
			good = append(good, o.id)
			continue
		}
		bad = append(bad, o)
		details = append(details, verdict.text...)
	}
	errors := v.nodeErrors(bad)
	if len(good) == 0 {
		return nil, &refusal{"prompt_outputs_failed_validation", "Prompt outputs failed validation", strings.Join(details, "\n"), errors}, nil
	}
	c := &checked{outputs: good, nodeErrors: errors}
	c.graph, c.shown = v.graph()
	v.upstream(good, func(n *node) bool {
		c.choices = append(c.choices, n.choices...)
		return true
	})
	for _, n := range v.nodes {
		c.classes = append(c.classes, n.class.name)
	}
	slices.Sort(c.classes)
	c.classes = slices.Compact(c.classes)
	return c, nil, nil
}

// verdictOf is the verdict of a node whose validation raised; info is what the
// error says besides.
func verdictOf(e *exception, kind, message string, info *object) *verdict {
	if len(info.members) > 0 {
		info.set("exception_message", text(e.message))
	}
	info.set("exception_type", text(e.class))
	info.set("traceback", encode([]string{"  distorch: " + e.class + ": " + e.message + "\n"}))
	v := &verdict{}
	v.add(kind, message, e.message, info)
	return v
}

// node validates n and what it is linked to. It raises what ComfyUI raises there,
// which is then an error of n.
func (v *validation) node(n *node, depth int) (*verdict, *exception) {
	if done := v.done[n.id]; done != nil {
		return done, nil
	}
	if v.open[n.id] || depth > deepest {
		return &verdict{}, nil // a cycle: nothing names it, as the recordings show
	}
	v.open[n.id] = true
	defer delete(v.open, n.id)
	if n.inputs == nil {
		inputs, ok := n.fields.at("inputs")
		switch {
		case !ok:
			return nil, raise("KeyError", "'inputs'")
		case inputs.Kind() != '[' && inputs.Kind() != '"':
			value, _ := parse(inputs)
			return nil, raise("TypeError", "argument of type '%s' is not iterable", pyType(value))
		}
		n.inputs = &object{} // of a list: no input is in it
	}
	out := &verdict{valid: true}
	for i := range n.class.inputs {
		if raised := v.input(n, &n.class.inputs[i], out, depth); raised != nil {
			return nil, raised
		}
	}
	if n.class.dynamic {
		for _, m := range n.inputs.members {
			if slices.ContainsFunc(n.class.inputs, func(in input) bool { return in.name == m.name }) || m.value.Kind() != '[' {
				continue
			}
			any := input{name: m.name, kind: "*", config: array(text("*"), (&object{}).value())}
			if raised := v.input(n, &any, out, depth); raised != nil {
				return nil, raised
			}
		}
	}
	v.done[n.id] = out
	return out, nil
}

func (v *validation) input(n *node, in *input, out *verdict, depth int) *exception {
	value, ok := n.inputs.at(in.name)
	if !ok {
		if in.required && !dynamicType(in.kind) {
			out.add("required_input_missing", "Required input is missing", in.name, fields("input_name", in.name))
		}
		return nil
	}
	if value.Kind() == '[' {
		return v.link(in, value, out, depth)
	}
	return v.literal(n, in, value, out)
}

// link validates an input that another node gives: [node_id, slot].
func (v *validation) link(in *input, value jsontext.Value, out *verdict, depth int) *exception {
	parts, err := elements(value)
	if err != nil {
		return raise("ValueError", "%s", err.Error())
	}
	if len(parts) != 2 {
		out.add("bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]", in.name,
			fields("input_name", in.name, "input_config", in.config, "received_value", value))
		return nil
	}
	from, raised := v.linked(parts[0])
	if raised != nil {
		return raised
	}
	received, raised := outputType(from.class, parts[1])
	if raised != nil {
		return raised
	}
	if !dynamicType(in.kind) && !matches(received, in) {
		out.add("return_type_mismatch", "Return type mismatch between linked nodes",
			fmt.Sprintf("%s, received_type(%s) mismatch input_type(%s)", in.name, pyStr(received), pyStr(in.kind)),
			fields("input_name", in.name, "input_config", in.config, "received_type", encodeAny(received), "linked_node", value))
		return nil
	}
	verdict, raised := v.node(from, depth+1)
	if raised != nil {
		out.valid = false
		v.done[from.id] = verdictOf(raised, "exception_during_inner_validation", "Exception when validating inner node",
			fields("input_name", in.name, "input_config", in.config, "linked_node", value))
		return nil
	}
	if !verdict.valid {
		out.valid = false
	}
	return nil
}

func (v *validation) linked(id jsontext.Value) (*node, *exception) {
	value, err := parse(id)
	if err != nil {
		return nil, raise("ValueError", "%s", err.Error())
	}
	switch value.(type) {
	case []any, *pyDict:
		return nil, raise("TypeError", "unhashable type: '%s'", pyType(value))
	}
	name, ok := value.(string)
	if n := v.byID[name]; ok && n != nil {
		return n, nil
	}
	return nil, raise("KeyError", "%s", pyRepr(value))
}

// outputType is the type of a class's output, counted from the end where slot is negative.
func outputType(c *class, slot jsontext.Value) (any, *exception) {
	value, err := parse(slot)
	if err != nil {
		return nil, raise("ValueError", "%s", err.Error())
	}
	var at *big.Int
	switch x := value.(type) {
	case *big.Int:
		at = x
	case bool:
		at, _ = pyInt(x)
	default:
		return nil, raise("TypeError", "tuple indices must be integers or slices, not %s", pyType(value))
	}
	n := int64(len(c.outputs))
	if !at.IsInt64() || at.Int64() >= n || at.Int64() < -n {
		return nil, raise("IndexError", "tuple index out of range")
	}
	return c.outputs[(at.Int64()+n)%n], nil
}

// matches says whether an output of type received may go into an input. A type may
// be several, with commas; * is any.
func matches(received any, in *input) bool {
	a, textA := received.(string)
	b, textB := in.kind.(string)
	if a == "*" || b == "*" || dynamicType(received) {
		return true
	}
	if !textA || !textB {
		return a == "COMBO" || b == "COMBO" || pyEqual(received, in.kind)
	}
	have := map[string]bool{}
	for t := range strings.SplitSeq(a, ",") {
		have[strings.TrimSpace(t)] = true
	}
	for t := range strings.SplitSeq(b, ",") {
		if have[strings.TrimSpace(t)] {
			return true
		}
	}
	return false
}

// nodeErrors lists the nodes with errors, each with the bad outputs that depend on
// it. The work is bounded: an answer need not list more than a person reads.
func (v *validation) nodeErrors(bad []*node) *object {
	const most = 300_000
	dependents := map[string][]string{}
	work := 0
	for _, o := range bad {
		v.upstream([]string{o.id}, func(n *node) bool {
			if d := v.done[n.id]; d != nil && len(d.errors) > 0 {
				dependents[n.id] = append(dependents[n.id], o.id)
			}
			work += 1 + len(v.links(n))
			return work < most
		})
	}
	out := &object{}
	for _, n := range v.nodes {
		if d := v.done[n.id]; d != nil && len(d.errors) > 0 && len(dependents[n.id]) > 0 {
			out.set(n.id, fields("errors", d.errors, "dependent_outputs", dependents[n.id], "class_type", n.class.name).value())
		}
	}
	return out
}

// upstream visits the nodes that the given ones are linked to, them included, each
// once, while visit wants more.
func (v *validation) upstream(ids []string, visit func(*node) bool) {
	seen := map[string]bool{}
	var queue []*node
	add := func(n *node) {
		if !seen[n.id] {
			seen[n.id] = true
			queue = append(queue, n)
		}
	}
	for _, id := range ids {
		add(v.byID[id])
	}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		if !visit(n) {
			return
		}
		for _, from := range v.links(n) {
			add(from)
		}
	}
}

// links are the nodes that n is linked to.
func (v *validation) links(n *node) []*node {
	if n.links != nil || n.inputs == nil {
		return n.links
	}
	n.links = []*node{}
	for _, m := range n.inputs.members {
		if m.value.Kind() != '[' {
			continue
		}
		parts, err := elements(m.value)
		if err != nil || len(parts) != 2 {
			continue
		}
		if from, raised := v.linked(parts[0]); raised == nil {
			n.links = append(n.links, from)
		}
	}
	return n.links
}
