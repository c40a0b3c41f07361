// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package child

import (
	"os"
	"os/exec"
)

func detach(*exec.Cmd) {}

// terminate kills: this system has no signal that asks.
func terminate(p *os.Process) error { return p.Kill() }
