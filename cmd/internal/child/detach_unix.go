// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package child

import (
	"os"
	"os/exec"
	"syscall"
)

func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func terminate(p *os.Process) error { return p.Signal(syscall.SIGTERM) }
