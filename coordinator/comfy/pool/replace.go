// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
)

// modelOf is the cluster's model that a loader's file is, or "".
func (p *Pool) modelOf(value string) string {
	name := path.Base(strings.ReplaceAll(value, `\`, "/"))
	if slices.Contains(p.models, name) {
		return name
	}
	return ""
}

// replaceable reports whether the worker has a node that loads the model on the
// cluster in this loader's place. The lock is held.
func (p *Pool) replaceable(w *worker, class, input, value string) bool {
	named, ok := loaders(class)
	if !ok || named != input {
		return false
	}
	model := p.modelOf(value)
	return model != "" && p.loaderInputs(w, model) != nil
}

// replaced is the prompt with our loader in the place of those whose model the
// cluster has. A loader that gives CLIP or VAE as well stays for those, and the
// MODEL comes from a node beside it.
func (p *Pool) replaced(w *worker, g graph) (graph, aliases) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := g.copied()
	a := aliases{added: map[string]string{}, classes: map[string]string{}}
	for _, id := range g.ids {
		n := g.nodes[id]
		input, ok := loaders(n.class)
		if !ok || !p.replaceable(w, n.class, input, n.inputs.text(input)) {
			continue
		}
		ours := node{class: p.cfg.Loader, inputs: p.loaderInputs(w, p.modelOf(n.inputs.text(input)))}
		slots := g.slots(id)
		a.classes[id] = n.class
		switch {
		case !slices.ContainsFunc(slots, func(s int) bool { return s != 0 }):
			ours.rest = n.rest
			out.nodes[id] = ours
		case slices.Contains(slots, 0):
			beside := id + "_distorch"
			for _, taken := out.nodes[beside]; taken; _, taken = out.nodes[beside] {
				beside += "_"
			}
			out.ids = append(out.ids, beside)
			out.nodes[beside] = ours
			out.relink(id, beside)
			a.added[beside] = id
		}
	}
	return out, a
}

// relink makes what took slot 0 of one node take it from another.
func (g graph) relink(from, to string) {
	for id, n := range g.nodes {
		for i, m := range n.inputs {
			if source, slot, ok := link(m.value); ok && source == from && slot == 0 {
				n.inputs[i].value = json.RawMessage("[" + string(quote(to)) + ",0]")
			}
		}
		g.nodes[id] = n
	}
}

// loaderInputs are the inputs of our loader for a model, as the worker's version of
// it has them: the choice that names the model, and defaults; nil if it cannot load
// the model.
func (p *Pool) loaderInputs(w *worker, model string) object {
	c, ok := w.classes[p.cfg.Loader]
	if !ok {
		return nil
	}
	info, _ := asObject(c.raw)
	var out object
	named := false
	eachInput(info, func(group, name string, spec json.RawMessage) json.RawMessage {
		choices, options := choicesOf(spec)
		if value, ok := choiceOf(choices, model); ok && !named {
			named = true
			out = append(out, member{name, value})
			return spec
		}
		if group != "required" {
			return spec
		}
		if value, ok := options.at("default"); ok {
			out = append(out, member{name, value})
		} else if len(choices) > 0 {
			out = append(out, member{name, choices[0]})
		}
		return spec
	})
	if !named {
		return nil
	}
	return out
}

// choiceOf finds the choice that names a model.
func choiceOf(choices []json.RawMessage, model string) (json.RawMessage, bool) {
	for _, c := range choices {
		if s, ok := asText(c); ok && s == model {
			return c, true
		}
	}
	return nil, false
}

// offerModels lists the cluster's models in the loaders that are replaced. The lock
// is held.
func (p *Pool) offerModels() {
	for _, class := range []string{"UNETLoader", "UnetLoaderGGUF"} {
		raw, ok := p.info[class]
		if !ok {
			continue
		}
		var add []json.RawMessage
		for _, m := range p.models {
			if strings.HasSuffix(strings.ToLower(m), ".gguf") == (class == "UnetLoaderGGUF") {
				add = append(add, quote(m))
			}
		}
		input, _ := loaders(class)
		p.info[class] = withMore(raw, func(_, name string) []json.RawMessage {
			if name != input {
				return nil
			}
			return add
		})
	}
}
