// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"slices"

	"github.com/distorch/distorch/coordinator/comfy"
)

// Binary events.
const (
	eventPreview         = 1
	eventText            = 3
	eventPreviewMetadata = 4
)

// take passes one frame on if it is of this prompt.
func (r *run) take(ctx context.Context, f frame) error {
	if f.binary {
		if body, ok := r.binary(f.body); ok {
			r.sink.Binary(body)
		}
		return nil
	}
	var m comfy.Message
	if json.Unmarshal(f.body, &m) != nil {
		return nil // not ComfyUI's: a pack's own words
	}
	return r.message(ctx, m)
}

// message passes a text frame on, with the front's ids, and returns how the run
// ended if it was the last.
func (r *run) message(ctx context.Context, m comfy.Message) error {
	data, ok := asObject(m.Data)
	id := r.promptID()
	if !ok || id == "" || data.text("prompt_id") != id {
		return nil
	}
	r.started = true
	node := data.text("node")
	switch m.Type {
	case "status":
		return nil
	case "executing":
		if node == "" { // the end; a ComfyUI before 2024 has no other
			return r.look(ctx)
		}
	case "execution_cached":
		raw, _ := data.at("nodes")
		nodes, _ := asList(raw)
		for _, n := range nodes {
			if s, ok := asText(n); ok {
				r.cached[s] = true
			}
		}
	case "executed":
		if r.delivered[node] {
			return nil
		}
		raw, _ := data.at("output")
		output, err := r.collect(ctx, raw, r.cached[node])
		if err != nil {
			return err
		}
		data = data.with("output", output)
		r.delivered[node] = true
	}
	data = r.alias.apply(m.Type, data)
	m.Data = bytes.ReplaceAll(data.raw(), quote(id), quote(r.prompt.ID))
	r.sink.Text(m)
	switch m.Type {
	case "execution_success":
		return errDone
	case "execution_interrupted":
		return comfy.ErrInterrupted
	case "execution_error":
		return promptError(data)
	}
	return nil
}

func promptError(data object) error {
	out := &comfy.PromptError{
		Node: data.text("node_id"), NodeType: data.text("node_type"),
		Type: data.text("exception_type"), Message: data.text("exception_message"),
	}
	raw, _ := data.at("traceback")
	lines, _ := asList(raw)
	for _, l := range lines {
		s, _ := asText(l)
		out.Traceback = append(out.Traceback, s)
	}
	return out
}

// binary puts the front's prompt id into a frame's metadata. Frames without say
// not whose they are; the worker sends this socket those of its prompts alone.
func (r *run) binary(body []byte) ([]byte, bool) {
	if len(body) < 8 || !r.started {
		return nil, false
	}
	switch binary.BigEndian.Uint32(body) {
	case eventPreview, eventText:
		return body, true
	case eventPreviewMetadata:
	default:
		return nil, false
	}
	n := binary.BigEndian.Uint32(body[4:])
	if uint64(n) > uint64(len(body)-8) {
		return nil, false
	}
	data, ok := asObject(body[8 : 8+n])
	if !ok || data.text("prompt_id") != r.promptID() {
		return nil, false
	}
	data = r.alias.apply("progress", data.with("prompt_id", quote(r.prompt.ID)))
	meta := data.raw()
	out := make([]byte, 0, 8+len(meta)+len(body)-8-int(n))
	out = binary.BigEndian.AppendUint32(out, eventPreviewMetadata)
	out = binary.BigEndian.AppendUint32(out, uint32(len(meta)))
	return append(append(out, meta...), body[8+n:]...), true
}

// aliases are the nodes of a prompt that the worker has otherwise than the client.
type aliases struct {
	added   map[string]string // nodes that the client does not have: the one that they stand for
	classes map[string]string // class that the client's node has
}

// apply gives a message the client's nodes.
func (a aliases) apply(kind string, data object) object {
	if len(a.added) == 0 && len(a.classes) == 0 {
		return data
	}
	id := data.text("node_id")
	if of, ok := a.added[id]; ok {
		id = of
	}
	for _, name := range []string{"node", "display_node", "node_id", "display_node_id", "real_node_id"} {
		if of, ok := a.added[data.text(name)]; ok {
			data = data.with(name, quote(of))
		}
	}
	switch kind {
	case "execution_error", "execution_interrupted":
		if class, ok := a.classes[id]; ok {
			data = data.with("node_type", quote(class))
		}
		data = a.prune(data, "executed")
		return a.prune(data, "current_outputs")
	case "execution_cached":
		return a.prune(data, "nodes")
	case "progress_state":
		raw, _ := data.at("nodes")
		nodes, ok := asObject(raw)
		if !ok {
			return data
		}
		nodes = slices.DeleteFunc(nodes, func(m member) bool { _, added := a.added[m.name]; return added })
		return data.with("nodes", nodes.raw())
	}
	return data
}

// prune takes nodes that the client does not have off a list.
func (a aliases) prune(data object, name string) object {
	raw, _ := data.at(name)
	list, ok := asList(raw)
	if !ok {
		return data
	}
	kept := []json.RawMessage{}
	for _, v := range list {
		s, _ := asText(v)
		if _, added := a.added[s]; !added {
			kept = append(kept, v)
		}
	}
	if len(kept) == len(list) {
		return data
	}
	pruned, err := json.Marshal(kept)
	if err != nil {
		return data
	}
	return data.with(name, pruned)
}
