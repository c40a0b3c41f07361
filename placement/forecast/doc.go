// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package forecast holds the forecast of weight streaming against measurements of it.
//
// A [Table] has seconds per iteration against gigabytes of weights kept off the
// compute device, one [Column] per kind of link. [Validate] fits each column on
// its two smallest offloads, predicts the rest and says how far off that is,
// beside what cruder rules and what overlap of copy and compute would give.
//
// # Model
//
// A program that copies a weight when its layer is reached and waits for the copy
// moves every offloaded byte once per forward, and that time adds to the time of
// computing. So a step costs
//
//	t = c + offload * forwards / rate
//
// with c the seconds of a step with all weights on the device, offload in GB,
// rate the link's GB/s as that program uses it. Both c and forwards/rate
// ([Line]) follow from any two rows; the two smallest offloads are those that
// cost a user least to measure. With copies that run ahead of compute, as
// distorch makes them, the same step costs max(c, offload*forwards/rate).
//
// The command line imports this package. It is pure, as all of placement: it must
// not import os, net, context, sync, a logger, a clock or anything of distorch.
package forecast
