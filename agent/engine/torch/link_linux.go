// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/distorch/distorch/model/tensor"
)

// link is the connection to a worker to be: one end of a pair of sockets, which
// the process inherits.
type link struct {
	ours   *net.UnixConn
	theirs *os.File
}

func newLink() (*link, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "torch worker"), os.NewFile(uintptr(fds[1]), "torch worker's end")
	conn, err := net.FileConn(near) // a duplicate
	err = errors.Join(err, near.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket pair: %w", err), far.Close())
	}
	return &link{ours: conn.(*net.UnixConn), theirs: far}, nil
}

func (l *link) describe(config map[string]any) {
	config["fd"] = 3 // the first of ExtraFiles
	config["parent"] = os.Getpid()
}

// prepare hands the far end to the process and lets it die with this one.
func (l *link) prepare(cmd *exec.Cmd) {
	cmd.ExtraFiles = []*os.File{l.theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// accept is the near end; the far one is the process's alone from now on.
func (l *link) accept() (net.Conn, error) {
	return l.ours, l.theirs.Close()
}

// abort wakes whoever reads.
func (l *link) abort() { _ = l.ours.Close() }

func (l *link) close() error { return errors.Join(l.ours.Close(), l.theirs.Close()) }

// shared is memory that both processes map.
type shared struct {
	data []byte
	fd   int
}

// newShared makes n bytes, zero, without a name: they are gone with their users.
func newShared(n tensor.Bytes) (*shared, error) {
	fd, err := unix.MemfdCreate("distorch", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return nil, errors.Join(fmt.Errorf("shared memory of %v: %w", n, err), unix.Close(fd))
	}
	data, err := unix.Mmap(fd, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %v: %w", n, err), unix.Close(fd))
	}
	return &shared{data: data, fd: fd}, nil
}

func (s *shared) describe(msg map[string]any) { msg["map"] = "fd" }

// handed is called when the worker has it.
func (s *shared) handed() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}

func (s *shared) close() error { return errors.Join(s.handed(), unix.Munmap(s.data)) }

// write sends a message; a file's descriptor goes with its first bytes.
func write(conn net.Conn, raw []byte, file *shared) error {
	if file != nil {
		n, _, err := conn.(*net.UnixConn).WriteMsgUnix(raw, unix.UnixRights(file.fd), nil)
		if err != nil {
			return err
		}
		raw = raw[n:]
	}
	if len(raw) == 0 {
		return nil
	}
	_, err := conn.Write(raw)
	return err
}

func isReset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }
