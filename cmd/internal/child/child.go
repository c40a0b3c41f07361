// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package child runs processes that end with the command that started them.
//
// The commands import it; it imports nothing of distorch. Each process has one
// goroutine, which waits for it; whoever starts a process calls Stop. A process
// gets no signals of the terminal, so that its parent ends it in order, and on
// Linux it is asked to end when its parent is killed.
package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Process is a running or ended process.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // of Wait; read it after done
	stop bool
}

// Start starts cmd with its output appended to the file log. start, if not nil,
// starts the command in some place of the caller's.
func Start(name string, cmd *exec.Cmd, log string, start func(*exec.Cmd) error) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer f.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = f, f
	detach(cmd)
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended says whether the process has ended without having been asked to.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return !p.stop
	default:
		return false
	}
}

// Ask asks the process to end and does not wait.
func (p *Process) Ask() {
	if p.Ended() {
		return
	}
	p.stop = true
	_ = terminate(p.cmd.Process) // it may have ended meanwhile
}

// Stop asks the process to end, kills it after grace, and waits for its end.
// The error says that it had to be killed.
func (p *Process) Stop(grace time.Duration) error {
	p.Ask()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
	}
	err := p.cmd.Process.Kill()
	<-p.done
	return errors.Join(fmt.Errorf("%s (process %d) did not end in %s and was killed", p.Name, p.PID(), grace), err)
}

const pollEvery = 20 * time.Millisecond

// AwaitFile waits until the process has written the file and returns what is in
// it. It fails when the process ends first.
func (p *Process) AwaitFile(ctx context.Context, path string) ([]byte, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		raw, err := os.ReadFile(path)
		if err == nil {
			return raw, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		select {
		case <-p.done:
			if p.err != nil {
				return nil, fmt.Errorf("%s ended before it was ready: %w", p.Name, p.err)
			}
			return nil, fmt.Errorf("%s ended before it was ready, without an error", p.Name)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s is not ready: %w", p.Name, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// tailBytes is how much of a log's end is read.
const tailBytes = 16 << 10

// Tail is the last lines of the process's log.
func (p *Process) Tail(lines int) []string {
	f, err := os.Open(p.log)
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd) // else it is read from its beginning
	}
	raw, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil {
		return []string{err.Error()}
	}
	all := strings.Split(string(bytes.TrimSpace(raw)), "\n")
	return all[max(0, len(all)-lines):]
}
