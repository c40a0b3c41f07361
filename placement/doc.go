// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package placement decides which node runs which blocks of a model and says how long a step will take before it runs.
//
// [Place] takes plain data (a block table at a workload, nodes with their devices, memories, rates and links, an
// objective and constraints) and returns a [Plan]: the stages, where their weights rest, the forecast with its range, the
// typed reason for every node that is not used, what happens when a node is lost, and a certificate.
//
// The coordinator and the command line import it and convert to and from its structs. It is pure: it must not import os,
// net, context, sync, a logger or a clock, and it uses no randomness. The same input gives the same bytes, whatever the
// order of the nodes.
//
// # Cost model
//
// docs/cost-model.md is the whole of it. In short: a stage costs the time of its blocks, of expanding what rests as
// stored and of the streaming that compute does not hide, plus the head on the first stage and the tail on the last. A
// link between nodes p and q costs max(a_p, a_q) with a = boundary bytes / link rate + latency; the endpoint's own hops
// belong to the first and last node. One request takes the sum S; the busiest stage or link is X; two forwards in flight
// take S + X, and a queue leaves one result every X.
//
// # How a plan is found
//
// Every node's undominated ways to run every part of the model are tabled first (engine.go, ways.go, options.go), equal
// nodes once (class.go). Nodes are then visited from the fastest link to the slowest. A node pays its own a once for
// every neighbour that was visited before it, so the pieces of the pipeline laid so far, kept as a small set of shapes,
// are all that the future needs to know (path.go has the proof). The dynamic program over (blocks of run 1, blocks of
// run 2, set) is pruned by a relaxation that keeps the number of blocks and every hop exact (relax.go, search.go), and
// repeated for limits on the busiest stage, best bound first (bottleneck.go). Replicas and branches apart share the nodes
// out (several.go); memory lent by other nodes is dealt out after (donors.go).
//
// # Exactness
//
// For one or two runs of identical blocks of equal boundary size over star links the plan is optimal for the cost model,
// and the tests hold it against brute force. Otherwise (measured pairs and racks: links.go, reorder.go; more than 64
// unlike hosts: bucket.go; three runs or more: fold.go) the plan is the best that was found and the certificate carries
// a lower bound.
package placement
