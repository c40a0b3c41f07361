// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package torch

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"
)

// link is the connection to a worker to be: a listener on the loopback address
// that takes whoever knows the secret, which the process reads from its
// standard input.
type link struct {
	listener net.Listener
	secret   [32]byte
}

func newLink() (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	out := &link{listener: l}
	_, err = rand.Read(out.secret[:])
	return out, err
}

func (l *link) describe(config map[string]any) {
	config["port"] = l.listener.Addr().(*net.TCPAddr).Port
	config["secret"] = hex.EncodeToString(l.secret[:])
	config["parent"] = os.Getpid()
}

func (l *link) prepare(*exec.Cmd) {}

// accept takes the first connection that begins with the secret.
func (l *link) accept() (net.Conn, error) {
	defer l.listener.Close()
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return nil, err
		}
		var got [32]byte
		err = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if err == nil {
			_, err = io.ReadFull(conn, got[:])
		}
		if err == nil && subtle.ConstantTimeCompare(got[:], l.secret[:]) == 1 {
			return conn, conn.SetReadDeadline(time.Time{})
		}
		_ = conn.Close()
	}
}

func (l *link) abort() { _ = l.listener.Close() }

func (l *link) close() error { return l.listener.Close() }

// write sends a message; shared memory is named in it.
func write(conn net.Conn, raw []byte, _ *shared) error {
	_, err := conn.Write(raw)
	return err
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}

// name is a new random name of shared memory.
func name() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("shared memory: %w", err)
	}
	return "distorch-" + hex.EncodeToString(b[:]), nil
}
