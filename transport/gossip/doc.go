// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package gossip keeps the list of processes that are alive, as a second
// opinion beside heartbeats and leases: SWIM (hashicorp/memberlist, which no
// other package imports) over the cluster's own mutually authenticated
// streams, so that gossip has identities and opens no UDP port.
//
// Importers: the agent, the coordinator and the commands that start them. It
// must not import stores, the transport or engines; the listener and the dial
// function come in by Config.
//
// Gossip never heals a partition by itself: Run joins the seeds again, from a
// list that the caller reads from the store, whenever one of them is missing.
package gossip
