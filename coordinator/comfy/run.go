// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"encoding/binary"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// run is a prompt's time on a worker: it relays the frames and keeps what history
// shows. One goroutine uses it.
type run struct {
	s *Server
	e *entry

	messages []jsontext.Value   // [type, data] of execution_...
	outputs  *object            // by node
	told     map[string]*object // executed messages, by node
	meta     *object            // by node
	nodes    map[string]nodeState
	node     string // that runs
	began    int64  // ms
	ended    string // the type of the frame that said how it ended
	at       int64  // ms
	failure  jsontext.Value

	preview []byte // waits for the progress frame of its step
}

// nodeState is what progress_state says of a node besides its progress.
type nodeState struct {
	display, real string
	parent        jsontext.Value
}

func newRun(s *Server, e *entry) *run {
	return &run{s: s, e: e, outputs: &object{}, meta: &object{}, nodes: map[string]nodeState{}}
}

// Events of binary frames.
const (
	eventPreview         = 1 // u32 format, picture
	eventPreviewDescribe = 4 // u32 length, JSON, picture
)

// Formats of eventPreview.
const (
	formatJPEG = 1
	formatPNG  = 2
)

// Text is Sink's.
func (r *run) Text(m Message) {
	data, err := compact(m.Data)
	if err != nil {
		r.s.log.Warn("worker sent a frame that is not JSON", "type", m.Type, "prompt_id", r.e.prompt.ID)
		return
	}
	o, err := readObject(data)
	if err != nil {
		o = &object{}
	}
	switch m.Type {
	case "status":
		return
	case "executing":
		node, _ := o.at("node")
		if node.Kind() != '"' {
			return // the end, which is said when history has the prompt
		}
		display, _ := o.at("display_node")
		r.setNode(node, display)
	case "progress_state":
		r.states(o)
	case "executed":
		if r.toldBefore(o) {
			return
		}
		r.keepOutput(o)
	case "execution_start", "execution_cached", "execution_success", "execution_error", "execution_interrupted":
		r.messages = append(r.messages, array(text(m.Type), data))
		r.bookkeep(m.Type, o, data)
	}
	r.relay(m.Type, data)
}

func (r *run) bookkeep(kind string, o *object, data jsontext.Value) {
	at, _ := o.at("timestamp")
	switch kind {
	case "execution_start":
		r.began = milliseconds(at)
	case "execution_success", "execution_error", "execution_interrupted":
		r.ended, r.at = kind, milliseconds(at)
		if kind == "execution_error" {
			r.failure = data
		}
	}
}

// milliseconds is a timestamp, or 0 of what is none.
func milliseconds(v jsontext.Value) int64 {
	f := numberOrder(v)
	if f < 0 || f > 1<<53 {
		return 0
	}
	return int64(f)
}

func (r *run) setNode(node, display jsontext.Value) {
	r.node, _ = asText(node)
	shown, ok := asText(display)
	if !ok {
		shown = r.node
	}
	r.s.mu.Lock()
	r.e.node = shown
	r.s.mu.Unlock()
}

// states reads who a node is, for the meta of its outputs.
func (r *run) states(o *object) {
	nodes, _ := o.at("nodes")
	all, err := readObject(nodes)
	if err != nil {
		return
	}
	for _, m := range all.members {
		if _, known := r.nodes[m.name]; known {
			continue
		}
		state, err := readObject(m.value)
		if err != nil {
			continue
		}
		n := nodeState{parent: jsontext.Value("null")}
		display, _ := state.at("display_node_id")
		n.display, _ = asText(display)
		real, _ := state.at("real_node_id")
		n.real, _ = asText(real)
		if parent, ok := state.at("parent_node_id"); ok {
			n.parent = parent
		}
		r.nodes[m.name] = n
	}
}

// toldBefore keeps the output that the client was told of before a worker was lost,
// and says so: the picture of a second try would come as a second picture.
func (r *run) toldBefore(o *object) bool {
	node, _ := o.at("node")
	id, _ := asText(node)
	if before, ok := r.e.told[id]; ok {
		r.keepOutput(before)
		return true
	}
	if r.told == nil {
		r.told = map[string]*object{}
	}
	r.told[id] = o
	return false
}

func (r *run) keepOutput(o *object) {
	node, _ := o.at("node")
	id, ok := asText(node)
	output, has := o.at("output")
	if !ok || !has || output.Kind() != '{' {
		return
	}
	r.outputs.set(id, output)
	display, _ := o.at("display_node")
	shown, ok := asText(display)
	if !ok {
		shown = id
	}
	state, known := r.nodes[id]
	if !known {
		state = nodeState{real: id, parent: jsontext.Value("null")}
	}
	r.meta.set(id, fields("node_id", id, "display_node", shown, "parent_node", state.parent, "real_node_id", state.real).value())
}

// relay sends a frame to whom ComfyUI sends it: the client that queued the prompt.
// A prompt without one shows its progress to all and nothing else.
func (r *run) relay(kind string, data jsontext.Value) {
	f := textFrame(kind, data)
	if !r.e.hasClient {
		switch kind {
		case "execution_start", "execution_cached", "execution_success", "execution_error", "executing", "executed":
			return
		}
	}
	if held := r.preview; held != nil {
		r.preview = nil
		// A plain preview comes after its step's progress.
		if kind == "progress" {
			r.deliver(f)
			r.deliver(frame{binary: true, data: held})
			return
		}
		r.deliver(frame{binary: true, data: held})
	}
	r.deliver(f)
}

func (r *run) deliver(f frame) {
	if r.e.hasClient {
		r.s.hub.send(r.e.client, f)
		return
	}
	r.s.hub.broadcast(f)
}

// Binary is Sink's.
func (r *run) Binary(data []byte) {
	if len(data) < 8 {
		return
	}
	if binary.BigEndian.Uint32(data) == eventPreviewDescribe && describedBy(data) == nil {
		return
	}
	describes := r.e.hasClient && r.s.hub.describes(r.e.client)
	switch event := binary.BigEndian.Uint32(data); {
	case event == eventPreviewDescribe && !describes:
		r.preview = plainPreview(data)
	case event == eventPreview && describes:
		r.deliver(frame{binary: true, data: r.describedPreview(data)})
	default:
		r.deliver(frame{binary: true, data: data})
	}
}

// describedBy is the JSON in an event 4, or nil of a malformed one.
func describedBy(data []byte) jsontext.Value {
	n := uint64(binary.BigEndian.Uint32(data[4:]))
	if n > uint64(len(data)-8) {
		return nil
	}
	v := jsontext.Value(data[8 : 8+n])
	if !v.IsValid() {
		return nil
	}
	return v
}

// plainPreview makes event 1 of a well-formed event 4.
func plainPreview(data []byte) []byte {
	info := describedBy(data)
	format := uint32(formatJPEG)
	if o, err := readObject(info); err == nil {
		kind, _ := o.at("image_type")
		if s, _ := asText(kind); s == "image/png" {
			format = formatPNG
		}
	}
	out := binary.BigEndian.AppendUint32(nil, eventPreview)
	out = binary.BigEndian.AppendUint32(out, format)
	return append(out, data[8+len(info):]...)
}

// describedPreview makes event 4 of event 1.
func (r *run) describedPreview(data []byte) []byte {
	kind := "image/jpeg"
	if binary.BigEndian.Uint32(data[4:]) == formatPNG {
		kind = "image/png"
	}
	state, known := r.nodes[r.node]
	if !known {
		state = nodeState{display: r.node, real: r.node, parent: jsontext.Value("null")}
	}
	info := fields("node_id", r.node, "prompt_id", r.e.prompt.ID, "display_node_id", state.display,
		"parent_node_id", state.parent, "real_node_id", state.real, "image_type", kind).value()
	out := binary.BigEndian.AppendUint32(nil, eventPreviewDescribe)
	out = binary.BigEndian.AppendUint32(out, uint32(len(info)))
	return append(append(out, info...), data[8:]...)
}

// end says how the run ended where the worker did not, and returns the record.
func (r *run) end(err error) *record {
	now := time.Now().UnixMilli()
	failed, asked := asPromptError(err)
	switch {
	case r.ended != "":
	case err == nil:
		r.say("execution_success", fields("prompt_id", r.e.prompt.ID, "timestamp", now))
	case asked:
		r.say("execution_interrupted", fields("prompt_id", r.e.prompt.ID, "node_id", r.node, "node_type", "", "executed", []string{}, "timestamp", now))
	default:
		r.say("execution_error", fields("prompt_id", r.e.prompt.ID, "node_id", failed.Node, "node_type", failed.NodeType,
			"executed", []string{}, "exception_message", failed.Message+"\n", "exception_type", failed.Type,
			"traceback", failed.Traceback, "current_inputs", &object{}, "current_outputs", []string{}, "timestamp", now))
	}
	if r.preview != nil {
		r.deliver(frame{binary: true, data: r.preview})
		r.preview = nil
	}
	done := r.ended == "execution_success"
	state := "error"
	if done {
		state = "success"
	}
	rec := &record{
		id: r.e.prompt.ID, item: r.e.item(), outputs: r.outputs.value(), meta: r.meta.value(),
		status: fields("status_str", state, "completed", done, "messages", r.messages).value(),
		job:    r.e.job(),
	}
	rec.job.began, rec.job.ended, rec.job.failure = r.began, r.at, r.failure
	rec.job.summarise(r.outputs)
	switch {
	case done:
		rec.job.status = jobCompleted
	case r.ended == "execution_interrupted":
		rec.job.status = jobCancelled
	default:
		rec.job.status = jobFailed
	}
	return rec
}

func (r *run) say(kind string, o *object) {
	data := o.value()
	r.messages = append(r.messages, array(text(kind), data))
	r.bookkeep(kind, o, data)
	r.relay(kind, data)
}
