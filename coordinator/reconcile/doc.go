// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package reconcile decides what the leader does next: Step takes a snapshot
// of the cluster's records and returns the writes that bring the plans in line
// with what operators want and which nodes there are.
//
// The coordinator imports it and converts records to and from its structs. It
// is pure: it imports placement and model alone, no wire format, store, clock,
// network or logger. The same snapshot gives the same effects, whatever the
// order of its records; once the effects are applied, Step returns none.
//
// A running plan is kept until one of its nodes leaves, restarts or fails, or
// the operator changes the deployment: a better node alone moves nothing. A
// deployment that fits nowhere has a plan without stages that says why, and is
// placed as soon as the nodes allow it.
package reconcile
