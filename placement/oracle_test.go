// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement_test

import (
	"math/rand/v2"
	"testing"
)

// exactInstances is how many random problems each run solves twice.
const exactInstances = 8000

// TestOracle shows and checks the mix of instances.
func TestOracle(t *testing.T) {
	var mix mixture
	for seed := range uint64(exactInstances) {
		p := randomProblem(rand.New(rand.NewPCG(seed, 7)), objectives[seed%uint64(len(objectives))])
		mix.add(p, bruteForce(p))
	}
	mix.show(t)
	mix.check(t)
}
