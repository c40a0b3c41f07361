// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donor

import (
	"errors"
	"fmt"

	"github.com/distorch/distorch/transport"
)

// Why blocks are not, or no longer, in another node's RAM.
var (
	// ErrFull: the node's memory for other nodes is in use.
	ErrFull = errors.New("donor memory is full")
	// ErrRefused: the node does not give memory to this stage.
	ErrRefused = errors.New("donor memory was refused")
	// ErrLost: the node was restarted, has left, or took its memory back.
	ErrLost = errors.New("donor memory is lost")
	// ErrAltered: the node returned other bytes than were stored.
	ErrAltered = errors.New("donor memory has changed")
)

// Error is trouble with blocks in another node's RAM. errors.Is finds one of
// the sentinels where it is one, or what the transport said.
type Error struct {
	Node    transport.NodeID
	Name    string // of the node
	Address string
	Err     error
}

func (e *Error) Error() string {
	return fmt.Sprintf("blocks in the RAM of node %s at %s: %v", e.Name, e.Address, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Culprit is the node at fault.
func (e *Error) Culprit() string { return string(e.Node) }
