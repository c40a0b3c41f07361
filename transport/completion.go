// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import "sync"

// Completion says that one transfer has been placed completely. It appears
// exactly once per transfer.
type Completion struct {
	Region *Region
	Peer   Peer
	Imm    Immediate
	Offset uint64 // in the region
	Length uint64
}

// Queue is a completion queue. Pushing never waits for the consumer: the
// goroutine that pushes reads a connection, and a wait there would stall every
// stream on it. Its length is bounded by what the peers may have outstanding,
// one write per slot region, since a sender needs the slot's answer before it
// writes that slot again; 32 slots of 16 peers are 512 entries of 200 bytes.
type Queue struct {
	out  chan Completion
	wake chan struct{}
	stop chan struct{}

	mu      sync.Mutex
	pending []Completion
}

func newQueue() *Queue {
	return &Queue{
		out:  make(chan Completion),
		wake: make(chan struct{}, 1),
		stop: make(chan struct{}),
	}
}

// Completions delivers in the order of completion. The channel is closed when
// the Host is.
func (q *Queue) Completions() <-chan Completion { return q.out }

func (q *Queue) push(c Completion) {
	q.mu.Lock()
	q.pending = append(q.pending, c)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue) take() []Completion {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.pending
	q.pending = nil
	return p
}

// run feeds the channel until the queue is stopped.
func (q *Queue) run() {
	defer close(q.out)
	for {
		for _, c := range q.take() {
			select {
			case q.out <- c:
			case <-q.stop:
				return
			}
		}
		select {
		case <-q.wake:
		case <-q.stop:
			return
		}
	}
}
