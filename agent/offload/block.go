// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
)

// Block is one whose weights come to the device for each use.
type Block struct {
	Name  string // "double_blocks 3"
	Kind  Kind
	Where string       // the donor's id, the node, the file; "" for the own device and RAM
	Bytes tensor.Bytes // that move for one use

	// Either Buffer, of any session of the engine, or Reader.
	Buffer engine.Buffer
	Reader Reader

	// Program and Weights say how stored bytes are laid out; nil for bytes that
	// are packed already.
	Program engine.Program
	Weights []engine.Weight
}

// Fail names the block, its tier and the device that needs it.
func (b *Block) Fail(device engine.DeviceID, err error) error {
	where := b.Kind.String()
	if b.Where != "" {
		where += " " + b.Where
	}
	return fmt.Errorf("block %s from %s to device %s: %w", b.Name, where, device, err)
}
