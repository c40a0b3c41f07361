// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package peak

import "github.com/distorch/distorch/agent/engine/native/isa"

// fma256 and fma512 make 12 independent chains one multiply-add longer in each
// round.

//go:noescape
func fma256(rounds int)

//go:noescape
func fma512(rounds int)

func loopOf(set isa.ISA) (loop, bool) {
	switch set {
	case isa.AVX2:
		return loop{fma256, 12 * 8 * 2}, true
	case isa.AVX512, isa.AVX512BF16:
		return loop{fma512, 12 * 16 * 2}, true
	default:
		return loop{}, false
	}
}
