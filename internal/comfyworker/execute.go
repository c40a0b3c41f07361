// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfyworker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// validate reads a prompt; its problem is the body of a 400.
func (w *Worker) validate(raw json.RawMessage, targets []string) (*item, any) {
	type apiNode struct {
		Class  string                     `json:"class_type"`
		Inputs map[string]json.RawMessage `json:"inputs"`
	}
	var all map[string]apiNode
	problem := func(kind, message, details string, nodes any) any {
		return map[string]any{
			"error":       map[string]any{"type": kind, "message": message, "details": details, "extra_info": map[string]any{}},
			"node_errors": nodes,
		}
	}
	if json.Unmarshal(raw, &all) != nil || raw == nil {
		return nil, problem("no_prompt", "No prompt provided", "No prompt provided", map[string]any{})
	}
	it := &item{prompt: raw, nodes: map[string]Node{}, ui: map[string]json.RawMessage{}}
	errs := map[string]any{}
	for id, n := range all {
		info, ok := w.classes[n.Class]
		if !ok {
			return nil, problem("invalid_prompt", "Cannot execute because node "+n.Class+" does not exist.", "Node ID '#"+id+"'", map[string]any{})
		}
		it.nodes[id] = Node{ID: id, Class: n.Class, Inputs: n.Inputs}
		var c struct {
			OutputNode bool `json:"output_node"`
		}
		if json.Unmarshal(info, &c) == nil && c.OutputNode && (targets == nil || slices.Contains(targets, id)) {
			it.outputs = append(it.outputs, id)
		}
		if e := w.problems(it.nodes[id]); len(e) > 0 {
			errs[id] = map[string]any{"errors": e, "dependent_outputs": []string{}, "class_type": n.Class}
		}
	}
	slices.Sort(it.outputs)
	switch {
	case len(it.outputs) == 0:
		return nil, problem("prompt_no_outputs", "Prompt has no outputs", "", map[string]any{})
	case len(errs) > 0:
		return nil, problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", "", errs)
	}
	done := map[string]bool{}
	for _, id := range it.outputs {
		w.visit(it, id, done)
	}
	return it, nil
}

// problems are values that are not in the list that they are taken from.
func (w *Worker) problems(n Node) (out []any) {
	var info struct {
		Input map[string]map[string][]json.RawMessage `json:"input"`
	}
	if json.Unmarshal(w.classes[n.Class], &info) != nil {
		return nil
	}
	for name, spec := range info.Input["required"] {
		var choices []string
		var value string
		if len(spec) == 0 || json.Unmarshal(spec[0], &choices) != nil || json.Unmarshal(n.Inputs[name], &value) != nil || slices.Contains(choices, value) {
			continue
		}
		if n.Class == "LoadImage" {
			w.mu.Lock()
			sub, file, found := strings.Cut(strings.TrimSuffix(value, " [input]"), "/")
			if !found {
				sub, file = "", strings.TrimSuffix(value, " [input]")
			}
			_, there := w.files[key("input", sub, file)]
			w.mu.Unlock()
			if there {
				continue
			}
		}
		out = append(out, map[string]any{
			"type": "value_not_in_list", "message": "Value not in list", "details": fmt.Sprintf("%s: '%s' not in %v", name, value, choices),
			"extra_info": map[string]any{"input_name": name, "received_value": value},
		})
	}
	return out
}

// links are the nodes that a node takes outputs of, in the order of their names.
func (n Node) links() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(n.Inputs)) {
		var l []json.RawMessage
		var from string
		if json.Unmarshal(n.Inputs[name], &l) == nil && len(l) == 2 && json.Unmarshal(l[0], &from) == nil {
			out = append(out, from)
		}
	}
	return out
}

// visit puts a node behind all that it needs.
func (w *Worker) visit(it *item, id string, done map[string]bool) {
	if done[id] {
		return
	}
	done[id] = true
	for _, from := range it.nodes[id].links() {
		w.visit(it, from, done)
	}
	it.order = append(it.order, id)
}

// signature is equal for nodes that give the same.
func (it *item) signature(id string, memo map[string]string) string {
	if s, ok := memo[id]; ok {
		return s
	}
	memo[id] = "cycle"
	n := it.nodes[id]
	var b strings.Builder
	b.WriteString(n.Class)
	for _, name := range slices.Sorted(maps.Keys(n.Inputs)) {
		var l []json.RawMessage
		var from string
		fmt.Fprintf(&b, "|%s=", name)
		if json.Unmarshal(n.Inputs[name], &l) == nil && len(l) == 2 && json.Unmarshal(l[0], &from) == nil {
			fmt.Fprintf(&b, "%s:%s", it.signature(from, memo), l[1])
			continue
		}
		b.Write(n.Inputs[name])
	}
	memo[id] = fmt.Sprintf("%x", sha256.Sum256([]byte(b.String())))
	return memo[id]
}

// work runs prompts, one after the other.
func (w *Worker) work(ctx context.Context) {
	for {
		w.mu.Lock()
		if len(w.pending) == 0 {
			w.mu.Unlock()
			select {
			case <-w.changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		it := w.pending[0]
		w.pending = w.pending[1:]
		run, stop := context.WithCancel(ctx)
		w.running, w.interrupt = it, stop
		w.sendStatus()
		w.mu.Unlock()
		w.run(ctx, run, it)
		stop()
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		w.running, w.node = nil, ""
		w.history = append(w.history, it)
		w.sendStatus()
		if it.client != "" {
			w.send(it.client, "executing", map[string]any{"node": nil, "prompt_id": it.id})
		}
		w.mu.Unlock()
	}
}

// tell is a message that the history keeps as well.
func (w *Worker) tell(it *item, kind string, data map[string]any) {
	data["prompt_id"] = it.id
	data["timestamp"] = time.Now().UnixMilli()
	it.messages = append(it.messages, []any{kind, data})
	if it.client != "" {
		w.send(it.client, kind, data)
	}
}

// state is one node of a progress_state message.
func (it *item) at(id string, value, most any, state string) map[string]any {
	return map[string]any{
		"value": value, "max": most, "state": state, "node_id": id, "prompt_id": it.id, "display_node_id": id, "parent_node_id": nil, "real_node_id": id,
	}
}

// progress is of one prompt: nodes that began, and how far they are.
type progress struct {
	w     *Worker
	it    *item
	nodes map[string]any
}

func (p *progress) set(id string, value, most any, state string) {
	p.nodes[id] = p.it.at(id, value, most, state)
	p.w.send(p.it.client, "progress_state", map[string]any{"prompt_id": p.it.id, "nodes": p.nodes})
}

// run executes one prompt: process ends with the worker, ctx with an interrupt too.
func (w *Worker) run(process, ctx context.Context, it *item) {
	p := &progress{w, it, map[string]any{}}
	memo := map[string]string{}
	begin := time.NewTimer(w.cfg.Begin)
	defer begin.Stop()
	select {
	case <-begin.C:
	case <-process.Done():
		return
	}
	w.mu.Lock()
	w.tell(it, "execution_start", map[string]any{})
	cached := []string{}
	for _, id := range it.order {
		if _, ok := w.cache[it.signature(id, memo)]; ok {
			cached = append(cached, id)
		}
	}
	w.tell(it, "execution_cached", map[string]any{"nodes": cached})
	w.mu.Unlock()
	executed := []string{}
	for _, id := range it.order {
		n := it.nodes[id]
		n.Prompt = it.id
		if slices.Contains(cached, id) {
			w.mu.Lock()
			if ui := w.cache[memo[id]]; ui != nil {
				it.ui[id] = ui
				w.executed(it, id, ui)
				p.set(id, 1, 1, "finished")
			}
			w.mu.Unlock()
			continue
		}
		w.mu.Lock()
		w.node = id
		p.set(id, 0.0, 1.0, "running")
		if it.client != "" {
			w.send(it.client, "executing", map[string]any{"node": id, "display_node": id, "prompt_id": it.id})
		}
		w.mu.Unlock()
		ui, steps, err := w.execute(ctx, p, n)
		if process.Err() != nil {
			return
		}
		w.mu.Lock()
		if ctx.Err() != nil {
			it.state = "error"
			w.tell(it, "execution_interrupted", map[string]any{"node_id": id, "node_type": n.Class, "executed": executed})
			w.mu.Unlock()
			return
		}
		if err != nil {
			it.state = "error"
			w.tell(it, "execution_error", map[string]any{
				"node_id": id, "node_type": n.Class, "executed": executed, "exception_message": err.Error() + "\n", "exception_type": "RuntimeError",
				"traceback": []string{"  File \"scripted\", line 1\n"}, "current_inputs": map[string]any{}, "current_outputs": it.order,
			})
			w.mu.Unlock()
			return
		}
		w.cache[memo[id]] = ui
		executed = append(executed, id)
		if ui != nil {
			it.ui[id] = ui
			w.executed(it, id, ui)
		}
		p.set(id, steps, steps, "finished")
		w.mu.Unlock()
	}
	w.mu.Lock()
	it.state = "success"
	w.tell(it, "execution_success", map[string]any{})
	w.mu.Unlock()
}

func (w *Worker) executed(it *item, id string, ui json.RawMessage) {
	if it.client != "" {
		w.send(it.client, "executed", map[string]any{"node": id, "display_node": id, "output": ui, "prompt_id": it.id})
	}
}

// execute runs one node. steps is what its progress ends with.
func (w *Worker) execute(ctx context.Context, p *progress, n Node) (ui json.RawMessage, steps any, err error) {
	call := func(step int) error {
		if w.cfg.Node == nil {
			return ctx.Err()
		}
		if err := w.cfg.Node(ctx, n, step); err != nil {
			return err
		}
		return ctx.Err()
	}
	switch n.Class {
	case "KSampler", "SamplerCustomAdvanced":
		total, err := strconv.Atoi(string(n.Inputs["steps"]))
		if err != nil {
			total = 4
		}
		for step := 1; step <= total; step++ {
			if err := call(step); err != nil {
				return nil, nil, err
			}
			w.step(p, n, step, total)
		}
		return nil, total, nil
	case "SaveImage", "PreviewImage":
		if err := call(0); err != nil {
			return nil, nil, err
		}
		return w.save(p.it, n), 1.0, nil
	case "SaveImageWebsocket":
		if err := call(0); err != nil {
			return nil, nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.send(p.it.client, "progress", map[string]any{"value": 0, "max": 1, "prompt_id": p.it.id, "node": n.ID})
		w.deliver(p.it.client, frame{true, preview(1, 2, picture(n.ID, true))})
		return nil, 1.0, nil
	}
	return nil, 1.0, call(0)
}

// step tells of one step of a sampler, with a preview.
func (w *Worker) step(p *progress, n Node, step, total int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.sockets[p.it.client]
	if p.it.client == "" || s == nil {
		p.set(n.ID, step, total, "running")
		return
	}
	told := map[string]any{"value": step, "max": total, "prompt_id": p.it.id, "node": n.ID}
	if !s.metadata {
		w.send(p.it.client, "progress", told)
		w.deliver(p.it.client, frame{true, preview(1, 1, picture(n.ID, false))})
		p.set(n.ID, step, total, "running")
		return
	}
	p.set(n.ID, step, total, "running")
	meta, err := json.Marshal(map[string]any{
		"node_id": n.ID, "prompt_id": p.it.id, "display_node_id": n.ID, "parent_node_id": nil, "real_node_id": n.ID, "image_type": "image/jpeg",
	})
	if err == nil {
		body := binary.BigEndian.AppendUint32(nil, 4)
		body = append(binary.BigEndian.AppendUint32(body, uint32(len(meta))), meta...)
		w.deliver(p.it.client, frame{true, append(body, picture(n.ID, false)...)})
	}
	w.send(p.it.client, "progress", told)
}

func preview(event, format uint32, content []byte) []byte {
	return append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, event), format), content...)
}

// picture has 16 x 8 pixels, of a colour that its name gives.
func picture(name string, lossless bool) []byte {
	sum := sha256.Sum256([]byte(name))
	img := image.NewRGBA(image.Rect(0, 0, 16, 8))
	for i := range 16 * 8 {
		img.Set(i%16, i/16, color.RGBA{sum[0], sum[1], sum[2], 255})
	}
	var b bytes.Buffer
	var err error
	if lossless {
		err = png.Encode(&b, img)
	} else {
		err = jpeg.Encode(&b, img, nil)
	}
	if err != nil {
		panic(err) // into memory
	}
	return b.Bytes()
}

// save writes a picture under the next number of its prefix.
func (w *Worker) save(it *item, n Node) json.RawMessage {
	kind, prefix := "output", "ComfyUI"
	if n.Class == "PreviewImage" {
		kind, prefix = "temp", "ComfyUI_temp_abcde"
	}
	var given string
	if json.Unmarshal(n.Inputs["filename_prefix"], &given) == nil && given != "" {
		prefix = given
	}
	subfolder := ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		subfolder, prefix = prefix[:i], prefix[i+1:]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counters[kind+"/"+subfolder+"/"+prefix]++
	name := fmt.Sprintf("%s_%05d_.png", prefix, w.counters[kind+"/"+subfolder+"/"+prefix])
	w.files[key(kind, subfolder, name)] = picture(it.signature(n.ID, map[string]string{}), true)
	ui, err := json.Marshal(map[string]any{"images": []any{map[string]any{"filename": name, "subfolder": subfolder, "type": kind}}})
	if err != nil {
		panic(err)
	}
	return ui
}
