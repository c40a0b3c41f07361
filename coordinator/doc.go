// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package coordinator is the control plane: it follows the cluster's records,
// places deployments while it leads, and answers the operator's commands.
//
// The commands import it. It must not import the agent, and etcd only through
// store. Decisions are made in reconcile, which is pure; this package reads the
// records, converts them, and makes the writes.
//
// Every coordinator answers every call. One at a time leads and writes plans:
// each write holds only while its election stands and the spec and plan are
// those that the decision was made from. Nothing is kept in memory that is not
// in the store.
package coordinator
