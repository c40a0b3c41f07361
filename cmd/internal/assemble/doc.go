// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package assemble puts the parts of a process together from the
// configuration: an agent, or a coordinator with its embedded etcd.
//
// Commands and whole-cluster tests import it, and it must not be imported by
// any part. It holds no decisions: what it adds to the parts is their order of
// starting and stopping.
package assemble
