// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// torch is bench/torch_block.py as a process: one answer for each request.
type torch struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	Version string `json:"torch"`
	CPU     string `json:"cpu"`
}

// startTorch starts the process; its OpenMP threads sleep when there is nothing
// to do, so that they do not run beside the other side.
func startTorch(ctx context.Context, o *options) (*torch, error) {
	if _, err := os.Stat(o.python); err != nil {
		return nil, fmt.Errorf("PyTorch to compare with: %w; `make bench-venv` installs it, -python names another", err)
	}
	cmd := exec.CommandContext(ctx, o.python, filepath.Join("bench", "torch_block.py"), "--threads", strconv.Itoa(o.threads))
	cmd.Env = append(os.Environ(), "OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=0", "KMP_BLOCKTIME=0",
		"OMP_NUM_THREADS="+strconv.Itoa(o.threads), "MKL_NUM_THREADS="+strconv.Itoa(o.threads))
	return startPython(cmd)
}

// startPython starts a process that answers lines of JSON, and hears its first.
func startPython(cmd *exec.Cmd) (*torch, error) {
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start PyTorch: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start PyTorch: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start PyTorch: %w", err)
	}
	t := &torch{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	if err := t.answer(t); err != nil {
		return nil, errors.Join(fmt.Errorf("start PyTorch: %w", err), t.close())
	}
	return t, nil
}

func (t *torch) answer(into any) error {
	if !t.out.Scan() {
		if err := t.out.Err(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}
	var failed struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(t.out.Bytes(), &failed); err != nil {
		return fmt.Errorf("answer %q: %w", t.out.Text(), err)
	}
	if failed.Error != "" {
		return errors.New(failed.Error)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(t.out.Bytes(), into)
}

func (t *torch) ask(request map[string]any, into any) error {
	line, err := json.Marshal(request)
	if err == nil {
		_, err = t.in.Write(append(line, '\n'))
	}
	if err == nil {
		err = t.answer(into)
	}
	if err != nil {
		return fmt.Errorf("PyTorch, %v: %w", request["op"], err)
	}
	return nil
}

// forward runs the block once; the time is what PyTorch's side measured.
func (t *torch) forward(context.Context) (time.Duration, error) {
	var got struct {
		Seconds []float64 `json:"seconds"`
	}
	if err := t.ask(map[string]any{"op": "run", "times": 1}, &got); err != nil {
		return 0, err
	}
	if len(got.Seconds) != 1 {
		return 0, fmt.Errorf("PyTorch measured %d times, not once", len(got.Seconds))
	}
	return time.Duration(got.Seconds[0] * float64(time.Second)), nil
}

func (t *torch) close() error {
	_ = t.in.Close() // ends its loop
	return t.cmd.Wait()
}
