// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package peak

import "github.com/distorch/distorch/agent/engine/native/isa"

func loopOf(isa.ISA) (loop, bool) { return loop{}, false }
