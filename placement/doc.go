// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package placement decides which node runs which blocks of a model and says how long a step will take before it runs.
//
// [Place] takes plain data (a block table at a workload, nodes with measured rates, constraints) and returns a [Plan] with its forecast, the typed reason for every node that is not used, what happens when a node is lost, and a certificate. For one or two runs of identical blocks of equal boundary size over star links the plan is optimal for the cost model; otherwise the certificate carries a lower bound.
//
// The coordinator and the command line import it and convert to and from its structs. It is pure: it must not import os, net, context, sync, a logger or a clock, and it uses no randomness. The same input gives the same bytes, whatever the order of the nodes.
//
// # Cost model
//
// A stage costs the time of its blocks, plus the head on the first stage and the tail on the last. A link between nodes p and q costs max(a_p, a_q) with a = boundary bytes / link rate + latency. The endpoint's own hops (input to the first stage, output from the last) belong to the first and last node. Sequential latency of one request is the sum S; the busiest stage or link is X; two forwards in flight take S + X.
//
// # Exactness
//
// Nodes are visited from the fastest link to the slowest. A node pays its own a once for every neighbour that was visited before it, so the pieces of the pipeline laid so far, kept as a small set of component shapes, are all that the future needs to know. The state is (blocks of run 1, blocks of run 2, set of components); see path.go for the proof that 17 sets are enough.
package placement
