// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package identity

import (
	"errors"
	"os"
)

// syncDir makes a rename in the directory survive a power cut.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
