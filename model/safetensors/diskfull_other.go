// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package safetensors

import (
	"errors"
	"syscall"
)

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
