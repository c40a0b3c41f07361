// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package netns builds small networks of Linux network namespaces: hosts with
// an address each, joined by a bridge in a namespace of its own, with an
// optional rate limit per link and links that can be pulled.
//
// Tests, benches and the demo import it; the components of distorch must not.
// It imports nothing of distorch.
//
// Namespaces have no name in the file system: they live as long as this
// process or one of the processes started in them, so nothing stays behind
// even after a kill. Close frees the network's own references; it does not
// end processes, which belong to whoever started them.
package netns

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrUnsupported says that this system or this user cannot make namespaces.
// The error that wraps it names the reason and the way out.
var ErrUnsupported = errors.New("network namespaces are not available")

// MaxHosts is how many hosts one Network can hold.
const MaxHosts = 200

// Options describe a network. The zero rate leaves the links unshaped.
type Options struct {
	Hosts         int
	BitsPerSecond uint64 // of every link, each way
}

func (o Options) validate() error {
	if o.Hosts < 1 || o.Hosts > MaxHosts {
		return fmt.Errorf("network of %d hosts: want 1 to %d", o.Hosts, MaxHosts)
	}
	return nil
}

// hostAddr is the address of host i (from 0): 10.203.0.1, 10.203.0.2, ...
func hostAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 203, 0, byte(i + 1)})
}
