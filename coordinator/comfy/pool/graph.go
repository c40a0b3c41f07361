// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"fmt"
)

// node is one node of a prompt in ComfyUI's API form.
type node struct {
	class  string
	inputs object
	rest   object // the node as it came
}

// graph is a prompt, its nodes in their order.
type graph struct {
	ids   []string
	nodes map[string]node
}

// parseGraph reads a prompt that was validated: every node has a class.
func parseGraph(raw []byte) (graph, error) {
	all, err := parseObject(raw)
	if err != nil {
		return graph{}, fmt.Errorf("prompt: %w", err)
	}
	g := graph{nodes: make(map[string]node, len(all))}
	for _, m := range all {
		rest, ok := asObject(m.value)
		if !ok {
			return graph{}, fmt.Errorf("prompt: node %.40q: %w", m.name, errNoObject)
		}
		n := node{class: rest.text("class_type"), rest: rest}
		if raw, ok := rest.at("inputs"); ok {
			n.inputs, _ = asObject(raw)
		}
		g.ids = append(g.ids, m.name)
		g.nodes[m.name] = n
	}
	return g, nil
}

// raw is the graph as JSON, what was not changed as it came.
func (g graph) raw() json.RawMessage {
	var out object
	for _, id := range g.ids {
		n := g.nodes[id]
		o := n.rest.with("class_type", quote(n.class)).with("inputs", n.inputs.raw())
		out = append(out, member{id, o.raw()})
	}
	return out.raw()
}

// copied can be changed without the original.
func (g graph) copied() graph {
	out := graph{ids: append([]string{}, g.ids...), nodes: make(map[string]node, len(g.nodes))}
	for id, n := range g.nodes {
		n.inputs = append(object{}, n.inputs...)
		out.nodes[id] = n
	}
	return out
}

// link is an input that is the output of another node.
func link(raw json.RawMessage) (from string, slot int, ok bool) {
	l, isList := asList(raw)
	if !isList || len(l) != 2 {
		return "", 0, false
	}
	from, ok = asText(l[0])
	return from, slot, ok && json.Unmarshal(l[1], &slot) == nil
}

// slots are the outputs of a node that others use.
func (g graph) slots(id string) (out []int) {
	for _, n := range g.nodes {
		for _, m := range n.inputs {
			if from, slot, ok := link(m.value); ok && from == id {
				out = append(out, slot)
			}
		}
	}
	return out
}
