// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"container/list"

	"github.com/go-json-experiment/json/jsontext"
)

// record is a prompt that is done, as GET /history shows it.
type record struct {
	id      string
	item    jsontext.Value // [number, prompt_id, prompt, extra_data, outputs_to_execute]
	outputs jsontext.Value // by node
	status  jsontext.Value
	meta    jsontext.Value // by node
	job     job
}

func (r *record) value() jsontext.Value {
	return fields("prompt", r.item, "outputs", r.outputs, "status", r.status, "meta", r.meta).value()
}

func (r *record) size() int64 {
	return int64(len(r.id) + len(r.item) + len(r.outputs) + len(r.status) + len(r.meta) + len(r.job.failure) + len(r.job.preview))
}

// history keeps the last records, within a number and a sum of bytes.
type history struct {
	most      int
	mostBytes int64

	order *list.List // of *record, oldest first
	byID  map[string]*list.Element
	bytes int64
}

func newHistory(most int, mostBytes int64) *history {
	return &history{most: most, mostBytes: mostBytes, order: list.New(), byID: map[string]*list.Element{}}
}

func (h *history) add(r *record) {
	h.remove(r.id)
	h.byID[r.id] = h.order.PushBack(r)
	h.bytes += r.size()
	for h.order.Len() > 1 && (h.order.Len() > h.most || h.bytes > h.mostBytes) {
		h.drop(h.order.Front())
	}
}

func (h *history) drop(e *list.Element) {
	r, _ := e.Value.(*record)
	h.order.Remove(e)
	delete(h.byID, r.id)
	h.bytes -= r.size()
}

func (h *history) remove(id string) {
	if e, ok := h.byID[id]; ok {
		h.drop(e)
	}
}

func (h *history) clear() { *h = *newHistory(h.most, h.mostBytes) }

func (h *history) at(id string) *record {
	e, ok := h.byID[id]
	if !ok {
		return nil
	}
	r, _ := e.Value.(*record)
	return r
}

// page is the records from offset on, counted from the oldest; most < 0 is all of
// them. A negative offset with most is the last most of them.
func (h *history) page(most, offset int) []*record {
	if offset < 0 && most >= 0 {
		offset = h.order.Len() - most
	}
	var out []*record
	i := 0
	for e := h.order.Front(); e != nil && (most < 0 || len(out) < max(most, 1)); e = e.Next() {
		if i >= offset {
			r, _ := e.Value.(*record)
			out = append(out, r)
		}
		i++
	}
	return out
}
