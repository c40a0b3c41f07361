// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
)

// Model is a model of the cluster.
type Model struct {
	File       string // its file's name, as a loader has it
	Deployment string // where it runs already; empty: nowhere yet
}

// modelOf is the cluster's model that a loader's file is.
func (p *Pool) modelOf(value string) (Model, bool) {
	name := path.Base(strings.ReplaceAll(value, `\`, "/"))
	for _, m := range p.models {
		if m.File == name {
			return m, true
		}
	}
	return Model{}, false
}

// replaceable reports whether the worker has a node that loads the model on the
// cluster in this loader's place. The lock is held.
func (p *Pool) replaceable(w *worker, class, input, value string) bool {
	named, ok := loaders(class)
	if !ok || named != input {
		return false
	}
	model, ok := p.modelOf(value)
	return ok && p.loaderInputs(w, model) != nil
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
		model, _ := p.modelOf(n.inputs.text(input))
		ours := node{class: p.cfg.Loader, inputs: p.loaderInputs(w, model)}
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

// modelInput is the input of our loader that takes a model's or a deployment's name.
const modelInput = "model"

// loaderInputs are the inputs of our loader for a model, as the worker's version of
// it has them: the model, and defaults. They are nil for a worker whose loader lists
// neither the model nor its deployment: it is connected to another cluster, or none.
func (p *Pool) loaderInputs(w *worker, model Model) object {
	c, ok := w.classes[p.cfg.Loader]
	if !ok {
		return nil
	}
	info, _ := asObject(c.raw)
	var out object
	listed := false
	eachInput(info, func(group, name string, spec json.RawMessage) json.RawMessage {
		choices, options := choicesOf(spec)
		switch value, ok := options.at("default"); {
		case name == modelInput:
			for _, c := range choices { // deployments come first
				s, _ := asText(c)
				bare, isDeployment := strings.CutSuffix(s, " (deployment)")
				if !listed && (s == model.File || isDeployment && bare == model.Deployment) {
					listed = true
					out = append(out, member{name, c})
				}
			}
		case group != "required":
		case ok:
			out = append(out, member{name, value})
		case len(choices) > 0:
			out = append(out, member{name, choices[0]})
		}
		return spec
	})
	if !listed {
		return nil
	}
	return out
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
			if strings.HasSuffix(strings.ToLower(m.File), ".gguf") == (class == "UnetLoaderGGUF") {
				add = append(add, quote(m.File))
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
