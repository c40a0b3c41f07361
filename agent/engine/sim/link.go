// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"sync"
	"time"
)

const (
	// together is how soon after another a copy still counts as following it: what
	// the system slept too long is not paid twice.
	together = time.Millisecond
	// pace is how long one piece of a copy takes.
	pace                     = time.Millisecond
	leastPiece, largestPiece = 64 << 10, 4 << 20
)

// link lets bytes pass at a rate, one copy after another.
type link struct {
	rate float64 // bytes per second; 0: no limit

	mu   sync.Mutex
	free time.Time // when what was let in so far has passed
}

// move does n bytes piece by piece, each when its turn on the link has come.
func (l *link) move(n int, do func(at, n int) error) error {
	if l.rate == 0 {
		return do(0, n)
	}
	piece := min(max(int(l.rate*pace.Seconds()), leastPiece), largestPiece)
	for at := 0; at < n; at += piece {
		m := min(piece, n-at)
		until := l.take(m)
		if err := do(at, m); err != nil {
			return err
		}
		time.Sleep(time.Until(until))
	}
	return nil
}

// take gives the time at which n more bytes have passed.
func (l *link) take(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.free) > together {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return l.free
}
