// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

const (
	twisterSize  = 624
	twisterShift = 397
)

// twister is MT19937 (Matsumoto and Nishimura, 1998).
type twister struct {
	state [twisterSize]uint32
	next  int
}

func newTwister(seed uint32) *twister {
	t := &twister{next: twisterSize}
	t.state[0] = seed
	for i := 1; i < twisterSize; i++ {
		prev := t.state[i-1]
		t.state[i] = 1812433253*(prev^prev>>30) + uint32(i)
	}
	return t
}

func (t *twister) refill() {
	for i := range twisterSize {
		y := t.state[i]&0x80000000 | t.state[(i+1)%twisterSize]&0x7fffffff
		v := t.state[(i+twisterShift)%twisterSize] ^ y>>1
		if y&1 == 1 {
			v ^= 0x9908b0df
		}
		t.state[i] = v
	}
	t.next = 0
}

func (t *twister) uint32() uint32 {
	if t.next == twisterSize {
		t.refill()
	}
	y := t.state[t.next]
	t.next++
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	return y ^ y>>18
}
