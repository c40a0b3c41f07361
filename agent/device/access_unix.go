// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package device

import "golang.org/x/sys/unix"

// accessible says whether this process may read and write a file, without
// opening it, which would wake a card.
func accessible(file string) bool { return unix.Access(file, unix.R_OK|unix.W_OK) == nil }
