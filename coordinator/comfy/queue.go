// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// entry is a prompt in the queue or running.
type entry struct {
	prompt    *Prompt
	number    jsontext.Value // as the client sees it
	order     float64        // the number
	seq       uint64         // among equal numbers, the first queued goes first
	shown     jsontext.Value // the graph, as queue and history show it
	extra     jsontext.Value // extra_data without secrets
	client    string
	hasClient bool
	created   time.Time
	size      int64 // bytes that the entry holds

	attempts    int                // workers lost with it
	told        map[string]*object // executed messages of those, by node: the client has them
	lease       Lease              // while it runs
	interrupted bool
	waits       bool   // it was said that no worker can run it
	node        string // the display id of the node that runs, or ""

	group *group
	place int // in the group's heap
}

// item is the entry as GET /queue lists it.
func (e *entry) item() jsontext.Value {
	return array(e.number, text(e.prompt.ID), e.shown, e.extra, encode(e.prompt.Outputs))
}

func before(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.seq, b.seq))
}

// group is the pending prompts that want the same classes and choices: where the
// first of them finds no worker, none does.
type group struct {
	key     string
	entries heapOf[*entry]
	blocked bool // no worker was free for it since the last change of the workers
	place   int  // in queue.ready, or -1
}

// queue holds pending and running prompts. It is not safe for use by several at once.
type queue struct {
	groups  map[string]*group
	ready   heapOf[*group] // groups that are not blocked
	pending int
	running []*entry // in the order in which they began
	byID    map[string][]*entry
	seq     uint64
	bytes   int64
}

func newQueue() *queue {
	return &queue{groups: map[string]*group{}, byID: map[string][]*entry{}}
}

// remaining is what exec_info.queue_remaining says.
func (q *queue) remaining() int { return q.pending + len(q.running) }

// add queues a new entry.
func (q *queue) add(e *entry, key string) {
	e.seq = q.seq
	q.seq++
	q.bytes += e.size
	q.byID[e.prompt.ID] = append(q.byID[e.prompt.ID], e)
	q.push(e, key)
}

func (q *queue) push(e *entry, key string) {
	g := q.groups[key]
	if g == nil {
		g = &group{key: key, place: -1}
		q.groups[key] = g
	}
	e.group = g
	heap.Push(&g.entries, e)
	q.pending++
	q.settle(g)
}

// settle puts a group where its entries and its state say that it belongs.
func (q *queue) settle(g *group) {
	switch {
	case len(g.entries) == 0:
		if g.place >= 0 {
			heap.Remove(&q.ready, g.place)
		}
		delete(q.groups, g.key)
	case g.blocked:
		if g.place >= 0 {
			heap.Remove(&q.ready, g.place)
		}
	case g.place >= 0:
		heap.Fix(&q.ready, g.place)
	default:
		heap.Push(&q.ready, g)
	}
}

// next is the prompt to find a worker for, or nil.
func (q *queue) next() *entry {
	if len(q.ready) == 0 {
		return nil
	}
	return q.ready[0].entries[0]
}

// block keeps the group of e from being asked for until unblock.
func (q *queue) block(e *entry) {
	if e.group != nil {
		e.group.blocked = true
		q.settle(e.group)
	}
}

func (q *queue) unblock() {
	for _, g := range q.groups {
		if g.blocked {
			g.blocked = false
			q.settle(g)
		}
	}
}

// start makes a pending entry a running one.
func (q *queue) start(e *entry, l Lease) {
	q.unqueue(e)
	e.lease = l
	q.running = append(q.running, e)
}

func (q *queue) unqueue(e *entry) {
	g := e.group
	heap.Remove(&g.entries, e.place)
	e.group = nil
	q.pending--
	q.settle(g)
}

// again puts a running entry back to where its number says.
func (q *queue) again(e *entry, key string) {
	q.stop(e)
	q.push(e, key)
}

func (q *queue) stop(e *entry) {
	e.lease, e.node = nil, ""
	q.running = slices.DeleteFunc(q.running, func(r *entry) bool { return r == e })
}

// drop forgets an entry that is pending or just stopped.
func (q *queue) drop(e *entry) {
	if e.group != nil {
		q.unqueue(e)
	}
	q.bytes -= e.size
	same := slices.DeleteFunc(q.byID[e.prompt.ID], func(o *entry) bool { return o == e })
	if len(same) == 0 {
		delete(q.byID, e.prompt.ID)
		return
	}
	q.byID[e.prompt.ID] = same
}

// remove deletes one pending entry of that id and says whether there was one.
func (q *queue) remove(id string) bool {
	for _, e := range q.byID[id] {
		if e.group != nil {
			q.drop(e)
			return true
		}
	}
	return false
}

// clear deletes all pending entries.
func (q *queue) clear() {
	for _, e := range q.list() {
		q.drop(e)
	}
}

// list is the pending entries, the next to run first.
func (q *queue) list() []*entry {
	out := make([]*entry, 0, q.pending)
	for _, g := range q.groups {
		out = append(out, g.entries...)
	}
	slices.SortFunc(out, before)
	return out
}

func (e *entry) first() *entry { return e }
func (e *entry) at() *int      { return &e.place }
func (g *group) first() *entry { return g.entries[0] }
func (g *group) at() *int      { return &g.place }

// placed is what a heap orders by a prompt, and knows its place there: -1 outside.
type placed interface {
	first() *entry
	at() *int
}

type heapOf[T placed] []T

func (h heapOf[T]) Len() int           { return len(h) }
func (h heapOf[T]) Less(i, j int) bool { return before(h[i].first(), h[j].first()) < 0 }
func (h heapOf[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	*h[i].at(), *h[j].at() = i, j
}

// Push is heap's.
func (h *heapOf[T]) Push(x any) {
	v, _ := x.(T)
	*v.at() = len(*h)
	*h = append(*h, v)
}

// Pop is heap's.
func (h *heapOf[T]) Pop() any {
	last := len(*h) - 1
	v := (*h)[last]
	clear((*h)[last:])
	*h = (*h)[:last]
	*v.at() = -1
	return v
}
