// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package vector

import "github.com/distorch/distorch/agent/engine/native/isa"

func assembly(isa.ISA) *Kernels { return nil }
