// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/distorch/distorch/agent/engine"
)

// The errors of a Python that cannot serve. Each comes with the command that
// mends it.
var (
	ErrAbsent = errors.New("no PyTorch")
	ErrBroken = errors.New("PyTorch does not load")
	ErrTooOld = errors.New("PyTorch is too old")
	ErrArch   = errors.New("PyTorch has no code for this GPU")
)

// ErrWorkerLost is in the chain of every error of a session whose worker
// process crashed, hung or said what it should not; so is engine.ErrLost.
var ErrWorkerLost = fmt.Errorf("torch worker: %w", engine.ErrLost)

// errClosed is the error of work on a closed session.
var errClosed = errors.New("the session is closed")

func absentError(python string) error {
	return fmt.Errorf("%w in %s: run %s -m pip install torch (for NVIDIA cards of this year add --index-url with the wheels of your CUDA, see docs/torch.md), or set agent.torch.python to a Python that has it", ErrAbsent, python, python)
}

// startError says why a process never said hello.
func startError(python string, ended, read error, said *tail) error {
	if exit, ok := errors.AsType[*exec.ExitError](ended); ok {
		switch exit.ExitCode() {
		case exitAbsent:
			return absentError(python)
		case exitBroken:
			return fmt.Errorf("%w in %s%s; install it anew: %s -m pip install --force-reinstall torch", ErrBroken, python, said.said(), python)
		case exitTooOld: // the bootstrap knows the oldest
			return fmt.Errorf("%w: %s has %s, 2.4 or newer is needed; run %s -m pip install --upgrade torch", ErrTooOld, python, said.last(), python)
		}
		return fmt.Errorf("%w: %s ended at its start: %w%s", ErrWorkerLost, python, ended, said.said())
	}
	return fmt.Errorf("%w: %s did not report: %w%s", ErrWorkerLost, python, read, said.said())
}

// archError says that a card needs another build of PyTorch.
func archError(python string, h hello, d helloDevice) error {
	return fmt.Errorf("%w: %s (%s) is %s, PyTorch %s+%s in %s has %s; run %s -m pip install --upgrade torch --index-url https://download.pytorch.org/whl/%s",
		ErrArch, d.ID, d.Name, d.Lacks, h.Torch, h.Runtime, python, strings.Join(h.Archs, " "), python, wheelFor(d.Lacks))
}

// wheelFor is the folder of PyTorch's wheels that have code for an
// architecture: CUDA 12.8 was the first for Blackwell, and 12.6 is the last for
// cards before Turing.
func wheelFor(arch string) string {
	n, err := strconv.Atoi(strings.TrimPrefix(arch, "sm_"))
	switch {
	case err == nil && n < 75:
		return "cu126"
	default:
		return "cu130"
	}
}
