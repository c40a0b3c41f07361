// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package vector

import "github.com/distorch/distorch/agent/engine/native/isa"

// assembly returns nil: this architecture has pure Go alone.
func assembly(isa.ISA) *Kernels { return nil }
