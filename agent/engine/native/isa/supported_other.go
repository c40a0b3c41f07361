// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package isa

// Supported lists the sets that this CPU runs: pure Go alone on this
// architecture.
func Supported() []ISA { return []ISA{Generic} }
