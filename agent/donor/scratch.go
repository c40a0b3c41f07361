// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donor

import (
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/planes"
	"github.com/distorch/distorch/model/tensor"
)

const (
	// readsAhead of those that are decoded keep the link full.
	readsAhead = 2
	maxScratch = 8
)

// scratch is room for compressed groups on their way. A nil one has none.
type scratch struct {
	buffer engine.Buffer // nil: the Go heap
	pieces chan []byte
	closed chan struct{}
}

func newScratch(room Room, threads int) (*scratch, error) {
	n := min(readsAhead+threads, maxScratch)
	s := &scratch{pieces: make(chan []byte, n), closed: make(chan struct{})}
	var memory []byte
	if room != nil {
		b, err := room.HostBuffer(tensor.Bytes(n * planes.GroupBytes))
		if err != nil {
			return nil, err
		}
		s.buffer, memory = b, b.Host()
	} else {
		memory = make([]byte, n*planes.GroupBytes)
	}
	for i := range n {
		s.pieces <- memory[i*planes.GroupBytes : (i+1)*planes.GroupBytes]
	}
	return s, nil
}

// ahead is how many groups may be under way.
func (s *scratch) ahead() int {
	if s == nil {
		return readsAhead
	}
	return cap(s.pieces)
}

// take waits for a piece; nil when they are freed.
func (s *scratch) take() []byte {
	select {
	case p := <-s.pieces:
		return p
	case <-s.closed:
		return nil
	}
}

// free waits for those who have pieces.
func (s *scratch) free() {
	if s == nil {
		return
	}
	close(s.closed)
	for range cap(s.pieces) {
		<-s.pieces
	}
	if s.buffer != nil {
		s.buffer.Free()
	}
}
