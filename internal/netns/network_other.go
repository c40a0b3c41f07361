// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
)

// Network cannot be made on this system: New always fails.
type Network struct{}

// Host cannot be made on this system.
type Host struct{}

func missing() error {
	return fmt.Errorf("%w on %s: run on Linux, or without namespaces", ErrUnsupported, runtime.GOOS)
}

// New fails with ErrUnsupported.
func New(o Options) (*Network, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return nil, missing()
}

// Close does nothing.
func (*Network) Close() error { return nil }

// Hosts lists nothing.
func (*Network) Hosts() []*Host { return nil }

// Addr is the zero address.
func (*Host) Addr() netip.Addr { return netip.Addr{} }

// SetLink fails with ErrUnsupported.
func (*Host) SetLink(bool) error { return missing() }

// SetRate fails with ErrUnsupported.
func (*Host) SetRate(uint64) error { return missing() }

// Start fails with ErrUnsupported.
func (*Host) Start(*exec.Cmd) error { return missing() }

// Do fails with ErrUnsupported.
func (*Host) Do(func() error) error { return missing() }

// Dial fails with ErrUnsupported.
func (*Host) Dial(context.Context, string, string) (net.Conn, error) { return nil, missing() }

// Listen fails with ErrUnsupported.
func (*Host) Listen(context.Context, string, string) (net.Listener, error) { return nil, missing() }
