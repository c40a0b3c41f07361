// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestQueueAgainstAList drives the queue with random operations beside a list that is
// searched from end to end.
func TestQueueAgainstAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue()
		var pending, running []*entry
		keys := map[*entry]string{}
		blocked := map[string]bool{}
		first := func() *entry { // that is not blocked
			var best *entry
			for _, e := range pending {
				if !blocked[keys[e]] && (best == nil || before(e, best) < 0) {
					best = e
				}
			}
			return best
		}
		n := 0
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				e := &entry{prompt: &Prompt{ID: fmt.Sprint(rapid.IntRange(0, 8).Draw(t, "id"))}, order: float64(rapid.IntRange(-3, 3).Draw(t, "number")), size: 10}
				keys[e] = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key")
				n++
				q.add(e, keys[e])
				pending = append(pending, e)
				if !slices.ContainsFunc(pending[:len(pending)-1], func(o *entry) bool { return keys[o] == keys[e] }) {
					delete(blocked, keys[e]) // a new group is asked for
				}
			},
			"start": func(t *rapid.T) {
				e := q.next()
				if e != first() {
					t.Fatal("not the first")
				}
				if e == nil {
					return
				}
				q.start(e, nil)
				pending = slices.DeleteFunc(pending, func(o *entry) bool { return o == e })
				running = append(running, e)
			},
			"block": func(*rapid.T) {
				if e := q.next(); e != nil {
					q.block(e)
					blocked[keys[e]] = true
				}
			},
			"unblock": func(*rapid.T) {
				q.unblock()
				clear(blocked)
			},
			"finish": func(*rapid.T) {
				if len(running) > 0 {
					q.stop(running[0])
					q.drop(running[0])
					running = running[1:]
				}
			},
			"again": func(*rapid.T) {
				if len(running) > 0 {
					e := running[0]
					if !slices.ContainsFunc(pending, func(o *entry) bool { return keys[o] == keys[e] }) {
						delete(blocked, keys[e])
					}
					q.again(e, keys[e])
					running = running[1:]
					pending = append(pending, e)
				}
			},
			"remove": func(t *rapid.T) {
				id := fmt.Sprint(rapid.IntRange(0, 8).Draw(t, "id"))
				had := slices.ContainsFunc(pending, func(o *entry) bool { return o.prompt.ID == id })
				if q.remove(id) != had {
					t.Fatalf("remove %s: want %v", id, had)
				}
				left := q.list()
				pending = slices.DeleteFunc(pending, func(o *entry) bool { return !slices.Contains(left, o) })
			},
			"clear": func(*rapid.T) {
				q.clear()
				pending = nil
			},
			"": func(t *rapid.T) {
				want := slices.SortedFunc(slices.Values(pending), before)
				if d := cmp.Diff(ids(want), ids(q.list())); d != "" {
					t.Fatal(d)
				}
				if q.remaining() != len(pending)+len(running) || q.bytes != int64(10*q.remaining()) || len(q.running) != len(running) {
					t.Fatalf("%d prompts of %d bytes, want %d", q.remaining(), q.bytes, len(pending)+len(running))
				}
				if q.remaining() == 0 && (len(q.groups) > 0 || len(q.byID) > 0) {
					t.Fatal("something is left of an empty queue")
				}
			},
		})
	})
}

func ids(entries []*entry) (out []uint64) {
	for _, e := range entries {
		out = append(out, e.seq)
	}
	return out
}

// TestHistoryPages: Python's counting of max_items and offset.
func TestHistoryPages(t *testing.T) {
	h := newHistory(4, 1<<20)
	for i := range 6 { // the first two are dropped
		h.add(&record{id: fmt.Sprint(i)})
	}
	for _, tc := range []struct {
		most, offset int
		want         string
	}{
		{-1, -1, "2345"}, {2, -1, "45"}, {9, -1, "2345"}, {2, 0, "23"}, {2, 3, "5"}, {-1, 2, "45"}, {1, 1, "3"}, {0, -1, ""}, {0, 0, "2"}, {3, 9, ""},
	} {
		got := ""
		for _, r := range h.page(tc.most, tc.offset) {
			got += r.id
		}
		if got != tc.want {
			t.Errorf("max_items %d, offset %d: %s, want %s", tc.most, tc.offset, got, tc.want)
		}
	}
}

// TestHistoryIsBounded by bytes too, and keeps the newest whatever its size.
func TestHistoryIsBounded(t *testing.T) {
	h := newHistory(100, 1000)
	for i := range 10 {
		h.add(&record{id: fmt.Sprint(i), outputs: make(jsontext.Value, 299)})
	}
	if h.order.Len() != 3 || h.bytes != 900 || h.at("9") == nil || h.at("6") != nil {
		t.Errorf("%d records of %d bytes", h.order.Len(), h.bytes)
	}
	h.add(&record{id: "big", outputs: make(jsontext.Value, 5000)})
	if h.order.Len() != 1 || h.at("big") == nil {
		t.Errorf("%d records of %d bytes", h.order.Len(), h.bytes)
	}
	h.remove("big")
	if h.order.Len() != 0 || h.bytes != 0 {
		t.Errorf("%d records of %d bytes", h.order.Len(), h.bytes)
	}
}
