// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import "time"

const (
	firstPause = 5 * time.Millisecond
	maxPause   = 100 * time.Millisecond
)

// outage is how long a target has given no sign of life; the zero value is none.
type outage struct {
	since time.Time
	pause time.Duration
}

// remaining is how long the outage may still last.
func (o *outage) remaining(limit time.Duration) time.Duration {
	if o.since.IsZero() {
		return limit
	}
	return max(0, limit-time.Since(o.since))
}

// again takes a try that failed, one that dialled for all of limit included: how
// long to wait before the next, or that the limit is spent.
func (o *outage) again(limit time.Duration, dialled bool) (pause time.Duration, spent bool) {
	now := time.Now()
	if o.since.IsZero() {
		o.since, o.pause = now, firstPause
		if dialled {
			o.since = now.Add(-limit)
		}
	}
	if now.Sub(o.since) >= limit {
		return 0, true
	}
	pause = o.pause
	o.pause = min(2*pause, maxPause)
	return pause, false
}

// rest waits, at most until the Host closes.
func (h *Host) rest(pause time.Duration) {
	if pause <= 0 {
		return
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.ctx.Done():
	}
}
