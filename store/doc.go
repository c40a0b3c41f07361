// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package store keeps the cluster's state in etcd: typed keys whose values are
// protobuf records, and the few operations that the control plane needs
// (compare-revision writes, keys under a lease, an election whose revision
// fences the leader's writes, watches without a gap, single-use tokens). It
// also embeds an etcd server.
//
// It is the only importer of etcd. The coordinator, the agent and the commands
// import it; of distorch's packages it imports proto and transport/identity
// alone.
//
// Order is etcd's: a record's revision, never a clock. The embedded server
// judges every request by the client's certificate: an agent writes its own
// keys only, whatever program it runs.
package store
