// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package matmul

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine/native/isa"
)

func native(set isa.ISA) (*Kernels, error) {
	return nil, fmt.Errorf("matrix kernels for %s: this build has generic alone", set)
}
