// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"time"

	"github.com/distorch/distorch/model/tensor"
)

// Traffic is what came from one tier so far.
type Traffic struct {
	Streamed tensor.Bytes  // brought to the device
	Uses     uint64        // of blocks that rest there
	Hits     uint64        // uses that found the block in its slot
	Stall    time.Duration // that compute waited for blocks
}

// HitRate is the share of uses that did not wait; 1 without uses.
func (t Traffic) HitRate() float64 {
	if t.Uses == 0 {
		return 1
	}
	return float64(t.Hits) / float64(t.Uses)
}

// Traffics are counters by tier. They only grow.
type Traffics [kinds]Traffic

// Total adds the tiers up.
func (t *Traffics) Total() (sum Traffic) {
	for _, k := range t {
		sum.Streamed += k.Streamed
		sum.Uses += k.Uses
		sum.Hits += k.Hits
		sum.Stall += k.Stall
	}
	return sum
}

// Add counts another ring's traffic with one's own.
func (t *Traffics) Add(of Traffics) {
	for k := range t {
		t[k].Streamed += of[k].Streamed
		t[k].Uses += of[k].Uses
		t[k].Hits += of[k].Hits
		t[k].Stall += of[k].Stall
	}
}
