// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package assemble

import (
	"errors"
	"syscall"
)

func ownMounts() *syscall.SysProcAttr { return nil }

func mountTmpfs(string, int, bool) error { return errors.New("no mount namespaces here") }
