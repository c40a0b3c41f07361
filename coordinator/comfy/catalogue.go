// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// class is a node class, as object_info describes it.
type class struct {
	name    string
	inputs  []input // the required ones first, in the class's order
	outputs []any   // type names; a list where an output is one of a list
	output  bool    // an output node
	custom  bool    // of a node pack: how it checks its inputs is not known here
	dynamic bool    // has inputs whose names depend on others' values
}

type input struct {
	name     string
	required bool
	kind     any            // the type's name, or nil with options
	config   jsontext.Value // [type, options]
	options  []any          // what the value is one of
	choice   bool           // it is one of options
	several  bool           // a list of options
	bounds   map[string]any // min, max
	file     bool           // the value names a file
	checks   string         // what the class, which checks that itself, calls it: image, video
}

// fileInput says what a class of ComfyUI's own calls the file that an input names,
// where the class looks for it in place of the list. Other inputs say that they name
// a file by an option that ends in _upload.
func fileInput(class, name string) string {
	switch class + "." + name {
	case "LoadImage.image", "LoadImageMask.image", "LoadImageOutput.image":
		return "image"
	case "LoadLatent.latent":
		return "latent"
	case "LoadVideo.file":
		return "video"
	case "LoadAudio.audio":
		return "audio"
	}
	return ""
}

// dynamicType tells the types whose inputs are expanded when a prompt is run.
func dynamicType(kind any) bool {
	s, ok := kind.(string)
	return ok && strings.HasPrefix(s, "COMFY_") && strings.HasSuffix(s, "_V3")
}

func readClass(name string, info json.RawMessage) (*class, error) {
	v, err := compact(info)
	if err != nil {
		return nil, fmt.Errorf("object_info of %s: %w", name, err)
	}
	o, err := readObject(v)
	if err != nil {
		return nil, fmt.Errorf("object_info of %s: %w", name, err)
	}
	c := &class{name: name}
	inputs, _ := o.at("input")
	groups, err := readObject(inputs)
	if err != nil {
		return nil, fmt.Errorf("object_info of %s: input: %w", name, err)
	}
	for _, group := range []string{"required", "optional"} {
		members, ok := groups.at(group)
		if !ok || members.Kind() == 'n' {
			continue
		}
		named, err := readObject(members)
		if err != nil {
			return nil, fmt.Errorf("object_info of %s: %s: %w", name, group, err)
		}
		for _, m := range named.members {
			in, err := readInput(name, m)
			if err != nil {
				return nil, fmt.Errorf("object_info of %s: input %s: %w", name, m.name, err)
			}
			in.required = group == "required"
			c.dynamic = c.dynamic || dynamicType(in.kind)
			c.inputs = append(c.inputs, in)
		}
	}
	if outputs, ok := o.at("output"); ok && outputs.Kind() == '[' {
		parsed, err := parse(outputs)
		if err != nil {
			return nil, fmt.Errorf("object_info of %s: output: %w", name, err)
		}
		c.outputs, _ = parsed.([]any)
	}
	flag, _ := o.at("output_node")
	c.output = flag.Kind() == 't'
	module, _ := o.at("python_module")
	path, _ := asText(module)
	c.custom = strings.HasPrefix(path, "custom_nodes.")
	return c, nil
}

func readInput(class string, m member) (in input, err error) {
	in = input{name: m.name, checks: fileInput(class, m.name)}
	in.file = in.checks != ""
	parts, err := elements(m.value)
	if err != nil {
		return in, err
	}
	if len(parts) == 0 {
		return in, fmt.Errorf("no type")
	}
	options := &object{}
	if len(parts) > 1 && parts[1].Kind() == '{' {
		if options, err = readObject(parts[1]); err != nil {
			return in, err
		}
	}
	in.config = array(parts[0], options.value())
	if in.kind, err = parse(parts[0]); err != nil {
		return in, err
	}
	choices := jsontext.Value(nil)
	switch {
	case parts[0].Kind() == '[':
		choices = parts[0]
	case in.kind == "COMBO":
		choices, _ = options.at("options")
	}
	if choices.Kind() == '[' {
		parsed, err := parse(choices)
		if err != nil {
			return in, err
		}
		in.options, in.choice = parsed.([]any)
	}
	for _, bound := range []string{"min", "max"} {
		if v, ok := options.at(bound); ok {
			parsed, err := parse(v)
			if err != nil {
				return in, err
			}
			if in.bounds == nil {
				in.bounds = map[string]any{}
			}
			in.bounds[bound] = parsed
		}
	}
	for _, o := range options.members {
		switch {
		case strings.HasSuffix(o.name, "_upload") && o.value.Kind() == 't':
			in.file = true
		case o.name == "multiselect":
			in.several = o.value.Kind() == 't'
		case o.name == "remote" && o.value.Kind() == '{': // the list is fetched by the client
			in.choice = false
		}
	}
	return in, nil
}

// catalogue is object_info of the live workers: read class by class when asked for,
// and again when it changes.
type catalogue struct {
	backend Backend

	mu      sync.Mutex
	changed <-chan struct{}
	infos   map[string]json.RawMessage
	classes map[string]*class
	all     []byte // GET /object_info
}

func (c *catalogue) refresh() {
	if c.changed != nil {
		select {
		case <-c.changed:
		default:
			return
		}
	}
	c.infos, c.changed = c.backend.ObjectInfo()
	c.classes = make(map[string]*class)
	c.all = nil
}

// class is nil where no worker has it or what the worker says of it cannot be read.
func (c *catalogue) class(name string) (*class, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	if k, ok := c.classes[name]; ok {
		return k, nil
	}
	info, ok := c.infos[name]
	if !ok {
		return nil, nil
	}
	k, err := readClass(name, info)
	c.classes[name] = k
	return k, err
}

// info is GET /object_info/{class}: an object, empty for an unknown class.
func (c *catalogue) info(name string) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	o := &object{}
	if info, ok := c.infos[name]; ok {
		o.set(name, jsontext.Value(info))
	}
	return o.value()
}

// everything is GET /object_info.
func (c *catalogue) everything() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	if c.all == nil {
		o := &object{}
		for _, name := range slices.Sorted(maps.Keys(c.infos)) {
			o.set(name, jsontext.Value(c.infos[name]))
		}
		c.all = o.value()
	}
	return c.all
}
