// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"errors"
	"syscall"
)

// diskFull knows ERROR_DISK_FULL and ERROR_HANDLE_DISK_FULL.
func diskFull(err error) bool {
	return errors.Is(err, syscall.Errno(112)) || errors.Is(err, syscall.Errno(39))
}
