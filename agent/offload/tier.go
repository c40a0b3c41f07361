// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"context"
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// Kind of a tier, the fastest first.
type Kind int

// The kinds.
const (
	Device Kind = iota // the compute device itself
	Donor              // another device of the node
	RAM                // of the node
	Remote             // another node's RAM
	Disk               // the checkpoint
	kinds
)

// Kinds lists them, the fastest first.
func Kinds() []Kind { return []Kind{Device, Donor, RAM, Remote, Disk} }

// String is the kind's name in metrics and messages.
func (k Kind) String() string {
	if k < 0 || k >= kinds {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return [kinds]string{"device", "donor", "ram", "remote", "disk"}[k]
}

// Tier says where a range of a stage's blocks rests. Blocks count over all runs
// of the model.
type Tier struct {
	FirstBlock, Blocks int
	Kind               Kind
	Donor              engine.Session // of a Donor
	Place              Place          // of a Remote
}

// Place is another node's RAM.
type Place interface {
	// Name is the node's.
	Name() string
	// Claim makes room for blocks of these sizes.
	Claim(ctx context.Context, sizes []tensor.Bytes) (Claim, error)
}

// Claim is room for blocks in another node's RAM.
type Claim interface {
	// Store keeps the bytes of block i of those that were claimed.
	Store(ctx context.Context, i int, src []byte) error
	// Reader gives block i, which was stored.
	Reader(i int) Reader
	Close()
}

// Reader gives one block's bytes that do not rest in a buffer of the engine: on
// disk or on another node. Reads of different Readers may overlap.
type Reader interface {
	Bytes() tensor.Bytes
	Read(ctx context.Context, dst []byte) error // fills dst[:Bytes()]; every error names the node or file
	Close() error
}
